# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SAMG's equations: the mixed value, the probability that a row is like the data, and the two schedules.

:func:`perturbed_pairs`, which makes rows that are *not* like the data, is not in the paper.

The paper's numbered equations are partly lost, and its authors have published no code. docs/algorithms/samg.md
distinguishes what is certain from our reconstruction.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError, check_option

__all__ = [
    "Aggregator",
    "Guidance",
    "guidance_factor",
    "kl_weight",
    "latent_confidence",
    "perturbed_pairs",
    "samg_value",
    "two_sided_tail",
]

Aggregator = Literal["mean", "min", "geometric", "chi_square"]
Guidance = Literal["constant", "step", "linear"]


def samg_value(value: Tensor, offline_value: Tensor, confidence: Tensor) -> Tensor:
    r"""Mix the value of the next state with the frozen offline critic's.

    .. math:: (1-p(s,a))\,V(s') + p(s,a)\,V_\mathrm{off}(s')

    Exact at both ends: p = 0 returns the first value and p = 1 the second, bit for bit.

    Source: SAMG, Eq. 6 (and Eq. 5, where the difference to V is an intrinsic reward).

    Args:
        value: V(s') of the learner, shape [*B, 1].
        offline_value: V_off(s'), shape [*B, 1].
        confidence: p(s, a) in [0, 1], shape [*B, 1].

    Returns:
        The mixed value, shape [*B, 1].

    Examples:
        >>> import torch
        >>> samg_value(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([5.0, 5.0, 5.0]), torch.tensor([0.0, 0.25, 1.0]))
        tensor([1., 2., 5.])
    """
    return torch.lerp(value, offline_value, confidence)


def two_sided_tail(standardized: Tensor) -> Tensor:
    r"""Probability that a standard normal lies farther from 0 than this: :math:`2(1-\Phi(|z|))`.

    Args:
        standardized: z, any shape.

    Returns:
        Probabilities in [0, 1], the same shape.

    Examples:
        >>> import torch
        >>> two_sided_tail(torch.tensor([0.0, 1.959964]))
        tensor([1.0000, 0.0500])
    """
    return torch.special.erfc(standardized.abs() / math.sqrt(2.0))


def latent_confidence(standardized: Tensor, aggregator: Aggregator = "mean") -> Tensor:
    r"""Probability of how typical a latent is of the data, from its standardized dimensions.

    ================  ==================================================================================
    ``aggregator``    p
    ================  ==================================================================================
    ``"mean"``        mean of the dimensions' two-sided tails (presumably the paper's)
    ``"min"``         their minimum: the most unusual dimension decides
    ``"geometric"``   their geometric mean
    ``"chi_square"``  :math:`P(\chi^2_Z\ge\sum_j z_j^2)`, the tail of all dimensions together
    ================  ==================================================================================

    Args:
        standardized: :math:`z_j=(\mu_j(s,a)-\bar\mu_j)/\bar\sigma_j`, shape [*B, Z].
        aggregator: how the dimensions are joined. Defaults to ``"mean"``.

    Returns:
        p, shape [*B].

    Raises:
        O2OSpecError: if the aggregator is unknown.

    Examples:
        >>> import torch
        >>> latent = torch.tensor([[0.0, 1.959964]])
        >>> latent_confidence(latent), latent_confidence(latent, "min"), latent_confidence(latent, "geometric")
        (tensor([0.5250]), tensor([0.0500]), tensor([0.2236]))
        >>> latent_confidence(torch.tensor([[0.0, 2.447747]]), "chi_square")
        tensor([0.0500])
    """
    check_option("aggregator", aggregator, ("mean", "min", "geometric", "chi_square"))
    if aggregator == "geometric":  # in logarithms, where the tails do not underflow
        return (math.log(2.0) + torch.special.log_ndtr(-standardized.abs())).mean(-1).exp()
    if aggregator == "chi_square":
        half_sum = 0.5 * standardized.square().sum(-1)
        return torch.special.gammaincc(torch.full_like(half_sum, 0.5 * standardized.shape[-1]), half_sum)
    tails = two_sided_tail(standardized)
    return tails.mean(-1) if aggregator == "mean" else tails.amin(-1)


def guidance_factor(step: int, kind: Guidance = "constant", cutoff: int | None = None) -> float:
    """Factor by which the confidence decreases during online training.

    Source: SAMG cuts the guidance off "after a specific period", which it does not state.

    Args:
        step: online environment steps so far.
        kind: ``"constant"`` (default, 1 forever), ``"step"`` (1 before ``cutoff``, then 0) or ``"linear"`` (from 1
            down to 0 at ``cutoff``).
        cutoff: step at which the factor becomes 0; required unless ``kind`` is ``"constant"``.

    Returns:
        The factor, in [0, 1].

    Raises:
        O2OSpecError: if the kind is unknown, or a required cut-off is missing or not positive.

    Examples:
        >>> [guidance_factor(step, "step", 10) for step in (0, 9, 10)]
        [1.0, 1.0, 0.0]
        >>> [guidance_factor(step, "linear", 10) for step in (0, 5, 20)]
        [1.0, 0.5, 0.0]
    """
    check_option("guidance", kind, ("constant", "step", "linear"))
    if kind == "constant":
        return 1.0
    if cutoff is None or cutoff < 1:
        raise O2OSpecError(
            f"got cutoff={cutoff} for {kind!r} guidance, expected the step at which it ends, e.g. 100000"
        )
    return float(step < cutoff) if kind == "step" else max(0.0, 1.0 - max(step, 0) / cutoff)


def kl_weight(progress: float, weight: float, hold: float = 0.2, ramp: float = 0.5) -> float:
    """Annealed weight of a VAE's divergence: 0 at first, then rising linearly, then constant.

    Source: SAMG anneals on hopper, "0 first, slowly rising"; the two fractions are ours.

    Args:
        progress: share of the training that is done, in [0, 1].
        weight: final weight.
        hold: share of the training at weight 0. Defaults to 0.2.
        ramp: share of the training in which it rises. Defaults to 0.5.

    Returns:
        The weight.

    Examples:
        >>> [round(kl_weight(progress, 0.5), 3) for progress in (0.0, 0.2, 0.45, 0.7, 1.0)]
        [0.0, 0.0, 0.25, 0.5, 0.5]
    """
    if ramp <= 0.0:
        return weight if progress >= hold else 0.0
    return weight * min(1.0, max(0.0, (progress - hold) / ramp))


def perturbed_pairs(
    observation: Tensor, action: Tensor, noise: Tensor, size: Tensor, other_action: Tensor, swap: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Pairs that are unlike the data: near recorded pairs, or recorded states with other actions.

    .. math:: (s,a)_b + \eta_b\,\sigma\odot\epsilon_b \quad\text{or, where } b \text{ is swapped,}\quad (s_b, a'_b)

    with :math:`\sigma` the standard deviation of each dimension in this batch. A classifier of data against such rows
    learns where the data are dense, at the scales :math:`\eta`, and which actions go with a state.

    Source: "unsupervised as supervised learning", Hastie, Tibshirani and Friedman, The Elements of Statistical
    Learning, section 14.2.4; the choice of rows is ours.

    Args:
        observation: shape [*B, o].
        action: shape [*B, A].
        noise: standard-normal numbers, shape [*B, o + A].
        size: :math:`\eta`, shape [*B, 1].
        other_action: a', shape [*B, A].
        swap: which rows get another action instead of the noise, bool, shape [*B, 1].

    Returns:
        Observation and action, shapes as given.

    Examples:
        >>> import torch
        >>> observation, action = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.5], [0.5]])
        >>> swap, size, ones = torch.tensor([[False], [True]]), torch.full((2, 1), 0.1), torch.ones(2, 2)
        >>> perturbed_pairs(observation, action, ones, size, torch.tensor([[-1.0], [-1.0]]), swap)
        (tensor([[0.1000],
            [2.0000]]), tensor([[ 0.5000],
            [-1.0000]]))
    """
    pair = torch.cat([observation, action], -1)
    scale = pair.flatten(0, -2).std(0, correction=0)
    rows = torch.where(swap, torch.cat([observation, other_action], -1), pair + size * scale * noise)
    near_observation, near_action = rows.split([observation.shape[-1], action.shape[-1]], -1)
    return near_observation, near_action
