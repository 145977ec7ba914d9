# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SAC+ML, the offline learner of actor-critic alignment: soft actor-critic, maximum likelihood, and a baseline.

Shapes: E critics and baselines, B any batch shape, A action dimensions.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor

from torchrl_o2o.errors import check_number
from torchrl_o2o.functional.alignment import ml_actor_objective
from torchrl_o2o.functional.offline import q_normalization
from torchrl_o2o.functional.soft import ensemble_squared_error, sac_actor_objective
from torchrl_o2o.modules.aligned import check_alignable
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.baseline import FitsBaselines
from torchrl_o2o.objectives.members import check_members
from torchrl_o2o.objectives.networks import sample_policy
from torchrl_o2o.objectives.soft import SoftLoss

__all__ = ["SACMLLoss"]

_ALL = ("actor_network", "qvalue_network", "baseline_network")


class SACMLLoss(SoftLoss, FitsBaselines):
    r"""Soft actor-critic with a maximum-likelihood term and the baseline that ACA needs for its online critic.

    .. math::
        L_\pi = \lambda\frac1B\sum_b[\alpha\log\pi(a|s)-\min_i Q_i(s,a)] - \frac1B\sum_b\log\pi(a_{data}|s),\qquad
        \lambda = \frac{\omega}{\frac1B\sum_b|\min_i Q_i(s,a)|}

    Critics and temperature are SAC's. The baselines Z make the policy's log-density plus Z fit the same returns,
    without target networks and without changing the policy:

    .. math::
        y_Z = r + \gamma(1-d)[\log\pi(a'|s')+\min_k Z_k(s')-\alpha\log\pi(a'|s')],\qquad
        L_Z = \frac1B\sum_b\sum_i(\log\pi(a|s)+Z_i(s)-y_Z)^2

    The authors step in the order temperature, critic, baseline, actor, targets, each with the parameters after the
    previous step: ``alpha_loss(batch)``, ``qvalue_loss(batch)``, ``baseline_loss(batch)``, ``actor_loss(batch)``.

    Source: Yu & Zhang 2023 (ACA), Eq. 8 and 9 for the baseline. Difference from the paper, following the authors' code:
    the baseline's target has an entropy term (``baseline_entropy``).

    Importance weights multiply the rows of :math:`L_Q` and :math:`L_Z`, not those of :math:`L_\pi` or of the
    temperature.

    Args:
        actor_network: a stochastic actor with a log-density, squashed or not.
        qvalue_network: E critics, 2 in the paper, without LayerNorm.
        baseline_network: baselines, as many as there are critics online, for example
            :func:`~torchrl_o2o.modules.make_baselines`.

    Keyword Args:
        temperature: the entropy temperature. Defaults to ``Temperature(-A, form="log_alpha")``; AntMaze uses -A/2.
        ml_weight: omega, the weight of SAC's term relative to the likelihood. Defaults to 30.
        baseline_entropy: whether the baseline's target subtracts the entropy term. Defaults to ``True``, as in the
            code.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch. :math:`\lambda` always averages over
            the batch.

    Raises:
        O2OSpecError: if the actor has no log-density, the baselines are not a list of networks with separate
            parameters, or the action dimension is needed but unknown.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_baselines, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import SACMLLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> critics = make_qvalue_ensemble(5, 2, num_qvalue_nets=2, hidden_sizes=(16,), layer_norm=False)
        >>> loss = SACMLLoss(make_actor(5, 2, hidden_sizes=(16,)), critics, make_baselines(5, hidden_sizes=(16,)))
        >>> batch = random_transitions(8, 5, 2)
        >>> loss_alpha, _ = loss.alpha_loss(batch)
        >>> sorted(key for key in loss(batch).keys() if key.startswith("loss_"))
        ['loss_actor', 'loss_alpha', 'loss_baseline', 'loss_qvalue']
    """

    out_keys = ["loss_actor", "loss_qvalue", "loss_alpha", "loss_baseline"]
    out_keys += ["alpha", "entropy", "qvalue", "target_value", "baseline", "data_log_prob", "ml_coefficient"]

    _networks_read = (_ALL, _ALL)

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        baseline_network: list[TensorDictModule],
        *,
        temperature: Temperature | None = None,
        ml_weight: float = 30.0,
        baseline_entropy: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(actor_network, qvalue_network, temperature=temperature, reduction=reduction)
        check_alignable(actor_network)
        members = check_members(baseline_network, "baseline")
        self.convert_to_functional(members, "baseline_network", len(members), create_target_params=False)
        check_number("ml_weight", ml_weight, least=0)
        self.ml_weight = ml_weight
        self.baseline_entropy = baseline_entropy
        self.make_value_estimator()

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """SAC's Bellman target.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            y, shape [*B], without gradient.
        """
        noise, following = self.noise.normal("next_action", self._action(tensordict)), self._next_state(tensordict)
        action, log_prob = sample_policy(self._policy(following), noise)  # a' ~ pi(.|s')
        qvalue = self._qvalues(following, action, self._target_critics).amin(0)  # min_i Q'_i(s', a')
        return self._soft_target(tensordict, action, log_prob, qvalue)

    @torch.no_grad()
    def baseline_target(self, tensordict: TensorDictBase) -> Tensor:
        """The baselines' target y_Z of the class docstring.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            y_Z, shape [*B], without gradient.
        """
        return self._baseline_target(tensordict, self.temperature.alpha)

    def baseline_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the baselines; no gradient reaches the policy.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            The loss, and, detached, ``baseline`` (shape [E, *B]).
        """
        target, state = self.baseline_target(tensordict), self._state(tensordict)  # y_Z
        with torch.no_grad():
            log_prob = self._policy(state).log_prob(self._action(tensordict))  # log pi(a|s)
        baseline = self._baselines(state)  # Z_i(s)
        error = ensemble_squared_error(log_prob + baseline, target)
        return self._reduce(error, self._weights(tensordict)), {"baseline": baseline.detach()}

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches critics, baselines or temperature.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            The loss, and, detached, ``log_prob`` of sampled and ``data_log_prob`` of recorded actions, shape [*B], and
            the scalar ``ml_coefficient`` (lambda).
        """
        state, recorded = self._state(tensordict), self._action(tensordict)
        policy = self._policy(state)
        data_log_prob = policy.log_prob(recorded)  # log pi(a_data|s)
        action, log_prob = sample_policy(policy, self.noise.normal("action", recorded))  # a ~ pi(.|s)
        qvalue = self._qvalues(state, action, self._frozen_critics).amin(0)  # min_i Q_i(s, a)
        coefficient = q_normalization(qvalue, self.ml_weight)  # lambda
        soft_objective = sac_actor_objective(log_prob, qvalue, self.temperature.alpha)  # alpha log pi - min_i Q_i
        objective = ml_actor_objective(soft_objective, data_log_prob, coefficient)
        info = {"log_prob": log_prob.detach(), "data_log_prob": data_log_prob.detach()}
        return self._reduce(objective), {**info, "ml_coefficient": coefficient}

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All losses from one set of parameters; writes the absolute TD error under ``tensor_keys.priority``.

        Args:
            tensordict: transitions, shape [*B].

        Returns:
            ``loss_qvalue``, ``loss_actor``, ``loss_alpha``, ``loss_baseline`` and, unless ``reduction="none"``, the
            scalars of :attr:`out_keys`.
        """
        loss_qvalue, info = self.qvalue_loss(tensordict)
        loss_baseline, baseline_info = self.baseline_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict)
        loss_alpha, alpha_info = self.alpha_loss(tensordict, log_prob=actor_info.pop("log_prob"))
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, "loss_alpha": loss_alpha}
        losses["loss_baseline"] = loss_baseline
        return self._collect(tensordict, losses, {**info, **baseline_info, **actor_info, **alpha_info})
