# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Requirements on an environment: gymnasium's interface, continuous actions, observations in boxes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator

import gymnasium
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers import (
    NormalizeObservation,
    NormalizeReward,
)
from gymnasium.wrappers import vector as vector_wrappers

from torchrl_o2o.errors import O2OSpecError

__all__ = [
    "box_of_observations",
    "check_apart",
    "check_continuous",
    "check_reset",
    "check_spaces",
    "check_vector",
    "env_name",
    "layers_of",
    "warn_of_running_statistics",
]

_NORMALIZING = (
    NormalizeObservation,
    NormalizeReward,
    vector_wrappers.NormalizeObservation,
    vector_wrappers.NormalizeReward,
)


def check_continuous(space: spaces.Space, name: str) -> None:
    """Raise for an action space whose actions are not real numbers.

    Args:
        space: the action space.
        name: the environment's, for the message.

    Raises:
        O2OSpecError: if the actions are discrete choices, integers, or not a vector.

    Examples:
        >>> check_continuous(spaces.Discrete(3), "CartPole")
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: CartPole has discrete actions, Discrete(3); ...
    """
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise O2OSpecError(
            f"{name} has discrete actions, {space}; expected a Box of real numbers, because this package's methods are "
            "for continuous actions only"
        )
    if not isinstance(space, spaces.Box):
        raise O2OSpecError(f"the action space of {name} is {space}; expected a Box of real numbers")
    if space.dtype.kind != "f":
        raise O2OSpecError(
            f"the actions of {name} are integers, {space}, expected real numbers; build it with make_gym_env, which "
            "maps real actions in [-1, 1] onto them and rounds"
        )


def check_apart(envs: Iterable[gymnasium.Env]) -> None:
    """Raise if two of several environments are the same object, because they would share episodes.

    Args:
        envs: environments that are stepped in lockstep.

    Raises:
        O2OSpecError: if one occurs twice.

    Examples:
        >>> env = gymnasium.make("Pendulum-v1")
        >>> check_apart([env, env])
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got the same Pendulum-v1 twice for environments that are stepped in...
    """
    seen: set[int] = set()
    for env in envs:
        if id(env.unwrapped) in seen:
            raise O2OSpecError(
                f"got the same {env_name(env)} twice for environments that are stepped in lockstep, expected different "
                "ones; build a new one in each call: lambda: make_gym_env(...), not lambda: env"
            )
        seen.add(id(env.unwrapped))


def check_reset(env: gymnasium.Env) -> None:
    """Raise for an environment with the older gym's interface, whose ``reset`` takes no seed and options.

    Args:
        env: the environment; the innermost one is examined.

    Raises:
        O2OSpecError: if its ``reset`` does not take ``seed`` and ``options``.

    Examples:
        >>> class Old(gymnasium.Env):
        ...     def reset(self):
        ...         return np.zeros(2)
        >>> check_reset(Old())
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: Old has reset(), expected gymnasium's reset(*, seed=None, options=None), ...
    """
    try:
        signature = inspect.signature(env.unwrapped.reset)
    except (TypeError, ValueError):  # of a compiled function
        return
    try:
        signature.bind(seed=None, options=None)
    except TypeError:
        taken = signature.replace(return_annotation=signature.empty)
        raise O2OSpecError(
            f"{env_name(env)} has reset{taken}, expected gymnasium's reset(*, seed=None, options=None), which returns "
            "(observation, info), and step that returns (observation, reward, terminated, truncated, info); convert "
            "an environment with the older gym's interface, for example with the package shimmy"
        ) from None


def box_of_observations(env: gymnasium.Env) -> spaces.Space:
    """The observation space, if observations are arrays, or images and vectors by name.

    Args:
        env: the environment.

    Raises:
        O2OSpecError: if its observations are something else. ``make_gym_env`` concatenates vectors by name, because a
            policy that reads one of them would ignore the others.
    """
    space = env.observation_space
    parts = list(space.values()) if isinstance(space, spaces.Dict) else [space]
    sees = any(len(part.shape or ()) == 3 for part in parts)
    boxes = all(isinstance(part, spaces.Box) and part.shape for part in parts)
    if not boxes or (isinstance(space, spaces.Dict) and not sees):
        raise O2OSpecError(
            f"the observations of {env_name(env)} are {space}, expected a Box of vectors, or a dictionary of images "
            "and vectors; use make_gym_env"
        )
    return space


def check_spaces(env: gymnasium.Env) -> spaces.Space:
    """Check that an environment's observations, actions and interface are supported, and return its observation space.

    Args:
        env: the environment.

    Raises:
        O2OSpecError: as in :func:`box_of_observations`, :func:`check_continuous` and :func:`check_reset`.

    Examples:
        >>> check_spaces(gymnasium.make("Pendulum-v1")).shape
        (3,)
    """
    space = box_of_observations(env)
    check_continuous(env.action_space, env_name(env))
    check_reset(env)
    return space


def warn_of_running_statistics(env: gymnasium.Env | VectorEnv) -> None:
    """Warn if a gymnasium wrapper normalizes by running statistics, because each copy has its own.

    Args:
        env: the environment, or a vector environment, whose first copy is examined.

    Examples:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_running_statistics(NormalizeReward(gymnasium.make("Pendulum-v1")))
        >>> str(caught[0].message)[:56]
        'Pendulum-v1 normalizes by running statistics (NormalizeR'
    """
    layers = list(layers_of(env))
    normalizing = [layer for layer in layers if isinstance(layer, _NORMALIZING)]
    found = [type(layer).__name__ for layer in normalizing if getattr(layer, "update_running_mean", True)]
    if found:
        warnings.warn(
            f"{env_name(layers[-1])} normalizes by running statistics ({', '.join(found)}): each copy has its own "
            "statistics, so its rows and returns have other units than data sets and the task. Standardize by the "
            "data (torchrl_o2o.data.Convention), or set the statistics yourself and update_running_mean=False",
            stacklevel=4,
        )


def layers_of(env: gymnasium.Env | VectorEnv) -> Iterator[gymnasium.Env | VectorEnv]:
    """Iterate over an environment and the ones inside it, outermost first; for a vector environment, its first copy.

    Args:
        env: the environment with its wrappers, or a vector environment.

    Examples:
        >>> [type(layer).__name__ for layer in layers_of(gymnasium.make("Pendulum-v1"))][-1]
        'PendulumEnv'
    """
    yield env
    while isinstance(env, gymnasium.Wrapper | VectorWrapper | SyncVectorEnv):
        env = env.envs[0] if isinstance(env, SyncVectorEnv) else env.env
        yield env


def env_name(env: gymnasium.Env | VectorEnv) -> str:
    """The name of an environment in messages: its id, or its class."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def check_vector(env_id: str, name: str, space: spaces.Space) -> spaces.Box:
    """Raise unless a space is a box of one dimension.

    Args:
        env_id: the environment's name, for the message.
        name: what the space is of, such as ``"observation"``.
        space: the space.

    Returns:
        The same space.

    Raises:
        O2OSpecError: if it is another space.

    Examples:
        >>> check_vector("Pendulum-v1", "observation", spaces.Box(-1.0, 1.0, (3,)))
        Box(-1.0, 1.0, (3,), float32)
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        wrapper = "FlattenObservation" if name.startswith("observation") else "TransformAction"
        raise O2OSpecError(
            f"{name} of {env_id} is {space}; expected a Box of one dimension. Register the environment wrapped in "
            f"gymnasium.wrappers.{wrapper}."
        )
    return space
