# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Units of actions: an environment's native box, this package's [-1, 1], and matching policies to environments."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction, TransformAction, TransformObservation
from numpy.typing import ArrayLike

from torchrl_o2o.envs.checks import check_continuous, check_vector, layers_of
from torchrl_o2o.errors import O2OSpecError

__all__ = [
    "check_actions",
    "from_unit",
    "is_standardized",
    "is_unit_actions",
    "match_actions",
    "native_action_space",
    "standardized",
    "unit_actions",
]


def native_action_space(env: gymnasium.Env) -> spaces.Box:
    """The action box of an environment before :func:`~torchrl_o2o.envs.make_gym_env` scaled it to [-1, 1].

    Args:
        env: of ``make_gym_env``, or any environment with bounded vector actions, whose box is native unless the
            outermost wrapper of its actions is gymnasium's ``RescaleAction``.

    Raises:
        O2OSpecError: if actions are not vectors of a bounded box.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> native_action_space(make_gym_env("Pendulum-v1"))
        Box(-2.0, 2.0, (1,), float32)
    """
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, TransformAction):  # the caller's own wrappers may not map a box to a box
            return _box(layer.env.action_space if _is_affine(layer) else env.action_space)
        layer = layer.env
    return _box(env.action_space)


def _is_affine(layer: TransformAction) -> bool:
    return isinstance(layer, RescaleAction) or is_unit_actions(layer)


def _box(space: spaces.Space) -> spaces.Box:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
        raise O2OSpecError(
            f"got the action space {space}, expected a bounded Box of one dimension; wrap the environment with "
            "make_gym_env"
        )
    return space


def match_actions(env: gymnasium.Env, low: ArrayLike, high: ArrayLike) -> gymnasium.Env:
    """Make an environment accept the actions of a policy with a known action box.

    Args:
        env: the environment.
        low: lower edge of the policy's actions, shape [A].
        high: upper edge, shape [A].

    Returns:
        The environment itself if its box is the policy's. An environment of ``make_gym_env``, or one scaled by
        ``RescaleAction``, with its native actions if those are the policy's. For a policy in [-1, 1], any other
        environment scaled as in ``make_gym_env``.

    Raises:
        O2OSpecError: if neither box is the policy's.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> match_actions(make_gym_env("Pendulum-v1"), [-2.0], [2.0]).action_space
        Box(-2.0, 2.0, (1,), float32)
        >>> match_actions(make_gym_env("Pendulum-v1"), [-3.0], [3.0])
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: the policy acts in [-3.0]..[3.0], the environment takes [-1.0]..[1.0], ...
    """
    own, edges = env.action_space, (np.asarray(low, np.float32), np.asarray(high, np.float32))
    if not isinstance(own, spaces.Box) or _takes(own, *edges):
        return env
    native = native_action_space(env)
    if _takes(native, *edges):
        box = spaces.Box(*edges, dtype=np.float32)
        return TransformAction(env, partial(_onto, box=box, other=own), box)
    unit = edges[0].shape == own.shape and (edges[0] == -1.0).all() and (edges[1] == 1.0).all()
    if unit and _takes(native, own.low, own.high):
        return unit_actions(env, env.spec.id if env.spec is not None else type(env.unwrapped).__name__)
    raise O2OSpecError(_mismatch(own, *edges, native))


def _onto(action: np.ndarray, *, box: spaces.Box, other: spaces.Box) -> np.ndarray:
    """Map one box to another; a dimension with a single value is mapped to the middle."""
    low, high = box.low.astype(np.float64), box.high.astype(np.float64)
    width = high - low
    unit = np.where(width > 0.0, (2.0 * action - low - high) / np.where(width > 0.0, width, 1.0), 0.0)
    return from_unit(unit, other.low, other.high).astype(other.dtype)


def standardized(env: gymnasium.Env, mean: np.ndarray, scale: np.ndarray) -> gymnasium.Env:
    """Wrap an environment so that its observations are ``(observation - mean) / scale``, in float32.

    Args:
        env: the environment; its observations are a vector.
        mean: shape [o].
        scale: positive, shape [o].

    Raises:
        O2OSpecError: if they are standardized already.

    Examples:
        >>> env = standardized(gymnasium.make("Pendulum-v1"), np.zeros(3), np.full(3, 2.0))
        >>> is_standardized(env), is_standardized(env.env)
        (True, False)
    """
    if is_standardized(env):
        raise O2OSpecError(
            "got an environment with standardized observations, expected its own observations; apply a convention to "
            "an environment only once"
        )
    unbounded = spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
    return TransformObservation(env, partial(_standardize, mean=mean, scale=scale), unbounded)


def is_standardized(env: gymnasium.Env) -> bool:
    """Whether :func:`standardized` made an environment, or one inside it.

    Args:
        env: the environment.

    Examples:
        >>> is_standardized(gymnasium.make("Pendulum-v1"))
        False
    """
    functions = (getattr(layer, "func", None) for layer in layers_of(env))
    return any(isinstance(function, partial) and function.func is _standardize for function in functions)


def _standardize(seen: np.ndarray, *, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return ((seen - mean) / scale).astype(np.float32)


def check_actions(space: spaces.Space, box: tuple[ArrayLike, ArrayLike] | None) -> None:
    """Raise if a policy's action box differs from the environment's.

    Args:
        space: the environment's action space.
        box: lower and upper edge of the policy's actions, each [A]; ``None`` if it is unknown.

    Raises:
        O2OSpecError: if the boxes differ.

    Examples:
        >>> check_actions(spaces.Box(-1.0, 1.0, (2,)), ([-1.0, -1.0], [1.0, 1.0]))
    """
    if box is not None:
        low, high = (np.asarray(edge, np.float32) for edge in box)
        if not _takes(space, low, high):
            raise O2OSpecError(_mismatch(space, low, high))


def _mismatch(own: spaces.Space, low: np.ndarray, high: np.ndarray, native: spaces.Box | None = None) -> str:
    taken = f"{own.low.tolist()}..{own.high.tolist()}" if isinstance(own, spaces.Box) else str(own)
    if native is not None and not _takes(own, native.low, native.high):
        taken += f", natively {native.low.tolist()}..{native.high.tolist()}"
    return (
        f"the policy acts in {low.tolist()}..{high.tolist()}, the environment takes {taken}, expected the same box; "
        "build the environment with make_gym_env for actions in [-1, 1], or load the policy with load_policy and "
        "native_actions for the environment's own units"
    )


def _takes(space: spaces.Space, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether a space is a box with these edges or an infinite one. Other spaces are checked elsewhere."""
    if not isinstance(space, spaces.Box):
        return True
    if space.shape != low.shape:
        return False
    own_low, own_high = np.float32(space.low), np.float32(space.high)
    bounded = np.isfinite(own_low) & np.isfinite(own_high)
    equal = (own_low == low) & (own_high == high)
    return bool(np.where(bounded, equal, (own_low <= low) & (high <= own_high)).all())


def unit_actions(env: gymnasium.Env, env_id: str) -> gymnasium.Env:
    """Make an environment take actions in [-1, 1], as in :func:`make_gym_env`.

    Args:
        env: the environment.
        env_id: its name, for messages.

    Raises:
        O2OSpecError: if its actions are discrete or not a bounded vector.

    Examples:
        >>> unit_actions(gymnasium.make("Pendulum-v1"), "Pendulum-v1").action_space
        Box(-1.0, 1.0, (1,), float32)
    """
    space = env.action_space
    if not (isinstance(space, spaces.Box) and space.dtype.kind in "iu"):
        check_continuous(space, env_id)
    space = check_vector(env_id, "the action space", space)
    if not space.is_bounded():
        raise O2OSpecError(f"the action space of {env_id} is {space}; expected finite bounds to scale to.")
    unit = spaces.Box(-1.0, 1.0, space.shape, np.float32)
    if space == unit:
        return TransformAction(env, partial(np.clip, a_min=-1.0, a_max=1.0), unit)
    return TransformAction(env, partial(_native_action, low=space.low, high=space.high), unit)


def is_unit_actions(layer: TransformAction) -> bool:
    """Whether a wrapper is one of :func:`unit_actions`.

    Args:
        layer: any wrapper of actions.

    Examples:
        >>> is_unit_actions(unit_actions(gymnasium.make("Pendulum-v1"), "Pendulum-v1"))
        True
    """
    return isinstance(layer.func, partial) and layer.func.func in (np.clip, _native_action)


def from_unit(action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Map [-1, 1] to bounds, in float64 so that -1 and 1 give the exact bounds; nothing is clipped.

    Args:
        action: shape [A].
        low: lower bounds, shape [A].
        high: upper bounds, shape [A].

    Examples:
        >>> from_unit(np.array([0.5]), np.array([0.0]), np.array([4.0]))
        array([3.])
    """
    ends = low.astype(np.float64) / 2.0, high.astype(np.float64) / 2.0
    return (ends[0] + ends[1]) + (ends[1] - ends[0]) * action


def _native_action(action: np.ndarray, *, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Map from [-1, 1] to the bounds and their dtype."""
    if np.shape(action) != low.shape:  # numpy would broadcast it
        raise O2OSpecError(f"got an action of shape {list(np.shape(action))}, expected {list(low.shape)}")
    scaled = from_unit(np.clip(action, -1.0, 1.0), low, high)
    if low.dtype.kind == "f":
        return np.clip(scaled.astype(low.dtype), low, high)
    if np.isnan(scaled).any():
        raise O2OSpecError(f"got the action {action}, expected numbers in [-1, 1]")
    scaled = np.rint(scaled)
    # The edges are not cast: float64 lacks the largest int64, and what it has instead would become the smallest one.
    inside = (low < scaled) & (scaled < high)
    return np.where(inside, np.where(inside, scaled, 0.0).astype(low.dtype), np.where(scaled > low, high, low))
