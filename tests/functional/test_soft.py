# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Equations against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from torchrl_o2o import functional as F
from torchrl_o2o.errors import O2OSpecError


def test_tanh_normal_log_prob_by_hand() -> None:
    # u = 0.5 under N(0, 2): log N = -0.5 * 0.0625 - log 2 - 0.918939; log(1 - tanh(0.5)^2) = -0.240229
    expected = -0.03125 - math.log(2.0) - 0.9189385332 - math.log(1.0 - math.tanh(0.5) ** 2)
    got = F.tanh_normal_log_prob(tensor([0.5]), tensor([0.0]), tensor([2.0]))
    assert got.item() == pytest.approx(expected, rel=1e-6)


def test_tanh_normal_density_integrates_to_one() -> None:
    action = torch.linspace(-1 + 1e-7, 1 - 1e-7, 400_001, dtype=torch.float64)
    density = F.tanh_normal_log_prob(action.atanh().unsqueeze(-1), tensor([0.3]), tensor([0.7])).exp()
    assert torch.trapezoid(density, action).item() == pytest.approx(1.0, abs=1e-5)


def test_tanh_normal_is_exact_where_tanh_saturates() -> None:
    # For u >> 0: log(1 - tanh(u)^2) = 2 log 2 - 2u up to exp(-2u).
    u = tensor([30.0], dtype=torch.float64)
    got = F.tanh_normal_log_prob(u, u, torch.ones(1, dtype=torch.float64))
    assert got.item() == pytest.approx(-0.9189385332046727 - (2 * math.log(2.0) - 60.0), rel=1e-12)


def test_inverse_tanh_clips_by_the_margin() -> None:
    assert F.inverse_tanh(tensor(1.0, dtype=torch.float64), 1e-3).item() == pytest.approx(math.atanh(1 - 1e-3))
    assert F.inverse_tanh(tensor(0.5, dtype=torch.float64)).item() == pytest.approx(math.atanh(0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inverse_tanh_keeps_its_margin_where_the_type_would_round_it_away(dtype: torch.dtype) -> None:
    got = F.inverse_tanh(tensor([1.0, -1.0], dtype=dtype))
    assert got.dtype == dtype
    assert got.tolist() == pytest.approx([7.25, -7.25], abs=0.01)  # atanh(1 - 1e-6) = 7.254, in float32 7.247


def test_soft_value() -> None:
    assert F.soft_value(tensor([3.0]), tensor([-2.0]), 0.25).tolist() == [3.5]


def test_td_target_bootstraps_unless_terminated() -> None:
    got = F.td_target(tensor([1.0, 1.0]), tensor([0.0, 1.0]), tensor([4.0, 4.0]), 0.5)
    assert got.tolist() == [3.0, 1.0]


def test_ensemble_squared_error_sum_and_mean_over_members() -> None:
    qvalue, target = tensor([[1.0, 0.0], [3.0, 2.0]]), tensor([2.0, 4.0])
    assert F.ensemble_squared_error(qvalue, target).tolist() == [2.0, 20.0]
    assert F.ensemble_squared_error(qvalue, target, "mean").tolist() == [1.0, 10.0]


def test_sac_actor_objective() -> None:
    assert F.sac_actor_objective(tensor([2.0]), tensor([5.0]), 0.5).tolist() == [-4.0]


@pytest.mark.parametrize(
    ("form", "value", "slope"),
    [
        ("alpha", 2.0 * 1.5, 2.0 * 1.5),
        ("log_alpha", math.log(2) * 1.5, 1.5),
        ("softplus", math.log(3) * 1.5, 2 / 3 * 1.5),  # softplus(log 2) = log 3, its slope 2/3
    ],
)
def test_temperature_objective_and_its_gradient(form: str, value: float, slope: float) -> None:
    # alpha = 2, entropy = 0.5, target = -1: both push alpha down, by different slopes.
    log_alpha = tensor(math.log(2.0), requires_grad=True)
    objective = F.temperature_objective(log_alpha, tensor([-0.5]), -1.0, form).mean()  # type: ignore[arg-type]
    objective.backward()
    assert objective.item() == pytest.approx(value, rel=1e-6)
    assert log_alpha.grad.item() == pytest.approx(slope, rel=1e-6)


def test_temperature_objective_sends_no_gradient_into_the_policy() -> None:
    log_prob = tensor([1.0], requires_grad=True)
    F.temperature_objective(tensor(0.0, requires_grad=True), log_prob, -1.0).sum().backward()
    assert log_prob.grad is None


def test_unknown_forms_are_refused() -> None:
    with pytest.raises(O2OSpecError, match="got form='logalpha'"):
        F.temperature_objective(tensor(0.0), tensor([1.0]), -1.0, "logalpha")  # type: ignore[arg-type]
    with pytest.raises(O2OSpecError, match="got ensemble_reduction='max'"):
        F.ensemble_squared_error(tensor([[1.0]]), tensor([0.0]), "max")  # type: ignore[arg-type]
