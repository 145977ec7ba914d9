# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""BRAC with a divergence that a critic of its own estimates, without a clone of the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor
from torch.distributions import Distribution

from torchrl_o2o.errors import check_number, check_option
from torchrl_o2o.functional.behavior import DualDivergence, dual_divergence, slope_penalty
from torchrl_o2o.modules.multiplier import Multiplier
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.behavior_regularized import BehaviorRegularizedLoss
from torchrl_o2o.objectives.networks import (
    Inputs,
    Parameters,
    call_network,
    flat_parameters,
    sample_policy,
    single_output,
)

__all__ = ["BRACDualLoss"]

_ALL = ("actor_network", "qvalue_network", "divergence_network")


class BRACDualLoss(BehaviorRegularizedLoss):
    r"""BRAC whose divergence is estimated by a critic c(s, a) of it, so that no behavior policy has to be cloned.

    Target, :math:`L_Q` and :math:`L_\pi` are those of :class:`~torchrl_o2o.objectives.BRACLoss`. The divergence is

    .. math::
        D_{KL}(s)=\log(\zeta(c(s,a_\pi))+10^{-8})-\zeta(c(s,a_\beta))+1\qquad\text{or}\qquad
        D_W(s)=c(s,a_\pi)-c(s,a_\beta)

    with :math:`\zeta(c)=\log(1+e^c)`, the action :math:`a_\pi` of the policy that Q and :math:`\log\pi` are taken at,
    and the recorded action :math:`a_\beta`; in y it is the recorded action of the next step
    (:func:`~torchrl_o2o.data.add_next_action`). The critic raises D, but not by being steep:

    .. math::
        L_c=\frac1B\sum_b\Big[-D(s)+\kappa\max\big(0,|\nabla_a c(s,\tilde a)|-1\big)^2\Big],\qquad
        \tilde a=a_\pi+u(a_\beta-a_\pi),\ u\sim U(0,1),\ a_\pi\sim\pi(\cdot|s)\text{ drawn again}

    The authors take three steps on :math:`L_c`, each on a minibatch of its own, for one on every other loss. The batch
    of an update has three minibatches then, and all networks learn from the last of them:

    .. code-block:: python

        agent = MoveTargets(updater), Descend("qvalue", ...), Descend("actor", ...)
        Update(loss, Repeat(3, Every(3, *agent), Descend("divergence", ...), Every(3, Descend("multiplier", ...))))

    Source: Wu et al. 2019, arXiv:1911.11361, and the authors' code (``brac_dual``), which was read.

    Differences from the paper: none in the equations. The authors draw again for the weight's step; here it takes the
    divergence that the actor's step measured.

    Importance weights multiply the rows of :math:`L_Q`, not those of :math:`L_\pi`, of :math:`L_c`, of the temperature
    or of :math:`\alpha`.

    Args:
        actor_network: a stochastic actor, in the paper :func:`~torchrl_o2o.modules.make_actor`.
        qvalue_network: critics, two in the paper.
        divergence_network: c, a network like one critic, for example ``make_qvalue_ensemble(...)[0]``.

    Keyword Args:
        value_penalty: whether the target is penalized, too (BRAC-v). Defaults to ``False``, the authors' example.
        divergence: ``"kl"`` (default) or ``"wasserstein"``.
        gradient_penalty: :math:`\kappa`. Defaults to 5, the authors'.
        multiplier: :math:`\alpha`. Defaults to ``Multiplier(0.1)``, fixed; the authors' example is 10.
        temperature: :math:`\alpha_e`. Defaults to ``Temperature(None, init=0.0)``: no entropy.
        soft_min_weight: :math:`\lambda`. Defaults to 1.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the actor has no density, or a setting is unknown or out of range.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import BRACDualLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> *critics, divergence = make_qvalue_ensemble(
        ...     17, 6, num_qvalue_nets=3, layer_norm=False, hidden_sizes=(32, 32)
        ... )
        >>> loss = BRACDualLoss(make_actor(17, 6, hidden_sizes=(32, 32)), critics, divergence)
        >>> loss_divergence, info = loss.divergence_loss(random_transitions(8, 17, 6))
        >>> loss_divergence.shape, info["slope_penalty"].shape
        (torch.Size([]), torch.Size([8]))
    """

    @dataclass
    class _AcceptedKeys(BehaviorRegularizedLoss._AcceptedKeys):
        """Tensordict keys that can be renamed with ``set_keys``.

        Attributes:
            next_action: the action recorded in the next step. Defaults to ``("next", "action")``.
        """

        next_action: NestedKey = ("next", "action")

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys  # pyright: ignore[reportIncompatibleVariableOverride]
    out_keys = [*BehaviorRegularizedLoss.out_keys, "loss_divergence", "slope_penalty"]

    divergence_network: TensorDictModule
    divergence_network_params: TensorDictParams
    target_divergence_network_params: TensorDictParams

    _networks_read = (_ALL, _ALL)

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        divergence_network: TensorDictModule,
        *,
        value_penalty: bool = False,
        divergence: DualDivergence = "kl",
        gradient_penalty: float = 5.0,
        multiplier: Multiplier | None = None,
        temperature: Temperature | None = None,
        soft_min_weight: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            actor_network,
            qvalue_network,
            value_penalty=value_penalty,
            multiplier=multiplier,
            temperature=temperature,
            soft_min_weight=soft_min_weight,
            reduction=reduction,
        )
        check_option("divergence", divergence, ("kl", "wasserstein"))
        check_number("gradient_penalty", gradient_penalty, least=0)
        self.convert_to_functional(divergence_network, "divergence_network", create_target_params=False)
        self.divergence: DualDivergence = divergence
        self.gradient_penalty = gradient_penalty
        self.make_value_estimator()

    def _keys_read(self) -> list[NestedKey]:
        return [*super()._keys_read(), *([self.tensor_keys.next_action] if self.value_penalty else [])]

    def divergence_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the divergence's critic; no gradient reaches the policy.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            The loss, and ``slope_penalty`` per row, shape [*B], detached and before it is weighted.
        """
        state, recorded = self._state(tensordict), self._action(tensordict)  # s, a_beta
        with torch.no_grad():
            noise = self.noise.normal("divergence_action", recorded)
            action, _ = sample_policy(self._policy(state), noise)  # a_pi ~ pi(.|s)
        share = 0.5 * (self.noise.uniform("divergence_share", recorded[..., :1]) + 1.0)  # u
        between = action + share * (recorded - action)  # a~
        params = flat_parameters(self.divergence_network_params)
        gradient = torch.func.grad(lambda where: self._score(state, where, params).sum())(between)
        penalty = slope_penalty(gradient)
        scores = self._score(state, action, params), self._score(state, recorded, params)
        divergence = dual_divergence(*scores, self.divergence)  # D(s)
        return self._reduce(self.gradient_penalty * penalty - divergence), {"slope_penalty": penalty.detach()}

    @torch.no_grad()
    def estimate_divergence(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`DivergenceLoss.estimate_divergence`; of one action of the policy a row, as its critic is now."""
        state, noise = self._state(tensordict), self.noise.normal("action", self._action(tensordict))
        policy = self._policy(state)
        action, _ = sample_policy(policy, noise)
        return self._divergence(tensordict, state, policy, action, following=False)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All losses from one set of parameters, and their statistics; writes the priority to the batch."""
        losses, info = self._regularized_losses(tensordict)
        losses["loss_divergence"], metrics = self.divergence_loss(tensordict)
        return self._collect(tensordict, losses, {**info, **metrics})

    def _divergence(
        self, tensordict: TensorDictBase, state: Inputs, policy: Distribution, action: Tensor, *, following: bool
    ) -> Tensor:
        """See :meth:`BehaviorRegularizedLoss._divergence`; no gradient reaches the critic."""
        recorded = self._action(tensordict)
        if following:
            key = self.tensor_keys.next_action
            recorded = self._recorded_next_action(tensordict, key, action, "value_penalty=False")
        params = flat_parameters(self.divergence_network_params, detach=True)
        scores = self._score(state, action, params), self._score(state, recorded, params)
        return dual_divergence(*scores, self.divergence)

    def _score(self, state: Inputs, action: Tensor, params: Parameters) -> Tensor:
        """c(s, a), shape [*B]."""
        network = self.divergence_network
        key = network.out_keys[0]
        inputs = {**state, self.tensor_keys.action: action}
        return single_output(call_network(network, params, inputs, key), key)
