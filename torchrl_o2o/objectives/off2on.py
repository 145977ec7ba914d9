# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The pessimistic Q-ensemble of Off2On.

Shapes: ``K`` pairs of critics, ``B`` any batch shape, ``A`` action dimensions.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.off2on import pair_minimum
from torchrl_o2o.functional.soft import sac_actor_objective
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.networks import sample_policy
from torchrl_o2o.objectives.soft import SoftLoss

__all__ = ["PessimisticEnsembleLoss"]


class PessimisticEnsembleLoss(SoftLoss):
    r"""Soft actor-critic with K pairs of critics, each with its own target, and one averaged policy.

    With :math:`a'\sim\pi(\cdot|s')` shared by all pairs k,

    .. math::
        y_k = r + \gamma(1-d)\left[\min(Q'_{k1},Q'_{k2})(s',a') - \alpha\log\pi(a'|s')\right],\qquad
        L_Q = \frac1B\sum_b\sum_{k}\sum_{j=1}^2 (Q_{kj}(s,a)-y_k)^2

    .. math::
        L_\pi = \frac1B\sum_b \alpha\log\pi(a|s) - \frac1K\sum_k\min(Q_{k1},Q_{k2})(s,a)

    Each pair keeps the pessimism about unseen actions that it learned offline, and the mean of the minima stays low
    where the pairs disagree. With K = 1 this is SAC.

    Source: Lee et al. 2021 (Off2On), pessimistic Q-ensemble, and the authors' code. They train K = 5 agents offline
    with CQL (:class:`~torchrl_o2o.objectives.CQLLoss`). Online, all losses are computed from the same parameters; then
    temperature, actor and critics step, then the targets. Batches come from
    :class:`~torchrl_o2o.data.BalancedReplaySampler`, without weights.

    Importance weights, if a batch has them, multiply the rows of :math:`L_Q`, not those of actor and temperature.

    The value estimator gets a batch of shape [K, *B], with one slice per pair.

    Args:
        actor_network: a probabilistic actor, for example :func:`~torchrl_o2o.modules.average_actors` of the K offline
            actors.
        qvalue_network: 2K critics, agent k's at 2k and 2k + 1.

    Keyword Args:
        temperature: the entropy temperature. Defaults to ``Temperature(-A, form="log_alpha")``, the authors'.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the number of critics is odd or zero, or the action dimension is needed but unknown.

    Examples:
        >>> from torchrl_o2o.modules import average_actors, make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import PessimisticEnsembleLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> actor = average_actors([make_actor(5, 2, hidden_sizes=(16,)) for _ in range(3)])
        >>> pairs = [make_qvalue_ensemble(5, 2, num_qvalue_nets=2, hidden_sizes=(16,)) for _ in range(3)]
        >>> loss = PessimisticEnsembleLoss(actor, [critic for pair in pairs for critic in pair])
        >>> loss_qvalue, info = loss.qvalue_loss(random_transitions(8, 5, 2))
        >>> info["qvalue"].shape, info["target_value"].shape
        (torch.Size([6, 8]), torch.Size([3, 8]))
    """

    out_keys = ["loss_actor", "loss_qvalue", "loss_alpha", "alpha", "entropy", "qvalue", "qvalue_std", "target_value"]

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        *,
        temperature: Temperature | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(actor_network, qvalue_network, temperature=temperature, reduction=reduction)
        if self.num_qvalue_nets % 2:
            raise O2OSpecError(
                f"got {self.num_qvalue_nets} critics, expected an even number; pass the two critics of each agent, one "
                "agent after the other"
            )
        self.num_pairs = self.num_qvalue_nets // 2
        self.make_value_estimator()

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        r"""The Bellman targets y_k of the class docstring.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            Shape [K, *B], without gradient.
        """
        noise, following = self.noise.normal("next_action", self._action(tensordict)), self._next_state(tensordict)
        action, log_prob = sample_policy(self._policy(following), noise)  # a' ~ pi(.|s'), shared by all pairs
        qvalue = pair_minimum(self._qvalues(following, action, self._target_critics))  # min(Q'_k1, Q'_k2)(s', a')
        layers = tensordict.expand(self.num_pairs, *tensordict.batch_size)
        action = action.expand(self.num_pairs, *action.shape)
        return self._soft_target(layers, action, log_prob.expand_as(qvalue), qvalue)

    def qvalue_loss(
        self, tensordict: TensorDictBase, *, target_value: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic loss of one minibatch.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Keyword Args:
            target_value: y_k, shape [K, *B], if it was computed before; ``None`` (default) calls :meth:`target_value`.

        Returns:
            The loss, and, all detached, ``td_error`` (mean over critics of the absolute error, shape [*B]), ``qvalue``
            (shape [2K, *B]), ``qvalue_std`` (deviation of the pairs' minima, shape [*B]) and ``target_value`` (shape
            [K, *B]).
        """
        target = self.target_value(tensordict) if target_value is None else target_value  # y_k
        qvalue = self._qvalues(self._state(tensordict), self._action(tensordict))  # Q_kj(s, a)
        error, info = self._bellman_error(qvalue, target.repeat_interleave(2, 0))
        info |= {"target_value": target, "qvalue_std": pair_minimum(info["qvalue"]).std(0, correction=0)}
        return self._reduce(error, self._weights(tensordict)), info

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches the critics or the temperature.

        Args:
            tensordict: transitions, shape [*B]; not modified. Of the recorded action only the shape is used.

        Returns:
            The loss, and ``log_prob`` of the sampled actions, shape [*B], detached, for :meth:`alpha_loss`.
        """
        noise, state = self.noise.normal("action", self._action(tensordict)), self._state(tensordict)
        action, log_prob = sample_policy(self._policy(state), noise)  # a ~ pi(.|s)
        minima = pair_minimum(self._qvalues(state, action, self._frozen_critics))  # min(Q_k1, Q_k2)(s, a)
        objective = sac_actor_objective(log_prob, minima.mean(0), self.temperature.alpha)  # alpha log pi - mean_k
        return self._reduce(objective), {"log_prob": log_prob.detach()}

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All three losses from one set of parameters; writes the absolute TD error under ``tensor_keys.priority``.

        Args:
            tensordict: transitions, shape [*B].

        Returns:
            ``loss_qvalue``, ``loss_actor``, ``loss_alpha`` and, unless ``reduction="none"``, the scalars of
            :attr:`out_keys`.
        """
        return self._collect(tensordict, *self._soft_losses(tensordict))
