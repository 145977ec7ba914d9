# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Equations of the offline learners AWAC, IQL, TD3+BC and SPOT as pure functions of tensors.

As in all of :mod:`torchrl_o2o.functional`, no function holds state, reads keys or draws random numbers.

Shapes: ``B`` any batch shape, ``A`` action dimensions, ``Z`` latent dimensions, ``S`` samples.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from torchrl_o2o._moved import old_names
from torchrl_o2o.errors import O2OSpecError, check_option

__all__ = [
    "AdvantageWeight",
    "advantage_weight",
    "awac_weight",
    "clip_score",
    "elbo_penalty",
    "expansion_probability",
    "expectile_objective",
    "gaussian_kl",
    "iwae_penalty",
    "normal_log_prob",
    "q_normalization",
    "smoothed_action",
    "spot_cooling",
]

AdvantageWeight = Literal["exp_clip", "exp", "softmax", "whiten", "sign"]

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
#: Mean |Q| below which Q counts as 0 everywhere.
_LEAST_MEAN = 1e-12


def normal_log_prob(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    r"""Log-density of a diagonal Gaussian, :math:`\sum_i\log N(x_i;\mu_i,\sigma_i)`.

    Args:
        value: x, shape [*B, A].
        loc: mean, broadcastable to [*B, A].
        scale: standard deviation, positive, broadcastable to [*B, A].

    Returns:
        Log-density, shape [*B].

    Examples:
        >>> import torch
        >>> normal_log_prob(torch.zeros(2), torch.zeros(2), torch.ones(2))  # -log(2 pi)
        tensor(-1.8379)
    """
    standardized = (value - loc) / scale
    return (-0.5 * standardized.square() - scale.log() - _LOG_SQRT_2PI).sum(-1)


def clip_score(advantage: Tensor, score_clip: float | None) -> Tensor:
    r"""Advantage bounded from above, :math:`\min(A, c)`.

    Source: the AWAC authors' code (``clip_score``, 0.5 on the hand tasks); not in the paper.

    Args:
        advantage: A, any shape.
        score_clip: c; ``None`` leaves A as it is.

    Returns:
        The score, of the same shape.

    Examples:
        >>> import torch
        >>> clip_score(torch.tensor([-1.0, 2.0]), 0.5)
        tensor([-1.0000,  0.5000])
    """
    return advantage if score_clip is None else advantage.clamp(max=score_clip)


def advantage_weight(advantage: Tensor, inverse_temperature: float, weight_clip: float | None = 100.0) -> Tensor:
    r"""Exponential advantage weight, :math:`w=\min(e^{\beta A}, w_{max})`.

    Source: Kostrikov et al. 2022 (IQL), Eq. 7; the clip is from the authors' code.

    Args:
        advantage: A, any shape.
        inverse_temperature: :math:`\beta`; AWAC's is :math:`1/\lambda`.
        weight_clip: :math:`w_{max}`, or ``None`` for no bound. Defaults to 100.

    Returns:
        w, of the same shape.

    Examples:
        >>> import torch
        >>> advantage_weight(torch.tensor([0.0, 10.0]), 3.0)
        tensor([  1., 100.])
    """
    weight = (inverse_temperature * advantage).exp()
    return weight if weight_clip is None else weight.clamp(max=weight_clip)


def awac_weight(
    advantage: Tensor, awac_lambda: float, kind: AdvantageWeight = "exp_clip", weight_clip: float = 100.0
) -> Tensor:
    r"""AWAC's weight of each row, in one of the forms used by its implementations.

    ================  =======================================================  ==========================
    kind              :math:`w_b`                                              source
    ================  =======================================================  ==========================
    ``"exp_clip"``    :math:`\min(e^{A_b/\lambda}, w_{max})`                   CORL
    ``"exp"``         :math:`e^{A_b/\lambda}`                                  paper, Eq. 13
    ``"softmax"``     :math:`B\,\mathrm{softmax}_b(A/\lambda)`                 authors (rlkit), jaxrl
    ``"whiten"``      :math:`e^{(A_b-\bar A)/((s_A+10^{-5})\lambda)}`          authors' option
    ``"sign"``        1 where :math:`A_b>0`, else 0                            authors' option
    ================  =======================================================  ==========================

    As :math:`\lambda\to\infty` every form except ``"sign"``, which has no temperature, gives each row the weight 1, so
    that the loss becomes that of behavior cloning.

    Source: Nair et al. 2020 (AWAC), Eq. 13, without its normalizer Z(s).

    Args:
        advantage: A, shape [*B]; ``"softmax"`` and ``"whiten"`` normalize over all of its rows.
        awac_lambda: :math:`\lambda`, positive.
        kind: the form. Defaults to ``"exp_clip"``.
        weight_clip: :math:`w_{max}` of ``"exp_clip"``. Defaults to 100.

    Returns:
        w, shape [*B].

    Raises:
        O2OSpecError: if the form is unknown.

    Examples:
        >>> import torch
        >>> awac_weight(torch.tensor([0.0, 10.0]), 1.0)
        tensor([  1., 100.])
        >>> awac_weight(torch.tensor([0.0, 0.0]), 1.0, "softmax")
        tensor([1., 1.])
    """
    check_option("kind", kind, ("exp_clip", "exp", "softmax", "whiten", "sign"))
    if kind == "sign":
        return (advantage > 0).to(advantage.dtype)
    if kind == "softmax":
        return advantage.numel() * (advantage / awac_lambda).flatten().softmax(0).reshape(advantage.shape)
    if kind == "whiten":
        spread = advantage.std() if advantage.numel() > 1 else 0.0  # torch's std of a single row is NaN
        advantage = (advantage - advantage.mean()) / (spread + 1e-5)
    return advantage_weight(advantage, 1.0 / awac_lambda, weight_clip if kind == "exp_clip" else None)


def expectile_objective(difference: Tensor, expectile: float) -> Tensor:
    r"""Asymmetric squared error, :math:`L_\tau(u)=|\tau-1(u<0)|\,u^2`.

    Its minimizer over V of :math:`L_\tau(Q-V)` is the expectile of Q: the mean at 0.5, toward the maximum at 1.

    Source: Kostrikov et al. 2022 (IQL), Eq. 5.

    Args:
        difference: u = Q - V, any shape.
        expectile: :math:`\tau` in (0, 1).

    Returns:
        Objective of the same shape.

    Examples:
        >>> import torch
        >>> expectile_objective(torch.tensor([-2.0, 2.0]), 0.75)
        tensor([1., 3.])
    """
    return torch.where(difference < 0, 1.0 - expectile, expectile) * difference.square()


def expansion_probability(qvalue: Tensor, inv_temperature: float) -> Tensor:
    r"""Probability of choosing the action of each of several policies, :math:`P(i)\propto e^{\kappa Q_i}`.

    Source: Zhang et al. 2023 (PEX), Eq. 5.

    Args:
        qvalue: values of the actions, shape [*B, K].
        inv_temperature: :math:`\kappa`, at least 0; infinity chooses the largest value, with equal probabilities for
            ties.

    Returns:
        Probabilities, shape [*B, K].

    Examples:
        >>> import torch
        >>> expansion_probability(torch.tensor([1.0, 2.0]), 0.0)
        tensor([0.5000, 0.5000])
        >>> expansion_probability(torch.tensor([1.0, 2.0]), float("inf"))
        tensor([0., 1.])
    """
    if math.isinf(inv_temperature):
        best = (qvalue == qvalue.amax(-1, keepdim=True)).to(qvalue.dtype)
        return best / best.sum(-1, keepdim=True)
    return (inv_temperature * qvalue).softmax(-1)


def smoothed_action(
    action: Tensor, noise: Tensor, policy_noise: float, noise_clip: float, low: Tensor, high: Tensor
) -> Tensor:
    r"""TD3's target action, :math:`\mathrm{clip}(\pi'(s')+h\,\mathrm{clip}(\sigma\varepsilon,\pm c), lo, hi)`.

    Source: Fujimoto et al. 2018 (TD3), Eq. 14.

    Args:
        action: :math:`\pi'(s')`, shape [*B, A].
        noise: :math:`\varepsilon`, standard normal, shape [*B, A].
        policy_noise: :math:`\sigma`, as a share of the box's half-width h.
        noise_clip: c, as a share of h.
        low: lower edge of the box, shape [A].
        high: upper edge, shape [A].

    Returns:
        The smoothed action, shape [*B, A].

    Examples:
        >>> import torch
        >>> one = torch.ones(1)
        >>> smoothed_action(torch.tensor([0.7]), torch.tensor([9.0]), 0.2, 0.1, -one, one)  # the noise is clipped ...
        tensor([0.8000])
        >>> smoothed_action(torch.tensor([0.7]), torch.tensor([9.0]), 0.2, 0.5, -one, one)  # ... and so is the action
        tensor([1.])
    """
    jitter = (policy_noise * noise).clamp(-noise_clip, noise_clip)
    return torch.minimum(torch.maximum(action + 0.5 * (high - low) * jitter, low), high)


def q_normalization(qvalue: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Weight that makes the actor's Q term independent of the rewards' scale, :math:`\lambda=\alpha/\frac1B\sum|Q|`.

    Source: Fujimoto & Gu 2021 (TD3+BC), Eq. 5. SPOT uses it with alpha = 1.

    Args:
        qvalue: Q(s, pi(s)), shape [*B]; no gradient flows.
        alpha: weight of the Q term. Defaults to 1; TD3+BC's is 2.5.

    Returns:
        lambda, a scalar; finite even if all Q are 0, as for critics whose last layer is zero.

    Examples:
        >>> import torch
        >>> q_normalization(torch.tensor([-1.0, 3.0]), 2.5)
        tensor(1.2500)
    """
    return alpha / qvalue.detach().abs().mean().clamp_min(_LEAST_MEAN)


def gaussian_kl(mean: Tensor, std: Tensor) -> Tensor:
    r"""KL divergence to the standard normal, *averaged* over the latent dimensions.

    .. math:: \frac1Z\sum_i -\tfrac12(1+\log\sigma_i^2-\mu_i^2-\sigma_i^2)

    Source: SPOT's code; the usual form sums over the dimensions.

    Args:
        mean: :math:`\mu`, shape [*B, Z].
        std: :math:`\sigma`, positive, shape [*B, Z].

    Returns:
        Divergence per row, shape [*B].

    Examples:
        >>> import torch
        >>> gaussian_kl(torch.tensor([1.0, 0.0]), torch.ones(2))
        tensor(0.2500)
    """
    return -0.5 * (1.0 + 2.0 * std.log() - mean.square() - std.square()).mean(-1)


def elbo_penalty(reconstruction: Tensor, action: Tensor, mean: Tensor, std: Tensor, beta: float) -> Tensor:
    r"""Negative evidence bound of an action under the behavior policy's VAE, in the units of a mean squared error.

    .. math:: \ell(s,a) = \frac1S\sum_k \frac1A\lVert\hat a_k-a\rVert^2 + \beta\,\mathrm{KL}

    With S = 1 and the recorded action it is also the VAE's training loss.

    Source: Wu et al. 2022 (SPOT), Eq. 10 and 11, with the code's averages over dimensions.

    Args:
        reconstruction: decoded actions, shape [S, *B, A].
        action: a, shape [*B, A].
        mean: of the encoder, shape [*B, Z].
        std: of the encoder, shape [*B, Z].
        beta: weight of the divergence, see :func:`gaussian_kl`.

    Returns:
        Penalty per row, shape [*B].

    Examples:
        >>> import torch
        >>> elbo_penalty(torch.ones(1, 4, 2), torch.zeros(4, 2), torch.zeros(4, 3), torch.ones(4, 3), 0.5)
        tensor([1., 1., 1., 1.])
    """
    return (reconstruction - action).square().mean((0, -1)) + beta * gaussian_kl(mean, std)


def iwae_penalty(
    reconstruction: Tensor, action: Tensor, latent: Tensor, mean: Tensor, std: Tensor, beta: float
) -> Tensor:
    r"""Negative importance-weighted bound on the behavior policy's log-density, tighter than :func:`elbo_penalty`.

    .. math::
        \ell(s,a) = -\log\frac1S\sum_k
        \frac{N(a;\hat a_k,\sqrt{\beta/4})\,N(z_k;0,1)}{N(z_k;\mu,\sigma)}

    Source: Wu et al. 2022 (SPOT), section 4.1, after Burda et al. 2016. The decoder's width :math:`\sqrt{\beta/4}` is
    the code's.

    Args:
        reconstruction: decoded actions, shape [S, *B, A].
        action: a, shape [*B, A].
        latent: z, shape [S, *B, Z].
        mean: of the encoder, shape [*B, Z].
        std: of the encoder, shape [*B, Z].
        beta: the VAE's weight of the divergence.

    Returns:
        Penalty per row, shape [*B].

    Examples:
        >>> import torch
        >>> zero, one = torch.zeros(1, 1), torch.ones(1, 1)  # z at its mean under the prior: only the decoder counts
        >>> iwae_penalty(zero.unsqueeze(0), zero, zero.unsqueeze(0), zero, one, 4.0)
        tensor([0.9189])
    """
    width = torch.full_like(reconstruction, math.sqrt(beta / 4.0))
    prior = normal_log_prob(latent, torch.zeros_like(latent), torch.ones_like(latent))
    terms = normal_log_prob(action, reconstruction, width) + prior - normal_log_prob(latent, mean, std)
    return math.log(len(terms)) - terms.logsumexp(0)


def spot_cooling(density_weight: float, step: int, total_steps: int, floor: float = 0.2) -> float:
    r"""SPOT's online schedule of its density constraint, :math:`\lambda\max(\lambda_{end}, 1-t/T)`.

    Source: Wu et al. 2022 (SPOT), section 4.3. CORL's fine-tuning of ReBRAC decreases the actor's penalty in the same
    way, with the floor 0.5.

    Args:
        density_weight: :math:`\lambda` of the offline phase.
        step: online step t; at the negative steps of an offline phase the weight is :math:`\lambda`.
        total_steps: T, at least 1.
        floor: :math:`\lambda_{end}`, a share of :math:`\lambda`. Defaults to 0.2 (AntMaze; Adroit 0.5).

    Returns:
        The weight at step t.

    Raises:
        O2OSpecError: if ``total_steps`` is below 1.

    Examples:
        >>> [spot_cooling(1.0, step, 1000) for step in (0, 250, 1000)]
        [1.0, 0.75, 0.2]
    """
    if total_steps < 1:
        raise O2OSpecError(f"got total_steps={total_steps}, expected at least 1 step; pass the online phase's length")
    return density_weight * max(floor, 1.0 - max(step, 0) / total_steps)


__getattr__ = old_names(__name__, {"q_normalisation": q_normalization})
