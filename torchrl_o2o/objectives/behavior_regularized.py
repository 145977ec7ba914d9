# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The base class of BRAC's losses: soft actor-critic whose policy pays for its divergence from the data's behavior."""

from __future__ import annotations

from abc import abstractmethod

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torch.distributions import Distribution

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.behavior import soft_minimum
from torchrl_o2o.functional.soft import sac_actor_objective, soft_value
from torchrl_o2o.modules.multiplier import Multiplier
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.base import Reduction
from torchrl_o2o.objectives.networks import Inputs, sample_policy
from torchrl_o2o.objectives.penalty import DivergenceLoss
from torchrl_o2o.objectives.soft import SoftLoss

__all__ = ["BehaviorRegularizedLoss"]


class BehaviorRegularizedLoss(DivergenceLoss, SoftLoss):
    r"""Abstract base: the target and the losses of critics and actor, for any estimate of the divergence D.

    .. math::
        y = r+\gamma(1-d)\big[\bar Q'(s',a')-\alpha_e\log\pi(a'|s')-\alpha D(s')\big],\qquad
        \bar Q=\lambda\min_i Q_i+(1-\lambda)\max_i Q_i,\qquad L_Q = \frac1B\sum_b\sum_i(Q_i(s,a)-y)^2

        L_\pi = \frac1B\sum_b\big[\alpha_e\log\pi(a|s)+\alpha D(s)-w_Q\bar Q(s,a)\big],\quad a\sim\pi(\cdot|s)

    Subclasses implement :meth:`_divergence` and end their ``__init__`` with :meth:`make_value_estimator`.

    Args:
        actor_network: a stochastic actor.
        qvalue_network: E critics.
        value_penalty: whether :math:`\alpha D(s')` is in y.
        multiplier: :math:`\alpha`; ``None`` takes ``Multiplier(0.1)``.
        temperature: :math:`\alpha_e`; ``None`` takes ``Temperature(None, init=0.0)``: no entropy.
        soft_min_weight: :math:`\lambda`.
        reduction: over the batch.

    Raises:
        O2OSpecError: if the actor has no density, or ``soft_min_weight`` is no share.
    """

    out_keys = ["loss_actor", "loss_qvalue", "loss_alpha", "loss_multiplier", "divergence", "qvalue_policy"]
    out_keys += ["log_prob", "alpha", "entropy", "multiplier", "qvalue", "target_value"]

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        *,
        value_penalty: bool,
        multiplier: Multiplier | None,
        temperature: Temperature | None,
        soft_min_weight: float,
        reduction: Reduction,
    ) -> None:
        temperature = Temperature(None, init=0.0) if temperature is None else temperature
        super().__init__(actor_network, qvalue_network, temperature=temperature, reduction=reduction)
        if not 0.0 <= soft_min_weight <= 1.0:
            raise O2OSpecError(f"got soft_min_weight={soft_min_weight}, expected a weight in [0, 1]")
        self._hold_weights(Multiplier(0.1) if multiplier is None else multiplier)
        self.value_penalty, self.soft_min_weight = value_penalty, soft_min_weight

    @abstractmethod
    def _divergence(
        self, tensordict: TensorDictBase, state: Inputs, policy: Distribution, action: Tensor, *, following: bool
    ) -> Tensor:
        """D, shape [*B], with gradient into the policy.

        Args:
            tensordict: transitions, shape [*B]; not modified.
            state: where it is estimated: s, or s' with ``following``.
            policy: pi at that state.
            action: one action drawn from it, shape [*B, A].
            following: whether the state is the next one.
        """

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """The Bellman target y of the class docstring.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            y, shape [*B], without gradient.
        """
        noise, following = self.noise.normal("next_action", self._action(tensordict)), self._next_state(tensordict)
        policy = self._policy(following)
        action, log_prob = sample_policy(policy, noise)  # a' ~ pi(.|s')
        qvalues = self._qvalues(following, action, self._target_critics)  # Q'_i(s', a')
        qvalue = soft_minimum(qvalues, self.soft_min_weight)
        if not self.value_penalty:
            return self._soft_target(tensordict, action, log_prob, qvalue)
        divergence = self._divergence(tensordict, following, policy, action, following=True)  # D(s')
        value = qvalue - self.multiplier.value * divergence
        value = soft_value(value, log_prob, self.temperature.alpha)
        return self._estimate(tensordict, value, qvalue=qvalue, log_prob=log_prob, action=action)

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches critics, D's other networks or weights.

        Args:
            tensordict: transitions, shape [*B]; not modified. Of the recorded action only the shape is used.

        Returns:
            The loss, and per row, shape [*B], detached: ``divergence``, ``log_prob`` of the sampled action and
            ``qvalue_policy``.
        """
        noise, state = self.noise.normal("action", self._action(tensordict)), self._state(tensordict)
        policy = self._policy(state)
        action, log_prob = sample_policy(policy, noise)  # a ~ pi(.|s)
        qvalue = soft_minimum(self._qvalues(state, action, self._frozen_critics), self.soft_min_weight)  # Q(s, a)
        divergence = self._divergence(tensordict, state, policy, action, following=False)  # D(s)
        soft = sac_actor_objective(log_prob, self.q_weight * qvalue, self.temperature.alpha)
        info = {"divergence": divergence.detach(), "log_prob": log_prob.detach(), "qvalue_policy": qvalue.detach()}
        return self._reduce(soft + self.multiplier.value * divergence), info

    def _regularized_losses(self, tensordict: TensorDictBase) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses of critics, actor and learned weights at one set of parameters, and their metrics."""
        losses: dict[str, Tensor] = {}
        losses["loss_qvalue"], metrics = self.qvalue_loss(tensordict)
        losses["loss_actor"], actor_metrics = self.actor_loss(tensordict)
        log_prob, divergence = actor_metrics["log_prob"], actor_metrics["divergence"]
        losses["loss_alpha"], alpha_metrics = self.alpha_loss(tensordict, log_prob=log_prob)
        losses["loss_multiplier"], weight_metrics = self.multiplier_loss(tensordict, divergence=divergence)
        return losses, {**metrics, **actor_metrics, **alpha_metrics, **weight_metrics}
