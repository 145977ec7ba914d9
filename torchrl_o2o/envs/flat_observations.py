# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Observations as one float32 vector: what make_gym_env does with dictionaries and with float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation

from torchrl_o2o.envs.checks import check_vector
from torchrl_o2o.envs.tasks import observation_keys
from torchrl_o2o.errors import O2OSpecError

__all__ = ["chosen_keys", "concatenated_keys", "flat_observation", "is_vector", "sees_images"]


def sees_images(space: spaces.Space) -> bool:
    """Whether observations are images, or dictionaries with one.

    Args:
        space: of observations.

    Examples:
        >>> sees_images(spaces.Dict({"camera": spaces.Box(0, 255, (64, 64, 3), np.uint8)}))
        True
    """
    parts = list(space.values()) if isinstance(space, spaces.Dict) else [space]
    return any(isinstance(part, spaces.Box) and len(part.shape) == 3 for part in parts)


def is_vector(space: spaces.Space) -> bool:
    """Whether a policy could read observations as one vector.

    Args:
        space: of observations.

    Examples:
        >>> is_vector(spaces.Box(0, 255, (64, 64, 3), np.uint8))
        False
    """
    parts = [space]
    if isinstance(space, spaces.Dict):  # `key in space` would ask whether the name is an observation
        parts = [space[key] for key in observation_keys("") if key in space.spaces]
    return any(isinstance(part, spaces.Box) and len(part.shape) == 1 for part in parts)


def flat_observation(env: gymnasium.Env, env_id: str, keys: Sequence[str] | None) -> gymnasium.Env:
    """Make an environment observe one float32 vector, as in :func:`~torchrl_o2o.envs.make_gym_env`.

    Args:
        env: observes a vector, or a dictionary of vectors.
        env_id: its name, for messages.
        keys: entries of a dictionary to join, in order; ``None`` for those of goal-conditioned tasks.

    Raises:
        O2OSpecError: if an observation is no vector, an entry is missing, or there is no dictionary.

    Examples:
        >>> flat_observation(gymnasium.make("Pendulum-v1"), "Pendulum-v1", None).observation_space.shape
        (3,)
    """
    space = env.observation_space
    if isinstance(space, spaces.Dict):
        return _concatenated_observation(env, env_id, space, chosen_keys(env_id, space, keys))
    if keys is not None:
        raise O2OSpecError(
            f"observation_keys={tuple(keys)} were given, but {env_id} observes {space}, expected a dictionary; leave "
            "them out."
        )
    space = check_vector(env_id, "observation", space)
    # Not gymnasium's DtypeObservation: it warns for every float64 environment about the lower precision, which is
    # intended.
    with np.errstate(over="ignore"):  # the largest float64 is infinite in float32
        flat = spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
    return TransformObservation(env, _float32_copy, flat)


def _float32_copy(observation: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # a guard finds values that become infinite
        return np.array(observation, np.float32)


def chosen_keys(env_id: str, space: spaces.Dict, keys: Sequence[str] | None) -> tuple[str, ...]:
    """The entries of a dictionary observation that a policy sees.

    Args:
        env_id: the environment's name.
        space: of observations.
        keys: the entries, in order; ``None`` for those of goal-conditioned tasks.

    Raises:
        O2OSpecError: if one is missing, or there is none.

    Examples:
        >>> goal = spaces.Box(-1.0, 1.0, (2,))
        >>> chosen_keys("Maze-v0", spaces.Dict({"achieved": goal, "desired": goal}), ["desired"])
        ('desired',)
    """
    if keys is None:
        keys = [key for key in observation_keys(env_id) if key in space.spaces]
    missing = [key for key in keys if key not in space.spaces]
    if missing or not keys:
        expected = list(keys) or list(observation_keys(""))
        raise O2OSpecError(
            f"{env_id} observes {sorted(space.spaces)}, not {expected}; pass observation_keys with entries that it "
            "has, and the same as obs_keys of its data."
        )
    return tuple(keys)


def _concatenated_observation(
    env: gymnasium.Env, env_id: str, space: spaces.Dict, keys: tuple[str, ...]
) -> gymnasium.Env:
    size = sum(check_vector(env_id, f"observation[{key!r}]", space[key]).shape[0] for key in keys)
    flat = spaces.Box(-np.inf, np.inf, (size,), np.float32)
    return TransformObservation(env, partial(_concatenate, keys=keys), flat)


def concatenated_keys(env: gymnasium.Env) -> tuple[str, ...]:
    """The entries of a dictionary that a wrapper of :func:`flat_observation` joins, in order; empty for others.

    Args:
        env: one wrapper.

    Examples:
        >>> import gymnasium
        >>> concatenated_keys(gymnasium.make("Pendulum-v1"))
        ()
    """
    function = getattr(env, "func", None)
    if isinstance(function, partial) and function.func is _concatenate:
        return tuple(function.keywords["keys"])
    return ()


def _concatenate(observation: Mapping[str, np.ndarray], keys: tuple[str, ...]) -> np.ndarray:
    return np.concatenate([observation[key] for key in keys], dtype=np.float32, casting="same_kind")
