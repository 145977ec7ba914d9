# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Bootstrapping error accumulation reduction (BEAR)."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError, check_number, check_option
from torchrl_o2o.functional.behavior import Kernel, soft_minimum, squared_mmd
from torchrl_o2o.functional.conservative import max_backup
from torchrl_o2o.modules.aligned import own_distribution
from torchrl_o2o.modules.distributions import TanhNormal
from torchrl_o2o.modules.multiplier import Multiplier
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.critic import CriticLoss
from torchrl_o2o.objectives.networks import (
    Inputs,
    Parameters,
    call_module,
    flat_parameters,
    policy_distribution,
    repeated,
)
from torchrl_o2o.objectives.penalty import DivergenceLoss
from torchrl_o2o.objectives.vae import action_vae, latent_dim, vae_terms

__all__ = ["BEARLoss"]

_BOTH = ("actor_network", "qvalue_network")


class BEARLoss(DivergenceLoss, CriticLoss):
    r"""Actor-critic that keeps the policy within the support of the data by a maximum mean discrepancy (MMD) penalty.

    .. math::
        y = r+\gamma(1-d)\max_{k\le10}\big[\tfrac34\min_i Q'_i(s',a'_k)+\tfrac14\max_i Q'_i(s',a'_k)\big],
        \ a'_k\sim\pi'(\cdot|s'),\qquad L_Q = \frac1B\sum_b\sum_i(Q_i(s,a)-y)^2

        L_\pi = \frac1B\sum_b\Big[-w_Q\big(\min_i\bar Q_i(s)-c\,\mathrm{std}_i\bar Q_i(s)\big)+\eta\,D(s)\Big],\qquad
        \bar Q_i(s)=\frac1N\sum_n Q_i(s,a_n),\ a_n\sim\pi(\cdot|s)

    :math:`D(s)=\sqrt{\mathrm{MMD}^2+10^{-6}}` compares the N actions of the policy with M actions of a VAE of the data,
    both *before* tanh, with the kernel :math:`e^{-d/2\sigma}` (:func:`~torchrl_o2o.functional.squared_mmd`). The VAE's
    latents and the noise of the policy's N actions are standard normal, clamped to 0.5; the noise of the actions in y
    is not clamped. :math:`\eta=e^{\log\eta}` rises while :math:`D>0.05` (:class:`~torchrl_o2o.modules.Multiplier`).
    :meth:`vae_loss` trains the VAE at the same time. The buffer ``q_weight``, :math:`w_Q`, is 1. Fill it with 0 for the
    first updates, in which the authors minimize D alone. Evaluate with :class:`~torchrl_o2o.objectives.BestAction`.

    Source: Kumar et al. 2019, arXiv:1906.00949, Algorithm 1, and the authors' code. One update: VAE, critics, actor,
    :math:`\eta`, targets.

    Differences from the paper: the penalty on the ensemble's spread, :math:`c=\lambda\sqrt{(1-\delta)/\delta}`, is off
    by default, as in the setting that the authors recommend. They draw the initial :math:`\log\eta` from N(0, 1); here
    it is 0. They clamp :math:`\log\eta` after its step; here its gradient is zero beyond the bounds.

    Importance weights multiply the rows of :math:`L_Q` and of :meth:`vae_loss`, not those of :math:`L_\pi` or of
    :math:`\eta`.

    Args:
        actor_network: a tanh-Gaussian actor, :func:`~torchrl_o2o.modules.make_actor`.
        qvalue_network: critics, two in the paper.
        vae_network: of :func:`~torchrl_o2o.modules.make_action_vae` on the same actions.

    Keyword Args:
        kernel: ``"gaussian"`` (the authors' sigma is 20) or ``"laplacian"`` (10). Defaults to ``"laplacian"``.
        mmd_sigma: :math:`\sigma`; ``None`` (default) is 20 or 10.
        policy_samples: N. Defaults to 5.
        behavior_samples: M. Defaults to 5.
        noise_clip: bound of the policy's noise in the actor's loss and in D, in standard deviations. Defaults to 0.5,
            as in the authors' code. ``None`` does not clamp, as in the paper.
        target_samples: number of next actions; the target takes the best. Defaults to 10.
        multiplier: :math:`\eta`. Defaults to ``Multiplier(1.0, target=0.05, form="log", bounds=(-5.0, 10.0))``.
        soft_min_weight: weight of the minimum in y. Defaults to 0.75.
        spread_weight: :math:`\lambda` of the penalty on the critics' spread. Defaults to 0.
        spread_confidence: :math:`\delta` of that penalty, in (0, 1]. Defaults to 0.1.
        vae_beta: weight of the VAE's divergence. Defaults to 0.5.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the actor is not squashed by tanh, the VAE was not built by ``make_action_vae``, or a setting
            is unknown or out of range.

    Examples:
        >>> from torchrl_o2o.modules import make_action_vae, make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import BEARLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> actor, vae = make_actor(17, 6, hidden_sizes=(32, 32)), make_action_vae(17, 6, hidden_sizes=(32, 32))
        >>> critics = make_qvalue_ensemble(17, 6, num_qvalue_nets=2, layer_norm=False, hidden_sizes=(32, 32))
        >>> loss, batch = BEARLoss(actor, critics, vae), random_transitions(8, 17, 6)
        >>> loss_actor, info = loss.actor_loss(batch)
        >>> sorted(info)
        ['divergence', 'qvalue_policy']
    """

    out_keys = ["loss_actor", "loss_qvalue", "loss_multiplier", "loss_vae", "divergence", "qvalue_policy"]
    out_keys += ["multiplier", "kl", "reconstruction_error", "qvalue", "target_value"]

    vae_network: TensorDictModule
    vae_network_params: TensorDictParams
    target_vae_network_params: TensorDictParams

    _networks_read = ((*_BOTH, "vae_network"), _BOTH)

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        vae_network: TensorDictModule,
        *,
        kernel: Kernel = "laplacian",
        mmd_sigma: float | None = None,
        policy_samples: int = 5,
        behavior_samples: int = 5,
        noise_clip: float | None = 0.5,
        target_samples: int = 10,
        multiplier: Multiplier | None = None,
        soft_min_weight: float = 0.75,
        spread_weight: float = 0.0,
        spread_confidence: float = 0.1,
        vae_beta: float = 0.5,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(actor_network, qvalue_network, target_actor=True, reduction=reduction)
        check_option("kernel", kernel, ("gaussian", "laplacian"))
        _check_settings(
            least={
                "policy_samples": policy_samples,
                "behavior_samples": behavior_samples,
                "target_samples": target_samples,
            },
            share={"soft_min_weight": soft_min_weight, "spread_confidence": spread_confidence},
            positive={
                "mmd_sigma": 1.0 if mmd_sigma is None else mmd_sigma,
                "noise_clip": 1.0 if noise_clip is None else noise_clip,
            },
        )
        check_number("vae_beta", vae_beta, above=0)
        check_number("spread_weight", spread_weight, least=0)
        check_number("spread_confidence", spread_confidence, above=0)
        self.convert_to_functional(vae_network, "vae_network", create_target_params=False)
        self.latent_dim = latent_dim(vae_network)
        learned = Multiplier(1.0, target=0.05, form="log", bounds=(-5.0, 10.0))
        self._hold_weights(learned if multiplier is None else multiplier)
        self.kernel: Kernel = kernel
        self.mmd_sigma = {"gaussian": 20.0, "laplacian": 10.0}[kernel] if mmd_sigma is None else mmd_sigma
        self.policy_samples, self.behavior_samples, self.noise_clip = policy_samples, behavior_samples, noise_clip
        self.target_samples, self.soft_min_weight = target_samples, soft_min_weight
        self.spread_coef = spread_weight * math.sqrt((1.0 - spread_confidence) / spread_confidence)  # c
        self.vae_beta = vae_beta
        self.make_value_estimator()

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`CriticLoss.target_value`."""
        following = self._next_state(tensordict)
        policy = self._squashed(following, flat_parameters(self.target_actor_network_params))
        action, log_prob = self._draw(policy, "next_action", tensordict, self.target_samples)  # a'_k ~ pi'(.|s')
        qvalue = self._qvalues(repeated(following, self.target_samples), action, self._target_critics)
        value = soft_minimum(qvalue, self.soft_min_weight)  # 3/4 min_i Q'_i + 1/4 max_i Q'_i
        value, log_prob, action = max_backup(value, log_prob, action)
        return self._estimate(tensordict, value, qvalue=value, log_prob=log_prob, action=action)

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches critics, VAE or eta.

        Args:
            tensordict: transitions, shape [*B]; not modified. Of the recorded action only the shape is used.

        Returns:
            The loss, and per row, shape [*B], detached: ``divergence`` and ``qvalue_policy``.
        """
        state = self._state(tensordict)
        policy = self._squashed(state, flat_parameters(self.actor_network_params))
        action, _ = self._draw(policy, "action", tensordict, self.policy_samples, self.noise_clip)  # a_n ~ pi(.|s)
        qvalue = self._qvalues(repeated(state, self.policy_samples), action, self._frozen_critics).mean(1)  # Q-_i(s)
        value = qvalue.amin(0) - self.spread_coef * qvalue.std(0, correction=0)
        divergence = self._divergence(state, action, policy)  # D(s)
        info = {"divergence": divergence.detach(), "qvalue_policy": value.detach()}
        return self._reduce(self.multiplier.value * divergence - self.q_weight * value), info

    def vae_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the VAE, that of :class:`~torchrl_o2o.objectives.VAELoss`.

        Args:
            tensordict: observations and actions, shape [*B]; not modified.

        Returns:
            The loss, and ``reconstruction_error`` and ``kl`` per row, shape [*B], detached.
        """
        error, kl = vae_terms(self, self.vae_network, flat_parameters(self.vae_network_params), tensordict)
        info = {"kl": kl.detach(), "reconstruction_error": error.detach()}
        return self._reduce(error + self.vae_beta * kl, self._weights(tensordict)), info

    @torch.no_grad()
    def estimate_divergence(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`DivergenceLoss.estimate_divergence`; from the VAE."""
        state = self._state(tensordict)
        policy = self._squashed(state, flat_parameters(self.actor_network_params))
        action, _ = self._draw(policy, "action", tensordict, self.policy_samples, self.noise_clip)
        return self._divergence(state, action, policy)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All losses from one set of parameters, and their statistics; writes the priority to the batch."""
        loss_qvalue, info = self.qvalue_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict)
        weighed, weight_info = self.multiplier_loss(tensordict, divergence=actor_info["divergence"])
        loss_vae, vae_info = self.vae_loss(tensordict)
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue}
        losses |= {"loss_multiplier": weighed, "loss_vae": loss_vae}
        return self._collect(tensordict, losses, {**info, **actor_info, **weight_info, **vae_info})

    def _squashed(self, state: Inputs, params: Parameters) -> TanhNormal:
        """pi(.|s) as a distribution that also returns its samples before tanh."""
        policy = own_distribution(policy_distribution(self.actor_network, params, state))
        if not isinstance(policy, TanhNormal):
            raise O2OSpecError(
                f"got a policy with the distribution {type(policy).__name__}, expected one squashed by tanh, because "
                "BEAR compares actions before tanh; build it with make_actor(...)"
            )
        return policy

    def _draw(
        self, policy: TanhNormal, name: str, tensordict: TensorDictBase, count: int, clip: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Actions [count, *B, A] and their log-densities [count, *B]."""
        noise = self.noise.normal(name, self._action(tensordict), (count,))
        if clip is not None:
            noise = noise.clamp(-clip, clip)
        return policy.rsample_and_log_prob((count,), noise=noise)

    def _divergence(self, state: Inputs, action: Tensor, policy: TanhNormal) -> Tensor:
        """D(s) of the actions that ``policy`` has just drawn, shape [*B], with gradient into the policy."""
        assert policy.pre_tanh is not None
        behavior = self._behavior(state, action[0])
        return (squared_mmd(behavior, policy.pre_tanh, 2.0 * self.mmd_sigma, self.kernel) + 1e-6).sqrt()

    @torch.no_grad()
    def _behavior(self, state: Inputs, like: Tensor) -> Tensor:
        """Actions of the VAE before tanh, shape [M, *B, A]."""
        network, vae = self.vae_network, action_vae(self.vae_network)
        latent = like.new_empty((*like.shape[:-1], self.latent_dim))
        latent = self.noise.normal("behavior", latent, (self.behavior_samples,)).clamp(-0.5, 0.5)
        observation = state[network.in_keys[0]].expand(*latent.shape[:-1], -1)
        decoder = vae.decoder[:-1]  # without its tanh, which holds the action box
        params = flat_parameters(self.vae_network_params, detach=True)
        params = {name: params[f"module.decoder.{name}"] for name, _ in decoder.named_parameters()}
        return call_module(decoder, params, torch.cat([observation, latent], -1))


def _check_settings(*, least: dict[str, int], share: dict[str, float], positive: dict[str, float]) -> None:
    """Raise for counts below 1, shares outside [0, 1], and numbers that are not positive."""
    kinds = ((least, "at least 1"), (share, "a share in [0, 1]"), (positive, "more than 0"))
    fits = (lambda value: value >= 1, lambda value: 0.0 <= value <= 1.0, lambda value: value > 0.0)
    for (settings, expected), fit in zip(kinds, fits, strict=True):
        for name, value in settings.items():
            if not fit(value):
                raise O2OSpecError(f"got {name}={value}, expected {expected}")
