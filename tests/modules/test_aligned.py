# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import math

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import distributions as D
from torch import nn
from torchrl.modules import TanhNormal as UpstreamTanhNormal

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import TanhNormal, make_actor, make_baselines, make_qvalue_ensemble
from torchrl_o2o.modules.aligned import (
    check_alignable,
    clipped_log_density,
    density_floor,
    own_distribution,
    residual_parameters,
)
from torchrl_o2o.modules.gaussian_policies import BoxNormal, make_gaussian_actor


def test_floor_of_a_narrow_squashed_gaussian() -> None:
    """Two dimensions around 0 with sigma 0.3: at u = 0.3 beta each adds -beta^2/2 - log 0.3 - log(2 pi)/2 minus the
    Jacobian log(1 - tanh(u)^2)."""
    dist = TanhNormal(torch.zeros(2, dtype=torch.float64), torch.full((2,), 0.3, dtype=torch.float64))
    for beta in (3.0, 7.0, 15.0):
        jacobian = math.log(1.0 - math.tanh(0.3 * beta) ** 2)
        expected = 2 * (-0.5 * beta**2 - math.log(0.3) - 0.5 * math.log(2 * math.pi) - jacobian)
        assert density_floor(dist, beta).item() == pytest.approx(expected, rel=1e-6)


def test_floor_is_the_lower_of_the_two_sides() -> None:
    """Around a mean of 1 the squashing favors the far side, so the near side is the floor."""
    loc, scale = torch.ones(1), torch.full((1,), 0.5)
    near, far = (TanhNormal(loc, scale).log_prob_at(loc + sign * 3.0 * scale) for sign in (-1.0, 1.0))
    assert near < far
    assert density_floor(TanhNormal(loc, scale), 3.0) == near


def test_inside_the_bounds_the_clip_is_the_identity() -> None:
    dist = TanhNormal(torch.zeros(2), torch.full((2,), 0.3))
    clipped, plain = clipped_log_density(dist, torch.tensor([0.3, -0.2]), 7.0)
    torch.testing.assert_close(clipped, plain)


def test_a_saturated_sample_keeps_its_gradient() -> None:
    """At tanh u = 1 an atanh route has lost u and its slope; scored at u both are there."""
    loc = torch.full((1,), 12.0, requires_grad=True)
    policy = TanhNormal(loc, torch.ones(1))
    action = policy.rsample(noise=torch.zeros(1))
    assert action.item() == 1.0
    reference = TanhNormal(torch.full((1,), 10.0), torch.ones(1))
    clipped, plain = clipped_log_density(reference, action, 7.0, policy)
    plain.backward()
    # d/du [-(u - 10)^2 / 2 + 2 u] at u = 12
    torch.testing.assert_close(loc.grad, torch.tensor([0.0]), atol=1e-4, rtol=0)
    assert plain.item() == pytest.approx(-2.0 - 0.9189 + 2 * (12 - 0.6931), abs=1e-2)
    assert clipped.isfinite()


def test_upstream_policies_are_taken_as_they_are() -> None:
    loc, scale, action = torch.randn(4, 2), torch.rand(4, 2) + 0.5, torch.rand(4, 2) - 0.5
    upstream = UpstreamTanhNormal(loc, scale)
    torch.testing.assert_close(own_distribution(upstream).log_prob(action), upstream.log_prob(action))


def test_log_prob_at_is_the_density_of_the_squashed_action() -> None:
    dist = TanhNormal(torch.zeros(3), torch.ones(3), low=-2.0, high=2.0)
    assert dist.pre_tanh is None
    action = dist.rsample(noise=torch.ones(3))
    torch.testing.assert_close(dist.log_prob_at(dist.pre_tanh), dist.log_prob(action.clone()))


def test_policies_without_a_density_are_refused() -> None:
    for actor in (make_actor(3, 2, hidden_sizes=(4,)), make_gaussian_actor(3, 2, hidden_sizes=(4,))):
        check_alignable(actor)
    deterministic = TensorDictModule(nn.Linear(3, 2), in_keys=["observation"], out_keys=["action"])
    with pytest.raises(O2OSpecError, match="the offline policy is deterministic"):
        check_alignable(deterministic)
    with pytest.raises(O2OSpecError, match="the offline policy is Laplace"):
        own_distribution(D.Laplace(torch.zeros(1), torch.ones(1)))
    assert isinstance(own_distribution(BoxNormal(torch.zeros(1), torch.ones(1))), BoxNormal)


def test_residual_starts_as_the_baseline_whatever_the_action() -> None:
    baseline = make_baselines(5, num_baselines=1, hidden_sizes=(8, 8))[0]
    residual = make_qvalue_ensemble(5, 3, num_qvalue_nets=1, hidden_sizes=(8, 8), layer_norm=False)[0]
    new = residual_parameters(dict(baseline.named_parameters()), dict(residual.named_parameters()))
    residual.load_state_dict(new)
    observation = torch.randn(6, 5)
    for _ in range(3):
        torch.testing.assert_close(residual(observation, torch.randn(6, 3)), baseline(observation))


@pytest.mark.parametrize("critic", [{"hidden_sizes": (8,)}, {"hidden_sizes": (16, 16)}, {"layer_norm": True}])
def test_residuals_of_another_architecture_are_refused(critic: dict) -> None:
    baseline = make_baselines(5, num_baselines=1, hidden_sizes=(8, 8))[0]
    settings = {"hidden_sizes": (8, 8), "layer_norm": False, "num_qvalue_nets": 1, **critic}
    residual = make_qvalue_ensemble(5, 3, **settings)[0]
    with pytest.raises(O2OSpecError, match="the same layers"):
        residual_parameters(dict(baseline.named_parameters()), dict(residual.named_parameters()))
