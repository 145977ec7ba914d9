# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Find state that an environment keeps outside its attributes, where it cannot be captured.

Such state belongs to the process: a class attribute that methods assign, a list that all instances share, a global, a
variable of an enclosing function, or a mutable default of a function. The checks examine mutable values and the store
instructions in methods. gymnasium's own classes are trusted.
"""

from __future__ import annotations

import dis
import enum
import functools
import re
import types
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import gymnasium
import numpy as np

__all__ = ["Uncapturable", "check_class_capturable", "check_function_capturable", "module_root", "subspaces"]

#: Packages whose classes keep all their state in attributes.
_TRUSTED = frozenset(
    {"abc", "builtins", "collections", "enum", "functools", "gymnasium", "gymnasium_robotics", "mujoco", "numpy"}
    | {"torch", "torchrl_o2o", "typing"}
)
_CONSTANTS = (bool, int, float, complex, str, bytes, range, re.Pattern, PurePath, enum.Enum, np.generic, np.dtype)
_CODE = (type, types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType, types.NoneType)
_NUMPYS_CODE = (np.ufunc, type(np.clip))
#: Class attributes that gymnasium or Python defines.
_KNOWN_NAMES = frozenset({"metadata", "_abc_impl"})


class Uncapturable(Exception):
    """An attribute whose state may lie outside the object."""


def module_root(value: Any) -> str:
    """The top-level package of a class or a function."""
    return (getattr(value, "__module__", None) or "").partition(".")[0]


def subspaces(space: gymnasium.Space) -> Iterator[gymnasium.Space]:
    """A space and its subspaces, each with its own generator."""
    yield space
    for value in vars(space).values():
        members = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else (value,)
        for member in members:
            if isinstance(member, gymnasium.Space):
                yield from subspaces(member)


def check_class_capturable(owner: Any, attributes: frozenset[str]) -> None:
    """Raise if the class of an object holds state.

    Args:
        owner: the object.
        attributes: the object's own names, which hide those of its class.

    Raises:
        Uncapturable: if there is such state; the message names the attribute.
    """
    classes = [cls for cls in type(owner).__mro__ if module_root(cls) not in _TRUSTED]
    members = [(cls, name, value) for cls in classes for name, value in vars(cls).items() if not _is_known(name, value)]
    functions = [(f"{cls.__name__}.{name}", each) for cls, name, value in members for each in _functions(value)]
    for where, function in functions:
        check_function_capturable(function, where, shared=True)
    stored = {name for _, function in functions for name in _stored(function.__code__, "STORE_ATTR")}
    read = {name for _, function in functions for name in function.__code__.co_names}
    for cls, name, value in members:
        if name in attributes or any(True for _ in _functions(value)):
            continue
        where = f"the class attribute {cls.__name__}.{name}"
        if isinstance(value, gymnasium.Space):
            if {name, "sample"} <= read:
                raise Uncapturable(f"{where} is sampled by the class's methods and shared by all instances")
        elif not _is_constant(value) and not name.isupper():
            raise Uncapturable(
                f"{where} is a {type(value).__name__}, which can change and is shared by all instances; make it a "
                "tuple, or an attribute of the instance"
            )
        elif name in stored:
            raise Uncapturable(f"{where} is assigned by the class's methods and shared by all instances")


def check_function_capturable(function: types.FunctionType, where: str, *, shared: bool) -> None:
    """Raise if a function keeps state.

    Args:
        function: a function or a method of a class.
        where: its name, for the message.

    Keyword Args:
        shared: whether instances share it, so that its closure variables must not change either.

    Raises:
        Uncapturable: if it can change; the message names the state.
    """
    code = function.__code__
    if module_root(function) not in _TRUSTED:
        for name in _stored(code, "STORE_GLOBAL"):
            raise Uncapturable(f"{where} assigns the global {name}")
    if any(not name.startswith("__") for name in vars(function)):
        raise Uncapturable(f"{where} is a function with attributes")
    if not all(map(_is_constant, (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()))):
        raise Uncapturable(f"{where} is a function with defaults that can change")
    if not shared:
        return
    for name in _stored(code, "STORE_DEREF"):
        if name in code.co_freevars:
            raise Uncapturable(f"{where} assigns the variable {name} of the function around its class")
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        if name != "__class__" and not _is_constant(_contents(cell)):
            raise Uncapturable(f"{where} reads the variable {name} of the function around its class, which can change")


def _is_known(name: str, value: Any) -> bool:
    special = name.startswith("__") and name.endswith("__") and not isinstance(value, types.FunctionType)
    return special or name in _KNOWN_NAMES


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """The functions in a class's attribute, behind decorators."""
    if isinstance(value, types.FunctionType):
        yield value
        for cell in value.__closure__ or ():
            inner = _contents(cell)
            if isinstance(inner, types.FunctionType) and inner is not value:
                yield inner
    elif isinstance(value, staticmethod | classmethod | functools.partialmethod):
        yield from _functions(getattr(value, "__func__", getattr(value, "func", None)))
    elif isinstance(value, property):
        for each in (value.fget, value.fset, value.fdel):
            yield from _functions(each)
    elif isinstance(value, functools.cached_property):
        yield from _functions(value.func)
    elif isinstance(value, functools._lru_cache_wrapper):
        yield from _functions(value.__wrapped__)


def _stored(code: types.CodeType, operation: str) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname == operation:
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _stored(constant, operation)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(map(_is_constant, value))
    if isinstance(value, types.MappingProxyType):
        return all(map(_is_constant, value.values()))
    if isinstance(value, np.ndarray):
        return not value.flags.writeable
    if isinstance(value, types.FunctionType):
        cells = (_contents(cell) for cell in value.__closure__ or ())
        return all(inner is value or _is_constant(inner) for inner in cells)
    slot = isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType)
    return slot or isinstance(value, _CONSTANTS + _CODE + _NUMPYS_CODE)
