# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Equations of actor-critic alignment (ACA) and of its offline learner SAC+ML.

Pure functions of tensors without state or random draws, as in :mod:`torchrl_o2o.functional`.

Shapes: ``E`` ensemble members, ``B`` any batch shape.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from torchrl_o2o.errors import check_number

__all__ = ["aligned_value", "baseline_value", "beta_clip", "clip_level", "interpolation_weight", "ml_actor_objective"]


def clip_level(lower: Tensor, upper: Tensor) -> Tensor:
    r"""Level below which a log-density is flattened, :math:`C_\beta(s)=\min\{\log\pi_0(\mu-\beta\sigma),
    \log\pi_0(\mu+\beta\sigma)\}`.

    The points are taken before tanh, in all dimensions at once, and their summed density with the Jacobian is used.

    Source: Yu & Zhang 2023 (ACA), as in the authors' code.

    Args:
        lower: log-density at the mean minus beta standard deviations, shape [*B].
        upper: log-density at the mean plus beta standard deviations, shape [*B].

    Returns:
        The level, shape [*B], without gradient.

    Examples:
        >>> import torch
        >>> clip_level(torch.tensor([-3.0]), torch.tensor([-5.0]))
        tensor([-5.])
    """
    return torch.minimum(lower, upper).detach()


def beta_clip(log_density: Tensor, level: Tensor) -> Tensor:
    r"""Log-density flattened smoothly from below, :math:`\mathrm{softplus}(x-C)+C`.

    The result is at least C, increases with x, equals C + log 2 at C and approaches x far above C. Actions far outside
    the offline policy therefore do not get the value minus infinity.

    Source: Yu & Zhang 2023 (ACA).

    Args:
        log_density: x, shape [*B].
        level: C, shape [*B].

    Returns:
        The clipped log-density, shape [*B].

    Examples:
        >>> import torch
        >>> beta_clip(torch.tensor([2.0, -10.0, -1000.0]), torch.tensor(-10.0))
        tensor([  2.0000,  -9.3069, -10.0000])
    """
    return softplus(log_density - level) + level


def aligned_value(residual: Tensor, log_density: Tensor, interpolation: Tensor | float) -> Tensor:
    r"""Aligned critic :math:`Q(s,a)=k\log\pi_0(a|s)+R(s,a)`, with the (clipped) log-density of the offline policy.

    With R a function of the state alone, the soft-optimal policy for Q at temperature k is exactly :math:`\pi_0`.

    Source: Yu & Zhang 2023 (ACA).

    Args:
        residual: R(s, a), shape [E, *B] or [*B].
        log_density: log pi_0(a|s), clipped, shape [*B].
        interpolation: k in [0, 1].

    Returns:
        Q(s, a), shaped like the residual.

    Examples:
        >>> import torch
        >>> aligned_value(torch.tensor([[1.0], [2.0]]), torch.tensor([-4.0]), 0.5)
        tensor([[-1.],
                [ 0.]])
    """
    return interpolation * log_density + residual


def baseline_value(
    log_density: Tensor, baseline: Tensor, alpha: Tensor | float, log_prob: Tensor | None = None
) -> Tensor:
    r"""Next state's value of the critic :math:`\log\pi+Z`, :math:`\log\pi(a'|s')+Z(s')-\alpha\log\pi(a'|s')`.

    Source: Yu & Zhang 2023 (ACA), Eq. 8 and 9. Their Eq. 9 has no entropy term, but their code has one;
    ``log_prob=None`` leaves it out.

    Args:
        log_density: log pi(a'|s') as a part of the critic, clipped or not, shape [*B].
        baseline: Z(s'), already reduced over members, shape [*B].
        alpha: entropy temperature.
        log_prob: log pi(a'|s') as the entropy term, shape [*B]; ``None`` for no entropy term.

    Returns:
        The value, shape [*B].

    Examples:
        >>> import torch
        >>> baseline_value(torch.tensor(2.0), torch.tensor(10.0), 0.5, torch.tensor(2.0))
        tensor(11.)
        >>> baseline_value(torch.tensor(2.0), torch.tensor(10.0), 0.5)
        tensor(12.)
    """
    value = log_density + baseline
    return value if log_prob is None else value - alpha * log_prob


def ml_actor_objective(soft_objective: Tensor, data_log_prob: Tensor, coefficient: Tensor | float) -> Tensor:
    r"""SAC with a maximum-likelihood term, :math:`\lambda(\alpha\log\pi(a|s)-Q(s,a))-\log\pi(a_{data}|s)`.

    :math:`\lambda=\omega/\frac1B\sum|Q|` is :func:`torchrl_o2o.functional.q_normalization`.

    Source: Yu & Zhang 2023 (ACA), SAC+ML.

    Args:
        soft_objective: SAC's actor objective, shape [*B].
        data_log_prob: log-density of the recorded action, shape [*B].
        coefficient: lambda.

    Returns:
        Objective per row, shape [*B].

    Examples:
        >>> import torch
        >>> ml_actor_objective(torch.tensor(-2.0), torch.tensor(1.5), 10.0)
        tensor(-21.5000)
    """
    return coefficient * soft_objective - data_log_prob


def interpolation_weight(step: int, *, start: float = 1.0, horizon: float, floor: float) -> float:
    r"""Weight k after a number of updates, :math:`\max(k_0 - t\,k_0/(1000N), k_{min})`.

    ========================  ===========  =============
    data of the paper         ``horizon``  ``floor``
    ========================  ===========  =============
    random                    10           0
    medium, medium-replay     40           0.5
    medium-expert, expert     100          1
    AntMaze                   200          0.5
    ========================  ===========  =============

    Source: Yu & Zhang 2023 (ACA), appendix C, and the authors' code.

    Args:
        step: t, updates done; before the first, k is k_0.
        start: k_0. Defaults to 1.
        horizon: N, thousands of updates after which the unbounded line is at zero; positive.
        floor: k_min.

    Returns:
        k.

    Raises:
        O2OSpecError: if the horizon is not positive.

    Examples:
        >>> [interpolation_weight(step, horizon=40, floor=0.5) for step in (0, 10_000, 20_000, 30_000)]
        [1.0, 0.75, 0.5, 0.5]
    """
    check_number("horizon", horizon, above=0)
    return max(start - max(step, 0) * start / (horizon * 1000.0), floor)
