# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""ACA's baseline Z(s) for any frozen offline policy. (SAC+ML trains its own baseline with the policy.)"""

from __future__ import annotations

import copy

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torch.distributions import Distribution

from torchrl_o2o.errors import check_number
from torchrl_o2o.functional.alignment import baseline_value
from torchrl_o2o.functional.soft import ensemble_squared_error
from torchrl_o2o.modules.aligned import check_alignable
from torchrl_o2o.objectives.base import Reduction, TransitionLoss, dispatch
from torchrl_o2o.objectives.members import check_members
from torchrl_o2o.objectives.networks import Inputs, flat_parameters, policy_distribution, sample_policy

__all__ = ["BaselineLoss", "FitsBaselines"]


class FitsBaselines(TransitionLoss):
    """Abstract base of losses that fit baselines Z, so that log pi + Z is a critic of the policy pi."""

    baseline_network: TensorDictModule
    baseline_network_params: TensorDictParams
    target_baseline_network_params: TensorDictParams

    #: Whether the target has an entropy term, as in the authors' code.
    baseline_entropy: bool

    def _policy(self, state: Inputs) -> Distribution:
        """pi(.|s)."""
        raise NotImplementedError

    def _clipped(self, log_prob: Tensor) -> Tensor:
        """The log-density, clipped for its use as a critic."""
        return log_prob

    def _baselines(self, state: Inputs) -> Tensor:
        """Z_i(s), shape [E, *B]."""
        params = flat_parameters(self.baseline_network_params)
        return self._call_ensemble(self.baseline_network, params, state, self.tensor_keys.value)

    def _baseline_target(self, tensordict: TensorDictBase, alpha: Tensor) -> Tensor:
        """y = r + gamma (1 - d) [log pi(a'|s') + min_k Z_k(s') - alpha log pi(a'|s')], shape [*B]."""
        noise = self.noise.normal("baseline_next_action", self._action(tensordict))
        following = self._next_state(tensordict)
        action, log_prob = sample_policy(self._policy(following), noise)  # a' ~ pi(.|s')
        baseline, entropy = self._baselines(following).amin(0), log_prob if self.baseline_entropy else None
        value = baseline_value(self._clipped(log_prob), baseline, alpha, entropy)
        return self._estimate(tensordict, value, log_prob=log_prob, action=action)


class BaselineLoss(FitsBaselines):
    r"""Policy evaluation with :math:`Q(s,a)=\log\pi_0(a|s)+Z(s)`, where only Z is trained.

    .. math::
        y = r + \gamma(1-d)\big[\log\pi_0(a'|s') + \min_k Z_k(s') - \alpha\log\pi_0(a'|s')\big],\qquad
        L_Z = \frac1B\sum_b\sum_i (\log\pi_0(a|s)+Z_i(s)-y)^2

    Use it to prepare a policy of another learner (CQL, AWAC, IQL) for ACA. There is no target network, and the policy
    is not changed.

    Source: Yu & Zhang 2023 (ACA), Eq. 8 and 9; for policies that were not trained by SAC+ML the paper clips
    :math:`\log\pi_0` to 0 where negative (``clip_min=0``; no code was released for that case).

    Importance weights multiply the rows.

    Args:
        actor_network: the offline policy; a frozen copy is kept.
        baseline_network: E baselines, for example :func:`~torchrl_o2o.modules.make_baselines`.

    Keyword Args:
        alpha: entropy temperature of the online phase. Defaults to 1, where ACA starts.
        baseline_entropy: subtract the entropy term (the authors' code) or not (Eq. 9). Defaults to ``True``.
        clip_min: lower bound of the log-density where it serves as a critic, or ``None`` for no bound. Defaults to 0.0.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the policy has no log-density, or the baselines are not a list of networks with separate
            parameters.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_baselines
        >>> from torchrl_o2o.testing import random_transitions
        >>> loss = BaselineLoss(make_actor(5, 2, hidden_sizes=(8,)), make_baselines(5, hidden_sizes=(8,)))
        >>> [name for name, value in loss.named_parameters() if value.requires_grad][0].split(".")[0]
        'baseline_network_params'
        >>> loss(random_transitions(6, 5, 2))["loss_baseline"].shape
        torch.Size([])
    """

    out_keys = ["loss_baseline", "baseline", "target_value"]

    actor_network: ProbabilisticTensorDictSequential
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    alpha: Tensor

    _networks_read = (("actor_network", "baseline_network"), ("actor_network", "baseline_network"))

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        baseline_network: list[TensorDictModule],
        *,
        alpha: float = 1.0,
        baseline_entropy: bool = True,
        clip_min: float | None = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        check_alignable(actor_network)
        members = check_members(baseline_network, "baseline")
        frozen = copy.deepcopy(actor_network).requires_grad_(False).eval()
        self.convert_to_functional(frozen, "actor_network", create_target_params=False)
        self.convert_to_functional(members, "baseline_network", len(members), create_target_params=False)
        check_number("alpha", alpha, least=0)
        if clip_min is not None:
            check_number("clip_min", clip_min)
        self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.get_default_dtype()))
        self.baseline_entropy = baseline_entropy
        self.clip_min = clip_min
        self.make_value_estimator()

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """The target y of the class docstring.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            y, shape [*B], without gradient.
        """
        return self._baseline_target(tensordict, self.alpha)

    def baseline_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one minibatch; no gradient reaches the policy.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            The loss, and ``td_error`` (mean over baselines of the absolute error, shape [*B]), ``baseline`` and
            ``target_value``, detached.
        """
        target, state = self.target_value(tensordict), self._state(tensordict)  # y
        with torch.no_grad():
            density = self._clipped(self._policy(state).log_prob(self._action(tensordict)))  # log pi_0(a|s)
        baseline = self._baselines(state)  # Z_i(s)
        qvalue = density + baseline
        error = ensemble_squared_error(qvalue, target)
        info = {
            "td_error": (qvalue.detach() - target).abs().mean(0),
            "baseline": baseline.detach(),
            "target_value": target,
        }
        return self._reduce(error, self._weights(tensordict)), info

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss, and unless ``reduction="none"`` the batch means of baseline and target.

        Args:
            tensordict: transitions, shape [*B]; the absolute TD error is written under ``tensor_keys.priority``.

        Returns:
            ``loss_baseline``, ``baseline``, ``target_value``.
        """
        loss, info = self.baseline_loss(tensordict)
        return self._collect(tensordict, {"loss_baseline": loss}, info)

    def _policy(self, state: Inputs) -> Distribution:
        """pi_0(.|s)."""
        return policy_distribution(self.actor_network, flat_parameters(self.actor_network_params), state)

    def _clipped(self, log_prob: Tensor) -> Tensor:
        return log_prob if self.clip_min is None else log_prob.clamp(min=self.clip_min)
