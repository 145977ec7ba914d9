# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The parts of Python objects: attributes, slots, views of arrays, code and generators."""

from __future__ import annotations

import random
import types
import zlib
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

from torchrl_o2o.envs.capturable import module_root
from torchrl_o2o.envs.dm_control import DMControlEnv
from torchrl_o2o.envs.guard import GuardedEnv
from torchrl_o2o.envs.outputs import CheckedEnv

__all__ = [
    "INLINE",
    "address_of",
    "attributes_of",
    "code_name",
    "from_tensors",
    "function_name",
    "generator_state",
    "is_code",
    "is_method",
    "is_object",
    "owner_of",
    "set_generator_state",
    "slots_of",
    "to_tensors",
]

#: Besides environments, the walk enters objects of these packages.
_WALKED_MODULES = ("gymnasium", "gymnasium_robotics", "torchrl_o2o")
#: By class: attributes that are set once, at construction, or that only serve rendering.
_STATIC_NAMES: tuple[tuple[type, frozenset[str]], ...] = (
    (gymnasium.Env, frozenset({"spec", "metadata", "mujoco_renderer", "_model_names", "_saved_kwargs"})),
    (gymnasium.Env, frozenset({"_ezpickle_args", "_ezpickle_kwargs"})),
    (gymnasium.Wrapper, frozenset({"env"})),  # a separate layer
    (DMControlEnv, frozenset({"_env"})),  # its changing parts are captured separately
    (CheckedEnv, frozenset({"_space"})),
    (GuardedEnv, frozenset({"_space", "_action_shape", "max_rebuilds", "max_rejected", "last_fault"})),
    (GuardedEnv, frozenset({"_make_env", "_call"})),
)
#: Types of plain values, which are stored as they are.
INLINE = (bool, int, float, str, types.NoneType)
#: The process-wide generators, which a checkpoint stores separately.
_GLOBAL_GENERATORS = (np.random.mtrand._rand, random._inst, torch.default_generator)
_CODE = (type, types.ModuleType, np.ufunc, type(np.clip), np.dtype, EnvSpec, types.MethodDescriptorType)


def slots_of(owner: Any) -> dict[str, Any]:
    """Descriptors of an object's slots.

    Args:
        owner: the object.

    Returns:
        "Class.slot" -> descriptor; each class of an object has its own.
    """
    return {
        f"{cls.__name__}.{name}": member
        for cls in type(owner).__mro__
        for name, member in vars(cls).items()
        if isinstance(member, types.MemberDescriptorType) and cls.__module__ != "builtins"
    }


def attributes_of(owner: Any) -> dict[str, Any]:
    """An object's attributes and filled slots, without those that are not state.

    Args:
        owner: the object.

    Returns:
        Name -> value; slots are named as in :func:`slots_of`.
    """
    static = {name for cls, names in _STATIC_NAMES if isinstance(owner, cls) for name in names}
    found = {name: value for name, value in getattr(owner, "__dict__", {}).items() if name not in static}
    for name, member in slots_of(owner).items():
        try:
            found[name] = member.__get__(owner)
        except AttributeError:  # an empty slot
            continue
    return found


def owner_of(array: np.ndarray) -> np.ndarray:
    """The array that owns an array's memory.

    Args:
        array: any, also a view.

    Returns:
        The owner, or the array itself if it owns its memory.
    """
    while True:
        base: Any = array.base
        if type(base).__name__ == "DummyArray":  # made by numpy's stride tricks
            base = base.base
        if not isinstance(base, np.ndarray):
            return array
        array = base


def address_of(array: np.ndarray) -> int:
    """Where the memory of an array begins.

    Args:
        array: any.

    Returns:
        The address, in bytes.
    """
    return array.__array_interface__["data"][0]


def function_name(function: types.FunctionType) -> str:
    """The name of a function and a hash of its code: all lambdas in one scope have the same name.

    Args:
        function: any.

    Returns:
        A name that differs if the code differs.
    """
    return f"{function.__module__}.{function.__qualname__} {_fingerprint(function.__code__):08x}"


def _fingerprint(code: types.CodeType) -> int:
    names = (code.co_names, code.co_varnames)
    return zlib.crc32(code.co_code + repr(([_constant(each) for each in code.co_consts], names)).encode())


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _fingerprint(value)
    # The order of strings in a set differs between processes.
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def code_name(value: Any) -> str:
    """The name of code: a class, a module, a function without state, a specification.

    Args:
        value: what :func:`is_code` accepts.

    Returns:
        The name, with its module.
    """
    if isinstance(value, EnvSpec):
        return "a specification"
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or str(value)
    return f"{getattr(value, '__module__', None)}.{name}"


def is_object(value: Any) -> bool:
    """Whether the walk enters an object by its attributes.

    Args:
        value: any.

    Returns:
        True for environments and objects of known packages.
    """
    return isinstance(value, gymnasium.Env) or (
        module_root(type(value)) in _WALKED_MODULES
        and not isinstance(value, dict | list | tuple | set | np.ndarray | BaseException)
        and bool(hasattr(value, "__dict__") or slots_of(value))
    )


def is_method(value: Any) -> bool:
    """Whether a value is a method bound to an object.

    Args:
        value: any.

    Returns:
        False for methods of global generators, which are code.
    """
    bound = isinstance(value, types.MethodType | types.BuiltinFunctionType)
    return bound and not is_code(value) and value.__self__ is not None


def is_code(value: Any) -> bool:
    """Whether a value is code without state: contents of modules and classes, and methods of global generators.

    Args:
        value: any.

    Returns:
        True if only its name matters.
    """
    if isinstance(value, types.MethodType | types.BuiltinFunctionType):
        owner = value.__self__
        return owner is None or isinstance(owner, type | types.ModuleType) or owner in _GLOBAL_GENERATORS
    return isinstance(value, _CODE) or any(value is each for each in _GLOBAL_GENERATORS)


def generator_state(value: Any) -> Any:
    """The state of a generator of Python, torch, or the older numpy.

    Args:
        value: the generator.

    Returns:
        The state, in its own form.
    """
    if isinstance(value, random.Random):
        return value.getstate()
    return value.get_state()


def set_generator_state(value: Any, state: Any) -> None:
    """Put a generator of Python, torch, or the older numpy into a state.

    Args:
        value: the generator.
        state: from :func:`generator_state`.
    """
    if isinstance(value, random.Random):
        value.setstate(state)
    else:
        value.set_state(torch.from_numpy(state) if isinstance(value, torch.Generator) else state)


def to_tensors(value: Any) -> Any:
    """A generator's state, with arrays as tensors.

    Args:
        value: nested lists, tuples, dictionaries, arrays and plain values.

    Returns:
        The same with tensors.
    """
    if isinstance(value, np.ndarray | np.generic):
        return torch.from_numpy(np.array(value))
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list | tuple):
        return type(value)(to_tensors(item) for item in value)
    return {key: to_tensors(item) for key, item in value.items()} if isinstance(value, dict) else value


def from_tensors(value: Any) -> Any:
    """The inverse of :func:`to_tensors`.

    Args:
        value: its result.

    Returns:
        Tensors without dimensions become scalars of numpy.
    """
    if isinstance(value, torch.Tensor):
        return value.numpy().copy() if value.ndim else value.numpy()[()]
    if isinstance(value, list | tuple):
        return type(value)(from_tensors(item) for item in value)
    return {key: from_tensors(item) for key, item in value.items()} if isinstance(value, dict) else value
