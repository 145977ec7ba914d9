# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
r"""A3RL's equations as pure functions of tensors, in the log domain: priorities, probabilities and importance weights.

Liu et al. 2025 (A3RL) draw a pool of N rows and replay row i with probability :math:`P_i\propto p_i^\alpha`, where
:math:`p_i` is large for offline rows that the current policy would also visit (a density ratio w) and for actions that
are better than the policy's (an advantage A). No function here holds state or draws random numbers.

Shapes: ``N`` rows of a pool.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from torchrl_o2o._moved import old_names
from torchrl_o2o.errors import O2OSpecError

__all__ = [
    "advantage_aligned_log_priority",
    "annealed_alpha",
    "annealed_beta",
    "centered_rank",
    "finite_scores",
    "importance_log_weight",
    "js_conjugate",
    "js_derivative",
    "kl_to_uniform",
    "mean_one_log_ratio",
    "resampling_log_prob",
    "standardized",
]

_LOG_2 = math.log(2.0)


def js_derivative(log_ratio: Tensor, eps: float = 0.0) -> Tensor:
    r""":math:`f'(w)=\log\frac{2w}{w+1}` of the Jensen-Shannon :math:`f(t)=t\log t-(t+1)\log\frac{t+1}2`.

    With :math:`\ell=\log w` this is :math:`\log 2-\mathrm{softplus}(-\ell)`. The density-ratio loss subtracts its mean
    over online rows.

    Source: A3RL section 4.1; Off2On (Lee et al. 2022) section 4.2.

    Args:
        log_ratio: :math:`\ell`, any shape; :math:`\log(w+\mathrm{eps})` if ``eps`` is not 0.
        eps: the constant that the references add inside their logarithms, 1e-10, needed where w can be exactly 0.
            Defaults to 0: not needed where the network outputs :math:`\ell`.

    Returns:
        f'(w), the same shape; below log 2.

    Examples:
        >>> js_derivative(torch.tensor([0.0]))  # w = 1
        tensor([0.])
    """
    if eps:
        ratio = log_ratio.exp() - eps
        return (2.0 * ratio / (ratio + 1.0) + eps).log()
    return _LOG_2 - softplus(-log_ratio)


def js_conjugate(log_ratio: Tensor, eps: float = 0.0) -> Tensor:
    r""":math:`f^*(f'(w))=-\log\frac{2}{w+1}`, the convex conjugate :math:`f^*(t)=-\log(2-e^t)` at :math:`t=f'(w)`.

    With :math:`\ell=\log w` this is :math:`\mathrm{softplus}(\ell)-\log 2`. The density-ratio loss adds its mean over
    offline rows, so that the whole,
    :math:`E_\mathrm{off}\,\mathrm{softplus}(\ell)+E_\mathrm{on}\,\mathrm{softplus}(-\ell)-2\log 2`, is logistic
    regression of online against offline with logit :math:`\ell`. Its minimizer is
    :math:`\ell=\log(d_\mathrm{on}/d_\mathrm{off})`, its minimum :math:`-2` JS.

    Args:
        log_ratio: as in :func:`js_derivative`.
        eps: as in :func:`js_derivative`.

    Returns:
        The conjugate's value, the same shape; above -log 2.

    Examples:
        >>> js_conjugate(torch.tensor([0.0]))  # w = 1
        tensor([0.])
    """
    if eps:
        return -(2.0 / (log_ratio.exp() - eps + 1.0) + eps).log()
    return softplus(log_ratio) - _LOG_2


def mean_one_log_ratio(log_ratio: Tensor, is_offline: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Density ratios scaled to mean 1 over the offline rows, :math:`\hat w=w^{1/T}/\mathrm{mean}_\mathrm{off}w^{1/T}`.

    The ratios are normalized by themselves in the log domain, so that a drift of the network's scale does not change
    the balance of offline and online rows.

    Source: Off2On (Lee et al. 2022) section 4.2 with T = 5; A3RL's newer code normalizes to *sum* 1 instead, which
    reduces offline rows to 9 % of a batch for any w.

    Args:
        log_ratio: :math:`\log w`, shape [N].
        is_offline: bool, shape [N].
        temperature: T, positive. Defaults to 1.

    Returns:
        :math:`\log\hat w` of all rows, shape [N]; without offline rows it is only divided by T.

    Examples:
        >>> offline = torch.tensor([True, True, False])
        >>> mean_one_log_ratio(torch.tensor([1.0, 3.0, 5.0]).log(), offline).exp()
        tensor([0.5000, 1.5000, 2.5000])
    """
    scaled = log_ratio / temperature
    log_sum = scaled.masked_fill(~is_offline, -torch.inf).logsumexp(-1, keepdim=True)
    log_mean = log_sum - is_offline.sum(-1, keepdim=True).clamp_min(1).to(scaled.dtype).log()
    return scaled - torch.where(log_mean.isfinite(), log_mean, 0.0)


def advantage_aligned_log_priority(
    log_ratio: Tensor, advantage: Tensor, is_offline: Tensor, adv_temp: float = 1.0
) -> Tensor:
    r"""Eq. 5: :math:`\log p_i = 1_\mathrm{off}(i)\log\hat w_i + \lambda A_i`.

    Online rows are on-policy by definition, :math:`\hat w=1`.

    Source: A3RL Eq. 5 (there called gamma, lambda in the text).

    Args:
        log_ratio: :math:`\log\hat w`, shape [N].
        advantage: A, or another score in its place, shape [N].
        is_offline: bool, shape [N].
        adv_temp: lambda. Defaults to 1.

    Returns:
        Log-priority, shape [N].

    Examples:
        >>> advantage_aligned_log_priority(torch.ones(2), torch.tensor([2.0, 2.0]), torch.tensor([True, False]))
        tensor([3., 2.])
    """
    return torch.where(is_offline, log_ratio, 0.0) + adv_temp * advantage


def resampling_log_prob(log_priority: Tensor, alpha: float) -> Tensor:
    r"""Eq. 3: :math:`\log P_i = \alpha\log p_i - \log\sum_j p_j^\alpha`.

    Adding a constant to all log-priorities changes nothing.

    Source: A3RL Eq. 3, after Schaul et al. 2016 (PER) Eq. 1.

    Args:
        log_priority: log p, shape [N].
        alpha: how much priorities matter, at least 0; 0 is uniform.

    Returns:
        Log-probability, shape [N].

    Examples:
        >>> resampling_log_prob(torch.tensor([0.0, 2.0]), 0.5).exp()
        tensor([0.2689, 0.7311])
    """
    return (alpha * log_priority).log_softmax(-1)


def importance_log_weight(log_prob: Tensor, beta: float) -> Tensor:
    r"""Eq. 4: :math:`\log u_i = -\beta\,(\log N + \log P_i)`, the correction for not drawing uniformly.

    At beta = 1 it is complete: :math:`E_P[u f]` is the plain mean of f over the pool.

    Source: A3RL Eq. 4, after Schaul et al. 2016 (PER) section 3.4.

    Args:
        log_prob: log P over the whole pool, shape [N].
        beta: share of the correction in [0, 1].

    Returns:
        Log-weight, shape [N].

    Examples:
        >>> importance_log_weight(torch.tensor([0.25, 0.75]).log(), 1.0).exp()
        tensor([2.0000, 0.6667])
    """
    return -beta * (log_prob + math.log(log_prob.shape[-1]))


def annealed_alpha(start: float, end: float, progress: float) -> float:
    """The priorities' exponent on its line from ``start`` to ``end``.

    Source: A3RL's newer script, whose flag ``h_alpha_final_p`` is ``end`` over ``start``, by default 1.

    Args:
        start: alpha at progress 0.
        end: alpha at progress 1.
        progress: share of the prioritized steps that is over; kept in [0, 1].

    Returns:
        alpha.

    Examples:
        >>> annealed_alpha(0.4, 0.2, 0.5)
        0.3...
    """
    return start + min(max(progress, 0.0), 1.0) * (end - start)


def annealed_beta(start: float, progress: float) -> float:
    """Importance exponent that grows linearly from ``start`` to 1.

    Source: Schaul et al. 2016 (PER) section 3.4; A3RL's code starts at 0.4 and reaches 1 at the end of the run.

    Args:
        start: beta at progress 0.
        progress: share of the run that is done; clipped to [0, 1].

    Returns:
        beta.

    Examples:
        >>> annealed_beta(0.4, 0.5)
        0.7
    """
    return start + min(max(progress, 0.0), 1.0) * (1.0 - start)


def kl_to_uniform(log_prob: Tensor) -> Tensor:
    r""":math:`\mathrm{KL}(U\|P)=-\log N-\frac1N\sum_i\log P_i` in nats, how far the replay is from uniform.

    Args:
        log_prob: log P over the whole pool, shape [N].

    Returns:
        A scalar, 0 where all rows are equally likely.

    Examples:
        >>> kl_to_uniform(torch.full((4,), 0.25).log()).abs()
        tensor(0.)
    """
    return -math.log(log_prob.shape[-1]) - log_prob.mean(-1)


def standardized(score: Tensor) -> Tensor:
    """Shift scores to mean 0 and scale them to (population) standard deviation 1; equal scores become 0.

    Args:
        score: shape [N].

    Returns:
        The same shape.

    Examples:
        >>> standardized(torch.tensor([1.0, 3.0]))
        tensor([-1.,  1.])
    """
    largest, info = score.abs().amax(-1, keepdim=True), torch.finfo(score.dtype)
    # Sums of squares of numbers beyond this would not be finite.
    score = torch.where(largest * score.shape[-1] > 0.1 * info.max**0.5, score / largest, score)
    centered = score - score.mean(-1, keepdim=True)
    scale = centered.square().mean(-1, keepdim=True).sqrt()
    return centered / scale.clamp_min(info.eps * (1.0 + score.abs().amax(-1, keepdim=True)))


def centered_rank(score: Tensor) -> Tensor:
    r"""Ranks spread evenly over :math:`[-\sqrt3,\sqrt3]` (mean 0, variance about 1); ties get their mean rank.

    Unlike with :func:`standardized`, no outlier can take up the whole range, and increasing transformations of the
    scores change nothing.

    Args:
        score: shape [N].

    Returns:
        The same shape.

    Examples:
        >>> centered_rank(torch.tensor([10.0, -1.0, 1e9]))
        tensor([ 0.0000, -1.7321,  1.7321])
    """
    ordered = score.sort(-1).values
    below = torch.searchsorted(ordered, score.contiguous())
    up_to = torch.searchsorted(ordered, score.contiguous(), right=True)
    position = 0.5 * (below + up_to - 1).to(score.dtype) / max(score.shape[-1] - 1, 1)
    return math.sqrt(3.0) * (2.0 * position - 1.0) if score.shape[-1] > 1 else torch.zeros_like(score)


def finite_scores(score: Tensor) -> tuple[Tensor, Tensor]:
    """Replace NaN and infinite scores, so that a row that cannot be scored ranks with the lowest.

    NaN and minus infinity become the smallest finite score, plus infinity the largest. If no score is finite, all
    become 0, so that replay is uniform.

    Args:
        score: of a floating dtype, shape [N].

    Returns:
        Finite scores, shape [N], and a mask of the changed ones, bool, shape [N].

    Raises:
        O2OSpecError: if their dtype is another one, such as bool or complex.

    Examples:
        >>> finite_scores(torch.tensor([1.0, float("nan"), 3.0, float("inf")]))
        (tensor([1., 1., 3., 3.]), tensor([False,  True, False,  True]))
    """
    if not score.is_floating_point():
        raise O2OSpecError(
            f"got scores of type {str(score.dtype).removeprefix('torch.')}, expected floating point, because they are "
            "log-priorities; convert whole numbers and flags with .float(), and return real numbers"
        )
    changed = ~score.isfinite()
    least = score.masked_fill(changed, torch.inf).amin(-1, keepdim=True)
    greatest = score.masked_fill(changed, -torch.inf).amax(-1, keepdim=True)
    least, greatest = (torch.where(edge.isfinite(), edge, 0.0) for edge in (least, greatest))
    return torch.where(changed, torch.where(score == torch.inf, greatest, least), score), changed


__getattr__ = old_names(__name__, {"standardised": standardized, "centred_rank": centered_rank})
