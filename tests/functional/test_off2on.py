# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import math

import pytest
import torch

from tests import golden_vectors as golden
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.off2on import initial_online_priority, merge_gaussians, off2on_priority, pair_minimum


def test_priority_by_hand() -> None:
    """Ratios 16, 1, 81 over offline ratios 1 and 16 at T = 4: roots 2, 1, 3 over the mean 1.5."""
    ratio, offline = torch.tensor([16.0, 1.0, 81.0]), torch.tensor([1.0, 16.0])
    priority = off2on_priority(ratio.log(), offline.log(), temperature=4.0)
    torch.testing.assert_close(priority, torch.tensor([2.0, 1.0, 3.0]) / 1.5)


def test_priority_is_clipped_to_its_very_ends() -> None:
    priority = off2on_priority(torch.tensor([-50.0, 50.0]), torch.zeros(3), temperature=1.0)
    assert priority.tolist() == [torch.tensor(1e-3).item(), 1e3]
    priority = off2on_priority(torch.tensor([-1e4, 1e4]), torch.zeros(3), minimum=0.5, maximum=2.0)
    assert priority.tolist() == [0.5, 2.0]


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_priority_is_free_of_the_ratios_scale_and_of_overflow(shift: float) -> None:
    log_ratio = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    offline = torch.tensor([0.0, 2.0], dtype=torch.float64)
    expected = log_ratio.exp() / offline.exp().mean()
    got = off2on_priority(log_ratio + shift, offline + shift, temperature=1.0, mean_eps=1e-300 if shift == 0 else 0.0)
    torch.testing.assert_close(got, expected)


def test_rows_of_ratio_zero() -> None:
    """A ReLU density network outputs exact zeros; where all offline rows have one, the epsilon takes over."""
    zero = torch.tensor([0.0]).log()
    assert off2on_priority(zero, torch.zeros(2)).item() == pytest.approx(1e-3)
    assert off2on_priority(torch.tensor([0.0]), zero).item() == 1e3
    assert off2on_priority(zero, zero).item() == pytest.approx(1e-3)


def test_priority_has_no_gradient() -> None:
    log_ratio = torch.zeros(2, requires_grad=True)
    assert not off2on_priority(log_ratio, log_ratio).requires_grad


@pytest.mark.parametrize("case", ["A", "B"])
def test_golden_priority(case: str) -> None:
    """The authors' numbers at T = 5 and T = 0.1 (Off2OnRL@6f298fa); a ReLU output, so with exact zeros."""
    tree = golden.load(f"off2on/{case}")
    settings = {"minimum": golden.hp(tree, "priority_min"), "maximum": golden.hp(tree, "priority_max")}
    settings |= {"temperature": golden.hp(tree, "temperature"), "mean_eps": golden.hp(tree, "mean_eps")}
    priority = off2on_priority(tree["out/weight_rl"].log(), tree["out/weight_offline"].log(), **settings)
    golden.assert_close(priority, tree["out/priority"], "priority")
    torch.testing.assert_close(priority, tree["out/priority"], rtol=1e-8, atol=0.0)
    settings |= {"minimum": 1e-300, "maximum": 1e300}
    priority = off2on_priority(tree["out/weight_rl"].log(), tree["out/weight_offline"].log(), **settings)
    golden.assert_close(priority, tree["out/normalised_weight_unclipped"], "unclipped")


def test_priority_arguments() -> None:
    with pytest.raises(O2OSpecError, match="temperature=0"):
        off2on_priority(torch.zeros(1), torch.zeros(1), temperature=0.0)
    with pytest.raises(O2OSpecError, match="no offline rows"):
        off2on_priority(torch.zeros(1), torch.zeros(0))


def test_initial_online_priority_gives_the_fraction() -> None:
    """1000 rows of it against 5000 rows of weight 1."""
    priority = initial_online_priority(5000, 0.75)
    assert 1000 * priority / (1000 * priority + 5000) == pytest.approx(0.75)


def test_merged_gaussian_by_hand() -> None:
    """Means 1 and 3, variances 1 and 4: mean 2, variance (1 + 1 + 4 + 9) / 2 - 4."""
    loc, scale = merge_gaussians(torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [2.0]]))
    assert loc.item() == 2.0
    assert scale.item() == pytest.approx(math.sqrt(3.5))


def test_merging_equal_gaussians_changes_nothing() -> None:
    torch.manual_seed(0)
    loc, scale = torch.randn(4, 2), torch.rand(4, 2) + 1e-3
    merged = merge_gaussians(loc.expand(5, 4, 2), scale.expand(5, 4, 2))
    torch.testing.assert_close(merged, (loc, scale))


def test_merged_deviation_is_clipped_with_finite_gradients() -> None:
    loc = torch.zeros(2, 3, 1, requires_grad=True)
    scale = torch.tensor([1e-12, 1.0, 1e3]).reshape(3, 1).repeat(2, 1, 1).requires_grad_()
    merged = merge_gaussians(loc, scale)[1]
    torch.testing.assert_close(merged.squeeze(-1), torch.tensor([math.exp(-20.0), 1.0, math.exp(2.0)]))
    merged.sum().backward()
    assert all(value.grad.isfinite().all() for value in (loc, scale))


def test_pair_minimum_keeps_pairs_apart() -> None:
    qvalue = torch.tensor([[5.0, 1.0], [2.0, 3.0], [0.0, 0.0], [-1.0, 4.0]])
    assert pair_minimum(qvalue).tolist() == [[2.0, 1.0], [-1.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_constant_inside_the_logarithm_is_taken_out(dtype: torch.dtype) -> None:
    """w = (0, 1) at T = 5 gives (0.001, 1); with the constant left in the first would be 0.01."""
    ratio, offline = torch.tensor([0.0, 1.0], dtype=dtype), torch.ones(3, dtype=dtype)
    inside = ((ratio + 1e-10).log(), (offline + 1e-10).log())
    assert off2on_priority(*inside, eps=1e-10).tolist() == pytest.approx([1e-3, 1.0], rel=1e-6)
    assert off2on_priority(*inside).tolist() == pytest.approx([1e-2, 1.0], rel=1e-6)


def test_zeros_count_as_zeros_in_the_mean() -> None:
    """Offline ratios 0, 0 and 27 at T = 3: mean 1, where cube roots of 1e-3 would make it 1.0667."""
    offline = (torch.tensor([0.0, 0.0, 27.0]) + 1e-3).log()
    priority = off2on_priority((torch.tensor([8.0]) + 1e-3).log(), offline, temperature=3.0, eps=1e-3)
    assert priority.item() == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("case", ["A", "B"])
def test_golden_priorities_through_the_constant(case: str) -> None:
    tree = golden.load(f"off2on/{case}")
    settings = {name: golden.hp(tree, name) for name in ("temperature", "mean_eps")}
    logs = [(tree[f"out/weight_{name}"] + 1e-10).log() for name in ("rl", "offline")]
    golden.assert_close(off2on_priority(*logs, eps=1e-10, **settings), tree["out/priority"], "priority")
