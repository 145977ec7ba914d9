# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the soft actor-critic family (SAC and RLPD, CQL, Cal-QL, SAC+ML, ACA) shares: networks, temperature."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torchrl.data import Bounded

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.actor_critic import ActorCriticLoss
from torchrl_o2o.objectives.base import Reduction
from torchrl_o2o.objectives.networks import (
    ActorCritic,
    Inputs,
    Parameters,
    flat_parameters,
)

__all__ = ["SoftLoss", "action_box"]


def _sample_log_prob(networks: ActorCritic, actor: Parameters, inputs: Inputs, noise: Tensor) -> Tensor:
    """log pi(a|s) of one fresh action per row, shape [*B]."""
    return networks.sample(actor, inputs, noise)[1]


class SoftLoss(ActorCriticLoss):
    """Abstract base of actor-critic losses with a stochastic actor, E critics with targets and a temperature.

    Args:
        actor_network: a probabilistic actor.
        qvalue_network: E critics.
        temperature: the entropy temperature; ``None`` takes ``Temperature(-A, form="log_alpha")``.
        reduction: over the batch.

    Raises:
        O2OSpecError: if fewer than one critic is given or the action dimension is needed but unknown.
    """

    actor_network: ProbabilisticTensorDictSequential

    _sample_log_prob = staticmethod(_sample_log_prob)

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        *,
        temperature: Temperature | None,
        reduction: Reduction,
    ) -> None:
        super().__init__(actor_network, qvalue_network, reduction=reduction)
        if temperature is None:
            temperature = Temperature(-float(action_box(actor_network)[0].numel()), form="log_alpha")
        self.temperature = temperature

    @torch.no_grad()
    def sample_log_prob(self, tensordict: TensorDictBase) -> Tensor:
        r"""log pi(a|s) of fresh actions, for a temperature step before the actor's (SAC+ML, ACA, SAC after them).

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            Log-densities, shape [*B], without gradient.
        """
        noise = self.noise.normal("temperature_action", self._action(tensordict))
        actor = flat_parameters(self.actor_network_params, detach=True)
        return self._sample_log_prob(self._networks, actor, self._inputs(tensordict, "actor_network"), noise)

    def alpha_loss(
        self, tensordict: TensorDictBase, *, log_prob: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Temperature loss from log-densities of sampled actions.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Keyword Args:
            log_prob: what :meth:`actor_loss` returned, shape [*B]; ``None`` (default) draws fresh actions by
                :meth:`sample_log_prob`, for a temperature step before the actor's.

        Returns:
            The loss, and the scalars ``alpha`` and ``entropy``.
        """
        self._check_batch(tensordict, "alpha_loss(batch, log_prob=log_prob)")
        drawn: Tensor = self.sample_log_prob(tensordict) if log_prob is None else log_prob
        info = {"alpha": self.temperature.alpha, "entropy": -drawn.detach().mean()}
        return self._reduce(self.temperature.objective(drawn)), info


def action_box(actor: ProbabilisticTensorDictSequential) -> tuple[Tensor, Tensor]:
    """Lower and upper edges of the actions, from the actor's spec.

    Args:
        actor: a probabilistic actor with a bounded spec.

    Returns:
        Two vectors of shape [A].

    Raises:
        O2OSpecError: if the actor states no bounded action spec.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> action_box(make_actor(3, 2, hidden_sizes=(8,)))
        (tensor([-1., -1.]), tensor([1., 1.]))
    """
    spec = getattr(actor, "spec", None)
    leaves = [] if spec is None else [leaf for leaf in spec.values(True, True) if isinstance(leaf, Bounded)]
    if len(leaves) != 1:
        raise O2OSpecError(
            f"the actor's spec is {spec!r}, expected one bounded action; build the actor with make_actor or "
            f"ProbabilisticActor(..., spec=...)"
        )
    return leaves[0].space.low, leaves[0].space.high
