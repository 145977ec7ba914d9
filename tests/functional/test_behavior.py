# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from torchrl_o2o import functional as F
from torchrl_o2o.errors import O2OSpecError


def test_soft_minimum_by_hand() -> None:
    qvalue = tensor([[1.0, 4.0], [3.0, 0.0]])
    assert F.soft_minimum(qvalue, 0.75).tolist() == [1.5, 1.0]
    assert F.soft_minimum(qvalue, 1.0).tolist() == [1.0, 0.0]
    assert F.soft_minimum(qvalue, 0.0).tolist() == [3.0, 4.0]


def test_squared_mmd_by_hand() -> None:
    """x = {0, 2}, y = {1}: k = exp(-d / 2) with d = 2 within x and 1 across; squared 4 and 1."""
    first, second = tensor([[0.0], [2.0]]), tensor([[1.0]])
    for kernel, far, near in (("laplacian", 2.0, 1.0), ("gaussian", 4.0, 1.0)):
        expected = 0.5 + 0.5 * math.exp(-far / 2) + 1.0 - 2.0 * math.exp(-near / 2)
        assert F.squared_mmd(first, second, 2.0, kernel).item() == pytest.approx(expected, rel=1e-5)


def test_squared_mmd_of_a_sample_with_itself_is_zero() -> None:
    sample = torch.randn(6, 5, 3, dtype=torch.float64)
    assert F.squared_mmd(sample, sample, 20.0).abs().max() < 1e-12
    assert (F.squared_mmd(sample, sample + 1.0, 20.0) > 0).all()


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="kernel"):
        F.squared_mmd(torch.zeros(1, 1), torch.zeros(1, 1), 1.0, "linear")  # type: ignore[arg-type]


def test_dual_divergences_by_hand() -> None:
    """softplus(log(e - 1)) = 1 and softplus(log(e^2 - 1)) = 2."""
    one, two = tensor(math.log(math.e - 1.0)), tensor(math.log(math.e**2 - 1.0))
    assert F.dual_divergence(two, one, "kl").item() == pytest.approx(math.log(2.0) - 1.0 + 1.0, rel=1e-6)
    assert F.dual_divergence(one, two, "kl").item() == pytest.approx(0.0 - 2.0 + 1.0, rel=1e-6)
    assert F.dual_divergence(tensor([3.0]), tensor([-1.5]), "wasserstein").tolist() == [4.5]


def test_the_dual_divergence_is_finite_far_out() -> None:
    """Of a score of -200 softplus is 0 in float32."""
    score = torch.tensor([-200.0, 200.0], requires_grad=True)
    value = F.dual_divergence(score, score.detach().flip(0), "kl")
    torch.testing.assert_close(value.detach(), torch.tensor([math.log(1e-8) - 199.0, math.log(200.0) + 1.0]))
    value.sum().backward()
    assert score.grad is not None
    assert score.grad.isfinite().all()


def test_an_unknown_dual_divergence_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="wasserstein"):
        F.dual_divergence(torch.zeros(1), torch.zeros(1), "mmd")  # type: ignore[arg-type]


def test_slope_penalty_by_hand() -> None:
    """Lengths 5, 1 and 0, of which the last has a gradient, too."""
    gradient = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 0.0]], requires_grad=True)
    penalty = F.slope_penalty(gradient)
    torch.testing.assert_close(penalty.detach(), torch.tensor([16.0, 0.0, 0.0]))
    penalty.sum().backward()
    assert gradient.grad is not None
    assert gradient.grad.isfinite().all()
