# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The alignment's equations on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.alignment import (
    aligned_value,
    baseline_value,
    beta_clip,
    clip_level,
    interpolation_weight,
    ml_actor_objective,
)


def test_clip_is_above_its_level_monotone_and_the_identity_far_above() -> None:
    x = torch.linspace(-200.0, 100.0, 301, dtype=torch.float64)
    level = torch.tensor(-10.0, dtype=torch.float64)
    out = beta_clip(x, level)
    assert (out >= level).all()
    assert (out.diff() >= 0).all()
    torch.testing.assert_close(out[x > 30], x[x > 30])
    torch.testing.assert_close(beta_clip(level, level), level + math.log(2.0))


def test_clip_flattens_its_gradient_below_the_level() -> None:
    x = torch.tensor([-30.0, -10.0, 10.0], requires_grad=True)
    beta_clip(x, torch.tensor(-10.0)).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 0.5, 1.0]), atol=1e-6, rtol=0)


def test_level_is_the_lower_of_the_two_and_has_no_gradient() -> None:
    lower = torch.tensor([-3.0, -1.0], requires_grad=True)
    level = clip_level(lower, torch.tensor([-2.0, -4.0]))
    assert level.tolist() == [-3.0, -4.0]
    assert not level.requires_grad


@pytest.mark.parametrize(("interpolation", "expected"), [(0.0, [5.0, 6.0]), (0.5, [4.0, 5.0]), (1.0, [3.0, 4.0])])
def test_aligned_value(interpolation: float, expected: list[float]) -> None:
    out = aligned_value(torch.tensor([[5.0], [6.0]]), torch.tensor([-2.0]), interpolation)
    assert out.flatten().tolist() == expected


def test_baseline_value_with_and_without_entropy() -> None:
    density, baseline = torch.tensor(-1.0), torch.tensor(4.0)
    assert baseline_value(density, baseline, 0.2).item() == 3.0
    assert baseline_value(density, baseline, 0.2, torch.tensor(-1.0)).item() == pytest.approx(3.2)
    # A clipped density keeps the entropy of the unclipped one.
    assert baseline_value(density.clamp(min=0), baseline, 0.2, torch.tensor(-1.0)).item() == pytest.approx(4.2)


def test_likelihood_is_not_scaled_by_lambda() -> None:
    out = ml_actor_objective(torch.tensor([1.0]), torch.tensor([3.0]), 30.0)
    assert out.item() == 27.0


@pytest.mark.parametrize(
    ("horizon", "floor", "reached"), [(10.0, 0.0, 10_000), (40.0, 0.5, 20_000), (100.0, 1.0, 0), (200.0, 0.5, 100_000)]
)
def test_the_papers_schedules_reach_their_floor(horizon: float, floor: float, reached: int) -> None:
    assert interpolation_weight(reached, horizon=horizon, floor=floor) == pytest.approx(floor)
    if reached:
        assert interpolation_weight(reached - 100, horizon=horizon, floor=floor) > floor
    assert interpolation_weight(reached + 10_000, horizon=horizon, floor=floor) == floor


def test_the_offline_policys_weight_does_not_rise_before_the_first_update() -> None:
    assert interpolation_weight(-1000, horizon=40, floor=0.5) == 1.0
    with pytest.raises(O2OSpecError, match="got horizon=0"):
        interpolation_weight(1, horizon=0, floor=0.5)
