# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What an environment must be for this package: gymnasium's form, continuous actions, observations in boxes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator

import gymnasium
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from gymnasium.wrappers import vector as vector_wrappers

from torchrl_o2o.errors import O2OSpecError

__all__ = [
    "box_of_observations",
    "check_apart",
    "check_continuous",
    "check_reset",
    "check_spaces",
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
    """Refuse an action space whose actions are not real numbers.

    Args:
        space: of actions.
        name: the environment's, for the message.

    Raises:
        O2OSpecError: if the actions are a discrete choice, whole numbers or no vector.

    Examples:
        >>> check_continuous(spaces.Discrete(3), "CartPole")
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: CartPole has discrete actions, Discrete(3); ...
    """
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise O2OSpecError(
            f"{name} has discrete actions, {space}; the methods of this package are for continuous actions only, "
            "expected a Box of real numbers"
        )
    if not isinstance(space, spaces.Box):
        raise O2OSpecError(f"the action space of {name} is {space}; expected a Box of real numbers")
    if space.dtype.kind != "f":
        raise O2OSpecError(
            f"the actions of {name} are whole numbers, {space}; build it with make_gym_env, which maps real actions in "
            "[-1, 1] onto them and rounds"
        )


def check_apart(envs: Iterable[gymnasium.Env]) -> None:
    """Refuse environments of which two are the same one: each would continue with the other's episode.

    Args:
        envs: that are to be stepped side by side.

    Raises:
        O2OSpecError: if one is there twice.

    Examples:
        >>> env = gymnasium.make("Pendulum-v1")
        >>> check_apart([env, env])
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got the same Pendulum-v1 twice for environments that are stepped side...
    """
    seen: set[int] = set()
    for env in envs:
        if id(env.unwrapped) in seen:
            raise O2OSpecError(
                f"got the same {env_name(env)} twice for environments that are stepped side by side; build a new one "
                f"in each call: lambda: make_gym_env(...), and not lambda: env"
            )
        seen.add(id(env.unwrapped))


def check_reset(env: gymnasium.Env) -> None:
    """Refuse an environment in the form of the older gym, whose ``reset`` takes no seed and no options.

    Args:
        env: the environment; what is looked at is the innermost one.

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
            f"{env_name(env)} has reset{taken}, expected gymnasium's reset(*, seed=None, options=None), which "
            f"returns (observation, info), and step that returns (observation, reward, terminated, truncated, info); "
            f"an environment in the older gym's form has to be written so, or converted by the package shimmy"
        ) from None


def box_of_observations(env: gymnasium.Env) -> spaces.Space:
    """The space of observations that are arrays, or images and vectors by name.

    Args:
        env: the environment.

    Raises:
        O2OSpecError: if its observations are something else. Vectors by name are concatenated by ``make_gym_env``: a
            policy that reads one of them would not notice the others.
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
    """The space of observations of an environment whose observations, actions and form this package can use.

    Args:
        env: the environment.

    Raises:
        O2OSpecError: as :func:`box_of_observations`, :func:`check_continuous` and :func:`check_reset`.

    Examples:
        >>> check_spaces(gymnasium.make("Pendulum-v1")).shape
        (3,)
    """
    space = box_of_observations(env)
    check_continuous(env.action_space, env_name(env))
    check_reset(env)
    return space


def warn_of_running_statistics(env: gymnasium.Env | VectorEnv) -> None:
    """Warn where a wrapper of gymnasium's normalizes by what it has seen so far: each copy has its own statistics.

    Args:
        env: the environment, or several as one, of which the first is looked at.

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
            f"{env_name(layers[-1])} normalizes by running statistics ({', '.join(found)}): each copy of it has its "
            f"own statistics, and its rows and returns are in other units than a data set's and than the task's. "
            f"Standardize by the data (torchrl_o2o.data.Convention), or set the statistics yourself and "
            f"update_running_mean=False",
            stacklevel=4,
        )


def layers_of(env: gymnasium.Env | VectorEnv) -> Iterator[gymnasium.Env | VectorEnv]:
    """An environment and all that is inside of it, from the outside; of several as one the first.

    Args:
        env: the environment with its wrappers, or several as one.

    Examples:
        >>> [type(layer).__name__ for layer in layers_of(gymnasium.make("Pendulum-v1"))][-1]
        'PendulumEnv'
    """
    yield env
    while isinstance(env, gymnasium.Wrapper | VectorWrapper | SyncVectorEnv):
        env = env.envs[0] if isinstance(env, SyncVectorEnv) else env.env
        yield env


def env_name(env: gymnasium.Env | VectorEnv) -> str:
    """What to call an environment in a message: its id, or its class."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__
