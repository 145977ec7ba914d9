# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Diagnostics on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_o2o.errors import O2OError
from torchrl_o2o.functional.diagnostics import (
    NonFiniteError,
    effective_sample_size,
    finite_or_raise,
    offline_share,
)


@pytest.mark.parametrize(
    ("index", "share"), [([0, 1, 2, 3], 1.0), ([4, 5], 0.0), ([3, 4], 0.5), ([[0, 9], [9, 9]], 0.25)]
)
def test_offline_share_counts_indices_below_the_border(index, share):
    assert offline_share(torch.tensor(index), num_offline=4) == share


@pytest.mark.parametrize(
    ("weight", "fraction"),
    [
        ([5.0, 5.0, 5.0], 1.0),
        ([0.0, 0.0, 7.0, 0.0], 0.25),
        ([3.0, 1.0], 16 / 20),
        ([1e30, 1e30], 1.0),
        ([1e-30, 1e-30], 1.0),
    ],
)
def test_effective_sample_size_by_hand(weight, fraction):
    torch.testing.assert_close(effective_sample_size(torch.tensor(weight)), torch.tensor(fraction))


def test_effective_sample_size_ignores_scale_and_passes_nan_on():
    weight = torch.rand(100)
    torch.testing.assert_close(effective_sample_size(weight), effective_sample_size(weight * 123))
    assert effective_sample_size(torch.tensor([1.0, math.nan])).isnan()
    assert effective_sample_size(torch.zeros(3)).isnan()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_culprits_are_named_and_counted(value):
    gradient = torch.zeros(4, 5)
    gradient[1, 2] = gradient[3, 4] = value
    tensors = {"loss_qvalue": torch.tensor(1.0), "actor.weight": gradient, "alpha": torch.tensor(value), "frozen": None}
    with pytest.raises(NonFiniteError, match=r"not finite: actor.weight \(2 of 20 values\), alpha \(1 of 1 values\)\."):
        finite_or_raise(tensors)
    assert issubclass(NonFiniteError, O2OError)


def test_finite_tensors_pass_however_large():
    finite_or_raise({})
    finite_or_raise({"a": None})
    finite_or_raise(
        {"a": torch.full((1000,), 3e38), "b": torch.tensor(-3e38), "c": torch.tensor(1e300, dtype=torch.float64)}
    )


def test_gradients_of_a_real_update_are_guarded():
    net = torch.nn.Linear(3, 2)
    net(torch.ones(1, 3)).sum().backward()
    finite_or_raise({name: parameter.grad for name, parameter in net.named_parameters()})
    net.zero_grad()
    (net(torch.ones(1, 3)).sum() * math.inf).backward()
    with pytest.raises(NonFiniteError, match="weight"):
        finite_or_raise({name: parameter.grad for name, parameter in net.named_parameters()})
