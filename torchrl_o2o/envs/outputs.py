# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Checks of an environment's return values: copied, of the right form, finite.

An environment may return its own arrays and change them with the next step, so they are copied. Shapes are compared
with the observation space, because numpy would silently broadcast. Numbers must be finite in float32, the buffers'
dtype: 1e39 is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from torchrl_o2o.envs.checks import check_reset, check_spaces, env_name
from torchrl_o2o.errors import O2OError, check_unmasked

__all__ = [
    "CheckedEnv",
    "EnvFaultError",
    "MalformedReturn",
    "Observation",
    "Step",
    "all_finite",
    "blank",
    "checked_reset",
    "checked_step",
    "copied",
    "find_fault",
    "own_number",
    "own_observation",
    "read_reset",
    "read_step",
]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_NUMERIC = "biuf"
_SEQUENCES, _CHANGING = (tuple, list), (np.ndarray, dict, list)  # tuples: unions take a microsecond to build

_STEP = ("observation", "reward", "terminated", "truncated", "info")
#: Python's message in a gymnasium wrapper if an environment returns the older gym's values.
_UNPACKED_OLD = "not enough values to unpack (expected 5, got 4)"

#: The names in infos under which vector environments keep the final values of an episode.
_FINAL = ("final_info", "final_obs")

#: An array, or several by name.
Observation = Any
Step = tuple[Observation, float, bool, bool, dict[str, Any]]


class EnvFaultError(O2OError, RuntimeError):
    """An environment failed more often than its guard allows, or hung.

    Examples:
        >>> issubclass(EnvFaultError, RuntimeError)
        True
    """


class MalformedReturn(ValueError):
    """An environment returned a wrong observation, reward, flag or info."""


def read_reset(result: Any, space: spaces.Space) -> tuple[Observation, dict[str, Any]]:
    """Copy what ``reset`` returned.

    Args:
        result: what it returned.
        space: of the observations.

    Raises:
        MalformedReturn: if it has another form than gymnasium's.
    """
    observation, info = _unpacked("reset", result, ("observation", "info"))
    return own_observation(observation, space), _own_info(info)


def read_step(result: Any, space: spaces.Space) -> Step:
    """Copy what ``step`` returned, as an array of the space's type, a float, two bools and a dictionary.

    Args:
        result: what it returned; a reward or a flag may be an array of one entry.
        space: of the observations.

    Raises:
        MalformedReturn: if it has another form than gymnasium's.

    Examples:
        >>> space = spaces.Box(-1, 1, (2,), np.float32)
        >>> read_step(([0.5, 1], np.array([2.0]), False, np.array(True), {}), space)
        (array([0.5, 1. ], dtype=float32), 2.0, False, True, {})
    """
    observation, reward, terminated, truncated, info = _unpacked("step", result, _STEP)
    return (
        own_observation(observation, space),
        reward if type(reward) is float else own_number("the reward", reward),
        terminated if type(terminated) is bool else _flag("terminated", terminated),
        truncated if type(truncated) is bool else _flag("truncated", truncated),
        _own_info(info),
    )


def copied(observation: Observation) -> Observation:
    """A copy that shares no memory.

    Args:
        observation: an array, or several by name.
    """
    if isinstance(observation, dict):
        return {key: value.copy() for key, value in observation.items()}
    return observation.copy()


def blank(space: spaces.Space) -> Observation:
    """An observation of zeros.

    Args:
        space: of :func:`box_of_observations`.
    """
    if isinstance(space, spaces.Dict):
        return {key: blank(part) for key, part in space.items()}
    return np.zeros(space.shape or (), space.dtype)


def find_fault(observation: Observation, reward: float = 0.0) -> str | None:
    """A description of the first value that is not finite in float32, or ``None``.

    Examples:
        >>> find_fault(np.zeros(2), 1e39)
        'the reward 1e+39'
    """
    if not abs(reward) <= _FLOAT32_MAX:
        return f"the reward {reward:g}"
    if isinstance(observation, dict):
        return next((fault for part in observation.values() if (fault := find_fault(part))), None)
    if observation.dtype.kind != "f":
        return None
    if observation.itemsize > 4:
        with np.errstate(over="ignore"):
            observation = observation.astype(np.float32)
    return None if all_finite(observation) else "an observation that is not finite"


def all_finite(array: np.ndarray) -> bool:
    """Whether all floating-point numbers are finite; for few numbers, much faster than ``np.isfinite``.

    Args:
        array: any shape.

    Examples:
        >>> all_finite(np.zeros((2, 3))), all_finite(np.array([1.0, np.nan]))
        (True, False)
    """
    # A finite sum of squares shows it, unless the sum overflows.
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


class CheckedEnv(gymnasium.Wrapper):
    """Pass on copies, and raise for malformed or infinite values; the cheapest guard, which ends a run.

    Use :class:`~torchrl_o2o.envs.GuardedEnv` to continue after a fault.

    Args:
        env: environment with observations in a ``Box``, or in several by name, and continuous actions.

    Raises:
        O2OSpecError: if its spaces are not supported.

    Examples:
        >>> env = CheckedEnv(gymnasium.make("Pendulum-v1"))
        >>> observation, _ = env.reset(seed=0)
        >>> type(env.step(env.action_space.sample())[1])
        <class 'float'>
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self._space = check_spaces(env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: as in gymnasium.
            options: as in gymnasium.

        Raises:
            EnvFaultError: if what comes back is malformed or not finite.
        """
        return checked_reset(self.env, self._space, seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment.

        Args:
            action: as the environment takes it.

        Raises:
            EnvFaultError: if what comes back is malformed or not finite.
        """
        return checked_step(self.env, np.array(action), self._space)  # it may change its argument in place


def checked_reset(
    env: gymnasium.Env, space: spaces.Space, *, finite: bool = True, **settings: Any
) -> tuple[Observation, dict[str, Any]]:
    """Reset an environment without a guard; see :class:`CheckedEnv`.

    Args:
        env: the environment.
        space: of its observations.

    Keyword Args:
        finite: whether values that are not finite raise. Defaults to ``True``; ``False`` where the receiver leaves them
            out.
        **settings: of ``reset``.

    Raises:
        EnvFaultError: if what comes back is malformed or not finite.
        O2OSpecError: if it takes no seed and options.
    """
    try:
        observation, info = read_reset(env.reset(**settings), space)
    except MalformedReturn as error:
        raise _fault(env, str(error)) from None
    except TypeError:
        check_reset(env)
        raise
    if finite:
        _require_finite(env, "reset", observation, 0.0)
    return observation, _without_own_mark(env, info)


def checked_step(env: gymnasium.Env, action: np.ndarray, space: spaces.Space, *, finite: bool = True) -> Step:
    """Step an environment without a guard; see :class:`CheckedEnv`.

    Args:
        env: the environment.
        action: as it takes it.
        space: of its observations.

    Keyword Args:
        finite: see :func:`checked_reset`. Defaults to ``True``.

    Raises:
        EnvFaultError: if what comes back is malformed or not finite.
    """
    try:
        result = read_step(env.step(action), space)
    except MalformedReturn as error:
        raise _fault(env, str(error)) from None
    except ValueError as error:
        if str(error) != _UNPACKED_OLD:
            raise
        raise _fault(env, f"step returned 4 values, expected ({', '.join(_STEP)})") from error
    if finite:
        _require_finite(env, "step", result[0], result[1])
    _without_own_mark(env, result[4])
    return result


def _without_own_mark(env: gymnasium.Env, info: dict[str, Any]) -> dict[str, Any]:
    """Remove the environment's own entry, which must not be read as a guard's."""
    if "rejected" in info and not env.has_wrapper_attr("max_rejected"):
        del info["rejected"]
    return info


def _require_finite(env: gymnasium.Env, where: str, observation: Observation, reward: float) -> None:
    fault = find_fault(observation, reward)
    if fault is not None:
        raise _fault(env, f"{where} returned {fault}")


def _fault(env: gymnasium.Env, what: str) -> EnvFaultError:
    return EnvFaultError(
        f"{env_name(env)}: {what}; fix the environment, or wrap it in GuardedEnv to continue without such steps"
    )


def _unpacked(where: str, result: Any, names: tuple[str, ...]) -> Any:
    if not isinstance(result, _SEQUENCES) or len(result) != len(names):
        got = f"{len(result)} values" if isinstance(result, _SEQUENCES) else f"a {type(result).__name__}"
        raise MalformedReturn(f"{where} returned {got}, expected ({', '.join(names)})")
    return result


def own_observation(observation: Any, space: spaces.Space) -> Observation:
    """Copy an observation, as an array of the space's type, or several by name.

    Numbers may lose digits, but no whole number may become another one, as 300 in uint8.

    Args:
        observation: what came back.
        space: of the observations.

    Raises:
        MalformedReturn: if it has another shape or kind than the space, or whole numbers that the space's type lacks.

    Examples:
        >>> own_observation([1, 2], spaces.Box(0, 255, (2,), np.uint8))
        array([1, 2], dtype=uint8)
        >>> own_observation([1, 300], spaces.Box(0, 255, (2,), np.uint8))
        Traceback (most recent call last):
        torchrl_o2o.envs.outputs.MalformedReturn: an observation of int64 with the value 300 came back, expected...
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping) or not set(space) <= set(observation):
            found = sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
            raise MalformedReturn(
                f"an observation of {found} came back, expected {sorted(space)} as in the observation space"
            )
        return {key: own_observation(observation[key], part) for key, part in space.items()}
    found = _array("an observation", observation)
    if found.shape != space.shape:
        raise MalformedReturn(
            f"an observation of shape {found.shape} came back, expected {space.shape} as in the observation space"
        )
    return found.copy() if space.dtype is None else _own_cast(found, space.dtype)  # not all kinds of spaces have one


def _own_cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy in the space's type, or in the nearest one that torch has; no whole number becomes another one."""
    dtype = np.dtype(np.float64) if dtype == np.longdouble else dtype.newbyteorder("=")
    if values.dtype == dtype:
        return values.copy()
    whole = values.dtype.kind in "iu" and dtype.kind in "iu"
    if not whole and not np.can_cast(values.dtype, dtype, "same_kind"):
        raise MalformedReturn(
            f"an observation of type {values.dtype} came back, expected {dtype} as in the observation space"
        )
    with np.errstate(over="ignore"):  # values that overflow become infinite and are found
        cast = values.astype(dtype)
    if whole and (wrong := cast != values).any():
        raise MalformedReturn(
            f"an observation of {values.dtype} with the value {values[wrong][0]} came back, expected {dtype} as in the "
            "observation space"
        )
    return cast


def _array(name: str, value: Any) -> np.ndarray:
    try:
        check_unmasked("numbers", value)
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of uneven length, tensors with gradients
        raise MalformedReturn(f"{name} is not an array ({error})") from error


def own_number(name: str, value: Any) -> float:
    """Convert a reward to Python's float.

    Args:
        name: what it is.
        value: a number, or an array of one entry.

    Raises:
        MalformedReturn: if it is not one number.

    Examples:
        >>> own_number("the reward", np.array([2]))
        2.0
    """
    found = _array(name, value)
    if found.size != 1 or found.dtype.kind not in _NUMERIC:
        raise MalformedReturn(f"{name} is {value!r}, expected one number")
    return float(found.item())


def _flag(name: str, value: Any) -> bool:
    number = own_number(name, value)
    if number not in (0.0, 1.0):
        raise MalformedReturn(f"{name} is {value!r}, expected True or False")
    return bool(number)


def _own_info(info: Any) -> dict[str, Any]:
    if type(info) is not dict and not isinstance(info, Mapping):
        raise MalformedReturn(f"the info is {info!r}, expected a dictionary")
    kept = {key: value for key, value in info.items() if key not in _FINAL}
    return {key: value.copy() if isinstance(value, _CHANGING) else value for key, value in kept.items()}
