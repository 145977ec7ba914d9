# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""TD3 with behavior cloning (TD3+BC)."""

from __future__ import annotations

import math
from typing import Literal

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.offline import q_normalization
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.td3 import SmoothedTargetLoss

__all__ = ["TD3BCLoss"]


class TD3BCLoss(SmoothedTargetLoss):
    r"""TD3 with a behavior-cloning term, a squared error, in the actor's loss.

    .. math::
        \tilde a' = \mathrm{clip}\big(\pi'(s')+\mathrm{clip}(N(0,0.2),\pm0.5)\big),\qquad
        y = r+\gamma(1-d)\min_j Q'_j(s',\tilde a'),\qquad L_Q = \frac1B\sum_b\sum_j(Q_j(s,a)-y)^2

        L_\pi = \frac1B\sum_b\Big[\frac1A\lVert\pi(s)-a\rVert^2 - \lambda Q_1(s,\pi(s))\Big],\qquad
        \lambda = \alpha\Big/\frac1B\sum_b|Q_1(s,\pi(s))|

    The actor and all targets are updated after every second critic step (by the caller).

    Source: Fujimoto & Gu 2021, arXiv:2106.06860, Eq. 3-5. The paper normalizes the observations
    (:class:`~torchrl_o2o.data.transforms.ObservationStats` does); the smoothing noise is in units of the box's
    half-width.

    Differences from the paper: none in the equations. :class:`torchrl.objectives.TD3BCLoss` computes the same numbers;
    its smoothing noise is in absolute units, its importance weights are renormalized, its default distance is not the
    square, and its noise cannot be recorded.

    Importance weights multiply the rows of :math:`L_Q`, not those of :math:`L_\pi`.

    Args:
        actor_network: :func:`~torchrl_o2o.modules.make_deterministic_actor`.
        qvalue_network: two critics; the actor maximizes the first.

    Keyword Args:
        alpha: weight of the Q term against cloning; 0 is behavior cloning. Defaults to 2.5.
        policy_noise: standard deviation of the smoothing noise, as a share of the action box's half-width. Defaults to
            0.2.
        noise_clip: its bound, as a share of the half-width. Defaults to 0.5.
        ensemble_reduction: ``"sum"`` (default) or ``"mean"`` over members in the critic loss.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the actor is stochastic or has no bounded action spec, or a setting is negative or unknown.

    Examples:
        >>> from torchrl_o2o.modules import make_deterministic_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import TD3BCLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> actor = make_deterministic_actor(17, 6, hidden_sizes=(32, 32))
        >>> critics = make_qvalue_ensemble(17, 6, num_qvalue_nets=2, layer_norm=False, hidden_sizes=(32, 32))
        >>> loss, batch = TD3BCLoss(actor, critics), random_transitions(8, 17, 6)
        >>> loss_qvalue, _ = loss.qvalue_loss(batch)
        >>> loss_actor, info = loss.actor_loss(batch)
        >>> sorted(info)
        ['bc_error', 'q_weight', 'qvalue_policy']
    """

    out_keys = ["loss_actor", "loss_qvalue", "bc_error", "q_weight", "qvalue_policy", "qvalue", "target_value"]

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: list[TensorDictModule],
        *,
        alpha: float = 2.5,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        ensemble_reduction: Literal["sum", "mean"] = "sum",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            actor_network,
            qvalue_network,
            policy_noise=policy_noise,
            noise_clip=noise_clip,
            ensemble_reduction=ensemble_reduction,
            reduction=reduction,
        )
        if not 0.0 <= alpha < math.inf:
            raise O2OSpecError(f"got alpha={alpha}, expected 0 (behavior cloning) or a larger finite number")
        self.alpha = alpha
        self.make_value_estimator()

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches the critics.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            The loss, and detached: ``bc_error`` and ``qvalue_policy`` per row, shape [*B], and the scalar ``q_weight``
            (lambda).
        """
        state = self._state(tensordict)
        action = self._act(state, self.actor_network_params)  # pi(s)
        qvalue = self._first_qvalue(state, action)  # Q_1(s, pi(s))
        distance = (action - self._action(tensordict)).square().mean(-1)  # |pi(s) - a|^2 / A
        weight = q_normalization(qvalue, self.alpha)  # lambda
        info = {"bc_error": distance.detach(), "qvalue_policy": qvalue.detach(), "q_weight": weight}
        return self._reduce(distance - weight * qvalue), info

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Both losses from one set of parameters, and their statistics; writes the priority to the batch."""
        loss_qvalue, info = self.qvalue_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict)
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue}
        return self._collect(tensordict, losses, {**actor_info, **info})
