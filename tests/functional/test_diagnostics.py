# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Diagnostics on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_o2o.errors import O2OError, O2OSpecError
from torchrl_o2o.functional.diagnostics import (
    NonFiniteError,
    effective_sample_size,
    finite_or_raise,
    offline_share,
    policy_drift,
    q_bias,
)


def test_q_bias_is_the_mean_difference():
    # Rewards 1, 1, 1 with gamma 0.5: returns 1.75, 1.5, 1; a critic that says 2 is 1.75/3 too high.
    returns = torch.tensor([[1.75], [1.5], [1.0]])
    torch.testing.assert_close(q_bias(torch.full((3, 1), 2.0), returns), torch.tensor(1.75 / 3))
    assert q_bias(returns, returns) == 0


def test_q_bias_refuses_shapes_that_would_broadcast():
    with pytest.raises(O2OSpecError, match=r"qvalue has shape \(3, 1\) and discounted_return \(3,\)"):
        q_bias(torch.zeros(3, 1), torch.zeros(3))


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


def test_policy_drift_by_hand():
    # KL(N(0,1) || N(1,2)) = ln 2 + (1 + 1) / 8 - 1/2
    frozen = torch.zeros(5, 3), torch.ones(5, 3)
    current = torch.ones(5, 3), torch.full((5, 3), 2.0)
    torch.testing.assert_close(policy_drift(frozen, current), torch.tensor(3 * (math.log(2) + 0.25 - 0.5)))
    assert policy_drift(current, current) == 0


def test_policy_drift_is_that_of_the_squashed_policies():
    loc, scale = torch.tensor([0.3]), torch.tensor([0.6])
    generator = torch.Generator().manual_seed(0)
    samples = 0.1 + 0.5 * torch.randn(200_000, 1, generator=generator)

    def squashed_log_prob(mean, deviation):
        return torch.distributions.Normal(mean, deviation).log_prob(samples) - (1 - samples.tanh().square()).log()

    estimate = (squashed_log_prob(0.1, 0.5) - squashed_log_prob(loc, scale)).mean()
    drift = policy_drift((torch.tensor([0.1]), torch.tensor([0.5])), (loc, scale))
    torch.testing.assert_close(drift, estimate, rtol=0.02, atol=0)


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
