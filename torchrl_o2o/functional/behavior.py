# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Equations of methods that regularize a policy toward a model of the data's behavior: BRAC and BEAR.

Shapes: ``E`` critics, ``B`` any batch shape, ``A`` action dimensions, ``N`` and ``M`` samples.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from torchrl_o2o.errors import check_option

__all__ = ["DualDivergence", "Kernel", "dual_divergence", "slope_penalty", "soft_minimum", "squared_mmd"]

Kernel = Literal["gaussian", "laplacian"]
DualDivergence = Literal["kl", "wasserstein"]


def soft_minimum(qvalue: Tensor, weight: float) -> Tensor:
    r"""Weighted mean of the smallest and the largest critic value, :math:`\lambda\min_i Q_i+(1-\lambda)\max_i Q_i`.

    Source: Fujimoto et al. 2019 (BCQ), Eq. 13; also used by BEAR (0.75) and BRAC (1).

    Args:
        qvalue: :math:`Q_i`, shape [E, *B].
        weight: :math:`\lambda` in [0, 1].

    Returns:
        Value, shape [*B].

    Examples:
        >>> import torch
        >>> soft_minimum(torch.tensor([[1.0, 5.0], [3.0, 1.0]]), 0.75)
        tensor([1.5000, 2.0000])
    """
    least = qvalue.amin(0)
    return least if weight == 1.0 else weight * least + (1.0 - weight) * qvalue.amax(0)


def squared_mmd(first: Tensor, second: Tensor, width: float, kernel: Kernel = "laplacian") -> Tensor:
    r"""Squared maximum mean discrepancy between two samples; pairs of a sample with itself count.

    .. math:: \frac1{N^2}\sum_{ij}k(x_i,x_j)+\frac1{M^2}\sum_{ij}k(y_i,y_j)-\frac2{NM}\sum_{ij}k(x_i,y_j),\qquad
        k(x,y)=e^{-d(x,y)/w}

    with d the squared Euclidean distance (``"gaussian"``) or the sum of absolute differences (``"laplacian"``). BRAC
    uses the width :math:`\sigma`. BEAR uses :math:`2\sigma` and takes the square root of the result.

    Source: Kumar et al. 2019 (BEAR), Eq. 4, after Gretton et al. 2012.

    Args:
        first: x, shape [N, *B, A].
        second: y, shape [M, *B, A].
        width: w, positive.
        kernel: Defaults to ``"laplacian"``.

    Returns:
        Discrepancy, shape [*B]; at least 0 up to rounding.

    Raises:
        O2OSpecError: if the kernel is unknown.

    Examples:
        >>> import torch
        >>> zero, one = torch.zeros(1, 1), torch.ones(1, 1)
        >>> squared_mmd(zero, one, 1.0)  # 2 - 2 exp(-1)
        tensor(1.2642)
    """
    check_option("kernel", kernel, ("gaussian", "laplacian"))

    def mean(left: Tensor, right: Tensor) -> Tensor:
        difference = left.unsqueeze(1) - right.unsqueeze(0)  # [N, M, *B, A]
        distance = difference.square() if kernel == "gaussian" else difference.abs()
        return torch.exp(-distance.sum(-1) / width).mean((0, 1))

    return mean(first, first) + mean(second, second) - 2.0 * mean(first, second)


def dual_divergence(policy_score: Tensor, data_score: Tensor, divergence: DualDivergence) -> Tensor:
    r"""A divergence of the policy from the data, estimated by a critic's scores c of an action of either.

    .. math::
        D_{KL} = \log(\zeta(c_\pi)+10^{-8}) - \zeta(c_\beta) + 1,\quad \zeta(c)=\log(1+e^c),\qquad
        D_W = c_\pi - c_\beta

    Both are lower bounds in expectation, which the best critic reaches: the Kullback-Leibler divergence where
    :math:`\zeta(c)` is the ratio of the densities, and the Wasserstein distance where c rises by at most 1 per unit.

    Source: Wu et al. 2019 (BRAC), arXiv:1911.11361, after Nowozin et al. 2016; epsilon of the authors' code.

    Args:
        policy_score: :math:`c_\pi`, the critic of an action of the policy, shape [*B].
        data_score: :math:`c_\beta`, the critic of the recorded action, shape [*B].
        divergence: ``"kl"`` or ``"wasserstein"``.

    Returns:
        Estimates, shape [*B]; a single one may be negative.

    Raises:
        O2OSpecError: if the divergence is unknown.

    Examples:
        >>> import torch
        >>> dual_divergence(torch.tensor(2.0), torch.tensor(0.5), "wasserstein")
        tensor(1.5000)
        >>> one = torch.tensor(0.5413)  # softplus of it is 1: no action is likelier under either
        >>> dual_divergence(one, one, "kl").abs() < 1e-4
        tensor(True)
    """
    check_option("divergence", divergence, ("kl", "wasserstein"))
    if divergence == "wasserstein":
        return policy_score - data_score
    return (softplus(policy_score) + 1e-8).log() - softplus(data_score) + 1.0


def slope_penalty(gradient: Tensor) -> Tensor:
    r"""How much steeper than 1 a function is, :math:`\max(0,\sqrt{|\nabla|^2+10^{-8}}-1)^2`.

    Source: Wu et al. 2019 (BRAC), the authors' code, after Gulrajani et al. 2017 and one-sided as Petzka et al. 2018.

    Args:
        gradient: its gradient, shape [*B, A].

    Returns:
        Penalty, shape [*B].

    Examples:
        >>> import torch
        >>> slope_penalty(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
        tensor([16.,  0.])
    """
    return (torch.sqrt(gradient.square().sum(-1) + 1e-8) - 1.0).clamp(min=0.0).square()
