# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Actors in other processes: their interface, their environments and the policy that is published to them.

TorchRL provides the processes, the pipes and the stepping. This package adds two entries to every transition: the
version of the policy that acted, and the version of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.data import Composite, Unbounded
from torchrl.envs import Compose, EnvBase, GymWrapper, RewardSum, StepCounter, TransformedEnv
from torchrl.envs.gym_like import default_info_dict_reader

from torchrl_o2o.collectors.acting_policy import ActingPolicy
from torchrl_o2o.envs.checks import check_continuous, env_name
from torchrl_o2o.envs.guard import GuardedEnv
from torchrl_o2o.envs.outputs import CheckedEnv, EnvFaultError, checked_reset, checked_step
from torchrl_o2o.envs.units import check_actions
from torchrl_o2o.errors import check_count

__all__ = ["Actors", "PublishedActors", "TransitionStream", "actor_env"]


class TransitionStream(Protocol):
    """The stream of one actor's transitions, such as a collector of TorchRL.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> class Replayed:  # a recording instead of an environment
        ...     def __init__(self, rows):
        ...         self.rows = rows
        ...     def __iter__(self):
        ...         return iter(self.rows.split(10))
        ...     def shutdown(self, timeout=None):
        ...         pass  # there is no process
        >>> source: TransitionStream = Replayed(random_transitions(30, 3, 2))
        >>> [batch.shape for batch in source]
        [torch.Size([10]), torch.Size([10]), torch.Size([10])]
    """

    def __iter__(self) -> Iterator[TensorDictBase]:
        """Deliver batches [n], without end."""
        ...

    def shutdown(self, timeout: float | None = None) -> None:
        """Close the environment and end the process."""
        ...


class Actors(Protocol):
    """Where a :class:`~torchrl_o2o.collectors.Fleet` gets its actors: ``ProcessActors``, or your own.

    Examples:
        >>> from functools import partial
        >>> from torchrl_o2o.collectors import ProcessActors
        >>> from torchrl_o2o.envs import make_gym_env
        >>> from torchrl_o2o.modules import make_actor
        >>> actors: Actors = ProcessActors(partial(make_gym_env, "Pendulum-v1"), make_actor(3, 1), seed=0)
        >>> actors.publish(1, random=True)  # before the first is started: all will act at random
    """

    def start(self, number: int, attempt: int) -> TransitionStream:
        """Start an actor, or start it again.

        Args:
            number: of the actor.
            attempt: how often it has been started before.
        """
        ...

    def publish(self, version: int, *, random: bool) -> None:
        """Publish the learner's current weights to all actors, or let them act at random.

        Args:
            version: of the weights.

        Keyword Args:
            random: act uniformly at random instead.
        """
        ...


class PublishedActors:
    """The base class of actors in other processes: an environment, and the learner's published policy.

    Args:
        make_env: builds the environment in the actor's process.
        actor: the learner's policy, which :meth:`publish` reads.

    Keyword Args:
        seed: of environments and noise, with the actor's number and attempt.
        frames_per_batch: number of transitions that an actor sends at once.
        intervened: see :class:`~torchrl_o2o.collectors.ProcessActors`.
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env],
        actor: TensorDictModuleBase,
        *,
        seed: int,
        frames_per_batch: int,
        intervened: bool,
    ) -> None:
        self.make_env, self.actor, self.intervened = make_env, actor, intervened
        self.seed, self.frames_per_batch = seed, check_count("frames_per_batch", frames_per_batch, least=1)
        self.policy = ActingPolicy(actor, seed=seed)

    def publish(self, version: int, *, random: bool) -> None:
        """Publish the learner's current weights.

        Args:
            version: of the weights.

        Keyword Args:
            random: have the actors act uniformly at random instead.
        """
        self.policy.publish(self.actor, version, random=random)

    def env_of(self, number: int, attempt: int) -> Callable[[], EnvBase]:
        """The function that builds an actor's environment, with its own seed.

        Args:
            number: of the actor.
            attempt: how often it has been started before.
        """
        seed = int(np.random.SeedSequence([self.seed, number, attempt]).generate_state(1)[0])
        return partial(actor_env, self.make_env, seed, intervened=self.intervened)


def actor_env(make_env: Callable[[], gymnasium.Env], seed: int, *, intervened: bool = False) -> EnvBase:
    """Wrap a gymnasium environment for TorchRL's collectors, with the running return and length of the episode.

    What it returns is copied, as in this package's own collectors, and of the form of its spaces. Values that are not
    finite pass: the receiver leaves such rows out.

    Args:
        make_env: builds it.
        seed: of its resets.

    Keyword Args:
        intervened: as of :class:`~torchrl_o2o.collectors.ProcessActors`. Defaults to ``False``.

    Raises:
        O2OSpecError: if its spaces are not supported, or its actions are not in [-1, 1].
        EnvFaultError: in a step or a reset, if what comes back is malformed, or an intervention is no action.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> env = actor_env(partial(make_gym_env, "Pendulum-v1"), 0)
        >>> env.rollout(3)["next", "step_count"].squeeze(-1)
        tensor([1, 2, 3])
    """
    gym_env = make_env()
    gym_env = gym_env if isinstance(gym_env, GuardedEnv | CheckedEnv) else _Copied(gym_env)
    ones = np.ones(gym_env.action_space.shape or ())
    check_actions(gym_env.action_space, (-ones, ones))
    entries = {"rejected": Unbounded(torch.Size(()))}  # set by a GuardedEnv
    if intervened:
        gym_env = _SaysIntervened(gym_env)
        entries["intervened"] = Unbounded(torch.Size(gym_env.nobody.shape))
    env = GymWrapper(gym_env)
    env.set_info_dict_reader(default_info_dict_reader(list(entries), spec=Composite(entries)))
    env = TransformedEnv(env, Compose([RewardSum(), StepCounter()]))
    env.set_seed(seed)
    return env


class _Copied(CheckedEnv):
    """Passes on copies of actions and of what comes back: TorchRL's wrapper shares memory with the environment."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return checked_reset(self.env, self._space, finite=False, seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return checked_step(self.env, np.array(action), self._space, finite=False)


class _SaysIntervened(gymnasium.Wrapper):
    """Writes NaN as the intervention if nobody intervened, because TorchRL would read zeros."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        space = env.action_space
        check_continuous(space, type(env.unwrapped).__name__)
        self.nobody = np.full(space.shape or (), np.nan, np.float32)

    def reset(self, **settings: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**settings)
        return observation, {**info, "intervened": self.nobody.copy()}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        *outcome, info = self.env.step(action)
        given = info.get("intervened")
        executed = self.nobody.copy() if given is None else self._read(given)
        return *outcome, {**info, "intervened": executed}  # pyright: ignore[reportReturnType]

    def _read(self, given: Any) -> np.ndarray:
        try:
            executed = np.array(given, np.float32)
        except (TypeError, ValueError):
            executed = None
        if executed is None or executed.shape != self.nobody.shape:
            raise EnvFaultError(
                f"{env_name(self.env)}: got the intervention {given!r}, expected an action of shape "
                f"{self.nobody.shape}, or None where nobody intervened; correct info['intervened']"
            )
        return executed
