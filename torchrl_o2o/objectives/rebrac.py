# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""ReBRAC: TD3 with behavior regularization in the actor and in the critics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_o2o.errors import check_number
from torchrl_o2o.functional.conservative import calibrated
from torchrl_o2o.functional.offline import q_normalization
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.td3 import SmoothedTargetLoss

__all__ = ["ReBRACLoss"]


class ReBRACLoss(SmoothedTargetLoss):
    r"""TD3 with penalties on the distance to the recorded actions, both in the actor's loss and in the critics' target.

    .. math::
        \tilde a' = \mathrm{clip}\big(\pi'(s')+\mathrm{clip}(N(0,0.2),\pm0.5)\big),\qquad
        y = r+\gamma(1-d)\big[\min_j Q'_j(s',\tilde a') - c_Q\lVert\tilde a'-a'\rVert^2\big],\qquad
        L_Q = \frac1B\sum_b\sum_j(Q_j(s,a)-y)^2

        L_\pi = \frac1B\sum_b\big[c_\pi\lVert\pi(s)-a\rVert^2 - \lambda\min_j Q_j(s,\pi(s))\big],\qquad
        \lambda = 1\Big/\frac1B\sum_b|\min_j Q_j(s,\pi(s))|

    where a' is the action recorded in the next step (:func:`~torchrl_o2o.data.add_next_action`). Squared distances are
    sums over action dimensions. The actor steps with every second critic step, beginning with the first. The target
    actor follows the actor from before its step, and the target critics follow the new critics (the caller's order, see
    :func:`~torchrl_o2o.trainers.algorithms.make_rebrac`).

    Source: Tarasov et al. 2023, arXiv:2305.09836, Eq. 3-4, and the authors' code. Fine-tuning as in CORL's
    ``finetune/rebrac.py``: the critics' penalty is dropped at once, and the actor's decreases linearly
    (:func:`~torchrl_o2o.functional.spot_cooling` with a floor of one half).

    Differences from the paper: none in the equations. As in the code, the Q term is always divided by the mean of |Q|.
    With ``calibrate`` the target is :math:`\max(y, G)` with the row's return G, read from ``tensor_keys.mc_return``
    (see :func:`~torchrl_o2o.data.transforms.add_mc_return`). This is CORL's ``use_calibration``, which is also off by
    default.

    Importance weights multiply the rows of :math:`L_Q`, not those of :math:`L_\pi`.

    Args:
        actor_network: :func:`~torchrl_o2o.modules.make_deterministic_actor`.
        qvalue_network: two critics, in the paper with LayerNorm after each ReLU.

    Keyword Args:
        actor_bc_coef: :math:`c_\pi`. It is the buffer ``actor_bc_coef``, so that a schedule can fill it. Defaults to
            0.01.
        critic_bc_coef: :math:`c_Q`; with 0 (online) the next action is not read. Defaults to 0.01.
        policy_noise: standard deviation of the smoothing noise, as a share of the action box's half-width. Defaults to
            0.2.
        noise_clip: bound of the smoothing noise, as a share of the half-width. Defaults to 0.5.
        calibrate: whether the row's return is a lower bound of the target; may be changed at any time. Defaults to
            ``False``.
        ensemble_reduction: ``"sum"`` (default) or ``"mean"`` over members in the critic loss.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the actor is stochastic or has no bounded action spec, or a setting is negative or unknown.

    Examples:
        >>> from torchrl_o2o.modules import make_deterministic_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import ReBRACLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> actor = make_deterministic_actor(17, 6, hidden_sizes=(32, 32))
        >>> critics = make_qvalue_ensemble(
        ...     17, 6, num_qvalue_nets=2, layer_norm="after_activation", hidden_sizes=(32, 32)
        ... )
        >>> loss, batch = ReBRACLoss(actor, critics, actor_bc_coef=0.1), random_transitions(8, 17, 6)
        >>> batch["next", "action"] = batch["action"].roll(-1, 0)  # add_next_action does so within episodes
        >>> loss_qvalue, _ = loss.qvalue_loss(batch)
        >>> loss_actor, info = loss.actor_loss(batch)
        >>> sorted(info)
        ['bc_error', 'q_weight', 'qvalue_policy']
    """

    @dataclass
    class _AcceptedKeys(SmoothedTargetLoss._AcceptedKeys):
        """Tensordict keys that can be renamed with ``set_keys``.

        Attributes:
            next_action: the action recorded in the next step. Defaults to ``("next", "action")``.
            mc_return: discounted sum of rewards from the row on, shape [*B, 1]. Defaults to ``"mc_return"``.
        """

        next_action: NestedKey = ("next", "action")
        mc_return: NestedKey = "mc_return"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys  # pyright: ignore[reportIncompatibleVariableOverride]
    out_keys = ["loss_actor", "loss_qvalue", "bc_error", "q_weight", "qvalue_policy", "qvalue", "target_value"]

    actor_bc_coef: Tensor

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: list[TensorDictModule],
        *,
        actor_bc_coef: float = 0.01,
        critic_bc_coef: float = 0.01,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        calibrate: bool = False,
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
        check_number("actor_bc_coef", actor_bc_coef, least=0)
        check_number("critic_bc_coef", critic_bc_coef, least=0)
        self.register_buffer("actor_bc_coef", torch.tensor(actor_bc_coef, dtype=torch.get_default_dtype()))
        self.critic_bc_coef, self.calibrate = critic_bc_coef, calibrate
        self.make_value_estimator()

    def _keys_read(self) -> list[NestedKey]:
        keys, names = super()._keys_read(), self.tensor_keys
        keys += [names.next_action] if self.critic_bc_coef else []
        return [*keys, names.mc_return] if self.calibrate else keys

    def _next_penalty(self, tensordict: TensorDictBase, action: Tensor) -> Tensor | float:
        """c_Q |a~' - a'|^2."""
        if self.critic_bc_coef == 0.0:
            return 0.0
        key = self.tensor_keys.next_action
        recorded = self._recorded_next_action(tensordict, key, action, "critic_bc_coef=0")
        return self.critic_bc_coef * (action - recorded).square().sum(-1)

    def _bounded(self, tensordict: TensorDictBase, target: Tensor) -> Tensor:
        """max(y, G) with ``calibrate``."""
        if not self.calibrate:
            return target
        return calibrated(target, self._calibrating_return(tensordict, self.tensor_keys.mc_return))

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
        qvalue = self._qvalues(state, action, self._frozen_critics).amin(0)  # min_j Q_j(s, pi(s))
        distance = (action - self._action(tensordict)).square().sum(-1)  # |pi(s) - a|^2
        weight = q_normalization(qvalue, 1.0)  # lambda
        info = {"bc_error": distance.detach(), "qvalue_policy": qvalue.detach(), "q_weight": weight}
        return self._reduce(self.actor_bc_coef * distance - weight * qvalue), info

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Both losses from one set of parameters, and their statistics; writes the priority to the batch."""
        loss_qvalue, info = self.qvalue_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict)
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue}
        return self._collect(tensordict, losses, {**actor_info, **info})
