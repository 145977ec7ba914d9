# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The state of a gymnasium environment in the middle of an episode, as tensors and plain values.

The state is collected by a walk through the wrappers and the environment, along attributes, slots, closures and bound
methods. It is a graph with one node for each object, so that shared references stay shared, and a view of an array
stays a view. It is restored in place, so that other references to an array or a list see the restored values. If the
walk finds something whose state it cannot capture completely (a socket, a foreign simulator, a class attribute that
methods assign), the environment cannot be captured at all: it would be resumed wrongly.

A node is (kind, path where it was found, contents). In contents, a plain value is itself, and (i,) refers to node i.
"""

from __future__ import annotations

import functools
import random
import sys
import types
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import PassiveEnvChecker

from torchrl_o2o.envs.capturable import (
    Uncapturable,
    check_class_capturable,
    check_function_capturable,
    module_root,
    subspaces,
)
from torchrl_o2o.envs.dm_control import DMControlEnv
from torchrl_o2o.envs.guard import GuardedEnv
from torchrl_o2o.envs.mujoco_state import capture_data, capture_model, is_mujoco, restore_data, restore_model
from torchrl_o2o.envs.outputs import CheckedEnv
from torchrl_o2o.errors import O2OCheckpointError

__all__ = ["env_state", "restore_env_state"]

#: Besides environments, the walk enters objects of these packages.
_WALKED_MODULES = ("gymnasium", "gymnasium_robotics", "torchrl_o2o")
#: By class: attributes that are set once, at construction, or that only serve rendering.
_STATIC_NAMES: tuple[tuple[type, frozenset[str]], ...] = (
    (gymnasium.Env, frozenset({"spec", "metadata", "mujoco_renderer", "_model_names", "_saved_kwargs"})),
    (gymnasium.Env, frozenset({"_ezpickle_args", "_ezpickle_kwargs"})),
    (gymnasium.Wrapper, frozenset({"env"})),  # a layer by itself
    (DMControlEnv, frozenset({"_env"})),  # its changing parts are captured separately
    (CheckedEnv, frozenset({"_space"})),
    (GuardedEnv, frozenset({"_space", "_action_shape", "max_rebuilds", "max_rejected", "last_fault"})),
    (GuardedEnv, frozenset({"_make_env", "_call"})),
)
_INLINE = (bool, int, float, str, types.NoneType)
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
#: The process-wide generators, which a checkpoint stores separately.
_GLOBAL_GENERATORS = (np.random.mtrand._rand, random._inst, torch.default_generator)
_CODE = (type, types.ModuleType, np.ufunc, type(np.clip), np.dtype, EnvSpec, types.MethodDescriptorType)


def env_state(env: gymnasium.Env) -> dict[str, Any] | None:
    """Capture an environment, so that :func:`restore_env_state` continues in the middle of its episode.

    Covered are MuJoCo environments of gymnasium and gymnasium_robotics, environments whose attributes are plain values,
    arrays, views of them, containers, generators, and functions that close over such (gymnasium's classic control), the
    generators of the environment and of its spaces, and the wrappers of gymnasium. State in module globals that methods
    change without assigning them is not seen.

    Args:
        env: the environment, with its wrappers.

    Returns:
        Tensors and plain values, which ``torch.load(weights_only=True)`` reads; or None, with a warning that names the
        attribute, if the environment cannot be captured. The caller then starts a new episode on resume.

    Examples:
        >>> env = gymnasium.make("Pendulum-v1")
        >>> _ = env.reset(seed=1)
        >>> state = env_state(env)
        >>> first, _, _, _, _ = env.step(env.action_space.sample())
        >>> restore_env_state(env, state)
        >>> again, _, _, _, _ = env.step(env.action_space.sample())
        >>> bool((first == again).all())
        True
    """
    walk = _Walk()
    try:
        layers = [walk.value(layer, type(layer).__name__) for layer in _layers(env)]
    except Uncapturable as error:
        warnings.warn(
            f"the state of {env} cannot be captured: {error}; a resumed run starts a new episode", stacklevel=2
        )
        return None
    return {"names": _layer_names(env), "layers": layers, "nodes": walk.nodes}


def restore_env_state(env: gymnasium.Env, state: Mapping[str, Any]) -> None:
    """Put an environment into a captured state.

    The observation is not part of the state: keep the one the policy was about to act on along with it.

    Args:
        env: an environment made as the captured one; it need not have been reset.
        state: from :func:`env_state`.

    Raises:
        O2OCheckpointError: if the environment, its wrappers or their functions are others than the captured ones.

    Examples:
        >>> restore_env_state(gymnasium.make("Pendulum-v1"), env_state(gymnasium.make("Acrobot-v1")))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OCheckpointError: the saved environment is ...AcrobotEnv..., this one ...PendulumEnv...
    """
    names = _layer_names(env)
    if state["names"] != names:
        raise O2OCheckpointError(
            f"the saved environment is {' of '.join(state['names'])}, this one {' of '.join(names)}; "
            "build it as the saved run did"
        )
    if "nodes" not in state:
        raise O2OCheckpointError("the environment's state was saved by an older version of torchrl_o2o; resume with it")
    restoring = _Restoring(state["nodes"], _shared_by_the_process(env))
    pairs = list(zip(state["layers"], _layers(env), strict=True))
    for layer, present in pairs:
        restoring.match(layer, present)
    restoring.restore_models()
    for layer, _ in pairs:
        restoring.value(layer)


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    yield env
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        yield env


def _layer_names(env: gymnasium.Env) -> list[str]:
    return [type(layer).__name__ for layer in _layers(env)] + [
        env.spec.id if env.spec else "an unregistered environment"
    ]


def _shared_by_the_process(env: gymnasium.Env) -> set[int]:
    """Ids of objects that modules and classes own; restoring an environment must not write into them."""
    classes = {cls for layer in _layers(env) for cls in type(layer).__mro__}
    modules = {sys.modules[cls.__module__] for cls in classes if cls.__module__ in sys.modules}
    return {id(value) for owner in (*classes, *modules) for value in vars(owner).values()}


def _slots(owner: Any) -> dict[str, Any]:
    """Descriptors of an object's slots, by "Class.slot"; each class of an object has its own."""
    return {
        f"{cls.__name__}.{name}": member
        for cls in type(owner).__mro__
        for name, member in vars(cls).items()
        if isinstance(member, types.MemberDescriptorType) and cls.__module__ != "builtins"
    }


def _attributes(owner: Any) -> dict[str, Any]:
    """An object's attributes and filled slots, without those that are not state."""
    static = {name for cls, names in _STATIC_NAMES if isinstance(owner, cls) for name in names}
    found = {name: value for name, value in getattr(owner, "__dict__", {}).items() if name not in static}
    for name, member in _slots(owner).items():
        try:
            found[name] = member.__get__(owner)
        except AttributeError:  # an empty slot
            continue
    return found


def _owner(array: np.ndarray) -> np.ndarray:
    """The array that owns an array's memory."""
    while True:
        base: Any = array.base
        if type(base).__name__ == "DummyArray":  # made by numpy's stride tricks
            base = base.base
        if not isinstance(base, np.ndarray):
            return array
        array = base


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _function_name(function: types.FunctionType) -> str:
    """A function's name and a hash of its code: all lambdas in one scope have the same name."""
    return f"{function.__module__}.{function.__qualname__} {_fingerprint(function.__code__):08x}"


def _fingerprint(code: types.CodeType) -> int:
    names = (code.co_names, code.co_varnames)
    return zlib.crc32(code.co_code + repr(([_constant(each) for each in code.co_consts], names)).encode())


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _fingerprint(value)
    # The order of strings in a set differs between processes.
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _code_name(value: Any) -> str:
    if isinstance(value, EnvSpec):
        return "a specification"
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or str(value)
    return f"{getattr(value, '__module__', None)}.{name}"


class _Walk:
    """Collects the nodes of all reachable objects."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self._found: dict[int, int] = {}
        self._alive: list[Any] = []  # keep the object alive, so that its id stays unique

    def value(self, value: Any, where: str) -> Any:
        if type(value) in _INLINE:
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

    def items(self, values: Any, where: str) -> list[Any]:
        return [self.value(item, where) for item in values]

    def deque(self, value: deque[Any], where: str) -> dict[str, Any]:
        return {"maxlen": value.maxlen, "items": self.items(value, where)}

    def pairs(self, value: dict[Any, Any], where: str) -> list[Any]:
        return [[self.value(key, where), self.value(item, where)] for key, item in value.items()]

    def tensor(self, value: np.ndarray | np.generic, where: str) -> torch.Tensor:
        try:
            return torch.from_numpy(np.array(value))
        except (TypeError, ValueError):
            raise Uncapturable(f"{where} is an array of {value.dtype}") from None

    def array(self, value: np.ndarray, where: str) -> Any:
        foreign = value.base is not None and not isinstance(value.base, bytes | bytearray | torch.Tensor)
        if foreign or not (value.flags.c_contiguous or value.flags.f_contiguous):
            raise Uncapturable(f"{where} is a view of memory that is not numpy's")
        return self.tensor(value, where)

    def view(self, value: np.ndarray, where: str) -> dict[str, Any]:
        owner = _owner(value)
        return {
            "owner": self.value(owner, where),
            "offset": _address(value) - _address(owner),
            "shape": list(value.shape),
            "strides": list(value.strides),
            "dtype": value.dtype.str,
        }

    def generator(self, value: np.random.Generator, where: str) -> Any:
        return _plain(value.bit_generator.state)

    def other_generator(self, value: Any, where: str) -> Any:
        return _plain(_generator_state(value))

    def space(self, value: gymnasium.Space, where: str) -> list[Any]:
        return [_plain(each.np_random.bit_generator.state) for each in subspaces(value)]

    def code(self, value: Any, where: str) -> str:
        return _code_name(value)

    def function(self, value: types.FunctionType, where: str) -> dict[str, Any]:
        check_function_capturable(value, where, shared=False)
        return {"name": _function_name(value), "cells": self.items(value.__closure__ or (), where)}

    def cell(self, value: types.CellType, where: str) -> Any:
        try:
            return {"contents": self.value(value.cell_contents, where)}
        except ValueError:  # the variable is not assigned yet
            return {}

    def method(self, value: Any, where: str) -> dict[str, Any]:
        if getattr(value.__self__, value.__name__, None) != value:
            raise Uncapturable(f"{where} is a method of another name")
        return {"name": value.__name__, "self": self.value(value.__self__, where)}

    def partial(self, value: functools.partial[Any], where: str) -> dict[str, Any]:
        parts = (value.func, value.args, value.keywords)
        return {"parts": [self.value(part, where) for part in parts]}

    def model(self, value: Any, where: str) -> Any:
        return capture_model(value)

    def data(self, value: Any, where: str) -> Any:
        return {"arrays": capture_data(value), "model": self.value(value.model, where)}

    def object(self, value: Any, where: str) -> dict[str, Any]:
        attributes = _attributes(value)
        check_class_capturable(value, frozenset(name.rpartition(".")[2] for name in attributes))
        name = type(value).__name__
        return {
            "class": f"{type(value).__module__}.{type(value).__qualname__}",
            "attributes": {key: self.value(item, f"{name}.{key}") for key, item in attributes.items()},
        }


def _is_object(value: Any) -> bool:
    return isinstance(value, gymnasium.Env) or (
        module_root(type(value)) in _WALKED_MODULES
        and not isinstance(value, dict | list | tuple | set | np.ndarray | BaseException)
        and bool(hasattr(value, "__dict__") or _slots(value))
    )


def _is_method(value: Any) -> bool:
    bound = isinstance(value, types.MethodType | types.BuiltinFunctionType)
    return bound and not _is_code(value) and value.__self__ is not None


def _is_code(value: Any) -> bool:
    """Whether a value is code without state: contents of modules and classes, and methods of global generators."""
    if isinstance(value, types.MethodType | types.BuiltinFunctionType):
        owner = value.__self__
        return owner is None or isinstance(owner, type | types.ModuleType) or owner in _GLOBAL_GENERATORS
    return isinstance(value, _CODE) or any(value is each for each in _GLOBAL_GENERATORS)


def _generator_state(value: Any) -> Any:
    if isinstance(value, random.Random):
        return value.getstate()
    return value.get_state()


def _set_generator_state(value: Any, state: Any) -> None:
    if isinstance(value, random.Random):
        value.setstate(state)
    else:
        value.set_state(torch.from_numpy(state) if isinstance(value, torch.Generator) else state)


Describe = Callable[[_Walk, Any, str], Any]
_KINDS: tuple[tuple[str, Callable[[Any], bool], Describe], ...] = (
    ("scalar", lambda value: isinstance(value, np.generic), _Walk.tensor),
    ("array", lambda value: type(value) is np.ndarray and _owner(value) is value, _Walk.array),
    ("view", lambda value: type(value) is np.ndarray, _Walk.view),
    ("list", lambda value: type(value) is list, _Walk.items),
    ("tuple", lambda value: type(value) is tuple, _Walk.items),
    ("deque", lambda value: type(value) is deque, _Walk.deque),
    ("dict", lambda value: type(value) is dict, _Walk.pairs),
    ("code", _is_code, _Walk.code),
    ("generator", lambda value: isinstance(value, np.random.Generator), _Walk.generator),
    (
        "other generator",
        lambda value: type(value) in (random.Random, np.random.RandomState, torch.Generator),
        _Walk.other_generator,
    ),
    ("space", lambda value: isinstance(value, gymnasium.Space), _Walk.space),
    ("model", lambda value: is_mujoco(value, "MjModel"), _Walk.model),
    ("data", lambda value: is_mujoco(value, "MjData"), _Walk.data),
    ("function", lambda value: isinstance(value, types.FunctionType), _Walk.function),
    ("cell", lambda value: isinstance(value, types.CellType), _Walk.cell),
    ("method", _is_method, _Walk.method),
    ("partial", lambda value: type(value) is functools.partial, _Walk.partial),
    ("object", _is_object, _Walk.object),
)


class _Restoring:
    """Restores nodes into existing objects; plain objects that do not exist are created."""

    def __init__(self, nodes: list[Any], shared: set[int]) -> None:
        self._nodes, self._shared = nodes, shared
        self._present: dict[int, Any] = {}
        self._claimed: set[int] = set()
        self._done: dict[int, Any] = {}

    def match(self, value: Any, present: Any) -> None:
        """Note which present object a node is to be restored into, and so on through what both contain."""
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
        if next((name for name, applies, _ in _KINDS if applies(present)), None) != kind:
            return False
        if kind in ("array", "list", "dict", "deque", "generator") and id(present) in self._shared:
            return False
        if kind == "array":
            saved = contents.numpy()
            same = saved.shape == present.shape and saved.dtype == present.dtype and saved.strides == present.strides
            return same and present.flags.writeable
        if kind == "function":
            return contents["name"] == _function_name(present) and len(contents["cells"]) == len(
                present.__closure__ or ()
            )
        if kind == "object":
            return contents["class"] == f"{type(present).__module__}.{type(present).__qualname__}"
        if kind == "code":
            return contents == _code_name(present)
        if kind == "generator":
            return contents["bit_generator"] == type(present.bit_generator).__name__
        if kind == "space":
            return len(contents) == len(list(subspaces(present)))
        return kind != "deque" or contents["maxlen"] == present.maxlen

    def restore_models(self) -> None:
        """Before anything that is computed with them."""
        for index, (kind, _, _) in enumerate(self._nodes):
            if kind == "model":
                self.value((index,))

    def value(self, value: Any) -> Any:
        """The restored object of a node."""
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
                f"the saved environment has {what} at {where} that this one has not; build it as the saved run did, "
                "with the versions of its run"
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
        same = present is not None and _owner(present) is owner and _layout(present) == _layout(view)
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
        same = present is not None and all(map(_is, items, present))
        self._done[index] = present if same else items

    def _generator(self, index: int, contents: dict[str, Any], present: Any, where: str) -> None:
        self._done[index] = _restored_generator(present, _unplain(contents))

    def _other_generator(self, index: int, contents: Any, present: Any, where: str) -> None:
        self._done[index] = self._needed(present, where, "a generator")
        _set_generator_state(present, _unplain(contents))

    def _space(self, index: int, contents: list[Any], present: Any, where: str) -> None:
        self._done[index] = self._needed(present, where, "a space")
        for space, state in zip(subspaces(present), contents, strict=True):
            space._np_random = _restored_generator(space._np_random, _unplain(state))

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
        same = present is not None and all(map(_is, parts, (function, arguments, keywords)))
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
        saved, slots = contents["attributes"], _slots(present)
        for name in _attributes(present).keys() - saved.keys():
            _delete(present, name, slots)
        current = _attributes(present)
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
        yield contents["owner"], _owner(present)
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
        # A checker remembers what it returned to the caller: a new object, unless the environment refers to it too.
        given = {"_previous_data"} if isinstance(present, PassiveEnvChecker) else set()
        current = {name: value for name, value in _attributes(present).items() if name not in given}
        yield from ((item, current[name]) for name, item in contents["attributes"].items() if name in current)


def _layout(array: np.ndarray) -> tuple[Any, ...]:
    return _address(array), array.shape, array.strides, array.dtype


def _is(first: Any, second: Any) -> bool:
    return first is second or (type(first) in _INLINE and type(first) is type(second) and first == second)


def _delete(owner: Any, name: str, slots: Mapping[str, Any]) -> None:
    if name in slots:
        slots[name].__delete__(owner)
    else:
        del vars(owner)[name]


def _plain(value: Any) -> Any:
    """A generator's state, with arrays as tensors."""
    if isinstance(value, np.ndarray | np.generic):
        return torch.from_numpy(np.array(value))
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _unplain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy().copy() if value.ndim else value.numpy()[()]
    if isinstance(value, list | tuple):
        return type(value)(_unplain(item) for item in value)
    return {key: _unplain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _restored_generator(present: np.random.Generator | None, state: dict[str, Any]) -> np.random.Generator:
    name = state["bit_generator"]
    if name not in _BIT_GENERATORS:
        raise O2OCheckpointError(f"the saved environment draws from {name!r}, expected one of {_BIT_GENERATORS}")
    if present is None or type(present.bit_generator).__name__ != name:
        present = np.random.Generator(getattr(np.random, name)())
    present.bit_generator.state = state
    return present
