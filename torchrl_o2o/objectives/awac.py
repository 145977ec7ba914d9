# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Advantage-weighted actor-critic (AWAC)."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torch.distributions import Distribution

from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.functional.offline import AdvantageWeight, awac_weight, clip_score
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.critic import CriticLoss
from torchrl_o2o.objectives.networks import Inputs, deterministic_action, repeated, sample_policy

__all__ = ["AWACLoss"]


class AWACLoss(CriticLoss):
    r"""Advantage-weighted actor-critic: critics as in SAC without entropy, the actor by weighted maximum likelihood.

    .. math::
        y = r + \gamma(1-d)\min_j Q'_j(s',a'),\ a'\sim\pi(\cdot|s'),\qquad
        L_Q = \frac1B\sum_b\sum_j (Q_j(s,a)-y)^2

        A = \min_j Q_j(s,a) - \min_j \frac1K\sum_k Q_j(s,\tilde a_k),\ \tilde a_k\sim\pi(\cdot|s),\qquad
        L_\pi = -\frac1B\sum_b w_b \log\pi(a_b|s_b)

    with the weight :math:`w=\min(e^{A/\lambda},100)` or another form of
    :func:`~torchrl_o2o.functional.awac_weight`. One buffer holds the data set and the online transitions.

    Source: Nair et al. 2020, arXiv:2006.09359, Algorithm 1, Eq. 7 and 13 (the normalizer Z(s) is left out, as there).

    ==================  ==============  ===============  ================  ================  ===========
    reference           weight          awac_lambda      value_samples     advantage_q       actor's std
    ==================  ==============  ===============  ================  ================  ===========
    CORL (default)      exp_clip        .1 (1/3 mujoco)  1                 min               clip
    authors, hand       softmax         .5               0 (mean action)   min               sigmoid
    authors, mujoco     softmax         2                1                 min or first      sigmoid
    jaxrl               softmax         2                1                 min               clip
    ==================  ==============  ===============  ================  ================  ===========

    Order of one update: CORL steps the critics, then the actor with the new critics, then the targets; the authors
    compute all losses from one set of parameters (:meth:`forward`); jaxrl moves the targets before the actor.

    Differences from the paper: the weight is exp-clipped by default (CORL; the authors' code normalizes by a softmax
    over the batch, with which the gradient's scale does not depend on the rewards' scale). The authors' ``"exp"``,
    ``"whiten"`` and ``"sign"`` are multiplied by the batch size. Set ``actor_reduction="sum"`` for that.

    Importance weights multiply the rows of :math:`L_Q`, not those of :math:`L_\pi`.

    Args:
        actor_network: a probabilistic actor, for example :func:`~torchrl_o2o.modules.make_gaussian_actor`.
        qvalue_network: critics, two in the references.

    Keyword Args:
        awac_lambda: temperature :math:`\lambda` of the weights. Defaults to 1, the paper's for MuJoCo (0.3 for
            manipulation).
        weight: form of the weights. Defaults to ``"exp_clip"``.
        weight_clip: bound of ``"exp_clip"``. Defaults to 100.
        score_clip: upper bound on the advantage (0.5 in the authors' hand experiments), or ``None`` (default).
        value_samples: number K of actions that V(s) averages over; 0 takes the mean action. Defaults to 1.
        advantage_q: the recorded action's value is the ``"min"`` (default) of the critics or the ``"first"``.
        q_max: upper bound on all Q values (0 in the authors' hand experiments), or ``None`` (default).
        action_clip: bound to whose plus and minus the actor's loss clamps recorded actions, both in the advantage and
            in the density (1 - 1e-5 in jaxrl), or ``None`` (default). The critics' loss does not clamp.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.
        actor_reduction: ``"mean"`` or ``"sum"`` for the actor's loss alone; ``None`` (default) is ``reduction``.
            ``reduction="none"`` keeps the rows of both.

    Raises:
        O2OSpecError: if an option is unknown, ``awac_lambda`` or ``action_clip`` is not positive or ``value_samples``
            negative.

    Examples:
        >>> from torchrl_o2o.modules import make_gaussian_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import AWACLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> actor = make_gaussian_actor(17, 6, mean="linear", hidden_sizes=(32, 32))
        >>> critics = make_qvalue_ensemble(17, 6, num_qvalue_nets=2, layer_norm=False, hidden_sizes=(32, 32))
        >>> loss, batch = AWACLoss(actor, critics, awac_lambda=0.3), random_transitions(8, 17, 6)
        >>> loss_qvalue, _ = loss.qvalue_loss(batch)
        >>> loss_actor, info = loss.actor_loss(batch)
        >>> info["weight"].shape
        torch.Size([8])
    """

    out_keys = ["loss_actor", "loss_qvalue", "advantage", "weight", "clipped", "log_prob", "qvalue", "target_value"]

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        *,
        awac_lambda: float = 1.0,
        weight: AdvantageWeight = "exp_clip",
        weight_clip: float = 100.0,
        score_clip: float | None = None,
        value_samples: int = 1,
        advantage_q: Literal["min", "first"] = "min",
        q_max: float | None = None,
        action_clip: float | None = None,
        reduction: Reduction = "mean",
        actor_reduction: Literal["mean", "sum"] | None = None,
    ) -> None:
        super().__init__(actor_network, qvalue_network, q_max=q_max, reduction=reduction)
        check_option("weight", weight, ("exp_clip", "exp", "softmax", "whiten", "sign"))
        check_option("advantage_q", advantage_q, ("min", "first"))
        if actor_reduction is not None:
            check_option("actor_reduction", actor_reduction, ("mean", "sum"))
        if action_clip is not None and not action_clip > 0.0:
            raise O2OSpecError(f"got action_clip={action_clip}, expected a positive bound, e.g. 1 - 1e-5, or None")
        if not awac_lambda > 0.0:
            raise O2OSpecError(f"got awac_lambda={awac_lambda}, expected a positive temperature")
        if value_samples < 0:
            raise O2OSpecError(f"got value_samples={value_samples}, expected K >= 1, or 0 for the mean action")
        if not weight_clip > 0.0:
            raise O2OSpecError(f"got weight_clip={weight_clip}, expected a positive bound, for example 100")
        self.awac_lambda, self.weight_clip, self.score_clip = awac_lambda, weight_clip, score_clip
        self.weight: AdvantageWeight = weight
        self.value_samples, self.action_clip = value_samples, action_clip
        self.actor_reduction: Literal["mean", "sum"] | None = actor_reduction
        self.advantage_q: Literal["min", "first"] = advantage_q
        self.make_value_estimator()

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`CriticLoss.target_value`."""
        noise, following = self.noise.normal("next_action", self._action(tensordict)), self._next_state(tensordict)
        action, log_prob = sample_policy(self._policy(following), noise)  # a' ~ pi(.|s')
        value = self._qvalues(following, action, self._target_critics).amin(0)  # min_j Q'_j(s', a')
        return self._estimate(tensordict, value, qvalue=value, log_prob=log_prob, action=action)

    @torch.no_grad()
    def advantage(self, tensordict: TensorDictBase) -> Tensor:
        r"""A(s, a) of the recorded actions, clamped as ``action_clip`` says, under the current networks.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            A before any clipping, shape [*B], without gradient.
        """
        state = self._state(tensordict)
        return self._advantage(state, self._clamped_action(tensordict), self._policy(state))

    @torch.no_grad()
    def _advantage(self, state: Inputs, action: Tensor, policy: Distribution) -> Tensor:
        """Q(s, a) - V(s), shape [*B], with V(s) of the mean action or of K samples."""
        if self.value_samples:
            count = (self.value_samples,)
            samples, _ = sample_policy(policy, self.noise.normal("action", action, count), count)
            values = self._qvalues(repeated(state, *count), samples).mean(1)
        else:
            values = self._qvalues(state, deterministic_action(policy))
        data = self._qvalues(state, action)
        return (data.amin(0) if self.advantage_q == "min" else data[0]) - values.amin(0)

    def _clamped_action(self, tensordict: TensorDictBase) -> Tensor:
        """The recorded action, clamped as the actor's loss needs it, shape [*B, A]."""
        action = self._action(tensordict)
        return action if self.action_clip is None else action.clamp(-self.action_clip, self.action_clip)

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches the critics or the weights.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            The loss, and per row, detached: ``advantage``, ``weight``, ``log_prob`` of the recorded action, and
            ``clipped``, 1 where the weight is at its bound. Rewards on a large scale quickly bring all weights there.
        """
        state, action = self._state(tensordict), self._clamped_action(tensordict)
        policy = self._policy(state)
        advantage = self._advantage(state, action, policy)
        weight = awac_weight(clip_score(advantage, self.score_clip), self.awac_lambda, self.weight, self.weight_clip)
        log_prob = policy.log_prob(action)
        clipped = (weight >= self.weight_clip) & (self.weight == "exp_clip")
        info = {"advantage": advantage, "weight": weight, "log_prob": log_prob.detach()}
        loss = self._reduce(-weight * log_prob, reduction=self.actor_reduction)
        return loss, {**info, "clipped": clipped.to(weight.dtype)}

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Both losses from one set of parameters, and their statistics; writes the priority to the batch."""
        loss_qvalue, info = self.qvalue_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict)
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue}
        return self._collect(tensordict, losses, {**actor_info, **info})
