# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Fingerprints of functions, for the metadata of data sets made with them."""

from __future__ import annotations

import functools
import hashlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["UNKNOWN", "function_fingerprint"]

#: Replaces the hash of functions that cannot be compared, not even with themselves later.
UNKNOWN = "(not comparable)"
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...))
#: Functions of these libraries are identified by name, because the libraries' versions are recorded.
_LIBRARIES = {*sys.stdlib_module_names, "numpy", "torch", "tensordict", "torchrl", "gymnasium", "torchrl_o2o"}


class _NotComparable(Exception):
    pass


def function_fingerprint(function: Callable[..., Any]) -> str:
    """Name a function and hash its code and the outside values that it uses.

    Values are numbers, texts, arrays, tensors, containers of them and other functions. A function that uses anything
    else, such as an object with a state, has no hash, and neither has a callable object. The result then contains
    :data:`UNKNOWN`.

    Args:
        function: the function that acted.

    Examples:
        >>> from torchrl_o2o.data.datasets.functions import function_fingerprint
        >>> function_fingerprint(lambda x: x + 1) == function_fingerprint(lambda x: x + 1)
        True
        >>> function_fingerprint(lambda x: x + 1) == function_fingerprint(lambda x: x + 2)
        False
    """
    name = getattr(function, "__qualname__", type(function).__qualname__)
    digest = hashlib.blake2b(digest_size=16)
    try:
        for part in _parts(function, {}):
            digest.update(len(part).to_bytes(8, "little") + part)
    except (_NotComparable, RuntimeError):  # a list that contains itself, a tensor without values
        return f"{name} {UNKNOWN}"
    return f"{name} blake2b:{digest.hexdigest()}"


def _parts(value: Any, seen: dict[int, int]) -> Iterator[bytes]:
    """The bytes that identify a value, piece by piece; ``seen`` numbers visited functions, which may be recursive.

    Raises:
        _NotComparable: if the value cannot be identified.
    """
    yield type(value).__qualname__.encode()
    if type(value) in _PLAIN:
        yield repr(value).encode()
    elif _is_array(value):
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided:
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif _of_library(value):
        yield f"{getattr(value, '__module__', '')} {getattr(value, '__qualname__', value.__name__)}".encode()
    elif type(value) in (tuple, list, dict):
        items = [part for item in value.items() for part in item] if type(value) is dict else value
        yield str(len(items)).encode()
        for item in items:
            yield from _parts(item, seen)
    elif type(value) in (set, frozenset):  # the order of strings in a set differs between processes
        yield from sorted(b"".join(_parts(item, seen)) for item in value)
    elif type(value) is functools.partial:
        yield from _parts((value.func, value.args, value.keywords), seen)
    elif isinstance(value, types.CodeType):
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        yield repr((value.co_argcount, value.co_kwonlyargcount, value.co_flags, names)).encode()
        yield value.co_code
        yield from _parts(value.co_consts, seen)
    elif isinstance(value, types.FunctionType):
        yield str(seen.get(id(value))).encode()
        if id(value) not in seen:
            seen[id(value)] = len(seen)
            yield from _parts((value.__code__, value.__defaults__, value.__kwdefaults__, _outside(value)), seen)
    else:
        raise _NotComparable


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fiubcUS"


def _of_library(value: Any) -> bool:
    """Whether a module, class or function belongs to a library and can be found there by its name."""
    if isinstance(value, types.ModuleType):
        return value.__name__.partition(".")[0] in _LIBRARIES
    if isinstance(value, np.ufunc):
        return getattr(np, value.__name__, None) is value
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module.partition(".")[0] not in _LIBRARIES:
        return False
    return getattr(sys.modules.get(module), name, None) is value


def _outside(function: types.FunctionType) -> dict[str, Any]:
    """The values that a function uses from outside: those of enclosing functions and of its module."""
    try:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError as error:  # a variable without a value yet
        raise _NotComparable from error
    used = {
        name: function.__globals__[name] for name in sorted(_names(function.__code__)) if name in function.__globals__
    }
    return {**used, **dict(zip(function.__code__.co_freevars, cells))}


def _names(code: types.CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))
