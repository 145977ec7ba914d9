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
from torchrl_o2o.functional.behavior import squared_mmd
from torchrl_o2o.modules.multiplier import Multiplier
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.behavior_regularized import BehaviorRegularizedLoss
from torchrl_o2o.objectives.networks import Inputs, flat_parameters, policy_distribution, sample_policy

__all__ = ["BRACLoss"]

_ALL = ("actor_network", "qvalue_network", "behavior_network")


class BRACLoss(BehaviorRegularizedLoss):
    r"""Soft actor-critic with a penalty on the policy's divergence from a cloned behavior policy :math:`\hat\beta`.

    .. math::
        y = r+\gamma(1-d)\big[\bar Q'(s',a')-\alpha_e\log\pi(a'|s')-\alpha D(s')\big],\qquad
        \bar Q=\lambda\min_i Q_i+(1-\lambda)\max_i Q_i,\qquad L_Q = \frac1B\sum_b\sum_i(Q_i(s,a)-y)^2

        L_\pi = \frac1B\sum_b\big[\alpha_e\log\pi(a|s)+\alpha D(s)-w_Q\bar Q(s,a)\big],\quad a\sim\pi(\cdot|s)

    With ``value_penalty=True`` this is BRAC-v; BRAC-p leaves :math:`\alpha D(s')` out of y. The divergence is estimated
    from K actions a_k of the policy,

    .. math:: D_{KL}(s)=\frac1K\sum_k\log\pi(a_k|s)-\log\hat\beta(\mathrm{clip}(a_k,\pm(1-\varepsilon))|s)

    or is the squared maximum mean discrepancy between K actions of either policy
    (:func:`~torchrl_o2o.functional.squared_mmd`, Laplacian kernel). Train :math:`\hat\beta` beforehand with
    :class:`~torchrl_o2o.objectives.BCLoss`; this loss does not change it. :math:`\alpha` is fixed or learned
    (:class:`~torchrl_o2o.modules.Multiplier`). The buffer ``q_weight``, :math:`w_Q`, is 1; fill it with 0 for a warm
    start of the actor on the divergence alone.

    Source: Wu et al. 2019, arXiv:1911.11361, Eq. 3-6, and the authors' code, which moves the targets first in each
    update.

    Differences from the paper: none in the equations; its dual estimates are
    :class:`~torchrl_o2o.objectives.BRACDualLoss`. The authors draw again for the weight's step; here it takes the
    divergence that the actor's step measured.

    Importance weights multiply the rows of :math:`L_Q`, not those of :math:`L_\pi`, of the temperature or of
    :math:`\alpha`.

    Args:
        actor_network: a tanh-Gaussian actor, :func:`~torchrl_o2o.modules.make_actor`.
        qvalue_network: critics, two in the paper.
        behavior_network: the cloned policy. Its parameters are shared and get no gradient here. Give them to no
            optimizer except that of :class:`~torchrl_o2o.objectives.BCLoss`.

    Keyword Args:
        value_penalty: whether the target is penalized, too (BRAC-v). Defaults to ``False``.
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
        super().__init__(
            actor_network,
            qvalue_network,
            value_penalty=value_penalty,
            multiplier=multiplier,
            temperature=temperature,
            soft_min_weight=soft_min_weight,
            reduction=reduction,
        )
        check_option("divergence", divergence, ("kl", "mmd"))
        if not isinstance(behavior_network, ProbabilisticTensorDictSequential):
            raise O2OSpecError(
                f"got the behavior policy {type(behavior_network).__name__}, expected a stochastic one, for example "
                f"make_actor(...) cloned by BCLoss"
            )
        if divergence_samples < 1 or not mmd_sigma > 0.0:
            raise O2OSpecError(
                f"got divergence_samples={divergence_samples}, mmd_sigma={mmd_sigma}; expected at least 1, and more "
                f"than 0"
            )
        if not 0.0 < action_margin < 1.0:
            raise O2OSpecError(f"got action_margin={action_margin}, expected a share in (0, 1), for example 1e-3")
        self.convert_to_functional(behavior_network, "behavior_network", create_target_params=False)
        self._hold_box(actor_network)
        self.divergence, self.divergence_samples = divergence, divergence_samples
        self.action_margin, self.mmd_sigma = action_margin, mmd_sigma
        self.make_value_estimator()

    @torch.no_grad()
    def estimate_divergence(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`DivergenceLoss.estimate_divergence`; from the cloned behavior."""
        state = self._state(tensordict)
        policy, like = self._policy(state), self._action(tensordict)
        return self._divergence(tensordict, state, policy, like, following=False)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All losses from one set of parameters, and their statistics; writes the priority to the batch."""
        return self._collect(tensordict, *self._regularized_losses(tensordict))

    def _divergence(
        self, tensordict: TensorDictBase, state: Inputs, policy: Distribution, action: Tensor, *, following: bool
    ) -> Tensor:
        """See :meth:`BehaviorRegularizedLoss._divergence`; of ``action`` only the shape is used."""
        count, prefix = (self.divergence_samples,), "next_" if following else ""
        params = flat_parameters(self.behavior_network_params, detach=True)
        behavior = policy_distribution(self.behavior_network, params, state)
        noise = self.noise.normal(f"{prefix}divergence", action, count)
        drawn, log_prob = sample_policy(policy, noise, count)  # a_k ~ pi(.|s)
        if self.divergence == "mmd":
            cloned, _ = sample_policy(behavior, self.noise.normal(f"{prefix}behavior", action, count), count)
            return squared_mmd(drawn, cloned, self.mmd_sigma)
        return (log_prob - behavior.log_prob(self._inside(drawn))).mean(0)

    def _inside(self, action: Tensor) -> Tensor:
        """The action, clamped to just inside its box, because the inverse of tanh is infinite at the edge."""
        low, high = self.action_low.to(action.dtype), self.action_high.to(action.dtype)
        margin = 0.5 * self.action_margin * (high - low)
        return torch.minimum(torch.maximum(action, low + margin), high - margin)
