# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""N agents act at once: one evaluation of the stacked policies for N environments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.func import vmap

from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives.networks import ActorCritic, Inputs, Parameters
from torchrl_o2o.seeds.sac import StackedSAC
from torchrl_o2o.seeds.streams import RandomStream

__all__ = ["StackedActor", "StackedCollector"]


def _sample(networks: ActorCritic, actor: Parameters, inputs: Inputs, noise: Tensor) -> tuple[Tensor, Tensor]:
    return vmap(networks.sample)(actor, inputs, noise)


class StackedActor:
    """One random action per agent, by its own parameters and its own random numbers.

    Args:
        stack: whose policies act.
        streams: the agents' random numbers.
        action_dim: A.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> from torchrl_o2o.seeds import stack_losses
        >>> losses = [EnsembleSACLoss(make_actor(3, 2), make_qvalue_ensemble(3, 2)) for _ in range(2)]
        >>> act = StackedActor(stack_losses(losses), [RandomStream() for _ in range(2)], action_dim=2)
        >>> act(torch.zeros(2, 3)).shape
        torch.Size([2, 2])
    """

    def __init__(self, stack: StackedSAC, streams: Sequence[RandomStream], action_dim: int) -> None:
        self.stack = stack
        self.streams = list(streams)
        self.action_dim = action_dim

    @torch.no_grad()
    def __call__(self, observations: Tensor) -> Tensor:
        """Draw actions.

        Args:
            observations: shape [N, o].

        Returns:
            Shape [N, A], on the observations' device.
        """
        leaf = next(iter(self.stack.actor.values()))
        options = {"dtype": leaf.dtype, "device": leaf.device}
        noise = [torch.randn(self.action_dim, generator=stream.generator, **options) for stream in self.streams]
        key = self.stack.networks.actor.in_keys[0]
        inputs = {key: observations.to(**options)}
        return _sample(self.stack.networks, self.stack.actor, inputs, torch.stack(noise))[0].to(observations.device)


class _Handed(TensorDictModuleBase):
    """Stands in for an agent's actor: gives the action it was handed, and asks the actor only if there is none."""

    in_keys = ["observation"]
    out_keys = ["action"]

    def __init__(self, actor: TensorDictModuleBase) -> None:
        super().__init__()
        self.actor = actor
        self.action: Tensor | None = None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action."""
        if self.action is None:  # a rejected step has begun another episode in the middle of the round
            return self.actor(tensordict)
        action, self.action = self.action, None
        return tensordict.set("action", action)


class StackedCollector:
    """Step N collectors in rounds of one transition each, with one evaluation of all policies per round.

    Every environment is stepped in its agent's random state, so a transition is what the agent's own collector would
    deliver in its single run. The collectors stay the agents' own, to save and restore.

    Args:
        collectors: one per agent, all at the same frame; from now on they act by ``act``, ``fast_act`` or not.
        act: draws the actions.

    Keyword Args:
        foreign_envs: the environments may draw from Python's or numpy's global generator, as those of gymnasium and
            gymnasium_robotics do not; costs a fraction of a millisecond per step. Defaults to ``False``.

    Raises:
        O2OSpecError: if the numbers of agents differ.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> from torchrl_o2o.seeds import stack_losses
        >>> actors = [make_actor(3, 1, hidden_sizes=(8,)) for _ in range(2)]
        >>> losses = [EnsembleSACLoss(actor, make_qvalue_ensemble(3, 1, hidden_sizes=(8,))) for actor in actors]
        >>> singles = [
        ...     StepCollector(make_gym_env("Pendulum-v1"), actor, total_frames=5, seed=seed)
        ...     for seed, actor in enumerate(actors)
        ... ]
        >>> act = StackedActor(stack_losses(losses), [RandomStream() for _ in actors], action_dim=1)
        >>> collector = StackedCollector(singles, act)
        >>> [data["action"].shape for data in collector.step()], collector.frames
        ([torch.Size([1, 1]), torch.Size([1, 1])], 1)
    """

    def __init__(self, collectors: Sequence[StepCollector], act: StackedActor, *, foreign_envs: bool = False) -> None:
        if len(collectors) != len(act.streams):
            raise O2OSpecError(f"got {len(collectors)} collectors for {len(act.streams)} agents, expected as many")
        self.collectors = list(collectors)
        self.act = act
        self.foreign_envs = foreign_envs
        self._handed = [_Handed(collector.actor) for collector in self.collectors]
        for collector, handed in zip(self.collectors, self._handed, strict=True):
            collector.actor, collector._fast = handed, None
        self._transitions = [iter(collector) for collector in self.collectors]

    @property
    def frames(self) -> int:
        """Transitions delivered to each agent.

        Raises:
            O2OSpecError: if the collectors do not stand at one frame.
        """
        frames = {collector.frames for collector in self.collectors}
        if len(frames) != 1:
            raise O2OSpecError(f"the agents' collectors stand at frames {sorted(frames)}, expected one for all")
        return frames.pop()

    def step(self) -> list[TensorDict]:
        """One transition per agent, each of batch shape [1]."""
        if self.frames >= self.collectors[0].init_random_frames:
            observations = torch.stack([collector._observation for collector in self.collectors])
            for handed, action in zip(self._handed, self.act(observations), strict=True):
                handed.action = action
        return [self._next(agent, stream) for agent, stream in zip(self._transitions, self.act.streams, strict=True)]

    def _next(self, transitions: Iterator[TensorDict], stream: RandomStream) -> TensorDict:
        with stream if self.foreign_envs else stream.torch_only():
            return next(transitions)
