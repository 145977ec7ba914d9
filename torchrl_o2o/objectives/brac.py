# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Behavior-regularized actor-critic (BRAC)."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torch.distributions import Distribution

from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.functional.behavior import soft_minimum, squared_mmd
from torchrl_o2o.functional.soft import sac_actor_objective, soft_value
from torchrl_o2o.modules.multiplier import Multiplier
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.networks import Inputs, flat_parameters, policy_distribution, sample_policy
from torchrl_o2o.objectives.penalty import DivergenceLoss
from torchrl_o2o.objectives.soft import SoftLoss

__all__ = ["BRACLoss"]

_ALL = ("actor_network", "qvalue_network", "behavior_network")


class BRACLoss(DivergenceLoss, SoftLoss):
    r"""Soft actor-critic whose policy pays for its divergence from a cloned behavior policy :math:`\hat\beta`.

    .. math::
        y = r+\gamma(1-d)\big[\bar Q'(s',a')-\alpha_e\log\pi(a'|s')-\alpha D(s')\big],\qquad
        \bar Q=\lambda\min_i Q_i+(1-\lambda)\max_i Q_i,\qquad L_Q = \frac1B\sum_b\sum_i(Q_i(s,a)-y)^2

        L_\pi = \frac1B\sum_b\big[\alpha_e\log\pi(a|s)+\alpha D(s)-w_Q\bar Q(s,a)\big],\quad a\sim\pi(\cdot|s)

    With ``value_penalty=True`` this is BRAC-v; BRAC-p leaves :math:`\alpha D(s')` out of y. The divergence is estimated
    from K actions a_k of the policy,

    .. math:: D_{KL}(s)=\frac1K\sum_k\log\pi(a_k|s)-\log\hat\beta(\mathrm{clip}(a_k,\pm(1-\varepsilon))|s)

    or is the squared maximum mean discrepancy between K actions of either policy
    (:func:`~torchrl_o2o.functional.squared_mmd`, Laplacian kernel). :math:`\hat\beta` is cloned before, by
    :class:`~torchrl_o2o.objectives.BCLoss`, and only read here. :math:`\alpha` is fixed or steered
    (:class:`~torchrl_o2o.modules.Multiplier`). The buffer ``q_weight``, :math:`w_Q`, is 1; fill it with 0 for a warm
    start of the actor on the divergence alone.

    Source: Wu et al. 2019, arXiv:1911.11361, Eq. 3-6, and the authors' code: targets are moved first in each update.

    Differences from the paper: none in the equations. Its dual estimates, with a critic of the divergence, are left
    out. The authors draw anew for the weight's step; here it takes the divergence that the actor's step measured.

    Importance weights multiply the rows of :math:`L_Q`, not those of :math:`L_\pi`, of the temperature or of
    :math:`\alpha`.

    Args:
        actor_network: a tanh-Gaussian actor, :func:`~torchrl_o2o.modules.make_actor`.
        qvalue_network: critics, two in the paper.
        behavior_network: the cloned policy; its parameters are shared, get no gradient here and belong into no
            optimizer but that of :class:`~torchrl_o2o.objectives.BCLoss`.

    Keyword Args:
        value_penalty: penalize the target, too (BRAC-v). Defaults to ``False``.
        divergence: ``"kl"`` (default) or ``"mmd"``.
        divergence_samples: K. Defaults to 4.
        multiplier: :math:`\alpha`. Defaults to ``Multiplier(0.1)``, fixed; ``Multiplier(0.1, target=0.0)`` is learned
            in [0, 500].
        temperature: :math:`\alpha_e`. Defaults to ``Temperature(None, init=0.0)``: no entropy.
        soft_min_weight: :math:`\lambda`. Defaults to 1.
        action_margin: :math:`\varepsilon`, as a share of the box's half-width. Defaults to 1e-3.
        mmd_sigma: width of the kernel. Defaults to 20.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if a policy has no density, or a setting is unknown or out of range.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import BRACLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> actor, behavior = (make_actor(17, 6, hidden_sizes=(32, 32)) for _ in range(2))
        >>> critics = make_qvalue_ensemble(17, 6, num_qvalue_nets=2, layer_norm=False, hidden_sizes=(32, 32))
        >>> loss, batch = BRACLoss(actor, critics, behavior, value_penalty=True), random_transitions(8, 17, 6)
        >>> loss_qvalue, _ = loss.qvalue_loss(batch)
        >>> loss_actor, info = loss.actor_loss(batch)
        >>> info["divergence"].shape
        torch.Size([8])
    """

    out_keys = ["loss_actor", "loss_qvalue", "loss_alpha", "loss_multiplier", "divergence", "qvalue_policy"]
    out_keys += ["log_prob", "alpha", "entropy", "multiplier", "qvalue", "target_value"]

    behavior_network: ProbabilisticTensorDictSequential
    behavior_network_params: TensorDictParams
    target_behavior_network_params: TensorDictParams
    action_low: Tensor
    action_high: Tensor

    _networks_read = (_ALL, _ALL)

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        behavior_network: ProbabilisticTensorDictSequential,
        *,
        value_penalty: bool = False,
        divergence: Literal["kl", "mmd"] = "kl",
        divergence_samples: int = 4,
        multiplier: Multiplier | None = None,
        temperature: Temperature | None = None,
        soft_min_weight: float = 1.0,
        action_margin: float = 1e-3,
        mmd_sigma: float = 20.0,
        reduction: Reduction = "mean",
    ) -> None:
        temperature = Temperature(None, init=0.0) if temperature is None else temperature
        super().__init__(actor_network, qvalue_network, temperature=temperature, reduction=reduction)
        check_option("divergence", divergence, ("kl", "mmd"))
        if not isinstance(behavior_network, ProbabilisticTensorDictSequential):
            raise O2OSpecError(
                f"got the behavior policy {type(behavior_network).__name__}, expected a stochastic one, for example "
                f"make_actor(...) cloned by BCLoss"
            )
        if divergence_samples < 1 or not 0.0 <= soft_min_weight <= 1.0 or not mmd_sigma > 0.0:
            raise O2OSpecError(
                f"got divergence_samples={divergence_samples}, soft_min_weight={soft_min_weight}, "
                f"mmd_sigma={mmd_sigma}; expected at least 1, a weight in [0, 1], and more than 0"
            )
        if not 0.0 < action_margin < 1.0:
            raise O2OSpecError(f"got action_margin={action_margin}, expected a share in (0, 1), for example 1e-3")
        self.convert_to_functional(behavior_network, "behavior_network", create_target_params=False)
        self._hold_box(actor_network)
        self._hold_weights(Multiplier(0.1) if multiplier is None else multiplier)
        self.value_penalty, self.divergence, self.divergence_samples = value_penalty, divergence, divergence_samples
        self.soft_min_weight, self.action_margin, self.mmd_sigma = soft_min_weight, action_margin, mmd_sigma
        self.make_value_estimator()

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
        value = qvalue - self.multiplier.value * self._divergence(following, policy, action, "next_")
        value = soft_value(value, log_prob, self.temperature.alpha)
        return self._estimate(tensordict, value, qvalue=qvalue, log_prob=log_prob, action=action)

    def qvalue_loss(
        self, tensordict: TensorDictBase, *, target_value: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic loss of one minibatch.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Keyword Args:
            target_value: y, shape [*B], if it was computed before; ``None`` (default) calls :meth:`target_value`.

        Returns:
            The loss, and ``td_error`` (shape [*B]), ``qvalue`` (shape [E, *B]) and ``target_value`` (shape [*B]), all
            detached.
        """
        target = self.target_value(tensordict) if target_value is None else target_value  # y
        qvalue = self._qvalues(self._state(tensordict), self._action(tensordict))  # Q_i(s, a)
        error, info = self._bellman_error(qvalue, target)
        return self._reduce(error, self._weights(tensordict)), info

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches critics, cloned policy or weights.

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
        divergence = self._divergence(state, policy, action)  # D(s)
        soft = sac_actor_objective(log_prob, self.q_weight * qvalue, self.temperature.alpha)
        info = {"divergence": divergence.detach(), "log_prob": log_prob.detach(), "qvalue_policy": qvalue.detach()}
        return self._reduce(soft + self.multiplier.value * divergence), info

    @torch.no_grad()
    def estimate_divergence(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`DivergenceLoss.estimate_divergence`; from the cloned behavior."""
        state = self._state(tensordict)
        return self._divergence(state, self._policy(state), self._action(tensordict))

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All losses from one set of parameters, and their statistics; writes the priority to the batch."""
        loss_qvalue, info = self.qvalue_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict)
        loss_alpha, alpha_info = self.alpha_loss(tensordict, log_prob=actor_info["log_prob"])
        weighed, weight_info = self.multiplier_loss(tensordict, divergence=actor_info["divergence"])
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue}
        losses |= {"loss_alpha": loss_alpha, "loss_multiplier": weighed}
        return self._collect(tensordict, losses, {**info, **actor_info, **alpha_info, **weight_info})

    def _divergence(self, state: Inputs, policy: Distribution, like: Tensor, prefix: str = "") -> Tensor:
        """D(s), shape [*B], with gradient into the policy."""
        count = (self.divergence_samples,)
        params = flat_parameters(self.behavior_network_params, detach=True)
        behavior = policy_distribution(self.behavior_network, params, state)
        action, log_prob = sample_policy(policy, self.noise.normal(f"{prefix}divergence", like, count), count)
        if self.divergence == "mmd":
            cloned, _ = sample_policy(behavior, self.noise.normal(f"{prefix}behavior", like, count), count)
            return squared_mmd(action, cloned, self.mmd_sigma)
        return (log_prob - behavior.log_prob(self._inside(action))).mean(0)

    def _inside(self, action: Tensor) -> Tensor:
        """The action, clamped away from the edge of its box, where the inverse of tanh is infinite."""
        low, high = self.action_low.to(action.dtype), self.action_high.to(action.dtype)
        margin = 0.5 * self.action_margin * (high - low)
        return torch.minimum(torch.maximum(action, low + margin), high - margin)
