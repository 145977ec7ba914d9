# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Implicit Q-learning (IQL)."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Literal

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.offline import advantage_weight, expectile_objective
from torchrl_o2o.modules.modes import in_mode
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.critic import CriticLoss
from torchrl_o2o.objectives.imitation import imitation_error
from torchrl_o2o.objectives.networks import Inputs, call_network, flat_parameters, single_output

__all__ = ["IQLLoss"]


class IQLLoss(CriticLoss):
    r"""Implicit Q-learning: estimate the value of the best actions in the data without evaluating any other action.

    .. math::
        L_V = \frac1B\sum_b L_\tau\big(A_b\big),\quad A = \min_j Q'_j(s,a) - V(s),\quad
        L_\tau(u) = |\tau-1(u<0)|\,u^2

        L_\pi = -\frac1B\sum_b \min(e^{\beta A_b}, 100)\log\pi(a_b|s_b),\qquad
        L_Q = \frac1B\sum_b\sum_j \big(Q_j(s,a)-r-\gamma(1-d)V(s')\big)^2

    The losses of value and actor use the *target* critics. With a deterministic actor :math:`-\log\pi` becomes
    :math:`\lVert\pi(s)-a\rVert^2`.

    Source: Kostrikov et al. 2022, arXiv:2110.06169, Eq. 5-7.

    The order of one update is the caller's:

    - authors (recommended): step V with :meth:`value_loss`; step the actor with :meth:`actor_loss` and the critics with
      :meth:`qvalue_loss`, both of which see the *new* V; move the targets;
    - CORL and PEX: first ``target = loss.target_value(batch)`` and ``value_loss(batch)``, whose info has
      ``advantage``; step V; step the critics with ``qvalue_loss(batch, target_value=target)``; move the targets; step
      the actor with ``actor_loss(batch, old_advantage=advantage)``: both come from the *old* V. They also average over
      critics (``ensemble_reduction="mean"``).

    An :class:`~torchrl_o2o.updates.Update` passes a metric on to a keyword argument of the same name:
    ``target_qvalue``, but never ``advantage``, so its actor sees the new V. CORL's order is ``Update(loss,
    Joint(Descend("value", ...), Descend("actor", ...), Descend("qvalue", ...)), MoveTargets(...))``.

    :meth:`forward` computes all from one set of parameters.

    ============  ===========  ======  ==============================
    domain        expectile    beta    actor's dropout
    ============  ===========  ======  ==============================
    MuJoCo        0.7          3       none
    AntMaze       0.9          10      none
    Adroit        0.7 (CORL    0.5     0.1
                  0.8)         (3)
    ============  ===========  ======  ==============================

    Differences from the paper: none in the equations; the clip at 100 is from the authors' code. Use the cosine decay
    of the actor's learning rate only offline. If it continues online, as in CORL, the learning rate rises again.

    Importance weights multiply the rows of :math:`L_Q` and :math:`L_V`, not those of :math:`L_\pi`.

    Args:
        actor_network: :func:`~torchrl_o2o.modules.make_gaussian_actor`, or a deterministic actor.
        qvalue_network: critics, two in the references.
        value_network: V(s), for example :func:`~torchrl_o2o.modules.make_value_network`.

    Keyword Args:
        expectile: :math:`\tau` in (0, 1); 0.5 fits the mean. Defaults to 0.7.
        beta: inverse temperature of the actor's weights. Defaults to 3.
        weight_clip: bound of the weights. Defaults to 100.
        ensemble_reduction: ``"sum"`` (default) or ``"mean"`` over members in the critic loss.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the expectile is not in (0, 1), ``beta`` is negative, or an option is unknown.

    Examples:
        >>> from torchrl_o2o.modules import make_gaussian_actor, make_qvalue_ensemble, make_value_network
        >>> from torchrl_o2o.objectives import IQLLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> actor = make_gaussian_actor(17, 6, hidden_sizes=(32, 32), log_std_bounds=(-5.0, 2.0))
        >>> critics = make_qvalue_ensemble(17, 6, num_qvalue_nets=2, layer_norm=False, hidden_sizes=(32, 32))
        >>> loss = IQLLoss(actor, critics, make_value_network(17, hidden_sizes=(32, 32)))
        >>> batch = random_transitions(8, 17, 6)
        >>> loss_value, info = loss.value_loss(batch)
        >>> loss_actor, _ = loss.actor_loss(batch)
        >>> loss_qvalue, _ = loss.qvalue_loss(batch)
        >>> info["advantage"].shape
        torch.Size([8])
    """

    out_keys = [
        "loss_actor",
        "loss_qvalue",
        "loss_value",
        "advantage",
        "weight",
        "clipped",
        "imitation_error",
        "value",
        "qvalue",
        "target_qvalue",
        "target_value",
    ]

    value_network: TensorDictModule
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams

    _networks_read = (("actor_network", "qvalue_network", "value_network"), ("value_network",))
    _stochastic = False

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential | TensorDictModule,
        qvalue_network: list[TensorDictModule],
        value_network: TensorDictModule,
        *,
        expectile: float = 0.7,
        beta: float = 3.0,
        weight_clip: float = 100.0,
        ensemble_reduction: Literal["sum", "mean"] = "sum",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(actor_network, qvalue_network, ensemble_reduction=ensemble_reduction, reduction=reduction)
        if not 0.0 < expectile < 1.0:
            raise O2OSpecError(f"got expectile={expectile}, expected a number in (0, 1)")
        if not 0.0 <= beta < math.inf:
            raise O2OSpecError(
                f"got beta={beta}, expected a finite inverse temperature of 0 (behavior cloning) or more"
            )
        if not weight_clip > 0.0:
            raise O2OSpecError(f"got weight_clip={weight_clip}, expected a positive bound, for example 100")
        self.convert_to_functional(value_network, "value_network", create_target_params=False)
        self.expectile, self.beta, self.weight_clip = expectile, beta, weight_clip
        self.make_value_estimator()

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`CriticLoss.target_value`; uses the current V."""
        return self._estimate(tensordict, self._value(self._next_state(tensordict)))  # V(s')

    @torch.no_grad()
    def advantage(self, tensordict: TensorDictBase, target_qvalue: Tensor | None = None) -> Tensor:
        r"""A(s, a) of the recorded actions under target critics and the current V.

        Args:
            tensordict: transitions, shape [*B]; not modified.
            target_qvalue: the target critics' values of them, as :meth:`value_loss` returns them, shape [*B]; ``None``
                (default) evaluates the target critics.

        Returns:
            A, shape [*B], without gradient.
        """
        state = self._state(tensordict)
        if target_qvalue is None:
            target_qvalue = self._data_q(state, self._action(tensordict))
        return target_qvalue - self._value(state)

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Expectile loss of V; no gradient reaches the critics.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            The loss, and ``value`` and ``advantage`` before the step and ``target_qvalue``, each of shape [*B],
            detached.
        """
        state = self._state(tensordict)
        value, target_qvalue = (
            self._value(state),
            self._data_q(state, self._action(tensordict)),
        )  # V(s), min_j Q'_j(s, a)
        advantage = target_qvalue - value  # A
        objective = expectile_objective(advantage, self.expectile)
        info = {"value": value.detach(), "advantage": advantage.detach(), "target_qvalue": target_qvalue}
        return self._reduce(objective, self._weights(tensordict)), info

    def actor_loss(
        self, tensordict: TensorDictBase, *, old_advantage: Tensor | None = None, target_qvalue: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        r"""Actor loss of one minibatch; no gradient reaches the critics or V.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Keyword Args:
            old_advantage: A of an earlier V, shape [*B], as in CORL's order; pass the ``advantage`` of
                :meth:`value_loss`. ``None`` (default) takes the current V.
            target_qvalue: :math:`\min_j Q'_j(s, a)` of :meth:`value_loss` on this batch, shape [*B], valid until the
                targets move; ``None`` (default) evaluates the target critics. Ignored if ``old_advantage`` is given.

        Returns:
            The loss, and per row, detached: ``weight``, ``imitation_error`` (negative log-density or squared distance
            of the recorded action) and ``clipped``, 1 where the weight is at its bound.
        """
        advantage = self.advantage(tensordict, target_qvalue) if old_advantage is None else old_advantage
        weight = advantage_weight(advantage, self.beta, self.weight_clip)
        params, key = flat_parameters(self.actor_network_params), self.tensor_keys.action
        state, action = self._state(tensordict), self._action(tensordict)
        acts = not self.actor_network.training  # evaluation mode, without the dropout of its training
        with in_mode(self.actor_network, training=True) if acts else nullcontext():
            error = imitation_error(self.actor_network, params, state, action, key)
        clipped = (weight >= self.weight_clip).to(weight.dtype)
        info = {"weight": weight, "imitation_error": error.detach(), "clipped": clipped}
        return self._reduce(weight * error), info

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All three losses from one set of parameters, and their statistics; writes the priority to the batch."""
        loss_value, value_info = self.value_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict, old_advantage=value_info["advantage"])
        loss_qvalue, info = self.qvalue_loss(tensordict)
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, "loss_value": loss_value}
        return self._collect(tensordict, losses, {**value_info, **actor_info, **info})

    def _value(self, state: Inputs) -> Tensor:
        """V(s), shape [*B]."""
        params = flat_parameters(self.value_network_params)
        key = self.tensor_keys.value
        return single_output(call_network(self.value_network, params, state, key), key)

    @torch.no_grad()
    def _data_q(self, state: Inputs, action: Tensor) -> Tensor:
        """min_j Q'_j(s, a) of the recorded actions, shape [*B]."""
        return self._qvalues(state, action, self._target_critics).amin(0)
