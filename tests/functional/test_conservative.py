# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The conservative equations on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_o2o.functional.conservative import (
    calibrated,
    conservative_gap,
    lagrange_coefficient,
    lagrange_objective,
    max_backup,
    scaled_logsumexp,
)


def test_logsumexp_of_equal_values_adds_the_logarithm_of_their_number() -> None:
    out = scaled_logsumexp(torch.full((8, 3), 2.0), temperature=0.5)
    torch.testing.assert_close(out, torch.full((3,), 2.0 + 0.5 * math.log(8)))


def test_importance_sampling_estimates_the_integral() -> None:
    """LSE(Q - log density) - log M is log of the integral of exp Q: for Q = a on [-1, 1] it is log(e - 1/e)."""
    torch.manual_seed(0)
    action = torch.rand(200_000, dtype=torch.float64) * 2 - 1
    estimate = scaled_logsumexp(action + math.log(2.0)) - math.log(len(action))
    assert estimate.item() == pytest.approx(math.log(math.e - 1 / math.e), abs=5e-3)


def test_large_values_do_not_overflow() -> None:
    assert scaled_logsumexp(torch.tensor([1e4, 1e4])).isfinite()


def test_gap_is_clipped_and_then_without_gradient() -> None:
    soft = torch.tensor([10.0, 0.0, -10.0], requires_grad=True)
    gap = conservative_gap(soft, torch.tensor([1.0, 1.0, 1.0]), (-5.0, 5.0))
    torch.testing.assert_close(gap, torch.tensor([5.0, -1.0, -5.0]))
    gap.sum().backward()
    torch.testing.assert_close(soft.grad, torch.tensor([0.0, 1.0, 0.0]))


def test_calibration_stops_the_gradient_where_the_bound_is_active() -> None:
    qvalue = torch.tensor([[-3.0, 4.0]], requires_grad=True)
    out = calibrated(qvalue, torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(out, torch.tensor([[1.0, 4.0]]))
    out.sum().backward()
    torch.testing.assert_close(qvalue.grad, torch.tensor([[0.0, 1.0]]))


def test_max_backup_takes_value_density_and_action_of_the_same_sample() -> None:
    qvalue = torch.tensor([[1.0, 9.0], [5.0, 2.0]])
    log_prob = torch.tensor([[-1.0, -9.0], [-5.0, -2.0]])
    action = torch.stack([qvalue, log_prob], -1)
    value, density, chosen = max_backup(qvalue, log_prob, action)
    assert value.tolist() == [5.0, 9.0]
    assert density.tolist() == [-5.0, -9.0]
    assert chosen.tolist() == [[5.0, -5.0], [9.0, -9.0]]


def test_multiplier_rises_while_the_gap_is_too_wide() -> None:
    for gap, sign in ((3.0, -1.0), (0.5, 1.0)):
        log_multiplier = torch.tensor(0.0, requires_grad=True)
        objective = lagrange_objective(lagrange_coefficient(log_multiplier), torch.full((2, 1), gap), 1.0, 5.0)
        objective.sum().backward()
        assert torch.sign(log_multiplier.grad) == sign, "the optimizer descends: a negative slope raises it"


def test_no_gradient_into_the_gap() -> None:
    gap = torch.ones(2, 1, requires_grad=True)
    out = lagrange_objective(torch.tensor(1.0, requires_grad=True), gap, 0.0, 1.0).sum()
    out.backward()
    assert gap.grad is None
