# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Equations of CQL and Cal-QL: the conservative penalty, its Lagrange multiplier, and the calibration.

Pure functions of tensors without state or random draws, as in :mod:`torchrl_o2o.functional`.

Shapes: ``E`` ensemble members, ``B`` any batch shape, ``M`` actions per state.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "best_of",
    "calibrated",
    "conservative_gap",
    "lagrange_coefficient",
    "lagrange_objective",
    "max_backup",
    "scaled_logsumexp",
]


def scaled_logsumexp(values: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Soft maximum over the first dimension, :math:`T\log\sum_m \exp(x_m/T)`.

    With importance sampling :math:`x_m = Q(s,a_m)-\log\mu(a_m|s)` for actions drawn from densities :math:`\mu`, which
    estimates :math:`\log\int e^{Q(s,a)}da` up to a constant.

    Source: Kumar et al. 2020 (CQL), Eq. 4 and appendix F.

    Args:
        values: x, shape [M, *B].
        temperature: T, positive. Defaults to 1.

    Returns:
        The soft maximum, shape [*B].

    Examples:
        >>> import torch
        >>> scaled_logsumexp(torch.tensor([0.0, 0.0]))  # log 2
        tensor(0.6931)
        >>> scaled_logsumexp(torch.tensor([1.0, 3.0]), temperature=0.01)
        tensor(3.)
    """
    return temperature * torch.logsumexp(values / temperature, 0)


def conservative_gap(
    soft_maximum: Tensor, qvalue: Tensor, bounds: tuple[float, float] = (-float("inf"), float("inf"))
) -> Tensor:
    r"""How much the critic prefers unseen actions to the recorded one, clipped: :math:`\mathrm{clip}(LSE-Q(s,a))`.

    No gradient flows from rows outside the bounds.

    Source: Kumar et al. 2020 (CQL), Eq. 4; the clip is CORL's and Cal-QL's code (-200 from below on AntMaze).

    Args:
        soft_maximum: soft maximum over sampled actions, shape [E, *B].
        qvalue: Q(s, a) of the recorded action, shape [E, *B].
        bounds: (lo, hi) of the clip. Defaults to none.

    Returns:
        The gap, shape [E, *B].

    Examples:
        >>> import torch
        >>> conservative_gap(torch.tensor([3.0, -9.0]), torch.tensor([1.0, 1.0]), (-5.0, float("inf")))
        tensor([ 2., -5.])
    """
    return (soft_maximum - qvalue).clamp(*bounds)


def calibrated(qvalue: Tensor, lower_bound: Tensor) -> Tensor:
    r"""Calibration :math:`\max(Q(s,a), V^\mu(s))`: values below the reference value are not pushed down further.

    No gradient flows into Q where the bound is larger. The reference value is the Monte-Carlo return of the row.

    Source: Nakamoto et al. 2023 (Cal-QL), Eq. 5.1; applied to policy actions, not to uniformly random ones.

    Args:
        qvalue: Q of policy actions, shape [..., *B].
        lower_bound: reference values, shape [*B].

    Returns:
        The larger of the two, shape [..., *B].

    Examples:
        >>> import torch
        >>> calibrated(torch.tensor([-3.0, 2.0]), torch.tensor(-1.0))
        tensor([-1.,  2.])
    """
    return torch.maximum(qvalue, lower_bound)


def max_backup(qvalue: Tensor, log_prob: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The best of M next actions: its value, log-density and the action itself.

    Source: Kumar et al. 2020 (CQL), appendix F, "max_target_backup".

    Args:
        qvalue: values of the actions, already reduced over members, shape [M, *B].
        log_prob: their log-densities, shape [M, *B].
        action: the actions, shape [M, *B, A].

    Returns:
        Value, shape [*B], log-density, shape [*B], and action, shape [*B, A].

    Examples:
        >>> import torch
        >>> value, log_prob, action = max_backup(
        ...     torch.tensor([[1.0], [5.0]]), torch.tensor([[-1.0], [-2.0]]), torch.tensor([[[0.1]], [[0.2]]])
        ... )
        >>> value, log_prob, action
        (tensor([5.]), tensor([-2.]), tensor([[0.2000]]))
    """
    value, log_prob, action = best_of(qvalue, qvalue, log_prob, action)
    return value, log_prob, action


def best_of(score: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Select the entries of the action with the largest score among M, such as its value and log-density.

    Args:
        score: the scores to compare, shape [M, *B]; the soft value in WSRL with an entropy term.
        values: each of shape [M, *B] or [M, *B, ...].

    Returns:
        For each of ``values``, the entry of the best action, shape [*B] or [*B, ...].

    Examples:
        >>> import torch
        >>> two = torch.tensor([[1.0], [5.0]])
        >>> best_of(-two, two, two.unsqueeze(-1))
        (tensor([1.]), tensor([[1.]]))
    """
    index = score.argmax(0, keepdim=True)
    rows = (index.reshape(*index.shape, *(1,) * (value.ndim - index.ndim)) for value in values)
    return tuple(value.gather(0, row.expand(1, *value.shape[1:])).squeeze(0) for value, row in zip(values, rows))


def lagrange_coefficient(log_multiplier: Tensor, bounds: tuple[float, float] = (0.0, 1e6)) -> Tensor:
    r"""Lagrange multiplier :math:`\alpha'=\mathrm{clip}(e^{\log\alpha'}, lo, hi)`.

    Source: Kumar et al. 2020 (CQL), appendix F; the clip as in the authors' code.

    Args:
        log_multiplier: the parameter, a scalar.
        bounds: (lo, hi). Defaults to (0, 1e6).

    Returns:
        The multiplier, a scalar.

    Examples:
        >>> import torch
        >>> lagrange_coefficient(torch.tensor(100.0))
        tensor(1000000.)
    """
    return log_multiplier.exp().clamp(*bounds)


def lagrange_objective(multiplier: Tensor, gap: Tensor, target_gap: float, weight: float) -> Tensor:
    r"""Objective to minimize over the multiplier, :math:`-\frac1E\sum_i \alpha' w(\mathrm{gap}_i-\tau)`.

    It raises the multiplier while the critics prefer unseen actions by more than :math:`\tau`. The reference
    implementations write half of the sum over two critics.

    Source: Kumar et al. 2020 (CQL), appendix F.

    Args:
        multiplier: a scalar, with gradient.
        gap: conservative gap, shape [E, *B]; no gradient flows into it.
        target_gap: tau, the gap that is allowed.
        weight: w.

    Returns:
        Objective per row, shape [*B].

    Examples:
        >>> import torch
        >>> lagrange_objective(torch.tensor(2.0), torch.tensor([[3.0], [5.0]]), 1.0, 10.0)  # -(2*10*2 + 2*10*4) / 2
        tensor([-60.])
    """
    return -(multiplier * weight * (gap.detach() - target_gap)).mean(0)
