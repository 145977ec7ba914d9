# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Capture a graph of objects: :class:`Walk` makes a node of each, see :mod:`~torchrl_o2o.envs.snapshot`."""

from __future__ import annotations

import functools
import random
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch

from torchrl_o2o.envs.capturable import (
    Uncapturable,
    check_class_capturable,
    check_function_capturable,
    subspaces,
)
from torchrl_o2o.envs.mujoco_state import capture_data, capture_model, is_mujoco
from torchrl_o2o.envs.objects import (
    INLINE,
    address_of,
    attributes_of,
    code_name,
    function_name,
    generator_state,
    is_code,
    is_method,
    is_object,
    owner_of,
    to_tensors,
)

__all__ = ["Walk", "kind_of_node"]


class Walk:
    """Collects the nodes of all reachable objects in ``nodes``."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self._found: dict[int, int] = {}
        self._alive: list[Any] = []  # keep the object alive, so that its id stays unique

    def value(self, value: Any, where: str) -> Any:
        """The representation of a value in the contents of a node.

        Args:
            value: any object.
            where: path to it, for messages.

        Returns:
            The value itself if it is plain, else (i,) with the index i of its node.

        Raises:
            Uncapturable: if its state cannot be captured completely.
        """
        if type(value) in INLINE:
            return value
        if id(value) not in self._found:
            index = self._found[id(value)] = len(self.nodes)
            self._alive.append(value)
            self.nodes.append(None)
            kind, contents = self._describe(value, where)
            self.nodes[index] = (kind, where, contents)
        return (self._found[id(value)],)

    def _describe(self, value: Any, where: str) -> tuple[str, Any]:
        for kind, applies, describe in _KINDS:
            if applies(value):
                return kind, describe(self, value, where)
        raise Uncapturable(f"{where} is a {type(value).__module__}.{type(value).__name__}")

    def _items(self, values: Any, where: str) -> list[Any]:
        return [self.value(item, where) for item in values]

    def _deque(self, value: deque[Any], where: str) -> dict[str, Any]:
        return {"maxlen": value.maxlen, "items": self._items(value, where)}

    def _pairs(self, value: dict[Any, Any], where: str) -> list[Any]:
        return [[self.value(key, where), self.value(item, where)] for key, item in value.items()]

    def _tensor(self, value: np.ndarray | np.generic, where: str) -> torch.Tensor:
        try:
            return torch.from_numpy(np.array(value))
        except (TypeError, ValueError):
            raise Uncapturable(f"{where} is an array of {value.dtype}") from None

    def _array(self, value: np.ndarray, where: str) -> Any:
        foreign = value.base is not None and not isinstance(value.base, bytes | bytearray | torch.Tensor)
        if foreign or not (value.flags.c_contiguous or value.flags.f_contiguous):
            raise Uncapturable(f"{where} is a view of memory that is not numpy's")
        return self._tensor(value, where)

    def _view(self, value: np.ndarray, where: str) -> dict[str, Any]:
        owner = owner_of(value)
        return {
            "owner": self.value(owner, where),
            "offset": address_of(value) - address_of(owner),
            "shape": list(value.shape),
            "strides": list(value.strides),
            "dtype": value.dtype.str,
        }

    def _generator(self, value: np.random.Generator, where: str) -> Any:
        return to_tensors(value.bit_generator.state)

    def _other_generator(self, value: Any, where: str) -> Any:
        return to_tensors(generator_state(value))

    def _space(self, value: gymnasium.Space, where: str) -> list[Any]:
        return [to_tensors(each.np_random.bit_generator.state) for each in subspaces(value)]

    def _code(self, value: Any, where: str) -> str:
        return code_name(value)

    def _function(self, value: types.FunctionType, where: str) -> dict[str, Any]:
        check_function_capturable(value, where, shared=False)
        return {"name": function_name(value), "cells": self._items(value.__closure__ or (), where)}

    def _cell(self, value: types.CellType, where: str) -> Any:
        try:
            return {"contents": self.value(value.cell_contents, where)}
        except ValueError:  # the variable is not assigned yet
            return {}

    def _method(self, value: Any, where: str) -> dict[str, Any]:
        if getattr(value.__self__, value.__name__, None) != value:
            raise Uncapturable(f"{where} is a method of another name")
        return {"name": value.__name__, "self": self.value(value.__self__, where)}

    def _partial(self, value: functools.partial[Any], where: str) -> dict[str, Any]:
        parts = (value.func, value.args, value.keywords)
        return {"parts": [self.value(part, where) for part in parts]}

    def _model(self, value: Any, where: str) -> Any:
        return capture_model(value)

    def _data(self, value: Any, where: str) -> Any:
        return {"arrays": capture_data(value), "model": self.value(value.model, where)}

    def _object(self, value: Any, where: str) -> dict[str, Any]:
        attributes = attributes_of(value)
        check_class_capturable(value, frozenset(name.rpartition(".")[2] for name in attributes))
        name = type(value).__name__
        return {
            "class": f"{type(value).__module__}.{type(value).__qualname__}",
            "attributes": {key: self.value(item, f"{name}.{key}") for key, item in attributes.items()},
        }


Describe = Callable[[Walk, Any, str], Any]
#: Name of a kind, whether it applies, and how a walk describes it; the first that applies counts.
_KINDS: tuple[tuple[str, Callable[[Any], bool], Describe], ...] = (
    ("scalar", lambda value: isinstance(value, np.generic), Walk._tensor),
    ("array", lambda value: type(value) is np.ndarray and owner_of(value) is value, Walk._array),
    ("view", lambda value: type(value) is np.ndarray, Walk._view),
    ("list", lambda value: type(value) is list, Walk._items),
    ("tuple", lambda value: type(value) is tuple, Walk._items),
    ("deque", lambda value: type(value) is deque, Walk._deque),
    ("dict", lambda value: type(value) is dict, Walk._pairs),
    ("code", is_code, Walk._code),
    ("generator", lambda value: isinstance(value, np.random.Generator), Walk._generator),
    (
        "other generator",
        lambda value: type(value) in (random.Random, np.random.RandomState, torch.Generator),
        Walk._other_generator,
    ),
    ("space", lambda value: isinstance(value, gymnasium.Space), Walk._space),
    ("model", lambda value: is_mujoco(value, "MjModel"), Walk._model),
    ("data", lambda value: is_mujoco(value, "MjData"), Walk._data),
    ("function", lambda value: isinstance(value, types.FunctionType), Walk._function),
    ("cell", lambda value: isinstance(value, types.CellType), Walk._cell),
    ("method", is_method, Walk._method),
    ("partial", lambda value: type(value) is functools.partial, Walk._partial),
    ("object", is_object, Walk._object),
)


def kind_of_node(value: Any) -> str | None:
    """The kind of node for an object.

    Args:
        value: any object.

    Returns:
        The name of the kind, or ``None`` if it cannot be captured.
    """
    return next((name for name, applies, _ in _KINDS if applies(value)), None)
