# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The base class of TD3+BC, ReBRAC and SPOT: deterministic actors with targets, and smoothed target actions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.offline import smoothed_action
from torchrl_o2o.objectives.base import Reduction
from torchrl_o2o.objectives.critic import CriticLoss
from torchrl_o2o.objectives.networks import Inputs, call_network, flat_parameters

__all__ = ["SmoothedTargetLoss"]


class SmoothedTargetLoss(CriticLoss):
    r"""Abstract base of losses on TD3's critics, :math:`y=r+\gamma(1-d)\min_j Q'_j(s',\tilde a')`.

    Source: Fujimoto et al. 2018 (TD3), Algorithm 1; see :func:`~torchrl_o2o.functional.smoothed_action`.

    Args:
        actor_network: a deterministic actor with a bounded action spec.
        qvalue_network: critics, two in the references.
        policy_noise: standard deviation of the smoothing noise, as a share of the action box's half-width.
        noise_clip: its bound, as a share of the half-width.
        ensemble_reduction: ``"sum"`` or ``"mean"`` over members.
        reduction: over the batch.

    Raises:
        O2OSpecError: if the actor is stochastic or has no bounded action spec, or a noise setting is negative.
    """

    action_low: Tensor
    action_high: Tensor

    _stochastic = False

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: list[TensorDictModule],
        *,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        ensemble_reduction: Literal["sum", "mean"] = "sum",
        reduction: Reduction = "mean",
    ) -> None:
        if isinstance(actor_network, ProbabilisticTensorDictSequential):
            raise O2OSpecError(
                "got a stochastic actor, expected a deterministic one; build it with make_deterministic_actor(...)"
            )
        if not 0.0 <= policy_noise < math.inf or noise_clip < 0.0:
            raise O2OSpecError(
                f"got policy_noise={policy_noise} and noise_clip={noise_clip}, expected 0 (no smoothing) or more"
            )
        super().__init__(
            actor_network, qvalue_network, target_actor=True, ensemble_reduction=ensemble_reduction, reduction=reduction
        )
        self._hold_box(actor_network)
        self.policy_noise, self.noise_clip = policy_noise, noise_clip

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`CriticLoss.target_value`."""
        noise, following = self.noise.normal("target_smoothing", self._action(tensordict)), self._next_state(tensordict)
        box = self.action_low, self.action_high
        action = self._act(following, self.target_actor_network_params)  # pi'(s')
        action = smoothed_action(action, noise, self.policy_noise, self.noise_clip, *box)  # a~'
        qvalue = self._qvalues(following, action, self._target_critics).amin(0)  # min_j Q'_j(s', a~')
        value = qvalue - self._next_penalty(tensordict, action)
        return self._bounded(tensordict, self._estimate(tensordict, value, qvalue=qvalue, action=action))

    def _next_penalty(self, tensordict: TensorDictBase, action: Tensor) -> Tensor | float:
        """A penalty of the target action, shape [*B]; zero in TD3."""
        return 0.0

    def _bounded(self, tensordict: TensorDictBase, target: Tensor) -> Tensor:
        """The target after a bound, shape [*B]; TD3 has none."""
        return target

    def _act(self, state: Inputs, params: TensorDictParams) -> Tensor:
        """pi(s), shape [*B, A]."""
        return call_network(self.actor_network, flat_parameters(params), state, self.tensor_keys.action)

    def _first_qvalue(self, state: Inputs, action: Tensor) -> Tensor:
        """Q_1(s, a), shape [*B], with gradient only for the action."""
        first = {name: value[:1] for name, value in self._frozen_critics.items()}
        return self._qvalues(state, action, first)[0]
