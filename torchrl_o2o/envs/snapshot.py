# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The state of a gymnasium environment in the middle of an episode, as tensors and plain values.

A state is found by walking through the wrappers to the environment: numbers, arrays and containers of them are copied,
generators are asked for their state, and MuJoCo's model and data give their arrays. MuJoCo's own integration state is
not enough: after a step the positions of bodies in space are those of the last substep, and environments read them to
compute velocities, so the arrays computed from the state are kept too. What a walk cannot vouch for (a socket, a
foreign simulator) makes the environment one that cannot be captured, rather than one that is resumed wrongly.
"""

from __future__ import annotations

import types
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

from torchrl_o2o.errors import O2OCheckpointError

__all__ = ["env_state", "restore_env_state"]

#: Classes of these packages are walked into.
_WALKED_MODULES = ("gymnasium", "gymnasium_robotics", "torchrl_o2o")
#: Attributes that are set once, at construction, or that only draw pictures.
_STATIC_NAMES = frozenset(
    {"env", "spec", "metadata", "mujoco_renderer", "_model_names", "_saved_kwargs", "max_rebuilds", "max_rejected"}
)
_STATIC_PREFIXES = ("_ezpickle",)
_STATIC_TYPES = (EnvSpec, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type)
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
#: MuJoCo arrays whose length follows the contacts of the moment; the next step computes them anew.
_CONTACT_PREFIXES = ("efc_", "iefc_", "efm_", "iacc", "ifrc_", "island_")
#: MuJoCo model arrays that environments change between episodes (goal markers, handles, masses).
_MODEL_PREFIXES = ("actuator_", "body_", "dof_", "geom_", "jnt_", "qpos0", "site_")


class _Uncapturable(Exception):
    """An attribute that a walk cannot vouch for."""


def env_state(env: gymnasium.Env) -> dict[str, Any] | None:
    """Capture an environment, so that :func:`restore_env_state` goes on in the middle of its episode.

    Covered are MuJoCo environments of gymnasium and gymnasium_robotics, environments whose attributes are plain values
    (gymnasium's classic control), the generators of the environment and of its spaces, and the wrappers of gymnasium.

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
    try:
        layers = [_capture_object(layer, {id(layer)}) for layer in _layers(env)]
    except _Uncapturable as error:
        warnings.warn(
            f"the state of {env} cannot be captured: {error}; a resumed run starts a new episode", stacklevel=2
        )
        return None
    return {"names": _layer_names(env), "layers": layers}


def restore_env_state(env: gymnasium.Env, state: Mapping[str, Any]) -> None:
    """Put an environment into a captured state.

    The observation is not part of the state: keep the one the policy was about to act on along with it.

    Args:
        env: an environment made as the captured one; it need not have been reset.
        state: from :func:`env_state`.

    Raises:
        O2OCheckpointError: if the environment or its wrappers are others than the captured ones.

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
    for layer, captured in zip(_layers(env), state["layers"], strict=True):
        _restore_object(layer, captured)


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    yield env
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        yield env


def _layer_names(env: gymnasium.Env) -> list[str]:
    return [type(layer).__name__ for layer in _layers(env)] + [
        env.spec.id if env.spec else "an unregistered environment"
    ]


def _capture_object(owner: Any, seen: set[int]) -> dict[str, Any]:
    state = {}
    for name, value in vars(owner).items():
        if name in _STATIC_NAMES or name.startswith(_STATIC_PREFIXES) or isinstance(value, _STATIC_TYPES):
            continue
        captured = _capture(value, seen, f"{type(owner).__name__}.{name}")
        if captured is not None:
            state[name] = captured
    return state


def _capture(value: Any, seen: set[int], where: str) -> tuple[str, Any] | None:
    """Return the kind of an attribute and its state, or None if it has none."""
    if isinstance(value, np.random.Generator):
        return "generator", _plain(value.bit_generator.state, where)
    if isinstance(value, gymnasium.Space):
        return "space", _plain(value.np_random.bit_generator.state, where)
    if _is_mujoco(value, "MjData"):
        return "data", _capture_data(value)
    if _is_mujoco(value, "MjModel"):
        return "model", _arrays(value, _is_mutable_model_array)
    if isinstance(value, deque):
        return "deque", _plain(list(value), where)
    if callable(value):
        return None
    if hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] in _WALKED_MODULES:
        if id(value) in seen:
            return None
        return "object", _capture_object(value, seen | {id(value)})
    return "value", _plain(value, where)


def _plain(value: Any, where: str) -> Any:
    """Copy plain values; arrays become tensors, numpy scalars tensors without dimensions."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value))
    if type(value) is list:
        return [_plain(item, where) for item in value]
    if type(value) is tuple:
        return tuple(_plain(item, where) for item in value)
    if type(value) is dict:
        return {_plain(key, where): _plain(item, where) for key, item in value.items()}
    raise _Uncapturable(f"{where} is a {type(value).__module__}.{type(value).__name__}")


def _unplain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy().copy() if value.ndim else value.numpy()[()]
    if isinstance(value, (list, tuple)):
        return type(value)(_unplain(item) for item in value)
    if isinstance(value, dict):
        return {key: _unplain(item) for key, item in value.items()}
    return value


def _restore_object(owner: Any, state: Mapping[str, tuple[str, Any]]) -> None:
    for name, (kind, captured) in state.items():
        present = vars(owner).get(name)
        if kind == "value":
            _restore_value(owner, name, _unplain(captured))
        elif kind == "generator":
            vars(owner)[name] = _restored_generator(present, _unplain(captured))
        elif present is None:
            raise O2OCheckpointError(
                f"{type(owner).__name__} has no attribute {name!r}, the saved one has; use the versions of its run"
            )
        elif kind == "space":
            present._np_random = _restored_generator(present._np_random, _unplain(captured))
        elif kind == "deque":
            present.clear()
            present.extend(_unplain(captured))
        elif kind == "model":
            _restore_arrays(present, captured)
        elif kind == "data":
            _restore_data(owner.model, present, captured)
        else:
            _restore_object(present, captured)


def _restore_value(owner: Any, name: str, value: Any) -> None:
    present = vars(owner).get(name)
    # An array that is right already may be a view of something: replacing it would cut the tie.
    if isinstance(value, np.ndarray) and isinstance(present, np.ndarray) and np.array_equal(value, present):
        return
    vars(owner)[name] = value


def _restored_generator(present: np.random.Generator | None, state: dict[str, Any]) -> np.random.Generator:
    name = state["bit_generator"]
    if name not in _BIT_GENERATORS:
        raise O2OCheckpointError(f"the saved environment draws from {name!r}, expected one of {_BIT_GENERATORS}")
    if present is None or type(present.bit_generator).__name__ != name:
        present = np.random.Generator(getattr(np.random, name)())
    present.bit_generator.state = state
    return present


def _is_mujoco(value: Any, name: str) -> bool:
    return type(value).__name__ == name and type(value).__module__.partition(".")[0] == "mujoco"


def _is_mutable_model_array(name: str, array: np.ndarray) -> bool:
    return name.startswith(_MODEL_PREFIXES) and array.dtype.kind == "f"


def _is_derived_array(name: str, array: np.ndarray) -> bool:
    return not name.startswith(_CONTACT_PREFIXES) and array.dtype.kind == "f"


def _arrays(struct: Any, wanted: Any) -> dict[str, torch.Tensor]:
    names = (name for name in dir(struct) if not name.startswith("_"))
    arrays = ((name, getattr(struct, name)) for name in names)
    return {
        name: torch.from_numpy(array.copy())
        for name, array in arrays
        if isinstance(array, np.ndarray) and wanted(name, array)
    }


def _restore_arrays(struct: Any, arrays: Mapping[str, torch.Tensor]) -> None:
    for name, saved in arrays.items():
        present = getattr(struct, name, None)
        if present is None or present.shape != tuple(saved.shape):
            shape = None if present is None else present.shape
            raise O2OCheckpointError(
                f"MuJoCo's {type(struct).__name__}.{name} has shape {tuple(saved.shape)} in the saved environment and "
                f"{shape} in this one; use the same model and version of MuJoCo"
            )
        present[...] = saved.numpy()


def _capture_data(data: Any) -> dict[str, Any]:
    import mujoco

    spec = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    state = np.empty(mujoco.mj_stateSize(data.model, spec))
    mujoco.mj_getState(data.model, data, state, spec)
    return {"integration": torch.from_numpy(state), "derived": _arrays(data, _is_derived_array)}


def _restore_data(model: Any, data: Any, captured: Mapping[str, Any]) -> None:
    import mujoco

    spec = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    state = captured["integration"].numpy()
    size = mujoco.mj_stateSize(model, spec)
    if len(state) != size:
        raise O2OCheckpointError(f"the saved MuJoCo state has {len(state)} numbers, this model's {size}; use its model")
    mujoco.mj_setState(model, data, state, spec)
    mujoco.mj_forward(model, data)  # contacts
    _restore_arrays(data, captured["derived"])
