# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Equations of Off2On (Lee et al. 2021): balanced replay and the pessimistic Q-ensemble.

Shapes: ``K`` agents of the ensemble, ``B`` any batch shape, ``A`` action dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError

__all__ = [
    "initial_online_priority",
    "merge_gaussians",
    "off2on_priority",
    "pair_minimum",
]


def off2on_priority(
    log_ratio: Tensor,
    log_ratio_offline: Tensor,
    *,
    temperature: float = 5.0,
    minimum: float = 1e-3,
    maximum: float = 1e3,
    mean_eps: float = 1e-10,
    eps: float = 0.0,
) -> Tensor:
    r"""Priority of a row from its density ratio :math:`w(s,a)=d^{on}(s,a)/d^{off}(s,a)`.

    .. math::
        p = \mathrm{clip}\left(\frac{w^{1/T}}{\frac1n\sum_j w_j^{1/T} + \varepsilon},\ p_{min},\ p_{max}\right)

    with the mean over a batch of offline rows. Computed from logarithms, so that no ratio is too large or too small
    (:math:`w=0` is :math:`\log w=-\infty` and gets the minimum).

    The authors' density loss needs a constant inside its logarithms. The priorities must not have it: at T = 5 a ratio
    of 0 would become 1e-10^(1/5) = 0.01. ``eps`` removes it, so that one network serves both.

    Source: Lee et al. 2021 (Off2On), balanced experience replay; clip and :math:`\varepsilon` as in the authors' code.

    Args:
        log_ratio: log w of the rows, shape [*B].
        log_ratio_offline: log w of offline rows under the same network, shape [n].
        temperature: T. Defaults to 5; as T grows all priorities approach 1.
        minimum: smallest priority. Defaults to 1e-3.
        maximum: largest priority. Defaults to 1e3.
        mean_eps: added to the mean. Defaults to 1e-10.
        eps: the constant in ``log_ratio`` if it is :math:`\log(w+\mathrm{eps})`, see
            :func:`~torchrl_o2o.functional.js_derivative`; 1e-10 for ``DensityRatio(parametrization="relu")``. Defaults
            to 0.

    Returns:
        Priorities, shape [*B], without gradient.

    Raises:
        O2OSpecError: if the temperature is not positive or there are no offline rows.

    Examples:
        >>> import torch
        >>> ratio, offline = torch.tensor([1.0, 4.0, 0.0]), torch.tensor([1.0, 1.0])
        >>> off2on_priority(ratio.log(), offline.log(), temperature=2.0, minimum=0.5)
        tensor([1.0000, 2.0000, 0.5000])
        >>> off2on_priority((torch.tensor([0.0, 1.0]) + 1e-10).log(), torch.zeros(1), eps=1e-10)
        tensor([0.0010, 1.0000])
    """
    if not temperature > 0.0:
        raise O2OSpecError(f"got temperature={temperature}, expected a positive number")
    if log_ratio_offline.numel() == 0:
        raise O2OSpecError("got no offline rows to normalize by; pass the density ratios of an offline batch")
    offline = _log_without(log_ratio_offline.detach().flatten(), eps) / temperature
    log_mean = torch.logsumexp(offline, 0) - math.log(len(offline))
    log_scale = torch.logaddexp(log_mean, log_mean.new_tensor(mean_eps).log())
    log_priority = _log_without(log_ratio.detach(), eps) / temperature - log_scale
    # Clipped before exp to avoid overflow, and after it because exp(log(.)) may miss the bounds by a digit.
    return log_priority.clamp(math.log(minimum), math.log(maximum)).exp().clamp(minimum, maximum)


def _log_without(log_sum: Tensor, eps: float) -> Tensor:
    """log w from log(w + eps); minus infinity where w is 0 or cannot be distinguished from 0."""
    if not eps:
        return log_sum
    log_eps = log_sum.new_tensor(eps).log()
    above = log_sum - log_eps
    told_apart = above > 4.0 * torch.finfo(log_sum.dtype).eps * log_eps.abs()
    return torch.where(told_apart, log_sum + (-torch.expm1(-above)).log(), -torch.inf)


def initial_online_priority(num_offline: int, online_fraction: float, first_epoch_frames: int = 1000) -> float:
    r"""Priority :math:`Mf/((1-f)n)` that gives n new online rows the share f, next to M offline rows of weight 1.

    Source: Lee et al. 2021 (Off2On), where f is called :math:`\rho_0`; the number of frames as in the authors' code.

    Args:
        num_offline: M, at least 1.
        online_fraction: f, in (0, 1).
        first_epoch_frames: n, at least 1. Defaults to 1000.

    Returns:
        The priority.

    Raises:
        O2OSpecError: if an argument is out of range.

    Examples:
        >>> initial_online_priority(1_000_000, 0.75)
        3000.0
    """
    if num_offline < 1 or first_epoch_frames < 1:
        raise O2OSpecError(
            f"got num_offline={num_offline} and first_epoch_frames={first_epoch_frames}, expected at least 1 of each"
        )
    if not 0.0 < online_fraction < 1.0:
        raise O2OSpecError(f"got online_fraction={online_fraction}, expected a number between 0 and 1, both excluded")
    return num_offline * online_fraction / ((1.0 - online_fraction) * first_epoch_frames)


def merge_gaussians(
    loc: Tensor, scale: Tensor, log_std_bounds: tuple[float, float] = (-20.0, 2.0)
) -> tuple[Tensor, Tensor]:
    r"""Mean and standard deviation of an equal mixture of K diagonal Gaussians, one Gaussian by moment matching.

    .. math:: \bar\mu=\frac1K\sum_k\mu_k,\qquad \bar\sigma^2=\frac1K\sum_k(\sigma_k^2+\mu_k^2)-\bar\mu^2

    The variance is computed as the mean variance plus the variance of the means, which cannot become negative.

    Source: Lee et al. 2021 (Off2On), pessimistic Q-ensemble; the clip as in the authors' code.

    Args:
        loc: means before tanh, shape [K, *B, A].
        scale: standard deviations before tanh, shape [K, *B, A].
        log_std_bounds: bounds on the logarithm of the merged standard deviation. Defaults to (-20, 2).

    Returns:
        Mean and standard deviation, each of shape [*B, A].

    Examples:
        >>> import torch
        >>> merge_gaussians(torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.0], [0.0]]))
        (tensor([0.]), tensor([1.]))
    """
    low, high = math.exp(log_std_bounds[0]), math.exp(log_std_bounds[1])
    mean = loc.mean(0)
    # Clip the variance, not the deviation: the square root has an infinite slope at 0.
    variance = (scale.square() + (loc - mean).square()).mean(0).clamp(low**2, high**2)
    return mean, variance.sqrt()


def pair_minimum(qvalue: Tensor) -> Tensor:
    r"""Minimum within each of K pairs of critics, :math:`\min(Q_{k1},Q_{k2})`.

    Source: Lee et al. 2021 (Off2On): each agent keeps its own pair and its own target.

    Args:
        qvalue: values of 2K critics, pair k at 2k and 2k + 1, shape [2K, *B].

    Returns:
        Shape [K, *B].

    Examples:
        >>> import torch
        >>> pair_minimum(torch.tensor([1.0, 2.0, 4.0, 3.0]))
        tensor([1., 3.])
    """
    return qvalue.unflatten(0, (-1, 2)).amin(1)
