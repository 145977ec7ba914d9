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

from torchrl_o2o.functional.soft import soft_value
from torchrl_o2o.modules.boxes import action_spec
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.actor_critic import ActorCriticLoss
from torchrl_o2o.objectives.base import Reduction
from torchrl_o2o.objectives.networks import sample_policy

__all__ = ["SoftLoss"]


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
            temperature = Temperature(-float(action_spec(actor_network).shape[-1]), form="log_alpha")
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
        return sample_policy(self._policy(self._state(tensordict)), noise)[1]

    def _soft_target(
        self, tensordict: TensorDictBase, action: Tensor, log_prob: Tensor, qvalue: Tensor, *, entropy: bool = True
    ) -> Tensor:
        """y = r + gamma (1 - d) [Q'(s', a') - alpha log pi(a'|s')], shape [*B]; ``entropy`` keeps the last term."""
        value = soft_value(qvalue, log_prob, self.temperature.alpha) if entropy else qvalue
        return self._estimate(tensordict, value, qvalue=qvalue, log_prob=log_prob, action=action)

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
