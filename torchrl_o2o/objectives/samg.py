# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SAMG: a frozen offline critic in the Bellman target, as a value estimator that plugs into any learner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import IQLLoss as UpstreamIQLLoss
from torchrl.objectives import REDQLoss, SACLoss
from torchrl.objectives.common import LossModule
from torchrl.objectives.value import TD0Estimator

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.functional.noise import GeneratorNoise, NoiseSource
from torchrl_o2o.functional.samg import Guidance, guidance_factor, samg_value
from torchrl_o2o.objectives.aca import ACALoss
from torchrl_o2o.objectives.actor_critic import inputs_made_inside
from torchrl_o2o.objectives.base import TransitionLoss
from torchrl_o2o.objectives.frozen import CriticSource, FrozenCritic
from torchrl_o2o.objectives.networks import flat_parameters, policy_distribution, sample_policy
from torchrl_o2o.objectives.off2on import PessimisticEnsembleLoss

__all__ = ["SAMGEstimator"]

NextAction = Callable[[TensorDictBase], tuple[TensorDictBase, Tensor]]


_REASONS = {
    "CQLLoss": "it subtracts its entropy term at another action; use this package's CQLLoss or CalQLLoss",
    "TD3Loss": "it keeps its smoothed next action to itself; take this package's TD3BCLoss",
    "TD3BCLoss": "it keeps its smoothed next action to itself; take this package's TD3BCLoss",
    "DDPGLoss": "it keeps its next action to itself; take this package's TD3BCLoss",
}


def _check_known(loss: LossModule) -> None:
    """Accept the losses for which the mixed target is known to be right, and raise for others with the reason."""
    if isinstance(loss, ACALoss):
        raise O2OSpecError(
            "got ACALoss, expected a loss whose value comes from its critics alone, because ACA's is R + k log pi_0; "
            "use another loss"
        )
    if isinstance(loss, PessimisticEnsembleLoss):
        raise O2OSpecError(
            "got PessimisticEnsembleLoss, which has a target for each pair of critics, expected a loss with one "
            "target; use EnsembleSACLoss"
        )
    if isinstance(loss, TransitionLoss) or type(loss) in (REDQLoss, UpstreamIQLLoss):
        return
    if type(loss) is SACLoss:
        if loss._version == 1:
            raise O2OSpecError(
                "got TorchRL's SACLoss with a value network (version 1), whose target has no next action, expected "
                "version 2; build it without a value network"
            )
        return
    reason = _REASONS.get(type(loss).__name__, "how it forms its target is unknown")
    raise O2OSpecError(
        f"got {type(loss).__module__}.{type(loss).__name__}, expected a loss of this package, or TorchRL's SACLoss, "
        f"REDQLoss or IQLLoss: {reason}"
    )


class _PolicyOf:
    """The policy of a soft loss of torchrl: adds a' to next states, and returns alpha log pi(a'|s'), [*B, 1]."""

    def __init__(self, loss: Any, noise: NoiseSource | None) -> None:
        self.loss, self.noise = loss, noise or GeneratorNoise()

    def __call__(self, following: TensorDictBase) -> tuple[TensorDictBase, Tensor]:
        actor: ProbabilisticTensorDictSequential = self.loss.actor_network
        inputs = {key: following.get(key) for key in actor.in_keys}
        dist = policy_distribution(actor, flat_parameters(self.loss.actor_network_params, detach=True), inputs)
        like = next(iter(inputs.values())).new_empty((*dist.batch_shape, *dist.event_shape))
        action, log_prob = sample_policy(dist, self.noise.normal("offline_next_action", like))
        entropy_term = self.loss.log_alpha.detach().exp() * log_prob.unsqueeze(-1)
        return following.copy().set(self.loss.tensor_keys.action, action), entropy_term


class SAMGEstimator(TD0Estimator):
    r"""One-step target that mixes in the frozen offline critic where the data set covers the state and action.

    .. math::
        y = r + \gamma(1-d)\big[(1-g\,p)\,\bar Q(s',a') + g\,p\,\bar Q_\mathrm{off}(s',a')
            - \alpha\log\pi(a'|s')\big],\qquad a'\sim\pi(\cdot|s')

    where p = p(s, a) is read from the batch, a' is the same for both critics, and :math:`g\in[0,1]` is the fading of
    :meth:`set_step`. The base algorithm's entropy term, if it has one, is subtracted once, outside the mix, and so are
    penalties on a' (ReBRAC, BRAC). Both :math:`\bar Q` reduce their members like the base algorithm: by the minimum,
    the mean or a soft minimum. If the offline learner has a state value (IQL), :math:`V` and :math:`V_\mathrm{off}`
    replace them. With p = 0 the target equals the base algorithm's bit for bit. With p = 1 it is the frozen critic's
    alone.

    Source: Zhang et al. 2024 (SAMG), Eq. 1 and 4 to 6. docs/algorithms/samg.md explains which details the paper leaves
    open.

    Build it with :meth:`from_loss` at the end of the offline phase and hand it to the loss that goes online::

        loss.make_value_estimator(SAMGEstimator.from_loss(loss, gamma=0.99))

    This package's losses write a', its value and the entropy term where the estimator reads them. TorchRL's ``SACLoss``
    and ``REDQLoss`` do not pass a' on. For them a second a' is drawn from ``next_action``. The target then has the same
    mean, and the entropy terms of the two actions have the weights 1-p and p.

    Args:
        critic: the frozen offline critic.

    Keyword Args:
        gamma: discount. Defaults to 0.99.
        value_network: the value network, which ``torchrl.objectives.IQLLoss`` needs in its estimator; otherwise
            ``None`` (default).
        next_action: adds a' to the next states and returns them with alpha log pi(a'|s') of shape [*B, 1], for losses
            that do not pass a' on; ``None`` (default) reads a' from the batch.
        guidance: ``"constant"`` (default), ``"step"`` or ``"linear"``, see :meth:`set_step`.
        cutoff: online step at which guidance ends.
        confidence_key: entry of p, shape [*B, 1]. Defaults to ``"p_off"``; use ``("next", "p_off")`` for torchrl's
            losses, some of which pass on only the entries under ``"next"``.
        state_action_value_key: entry under ``"next"`` into which the loss writes the value of a' without entropy.
            Defaults to ``"state_action_value"``.

    Raises:
        O2OSpecError: if the schedule is unknown or needs a cutoff that is missing.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import ConstantConfidence, make_gaussian_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import AWACLoss, SAMGEstimator
        >>> from torchrl_o2o.testing import random_transitions
        >>> actor = make_gaussian_actor(5, 2, hidden_sizes=(16,))
        >>> critics = make_qvalue_ensemble(5, 2, num_qvalue_nets=2, layer_norm=False, hidden_sizes=(16,))
        >>> loss = AWACLoss(actor, critics)  # ... trained offline, then:
        >>> _ = loss.make_value_estimator(SAMGEstimator.from_loss(loss, guidance="linear", cutoff=100_000))
        >>> batch = ConstantConfidence(0.5)(random_transitions(8, 5, 2))
        >>> loss_qvalue, _ = loss.qvalue_loss(batch)
        >>> loss.value_estimator.set_step(50_000)
        >>> loss.value_estimator.weight
        tensor(0.5000)
    """

    critic: FrozenCritic
    next_action: NextAction | None
    gamma: Tensor
    weight: Tensor

    @checked_arguments
    def __init__(
        self,
        critic: FrozenCritic,
        *,
        gamma: float = 0.99,
        value_network: TensorDictModule | None = None,
        next_action: NextAction | None = None,
        guidance: Guidance = "constant",
        cutoff: int | None = None,
        confidence_key: NestedKey = "p_off",
        state_action_value_key: NestedKey = "state_action_value",
    ) -> None:
        super().__init__(gamma=gamma, value_network=None)  # type: ignore[arg-type]
        self.critic = critic
        # Neither the template without parameters nor the function of another module is part of the state.
        self.__dict__["value_network"], self.__dict__["next_action"] = value_network, next_action
        self.confidence_key, self.state_action_value_key = confidence_key, state_action_value_key
        self.guidance: Guidance = guidance
        self.cutoff = cutoff
        self.register_buffer("weight", torch.ones((), dtype=torch.get_default_dtype()))
        self.set_step(0)

    @classmethod
    def from_loss(
        cls,
        loss: LossModule,
        *,
        gamma: float = 0.99,
        source: CriticSource = "online",
        guidance: Guidance = "constant",
        cutoff: int | None = None,
        confidence_key: NestedKey | None = None,
        noise: NoiseSource | None = None,
    ) -> SAMGEstimator:
        """Build the estimator from a loss's current critic.

        Args:
            loss: a loss of this package whose critics read observations, not an encoder's output, except ``ACALoss``
                and ``PessimisticEnsembleLoss``; or torchrl's ``SACLoss``, ``REDQLoss`` or ``IQLLoss``.
            gamma: discount. Defaults to 0.99.
            source: freeze the ``"online"`` networks (default) or their ``"target"`` copies.
            guidance: ``"constant"`` (default), ``"step"`` or ``"linear"``.
            cutoff: online step at which guidance ends.
            confidence_key: entry of p; ``None`` (default) is ``"p_off"``, and ``("next", "p_off")`` for torchrl's
                losses.
            noise: source of the random numbers of a' if the loss does not pass a' on; ``None`` (default) is torch's
                global generator.

        Returns:
            The estimator.

        Raises:
            O2OSpecError: if the loss is not one of those named, or has no critic.
        """
        _check_known(loss)
        critic = FrozenCritic.from_loss(loss, source=source)
        ours = isinstance(loss, TransitionLoss)
        if ours and (inside := inputs_made_inside(loss, f"{critic.kind}_network")):
            raise O2OSpecError(
                f"got {type(loss).__name__}, whose critics read {inside}, which only the loss computes, expected "
                "critics on observations and actions; use a loss without an encoder"
            )
        next_action = None if ours or critic.kind == "value" else _PolicyOf(loss, noise)
        if confidence_key is None:
            confidence_key = "p_off" if ours else ("next", "p_off")
        return cls(
            critic,
            gamma=gamma,
            value_network=loss.value_network if isinstance(loss, UpstreamIQLLoss) else None,
            next_action=next_action,
            guidance=guidance,
            cutoff=cutoff,
            confidence_key=confidence_key,
            state_action_value_key=getattr(loss.tensor_keys, "state_action_value", "state_action_value"),
        )

    @property
    def guides(self) -> bool:
        """Whether the target still mixes in the frozen critic; ``False`` from the cutoff on."""
        return self._active

    def set_step(self, step: int) -> None:
        """Fade the guidance as :func:`~torchrl_o2o.functional.guidance_factor` says.

        From the cutoff on, the frozen critic is no longer evaluated.

        Args:
            step: online environment steps so far.
        """
        factor = guidance_factor(step, self.guidance, self.cutoff)
        self.weight.fill_(factor)
        self._active = factor > 0.0

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._active = float(self.weight) > 0.0

    def confidence(self, tensordict: TensorDictBase) -> Tensor:
        """The confidence in the target: p times the fading factor.

        Store ``1 - estimator.confidence(batch)`` under ``"penalty_weight"`` to weaken the penalty of CQL and Cal-QL
        where the offline critic is trusted.

        Args:
            tensordict: transitions, shape [*B].

        Returns:
            Shape [*B, 1].

        Raises:
            O2ODataError: if the batch has no p.
        """
        stored = tensordict.get(self.confidence_key, None)
        if stored is None:
            raise O2ODataError(
                f"got a batch without {self.confidence_key!r}, expected the confidence of each row; store it with "
                "every transition, buffer.extend(confidence(data.select(*TRANSITION))), under this key as the "
                "confidence's out_key"
            )
        return stored * self.weight

    def value_estimate(
        self,
        tensordict: TensorDictBase,
        target_params: TensorDictBase | None = None,
        next_value: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The mixed target; see :meth:`torchrl.objectives.value.ValueEstimatorBase.value_estimate`.

        Raises:
            O2OSpecError: if the next state's value is neither passed nor in the batch.
        """
        if next_value is None:
            next_value = self._next_value(tensordict, target_params, kwargs=kwargs)
        if next_value is None:
            raise O2OSpecError(
                f"got a batch without {self.tensor_keys.value!r} under 'next', expected the next state's value there; "
                "call the loss's target_value, or pass next_value=..."
            )
        if self._active:
            offline_value = self._offline_value(tensordict.get("next"), next_value)
            next_value = samg_value(next_value, offline_value, self.confidence(tensordict))
        return super().value_estimate(tensordict, next_value=next_value)

    @torch.no_grad()
    def _offline_value(self, following: TensorDictBase, next_value: Tensor) -> Tensor:
        """V_off(s') or Q_off(s', a') with the base algorithm's entropy term, shape [*B, 1]."""
        if self.critic.kind == "value":
            return self.critic(following)
        if self.next_action is not None:
            following, entropy_term = self.next_action(following)
            return self.critic(following) - entropy_term
        qvalue = following.get(self.state_action_value_key, None)
        if qvalue is None:
            raise O2OSpecError(
                f"got a batch without {self.state_action_value_key!r} under 'next', expected the loss to write it, "
                "because otherwise its next action and entropy are unknown; pass next_action=..., or build the "
                "estimator with SAMGEstimator.from_loss(loss)"
            )
        return self.critic(following) + (next_value - qvalue)
