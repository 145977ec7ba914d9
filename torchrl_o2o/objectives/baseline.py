# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The baseline Z(s) of ACA on top of any frozen offline policy (SAC+ML trains its own along with the policy)."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.alignment import baseline_value
from torchrl_o2o.functional.soft import ensemble_squared_error
from torchrl_o2o.modules.aligned import check_alignable
from torchrl_o2o.objectives.base import Reduction, TransitionLoss
from torchrl_o2o.objectives.networks import (
    Inputs,
    Parameters,
    call_ensemble,
    flat_parameters,
    policy_distribution,
    sample_policy,
)

__all__ = ["BaselineLoss", "PolicyBaseline", "baseline_next_value", "fit_baseline"]


class PolicyBaseline(NamedTuple):
    """Templates of a policy and of one baseline, evaluated under explicit parameters."""

    actor: ProbabilisticTensorDictSequential
    baseline: TensorDictModuleBase
    out_key: NestedKey


def baseline_next_value(
    networks: PolicyBaseline,
    actor: Parameters,
    baseline: Parameters,
    inputs: Inputs,
    noise: Tensor,
    alpha: Tensor,
    entropy: bool,
    clip_min: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""a', log pi(a'|s') and the value :math:`\log\pi+\min_k Z_k-\alpha\log\pi` at s', pure.

    Args:
        networks: templates.
        actor: the policy's parameters.
        baseline: the baselines' parameters, stacked.
        inputs: what both read at s'.
        noise: standard-normal numbers, shape [*B, A].
        alpha: entropy temperature.
        entropy: whether the entropy term is subtracted.
        clip_min: lower bound of the log-density in its role as critic, or ``None``.

    Returns:
        Action, shape [*B, A], log-density and value, shape [*B].

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_actor, make_baselines
        >>> actor, members = make_actor(3, 2, hidden_sizes=(8,)), make_baselines(3, hidden_sizes=(8,))
        >>> stacked = {key: torch.stack([m.state_dict()[key] for m in members]) for key in members[0].state_dict()}
        >>> networks, inputs = PolicyBaseline(actor, members[0], "state_value"), {"observation": torch.zeros(4, 3)}
        >>> action, log_prob, value = baseline_next_value(
        ...     networks, actor.state_dict(), stacked, inputs, torch.zeros(4, 2), torch.tensor(1.0), True, None
        ... )
        >>> action.shape, value.shape
        (torch.Size([4, 2]), torch.Size([4]))
    """
    action, log_prob = sample_policy(policy_distribution(networks.actor, actor, inputs), noise)
    values = call_ensemble(networks.baseline, baseline, inputs, networks.out_key).amin(0)
    density = log_prob if clip_min is None else log_prob.clamp(min=clip_min)
    return action, log_prob, baseline_value(density, values, alpha, log_prob if entropy else None)


def fit_baseline(
    networks: PolicyBaseline,
    actor: Parameters,
    baseline: Parameters,
    inputs: Inputs,
    action: Tensor,
    target: Tensor,
    clip_min: float | None,
) -> tuple[Tensor, Tensor]:
    r"""Squared error of :math:`\log\pi(a|s)+Z_i(s)` against a target, summed over members, pure.

    Args:
        networks: templates.
        actor: the policy's parameters, detached.
        baseline: the baselines' parameters, stacked.
        inputs: what both read at s.
        action: recorded actions, shape [*B, A].
        target: y, shape [*B].
        clip_min: lower bound of the log-density, or ``None``.

    Returns:
        Error per row, shape [*B], and Z_i(s), shape [E, *B].

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_actor, make_baselines
        >>> actor, members = make_actor(3, 2, hidden_sizes=(8,)), make_baselines(3, hidden_sizes=(8,))
        >>> stacked = {key: torch.stack([m.state_dict()[key] for m in members]) for key in members[0].state_dict()}
        >>> networks, inputs = PolicyBaseline(actor, members[0], "state_value"), {"observation": torch.zeros(4, 3)}
        >>> error, values = fit_baseline(
        ...     networks, actor.state_dict(), stacked, inputs, torch.zeros(4, 2), torch.zeros(4), None
        ... )
        >>> error.shape, values.shape
        (torch.Size([4]), torch.Size([2, 4]))
    """
    density = policy_distribution(networks.actor, actor, inputs).log_prob(action)
    density = density if clip_min is None else density.clamp(min=clip_min)
    values = call_ensemble(networks.baseline, baseline, inputs, networks.out_key)
    return ensemble_squared_error(density + values, target), values


class BaselineLoss(TransitionLoss):
    r"""Policy evaluation in the form :math:`Q(s,a)=\log\pi_0(a|s)+Z(s)`: only the state's part Z is trained.

    .. math::
        y = r + \gamma(1-d)\big[\log\pi_0(a'|s') + \min_k Z_k(s') - \alpha\log\pi_0(a'|s')\big],\qquad
        L_Z = \frac1B\sum_b\sum_i (\log\pi_0(a|s)+Z_i(s)-y)^2

    This is how a policy that was trained by another learner (CQL, AWAC, IQL) is prepared for ACA. There is no target
    network, and the policy stays as it is.

    Source: Yu & Zhang 2023 (ACA), Eq. 8 and 9; for policies that were not trained by SAC+ML the paper clips
    :math:`\log\pi_0` to 0 where negative (``clip_min=0``; no code was released for that case).

    Args:
        actor_network: the offline policy; a frozen copy is kept.
        baseline_network: E baselines, for example :func:`~torchrl_o2o.modules.make_baselines`.

    Keyword Args:
        alpha: entropy temperature of the online phase. Defaults to 1, where ACA starts.
        baseline_entropy: subtract the entropy term (the authors' code) or not (Eq. 9). Defaults to ``True``.
        clip_min: lower bound of the log-density in its role as critic. Defaults to 0.0; ``None`` for none.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the policy has no log-density or no baseline is given.

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
    baseline_network: TensorDictModule
    baseline_network_params: TensorDictParams
    target_baseline_network_params: TensorDictParams

    _networks_read = (("actor_network", "baseline_network"), ("actor_network", "baseline_network"))
    _next_value = staticmethod(baseline_next_value)
    _fit = staticmethod(fit_baseline)

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
        members = list(baseline_network)
        if not members:
            raise O2OSpecError("got no baseline; pass a list of them, for example make_baselines(...)")
        frozen = copy.deepcopy(actor_network).requires_grad_(False)
        self.convert_to_functional(frozen, "actor_network", create_target_params=False)
        self.convert_to_functional(members, "baseline_network", len(members), create_target_params=False)
        self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.get_default_dtype()))
        self.baseline_entropy = baseline_entropy
        self.clip_min = clip_min
        self.make_value_estimator()

    def baseline_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one minibatch; no gradient reaches the policy.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            The loss, and ``td_error`` (absolute, shape [*B]), ``baseline`` and ``target_value``, detached.
        """
        target = self.target_value(tensordict)
        error, values = self._fit(
            self._networks,
            flat_parameters(self.actor_network_params, detach=True),
            flat_parameters(self.baseline_network_params),
            self._inputs(tensordict, "actor_network", "baseline_network"),
            self._action(tensordict),
            target,
            self.clip_min,
        )
        info = {"td_error": error.detach().sqrt(), "baseline": values.detach(), "target_value": target}
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
        tensordict.set(self.tensor_keys.priority, info.pop("td_error"))
        if self.reduction == "none":
            return TensorDict({"loss_baseline": loss}, tensordict.batch_size)
        return TensorDict({"loss_baseline": loss, **{name: value.mean() for name, value in info.items()}}, [])

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """The target y of the class docstring.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            y, shape [*B], without gradient.
        """
        keys, following = self.tensor_keys, self._following(tensordict)
        noise = self.noise.normal("baseline_next_action", self._action(tensordict))
        action, log_prob, value = self._next_value(
            self._networks,
            flat_parameters(self.actor_network_params, detach=True),
            flat_parameters(self.baseline_network_params, detach=True),
            self._inputs(following, "actor_network", "baseline_network"),
            noise,
            self.alpha,
            self.baseline_entropy,
            self.clip_min,
        )
        return self._estimate(tensordict, {keys.log_prob: log_prob, keys.value: value}, action)

    @property
    def _networks(self) -> PolicyBaseline:
        return PolicyBaseline(self.actor_network, self.baseline_network, self.tensor_keys.value)
