# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Demonstration pickles in hand_dapg's format, read by an interpreter restricted to values, containers and arrays.

Python's own unpickler is not used, because it trusts the file: a forged dtype, a memo index of 2**31 or a key of a
million nested tuples crashes the process. Here an array is only a shape, a type code and bytes.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_o2o.data.datasets.cache import RawDataset
from torchrl_o2o.data.datasets.casting import StoredArray, refuse_stand_in
from torchrl_o2o.data.datasets.columns import ReadOptions
from torchrl_o2o.data.datasets.flat import read_episodes, read_flat
from torchrl_o2o.data.datasets.names import NAMES
from torchrl_o2o.errors import O2ODataError

__all__ = ["load_pickled_episodes", "read_demos"]

_CODE = re.compile(r"b1|[iuf][1248]")
_PLAIN_KEYS = (str, bytes, int, float, type(None))
#: A file may refer to one array several times, and pack small numbers. A file that expands by more than this factor is
#: refused.
_LARGEST_RATIO = 64
#: A dictionary of flat arrays has an array of one of these names.
_KNOWN = frozenset(alias for aliases in NAMES.values() for alias in aliases)
#: Levels of dictionaries and lists that are read below an episode.
_DEPTH = 4


class _Code:
    """Replaces `numpy.dtype`: a type code, which is accepted only if it names plain numbers."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        self.code, self.order = code, "="

    def build(self, state: Any) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype:
        code = self.code[1:] if isinstance(self.code, str) and self.code[:1] in ("<", ">", "|", "=") else self.code
        if not isinstance(code, str) or not _CODE.fullmatch(code) or self.order not in ("<", ">", "|", "="):
            raise O2ODataError("it holds an array of another type than plain numbers")
        return np.dtype(self.order + code)


class _Array:
    """Replaces `numpy.ndarray`."""

    def __init__(self, raw: Any = b"", code: Any = None, shape: Any = (0,), fortran: Any = False) -> None:
        self.raw, self.code, self.shape, self.fortran = raw, code, shape, fortran

    def build(self, state: Any) -> None:
        _, self.shape, self.code, self.fortran, self.raw = state

    def array(self) -> np.ndarray:
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        if not isinstance(self.code, _Code) or not isinstance(raw, bytes | bytearray):
            raise O2ODataError("it holds an array of another type than plain numbers")
        values = np.frombuffer(raw, self.code.dtype()) if len(raw) % self.code.dtype().itemsize == 0 else np.zeros(0)
        lengths = isinstance(self.shape, tuple) and all(isinstance(part, int) and part >= 0 for part in self.shape)
        if not lengths or math.prod(self.shape) != len(values):
            raise O2ODataError("it holds an array that does not fit its shape")
        return values.reshape(self.shape, order="F" if self.fortran else "C")


#: Callables that a file may name -> their replacements.
_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Code,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
}
for _core in ("numpy.core", "numpy._core"):
    _CALLS |= {
        (f"{_core}.multiarray", "_reconstruct"): lambda kind, shape, code: _Array(),
        (f"{_core}.multiarray", "scalar"): lambda code, raw: _Array(raw, code, ()),
        (f"{_core}.numeric", "_frombuffer"): lambda raw, code, shape, order: _Array(raw, code, shape, order == "F"),
    }
_MARK = object()
_EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERAL = re.compile(
    r"INT|BININT[12]?|LONG[14]?|(BIN)?FLOAT|(SHORT_)?(BIN)?STRING|(SHORT_)?(BIN)?UNICODE8?|(SHORT_)?BINBYTES8?|BYTEARRAY8"
)
_VALUES = {opcode.name for opcode in pickletools.opcodes if _LITERAL.fullmatch(opcode.name)}


class _Machine:
    """Pickle's stack machine without any operation that could run code."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _EMPTY:
                self.stack.append(_EMPTY[opcode.name]())
            elif opcode.name in _VALUES:
                self.stack.append(argument)
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                self.step(opcode.name, argument)
        return self.stack.pop()

    def step(self, name: str, argument: Any) -> None:
        stack, memo = self.stack, self.memo
        match name:
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.replace(tuple(stack[-_TUPLES[name] :]), _TUPLES[name])
            case "TUPLE":
                stack.append(tuple(self.marked()))
            case "LIST":
                stack.append(self.marked())
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if name == "APPEND" else self.marked()
                self.top(list).extend(items)
            case "DICT" | "SETITEM" | "SETITEMS":
                items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self.marked()
                if name == "DICT":
                    stack.append({})
                self.set(items)
            case "POP":
                stack.pop()
            case "GLOBAL":
                self.find(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                module, found = stack[-2:]
                del stack[-2:]
                self.find(module, found)
            case "REDUCE":
                arguments, call = stack.pop(), self.stack.pop()
                stack.append(_CALLS[call](*arguments))
            case "BUILD":
                state = stack.pop()
                self.top(_Array, _Code).build(state)
            case _:
                raise O2ODataError(
                    f"it has the instruction {name}, expected only instructions that a list of arrays needs"
                )

    def find(self, module: Any, name: Any) -> None:
        if (module, name) not in _CALLS:
            raise O2ODataError(
                f"it refers to {module}.{name}, but only numpy arrays are allowed in a data file; if it is your own, "
                "save it as npz"
            )
        self.stack.append((module, name))

    def top(self, *kinds: type) -> Any:
        if not isinstance(self.stack[-1], kinds):
            raise O2ODataError("its instructions do not fit its values")
        return self.stack[-1]

    def replace(self, value: Any, count: int) -> None:
        del self.stack[-count:]
        self.stack.append(value)

    def marked(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def set(self, items: list[Any]) -> None:
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, _PLAIN_KEYS):
                raise O2ODataError("it has a key that is not a name")
            target[key] = value


class _Reader:
    """Converts the machine's result into arrays, within a budget of bytes."""

    def __init__(self, budget: int) -> None:
        self.left = budget

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise O2ODataError("it expands to many times its size")

    def value(self, item: Any, depth: int = _DEPTH) -> Any:
        """An array, a dictionary of arrays, or None for anything else."""
        self.spend(1)
        if isinstance(item, _Array):
            try:
                array = item.array()
            except O2ODataError as error:
                return StoredArray((), np.dtype(object), _raiser(error))  # raises only if the array is used
            self.spend(array.nbytes)
            return array
        if isinstance(item, bool | int | float):
            return np.asarray(item)
        if not depth:
            return None
        if isinstance(item, Mapping):
            found = {key: self.value(value, depth - 1) for key, value in item.items() if isinstance(key, str)}
            return {key: value for key, value in found.items() if value is not None}
        if isinstance(item, list | tuple):
            parts = [self.value(part, depth - 1) for part in item]
            same = all(isinstance(part, np.ndarray) for part in parts) and len({part.shape for part in parts}) == 1
            return np.array(parts) if same else None
        return None


def _raiser(error: O2ODataError) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        raise error

    return read


def load_pickled_episodes(path: Path) -> dict[str, Any] | Sequence[dict[str, Any]]:
    """Read pickled episodes, or one dictionary of flat arrays, without running anything that the file names.

    Args:
        path: a pickled dictionary of numpy arrays, or of lists of numbers, or a list of such.

    Raises:
        O2ODataError: if the file is damaged, asks for anything besides numpy's arrays, or holds something else.
    """
    refuse_stand_in(path)
    try:
        data = path.read_bytes()
        episodes = _Machine().run(data)
        reader = _Reader(_LARGEST_RATIO * len(data))
        if isinstance(episodes, dict) and _KNOWN & set(map(str, episodes)):
            return reader.value(episodes)
        if not isinstance(episodes, list) or not all(isinstance(episode, dict) for episode in episodes):
            found = f"a {type(episodes).__name__}" if not isinstance(episodes, list) else "a list of other things"
            raise TypeError(f"it holds {found}; expected a list of episodes (dictionaries), or one of flat arrays")
        return [reader.value(episode) for episode in episodes]
    except O2ODataError as error:
        raise O2ODataError(f"{path} is refused: {error}.") from error
    except Exception as error:  # a damaged pickle can raise any exception
        raise O2ODataError(f"{path} is not a readable pickle of episodes ({error}).") from error


def read_demos(path: Path, options: ReadOptions) -> RawDataset:
    """Read demonstrations: per episode ``observations`` [T, o], ``actions`` [T, a], ``rewards`` [T]; or flat arrays.

    If there are as many observations as actions, the last transition of each episode has no successor, and it is
    dropped and counted. Flags are read as from a list of episodes in memory. Without flags, no state is terminal and
    each episode ends by truncation.

    Args:
        path: the pickle.
        options: how.

    Raises:
        O2ODataError: as in :func:`load_pickled_episodes`, or if an episode's arrays do not fit together.
    """
    content = load_pickled_episodes(path)
    if isinstance(content, dict):
        return read_flat(content, str(path), options)
    return read_episodes(content, str(path), options)
