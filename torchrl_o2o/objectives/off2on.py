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
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.off2on import pair_minimum
from torchrl_o2o.functional.soft import ensemble_squared_error, sac_actor_objective, soft_value
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.base import Reduction
from torchrl_o2o.objectives.networks import ActorCritic, Inputs, Parameters, flat_parameters
from torchrl_o2o.objectives.soft import SoftLoss

__all__ = ["PessimisticEnsembleLoss"]

_BOTH = ("actor_network", "qvalue_network")


def _next_value(
    networks: ActorCritic, actor: Parameters, target: Parameters, inputs: Inputs, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """a' and log pi(a'|s'), of shape [*B], and the minimum of each pair of target critics, shape [K, *B]."""
    action, log_prob = networks.sample(actor, inputs, noise)
    return action, log_prob, pair_minimum(networks.qvalues(target, inputs, action))


def _regress(
    networks: ActorCritic, qvalue: Parameters, inputs: Inputs, action: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared error per row, shape [*B], of both critics of each pair against their pair's target, and Q [2K, *B]."""
    values = networks.qvalues(qvalue, inputs, action)
    return ensemble_squared_error(values, target.repeat_interleave(2, 0)), values


def _climb(
    networks: ActorCritic, actor: Parameters, qvalue: Parameters, inputs: Inputs, noise: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor]:
    """Actor objective per row and log pi(a|s), both of shape [*B]."""
    action, log_prob = networks.sample(actor, inputs, noise)
    values = pair_minimum(networks.qvalues(qvalue, inputs, action)).mean(0)
    return sac_actor_objective(log_prob, values, alpha), log_prob


class PessimisticEnsembleLoss(SoftLoss):
    r"""Soft actor-critic on K pairs of critics, each pair with a target of its own, and one averaged policy.

    With :math:`a'\sim\pi(\cdot|s')` shared by all pairs k,

    .. math::
        y_k = r + \gamma(1-d)\left[\min(Q'_{k1},Q'_{k2})(s',a') - \alpha\log\pi(a'|s')\right],\qquad
        L_Q = \frac1B\sum_b\sum_{k}\sum_{j=1}^2 (Q_{kj}(s,a)-y_k)^2

    .. math::
        L_\pi = \frac1B\sum_b \alpha\log\pi(a|s) - \frac1K\sum_k\min(Q_{k1},Q_{k2})(s,a)

    Each pair keeps the pessimism it learned offline about actions the data do not have, and where the pairs disagree
    their mean of minima stays low. With K = 1 this is SAC.

    Source: Lee et al. 2021 (Off2On), pessimistic Q-ensemble, with the authors' code: K = 5 agents trained offline by
    CQL (:class:`~torchrl_o2o.objectives.CQLLoss`), all losses taken at the same parameters, then temperature, actor and
    critics step, then the targets. Replay is by :class:`~torchrl_o2o.data.BalancedReplaySampler`, without importance
    weights; where a batch has some, they multiply the critics' errors as
    :class:`~torchrl_o2o.objectives.base.TransitionLoss` says.

    Under ``"next"`` the value estimator is handed a batch of shape [K, *B], one layer per pair.

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

    _next_value = staticmethod(_next_value)
    _regress = staticmethod(_regress)
    _climb = staticmethod(_climb)

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
                f"got {self.num_qvalue_nets} critics, expected pairs: two of each agent, one agent after the other"
            )
        self.num_pairs = self.num_qvalue_nets // 2
        self.make_value_estimator()

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic loss of one minibatch.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            The loss, and, all detached, ``td_error`` (mean over critics of the absolute error, shape [*B]), ``qvalue``
            (shape [2K, *B]), ``qvalue_std`` (deviation of the pairs' minima, shape [*B]) and ``target_value`` (shape
            [K, *B]).
        """
        target = self.target_value(tensordict)
        params, action = flat_parameters(self.qvalue_network_params), self._action(tensordict)
        error, qvalue = self._regress(self._networks, params, self._inputs(tensordict, *_BOTH), action, target)
        qvalue = qvalue.detach()
        info = {"qvalue": qvalue, "target_value": target}
        info["td_error"] = (qvalue - target.repeat_interleave(2, 0)).abs().mean(0)
        info["qvalue_std"] = pair_minimum(qvalue).std(0, correction=0)
        return self._reduce(error, self._weights(tensordict)), info

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches the critics or the temperature.

        Args:
            tensordict: transitions, shape [*B]; not modified. Of the recorded action only the shape is used.

        Returns:
            The loss, and ``log_prob`` of the sampled actions, shape [*B], detached, for :meth:`alpha_loss`.
        """
        noise = self.noise.normal("action", self._action(tensordict))
        actor = flat_parameters(self.actor_network_params)
        critics = flat_parameters(self.qvalue_network_params, detach=True)
        inputs, alpha = self._inputs(tensordict, *_BOTH), self.temperature.alpha
        objective, log_prob = self._climb(self._networks, actor, critics, inputs, noise, alpha)
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
        loss_qvalue, info = self.qvalue_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict)
        loss_alpha, alpha_info = self.alpha_loss(tensordict, log_prob=actor_info["log_prob"])
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, "loss_alpha": loss_alpha}
        return self._collect(tensordict, losses, {**info, **alpha_info})

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        r"""The Bellman targets y_k of the class docstring.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            Shape [K, *B], without gradient.
        """
        keys = self.tensor_keys
        noise = self.noise.normal("next_action", self._action(tensordict))
        actor = flat_parameters(self.actor_network_params, detach=True)
        target = flat_parameters(self.target_qvalue_network_params, detach=True)
        inputs = self._inputs(self._following(tensordict), *_BOTH)
        action, log_prob, qvalue = self._next_value(self._networks, actor, target, inputs, noise)
        value = soft_value(qvalue, log_prob, self.temperature.alpha)
        columns = {keys.log_prob: log_prob.expand_as(value), keys.state_action_value: qvalue, keys.value: value}
        layers = tensordict.expand(self.num_pairs, *tensordict.batch_size)
        return self._estimate(layers, columns, action.expand(self.num_pairs, *action.shape))
