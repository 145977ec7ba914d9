# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What TD3+BC and SPOT share: deterministic actors with targets, and smoothed target actions."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, TensorDictModuleBase
from torch import Tensor
from torchrl.data import Bounded, TensorSpec

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.offline import smoothed_action
from torchrl_o2o.objectives.base import Reduction
from torchrl_o2o.objectives.critic import CriticLoss
from torchrl_o2o.objectives.networks import ActorCritic, Inputs, Parameters, call_network, flat_parameters

__all__ = ["SmoothedTargetLoss", "first_member"]

_BOTH = ("actor_network", "qvalue_network")


def first_member(params: Parameters) -> dict[str, Tensor]:
    """Parameters of the first critic alone, still stacked.

    Args:
        params: stacked parameters, each of shape [E, ...].

    Returns:
        Those of member 0, each of shape [1, ...].

    Examples:
        >>> import torch
        >>> first_member({"weight": torch.zeros(2, 3)})["weight"].shape
        torch.Size([1, 3])
    """
    return {name: value[:1] for name, value in params.items()}


def _smoothed_value(
    networks: ActorCritic,
    actor: Parameters,
    target: Parameters,
    inputs: Inputs,
    noise: Tensor,
    box: tuple[Tensor, Tensor],
    policy_noise: float,
    noise_clip: float,
) -> tuple[Tensor, Tensor]:
    """The smoothed target action and min_j Q'_j of it."""
    action = call_network(networks.actor, actor, inputs, networks.action_key)
    action = smoothed_action(action, noise, policy_noise, noise_clip, *box)
    return action, networks.qvalues(target, inputs, action).amin(0)


class SmoothedTargetLoss(CriticLoss):
    r"""Abstract base of losses on TD3's critics, :math:`y=r+\gamma(1-d)\min_j Q'_j(s',\tilde a')`.

    Source: Fujimoto et al. 2018 (TD3), Algorithm 1; see :func:`~torchrl_o2o.functional.smoothed_action`.

    Args:
        actor_network: a deterministic actor with a bounded action spec.
        qvalue_network: critics, two in the references.
        policy_noise: standard deviation of the smoothing noise, as a share of the action box's half-width.
        noise_clip: its bound, as a share of the half-width.
        ensemble_reduction: ``"sum"`` or ``"mean"`` over members.
        reduction: over the batch.

    Raises:
        O2OSpecError: if the actor is stochastic or has no bounded action spec, or a noise setting is negative.
    """

    action_low: Tensor
    action_high: Tensor

    _stochastic = False
    _smoothed_value = staticmethod(_smoothed_value)

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: list[TensorDictModule],
        *,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        ensemble_reduction: Literal["sum", "mean"] = "sum",
        reduction: Reduction = "mean",
    ) -> None:
        low, high = _deterministic_box(actor_network)
        if policy_noise < 0.0 or noise_clip < 0.0:
            raise O2OSpecError(
                f"got policy_noise={policy_noise} and noise_clip={noise_clip}, expected 0 (no smoothing) or more"
            )
        super().__init__(
            actor_network, qvalue_network, target_actor=True, ensemble_reduction=ensemble_reduction, reduction=reduction
        )
        self.register_buffer("action_low", low)
        self.register_buffer("action_high", high)
        self.policy_noise, self.noise_clip = policy_noise, noise_clip

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`CriticLoss.target_value`."""
        keys = self.tensor_keys
        noise = self.noise.normal("target_smoothing", self._action(tensordict))
        actor = flat_parameters(self.target_actor_network_params, detach=True)
        target = flat_parameters(self.target_qvalue_network_params, detach=True)
        inputs, box = self._inputs(self._following(tensordict), *_BOTH), (self.action_low, self.action_high)
        action, value = self._smoothed_value(
            self._networks, actor, target, inputs, noise, box, self.policy_noise, self.noise_clip
        )
        return self._estimate(tensordict, {keys.state_action_value: value, keys.value: value}, action)


def _deterministic_box(actor: TensorDictModuleBase) -> tuple[Tensor, Tensor]:
    """Edges of the box a deterministic actor acts in."""
    if isinstance(actor, ProbabilisticTensorDictSequential):
        raise O2OSpecError(
            "got a stochastic actor, expected a deterministic one; build it with make_deterministic_actor(...)"
        )
    specs = getattr(actor, "spec", None)
    spec: TensorSpec | None = None if specs is None else specs.get(actor.out_keys[-1], None)
    if spec is None or not isinstance(spec, Bounded):
        raise O2OSpecError(
            f"got an actor with action spec {spec!r}, expected a bounded box to smooth target actions in; "
            f"build the actor with make_deterministic_actor(...) or torchrl's Actor(..., spec=...)"
        )
    return spec.low.clone(), spec.high.clone()
