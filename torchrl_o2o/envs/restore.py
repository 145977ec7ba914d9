# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Restore a captured graph of objects in place, see :mod:`~torchrl_o2o.envs.snapshot`."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.wrappers import PassiveEnvChecker

from torchrl_o2o.envs.capturable import subspaces
from torchrl_o2o.envs.capture import kind_of_node
from torchrl_o2o.envs.mujoco_state import restore_data, restore_model
from torchrl_o2o.envs.objects import (
    INLINE,
    address_of,
    attributes_of,
    code_name,
    from_tensors,
    function_name,
    owner_of,
    set_generator_state,
    slots_of,
)
from torchrl_o2o.errors import O2OCheckpointError

__all__ = ["Restoring"]

_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")


class Restoring:
    """Restores nodes into existing objects; plain objects that do not exist are created.

    Args:
        nodes: from :class:`~torchrl_o2o.envs.capture.Walk`.
        shared: ids of objects that must not be changed.
    """

    def __init__(self, nodes: list[Any], shared: set[int]) -> None:
        self._nodes, self._shared = nodes, shared
        self._present: dict[int, Any] = {}
        self._claimed: set[int] = set()
        self._done: dict[int, Any] = {}

    def match(self, value: Any, present: Any) -> None:
        """Record the existing object into which a node is restored, recursively for their contents.

        Args:
            value: a plain value or (i,), from the contents of a node.
            present: the object at the same place in the existing environment.
        """
        if not isinstance(value, tuple) or value[0] in self._present:
            return
        kind, _, contents = self._nodes[value[0]]
        if id(present) in self._claimed or not self._fits(kind, contents, present):
            return
        self._present[value[0]] = present
        self._claimed.add(id(present))
        for child, counterpart in _children(kind, contents, present):
            self.match(child, counterpart)

    def _fits(self, kind: str, contents: Any, present: Any) -> bool:
        if kind_of_node(present) != kind:
            return False
        if kind in ("array", "list", "dict", "deque", "generator") and id(present) in self._shared:
            return False
        if kind == "array":
            saved = contents.numpy()
            same = saved.shape == present.shape and saved.dtype == present.dtype and saved.strides == present.strides
            return same and present.flags.writeable
        if kind == "function":
            return contents["name"] == function_name(present) and len(contents["cells"]) == len(
                present.__closure__ or ()
            )
        if kind == "object":
            return contents["class"] == f"{type(present).__module__}.{type(present).__qualname__}"
        if kind == "code":
            return contents == code_name(present)
        if kind == "generator":
            return contents["bit_generator"] == type(present.bit_generator).__name__
        if kind == "space":
            return len(contents) == len(list(subspaces(present)))
        return kind != "deque" or contents["maxlen"] == present.maxlen

    def restore_models(self) -> None:
        """Restore the models before everything that is computed with them."""
        for index, (kind, _, _) in enumerate(self._nodes):
            if kind == "model":
                self.value((index,))

    def value(self, value: Any) -> Any:
        """The restored object of a node.

        Args:
            value: a plain value or (i,), from the contents of a node.

        Returns:
            The plain value, or the object of node i.

        Raises:
            O2OCheckpointError: if the existing environment lacks an object that cannot be created.
        """
        if not isinstance(value, tuple):
            return value
        index = value[0]
        if index not in self._done:
            kind, where, contents = self._nodes[index]
            getattr(self, f"_{kind.replace(' ', '_')}")(index, contents, self._present.get(index), where)
        return self._done[index]

    def _values(self, values: list[Any]) -> list[Any]:
        return [self.value(item) for item in values]

    def _needed(self, present: Any, where: str, what: str) -> Any:
        if present is None:
            raise O2OCheckpointError(
                f"the saved environment has {what} at {where}, which is missing here; build the environment like the "
                "saved run, with the versions of that run"
            )
        return present

    def _scalar(self, index: int, contents: torch.Tensor, present: Any, where: str) -> None:
        self._done[index] = contents.numpy()[()]

    def _array(self, index: int, contents: torch.Tensor, present: Any, where: str) -> None:
        if present is None:
            present = contents.numpy().copy(order="K")
        else:
            present[...] = contents.numpy()
        self._done[index] = present

    def _view(self, index: int, contents: dict[str, Any], present: Any, where: str) -> None:
        owner = self.value(contents["owner"])
        memory = owner.ravel(order="K")
        shape, strides = tuple(contents["shape"]), tuple(contents["strides"])
        view = np.ndarray(shape, contents["dtype"], memory, contents["offset"], strides)
        same = present is not None and owner_of(present) is owner and _layout(present) == _layout(view)
        self._done[index] = present if same else view

    def _list(self, index: int, contents: list[Any], present: Any, where: str) -> None:
        self._done[index] = present = [] if present is None else present
        present[:] = self._values(contents)

    def _deque(self, index: int, contents: dict[str, Any], present: Any, where: str) -> None:
        self._done[index] = present = deque(maxlen=contents["maxlen"]) if present is None else present
        items = self._values(contents["items"])
        present.clear()
        present.extend(items)

    def _dict(self, index: int, contents: list[Any], present: Any, where: str) -> None:
        self._done[index] = present = {} if present is None else present
        pairs = [(self.value(key), self.value(item)) for key, item in contents]
        present.clear()
        present.update(pairs)

    def _tuple(self, index: int, contents: list[Any], present: Any, where: str) -> None:
        items = tuple(self._values(contents))
        same = present is not None and all(map(_same, items, present))
        self._done[index] = present if same else items

    def _generator(self, index: int, contents: dict[str, Any], present: Any, where: str) -> None:
        self._done[index] = _restored_generator(present, from_tensors(contents))

    def _other_generator(self, index: int, contents: Any, present: Any, where: str) -> None:
        self._done[index] = self._needed(present, where, "a generator")
        set_generator_state(present, from_tensors(contents))

    def _space(self, index: int, contents: list[Any], present: Any, where: str) -> None:
        self._done[index] = self._needed(present, where, "a space")
        for space, state in zip(subspaces(present), contents, strict=True):
            space._np_random = _restored_generator(space._np_random, from_tensors(state))

    def _code(self, index: int, contents: str, present: Any, where: str) -> None:
        self._done[index] = self._needed(present, where, contents)

    def _function(self, index: int, contents: dict[str, Any], present: Any, where: str) -> None:
        self._done[index] = self._needed(present, where, f"the function {contents['name']}")
        for cell in contents["cells"]:
            self.value(cell)

    def _cell(self, index: int, contents: dict[str, Any], present: Any, where: str) -> None:
        self._done[index] = self._needed(present, where, "a variable of a function")
        if "contents" in contents:
            value = self.value(contents["contents"])
            try:
                same = present.cell_contents is value
            except ValueError:
                same = False
            if not same:
                present.cell_contents = value

    def _method(self, index: int, contents: dict[str, Any], present: Any, where: str) -> None:
        owner = self.value(contents["self"])
        same = present is not None and present.__self__ is owner and present.__name__ == contents["name"]
        self._done[index] = present if same else getattr(owner, contents["name"])

    def _partial(self, index: int, contents: dict[str, Any], present: Any, where: str) -> None:
        function, arguments, keywords = self._values(contents["parts"])
        parts = () if present is None else (present.func, present.args, present.keywords)
        same = present is not None and all(map(_same, parts, (function, arguments, keywords)))
        self._done[index] = present if same else functools.partial(function, *arguments, **keywords)

    def _model(self, index: int, contents: Any, present: Any, where: str) -> None:
        self._done[index] = self._needed(present, where, "a MuJoCo model")
        restore_model(present, contents)

    def _data(self, index: int, contents: dict[str, Any], present: Any, where: str) -> None:
        self._done[index] = self._needed(present, where, "MuJoCo data")
        self.value(contents["model"])
        restore_data(present, contents["arrays"])

    def _object(self, index: int, contents: dict[str, Any], present: Any, where: str) -> None:
        self._done[index] = self._needed(present, where, f"a {contents['class']}")
        saved, slots = contents["attributes"], slots_of(present)
        for name in attributes_of(present).keys() - saved.keys():
            _delete(present, name, slots)
        current = attributes_of(present)
        for name, item in saved.items():
            value = self.value(item)
            if name in current and current[name] is value:
                continue
            if name in slots:
                slots[name].__set__(present, value)
            else:
                vars(present)[name] = value


def _children(kind: str, contents: Any, present: Any) -> Iterator[tuple[Any, Any]]:
    """Pairs of a node's contents and the corresponding contents of the existing object."""
    if kind == "view":
        yield contents["owner"], owner_of(present)
    elif kind in ("list", "tuple"):
        yield from zip(contents, present, strict=False)
    elif kind == "deque":
        yield from zip(contents["items"], present, strict=False)
    elif kind == "dict":
        for (key, item), (own_key, own_item) in zip(contents, present.items(), strict=False):
            yield key, own_key
            yield item, present.get(key, own_item) if not isinstance(key, tuple) else own_item
    elif kind == "function":
        yield from zip(contents["cells"], present.__closure__ or (), strict=True)
    elif kind == "cell" and "contents" in contents:
        try:
            yield contents["contents"], present.cell_contents
        except ValueError:
            return
    elif kind == "method":
        yield contents["self"], present.__self__
    elif kind == "partial":
        yield from zip(contents["parts"], (present.func, present.args, present.keywords), strict=True)
    elif kind == "data":
        yield contents["model"], present.model
    elif kind == "object":
        # A checker keeps the object that it returned to the caller, a new object unless the environment also refers to
        # it.
        given = {"_previous_data"} if isinstance(present, PassiveEnvChecker) else set()
        current = {name: value for name, value in attributes_of(present).items() if name not in given}
        yield from ((item, current[name]) for name, item in contents["attributes"].items() if name in current)


def _layout(array: np.ndarray) -> tuple[Any, ...]:
    return address_of(array), array.shape, array.strides, array.dtype


def _same(first: Any, second: Any) -> bool:
    return first is second or (type(first) in INLINE and type(first) is type(second) and first == second)


def _delete(owner: Any, name: str, slots: Mapping[str, Any]) -> None:
    if name in slots:
        slots[name].__delete__(owner)
    else:
        del vars(owner)[name]


def _restored_generator(present: np.random.Generator | None, state: dict[str, Any]) -> np.random.Generator:
    name = state["bit_generator"]
    if name not in _BIT_GENERATORS:
        raise O2OCheckpointError(
            f"got a saved environment with the generator {name!r}, expected one of {_BIT_GENERATORS}; use one of "
            "numpy's own"
        )
    if present is None or type(present.bit_generator).__name__ != name:
        present = np.random.Generator(getattr(np.random, name)())
    present.bit_generator.state = state
    return present
