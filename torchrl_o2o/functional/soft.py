# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The numbered equations of the papers as pure functions of tensors.

No function here holds state, reads keys or draws random numbers; noise is an argument. The package's losses and
samplers are composed of these functions. Each is tested on numbers worked out by hand.

Shapes: ``E`` ensemble members, ``B`` any batch shape, ``A`` action dimensions.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.nn.functional import softplus

from torchrl_o2o.errors import check_option

__all__ = [
    "ensemble_squared_error",
    "inverse_tanh",
    "sac_actor_objective",
    "soft_value",
    "tanh_normal_log_prob",
    "td_target",
    "temperature_objective",
]

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


def tanh_normal_log_prob(pre_tanh: Tensor, loc: Tensor, scale: Tensor, edge: float | None = None) -> Tensor:
    r"""Log-density of :math:`a=\tanh u`, :math:`u\sim N(\mu,\sigma)`, given the pre-tanh value :math:`u`.

    .. math:: \log\pi(a) = \sum_i \log N(u_i;\mu_i,\sigma_i) - 2(\log 2 - u_i - \mathrm{softplus}(-2u_i))

    Exact where :math:`\tanh u` rounds to one, because :math:`u` is never recovered from :math:`a`.

    Source: Haarnoja et al. 2018 (SAC), appendix C, in the numerically stable form.

    Args:
        pre_tanh: u, shape [*B, A].
        loc: mean of u, broadcastable to [*B, A].
        scale: standard deviation of u, positive, broadcastable to [*B, A].
        edge: :math:`\epsilon` of the form :math:`\log(1-\tanh^2u+\epsilon)` in some implementations (SPEQ and SOPE,
            1e-6); ``None`` (default) is exact.

    Returns:
        Log-density, shape [*B].

    Examples:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> tanh_normal_log_prob(zero, zero, torch.ones(1))  # log N(0; 0, 1), and tanh has slope 1 at 0
        tensor(-0.9189)
    """
    standardized = (pre_tanh - loc) / scale
    log_normal = -0.5 * standardized.square() - scale.log() - _LOG_SQRT_2PI
    if edge is None:
        log_slope = 2.0 * (math.log(2.0) - pre_tanh - softplus(-2.0 * pre_tanh))
    else:
        log_slope = (1.0 - pre_tanh.tanh().square() + edge).log()
    return (log_normal - log_slope).sum(-1)


def inverse_tanh(action: Tensor, margin: float = 1e-6) -> Tensor:
    r"""Pre-tanh value of a *stored* action, :math:`\operatorname{atanh}(\mathrm{clip}(a, \pm(1-\delta)))`.

    Recorded actions reach the box's edge exactly; the margin keeps their log-density finite.

    Args:
        action: actions in [-1, 1], any shape.
        margin: distance to the edge. Defaults to 1e-6, as in d3rlpy (RLPD and Cal-QL clip the data by 1e-5 when
            loading).

    Returns:
        Finite pre-tanh values of the same shape.

    Examples:
        >>> import torch
        >>> bool(inverse_tanh(torch.tensor([-1.0, 1.0])).isfinite().all())
        True
    """
    if action.itemsize < 4:  # bfloat16 and float16 round 1 - 1e-6 to 1, whose atanh is infinite
        return inverse_tanh(action.float(), margin).to(action.dtype)
    return action.clamp(-1.0 + margin, 1.0 - margin).atanh()


def soft_value(qvalue: Tensor, log_prob: Tensor, alpha: Tensor | float) -> Tensor:
    r"""Entropy-regularized value :math:`V(s)=Q(s,a)-\alpha\log\pi(a|s)` of one sampled action.

    Source: Haarnoja et al. 2018 (SAC), Eq. 3; RLPD Algorithm 1 line 17, whose printed sign of the entropy term is a
    misprint (the authors' code subtracts).

    Args:
        qvalue: Q(s, a), shape [*B].
        log_prob: log pi(a|s), shape [*B].
        alpha: entropy temperature, a scalar.

    Returns:
        V(s), shape [*B].

    Examples:
        >>> import torch
        >>> soft_value(torch.tensor(3.0), torch.tensor(2.0), 0.5)
        tensor(2.)
    """
    return qvalue - alpha * log_prob


def td_target(reward: Tensor, terminated: Tensor, next_value: Tensor, gamma: float | Tensor) -> Tensor:
    r"""Bellman target :math:`y=r+\gamma(1-d)V(s')`, where only a true terminal sets :math:`d`.

    Args:
        reward: r, shape [*B].
        terminated: d, bool or 0/1, shape [*B]; it must not include time limits (``truncated``).
        next_value: V(s'), shape [*B].
        gamma: discount in [0, 1].

    Returns:
        y, shape [*B].

    Examples:
        >>> import torch
        >>> td_target(torch.ones(2), torch.tensor([False, True]), torch.full((2,), 10.0), 0.9)
        tensor([10.,  1.])
    """
    return reward + gamma * (1.0 - terminated.to(reward.dtype)) * next_value


def ensemble_squared_error(
    qvalue: Tensor, target: Tensor, ensemble_reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    r"""Squared Bellman error of all members against one target, :math:`\sum_i (Q_i-y)^2` (or the mean over i).

    The sum is what ACA, CORL, REDQ and IQL use, the mean what RLPD and A3RL use. Under Adam the factor is immaterial;
    with gradient clipping, weight decay or a joint loss it is not.

    Args:
        qvalue: Q_i(s, a), shape [E, *B].
        target: y, shape [*B].
        ensemble_reduction: ``"sum"`` or ``"mean"`` over members; defaults to ``"sum"``.

    Returns:
        Error per row, shape [*B].

    Raises:
        O2OSpecError: if ``ensemble_reduction`` is unknown.

    Examples:
        >>> import torch
        >>> ensemble_squared_error(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0]))
        tensor([10.])
        >>> ensemble_squared_error(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0]), "mean")
        tensor([5.])
    """
    check_option("ensemble_reduction", ensemble_reduction, ("sum", "mean"))
    error = (qvalue - target).square()
    return error.sum(0) if ensemble_reduction == "sum" else error.mean(0)


def sac_actor_objective(log_prob: Tensor, qvalue: Tensor, alpha: Tensor | float) -> Tensor:
    r"""Actor objective to minimize, :math:`\alpha\log\pi(a|s)-Q(s,a)` with :math:`a` reparametrized.

    Source: Haarnoja et al. 2018 (SAC), Eq. 12; RLPD Algorithm 1 line 23 with Q the mean of all members.

    Args:
        log_prob: log pi(a|s), shape [*B].
        qvalue: Q(s, a), already reduced over the ensemble, shape [*B].
        alpha: entropy temperature, a scalar.

    Returns:
        Objective per row, shape [*B].

    Examples:
        >>> import torch
        >>> sac_actor_objective(torch.tensor(2.0), torch.tensor(3.0), 0.5)
        tensor(-2.)
    """
    return alpha * log_prob - qvalue


def temperature_objective(
    log_alpha: Tensor,
    log_prob: Tensor,
    target_entropy: float | Tensor,
    form: Literal["alpha", "log_alpha", "softplus"] = "alpha",
) -> Tensor:
    r"""Temperature objective to minimize; raises :math:`\alpha` where the entropy is below its target.

    ``"alpha"``: :math:`e^{\log\alpha}(-\log\pi-\bar H)` (RLPD, A3RL, jaxrl; its gradient carries a factor alpha).
    ``"log_alpha"``: :math:`\log\alpha\,(-\log\pi-\bar H)` (rlkit, CORL, d3rlpy, REDQ, TorchRL). ``"softplus"``:
    :math:`\mathrm{softplus}(p)(-\log\pi-\bar H)` (WSRL). All three have the same stationary point but different
    optimizer dynamics.

    Args:
        log_alpha: the parameter, a scalar; with ``"softplus"`` it is p.
        log_prob: log pi(a|s) of the actor pass, shape [*B]; no gradient flows into it.
        target_entropy: :math:`\bar H` in nats.
        form: which of the three; defaults to ``"alpha"``.

    Returns:
        Objective per row, shape [*B].

    Raises:
        O2OSpecError: if the form is unknown.

    Examples:
        >>> import torch
        >>> temperature_objective(torch.tensor(0.0), torch.tensor([1.0]), -3.0)  # entropy -1, target -3: alpha falls
        tensor([2.])
    """
    check_option("form", form, ("alpha", "log_alpha", "softplus"))
    coefficient = log_alpha
    if form != "log_alpha":
        coefficient = log_alpha.exp() if form == "alpha" else softplus(log_alpha)
    return coefficient * (-log_prob.detach() - target_entropy)
