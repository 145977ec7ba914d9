# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Boxes, unsquashed Gaussian policies, deterministic policies and state values."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import distributions as D
from torchrl.data import Bounded, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import (
    TanhNormal,
    make_actor,
    make_deterministic_actor,
    make_gaussian_actor,
    make_one_step_actor,
    make_value_network,
)
from torchrl_o2o.modules.boxes import BoxTanh, action_box, box_edges
from torchrl_o2o.modules.flow import ClipToBox
from torchrl_o2o.modules.gaussian_policies import BoxNormal, GaussianVectorHead
from torchrl_o2o.modules.units import ToBox
from torchrl_o2o.objectives.networks import sample_policy

WIDE = Bounded(torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0]), (2,))


def observations(rows: int = 64) -> TensorDict:
    return TensorDict({"observation": 10.0 * torch.randn(rows, 5)}, [rows])


def test_box_tanh_by_hand() -> None:
    got = BoxTanh(WIDE.space.low, WIDE.space.high)(torch.tensor([[0.5, -0.5]]))
    torch.testing.assert_close(got, torch.tensor([[2 * math.tanh(0.5), 0.5 - 0.5 * math.tanh(0.5)]]))


def random_boxes(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    size = 10.0 ** torch.randint(-2, 4, (2, 500), dtype=dtype)
    low = torch.randn(500, dtype=dtype) * size[0]
    return low, low + (torch.rand(500, dtype=dtype) + 0.01) * size[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_actions_are_inside_of_any_box(dtype: torch.dtype) -> None:
    """0.05 + 0.35 is more than 0.4 in float32, which ``Box.contains`` of an environment refuses."""
    low, high = random_boxes(dtype)
    for layer, edge in ((BoxTanh(low, high), 50.0), (ToBox(low, high), 1.0), (ClipToBox(low, high), 1e9)):
        least, most = layer(torch.full((500,), -edge)), layer(torch.full((500,), edge))
        assert bool((least >= low).all() and (most <= high).all())
        torch.testing.assert_close(torch.stack([least, most]), torch.stack([low, high]).float(), atol=1e-3, rtol=1e-6)


def test_samples_are_inside_of_any_box() -> None:
    low, high = random_boxes(torch.float32)
    for loc, edge in ((-50.0, low), (50.0, high)):
        action = TanhNormal(torch.full((500,), loc), torch.ones(500), low=low, high=high).mode
        assert bool((action >= low).all() and (action <= high).all())
        torch.testing.assert_close(action, edge, atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize(
    "make", [make_actor, make_deterministic_actor, make_gaussian_actor, make_one_step_actor], ids=lambda f: f.__name__
)
def test_a_box_of_another_dtype_does_not_spread_to_the_actions(make: Callable[..., TensorDictModuleBase]) -> None:
    """Environments often state their box in float64; critics in float32 refused such actions."""
    low, high = torch.tensor([-2.0, 0.0]).double(), torch.tensor([2.0, 1.0]).double()
    actor = make(5, Bounded(low, high, (2,), dtype=torch.float64), hidden_sizes=(8,))
    assert actor(observations())["action"].dtype == torch.float32


def test_action_without_a_box_is_refused() -> None:
    for make in (make_gaussian_actor, make_deterministic_actor):
        with pytest.raises(O2OSpecError, match="expected a bounded continuous box"):
            make(5, Unbounded(shape=(2,)))
    assert action_box(WIDE) is WIDE
    assert [edge.tolist() for edge in box_edges(WIDE)] == [[-2.0, 0.0], [2.0, 1.0]]


class TestBoxNormal:
    def test_density_is_the_plain_gaussian(self) -> None:
        loc, scale, value = torch.randn(6, 3), torch.rand(6, 3) + 0.1, torch.rand(4, 6, 3)
        expected = D.Independent(D.Normal(loc, scale), 1)
        torch.testing.assert_close(BoxNormal(loc, scale).log_prob(value), expected.log_prob(value))
        torch.testing.assert_close(BoxNormal(loc, scale).entropy(), expected.entropy())

    def test_samples_take_the_noise_and_are_clipped_and_scored_there(self) -> None:
        dist = BoxNormal(torch.tensor([0.5]), torch.tensor([1.0]), low=-2.0, high=1.0)
        action, log_prob = dist.rsample_and_log_prob((2,), noise=torch.tensor([[0.25], [9.0]]))
        assert action.tolist() == [[0.75], [1.0]]
        torch.testing.assert_close(log_prob, dist.log_prob(torch.tensor([[0.75], [1.0]])))
        free = BoxNormal(torch.tensor([0.5]), torch.tensor([1.0]), clip_samples=False)
        assert free.rsample(noise=torch.tensor([9.0])).tolist() == [9.5]

    def test_mode_stays_in_the_box(self) -> None:
        dist = BoxNormal(torch.tensor([3.0, -0.2]), torch.ones(2))
        assert dist.deterministic_sample.tolist() == pytest.approx([1.0, -0.2])
        assert dist.mean.tolist() == pytest.approx([3.0, -0.2])

    def test_gradient_passes_inside_the_box_only(self) -> None:
        loc = torch.tensor([0.0, 0.0], requires_grad=True)
        BoxNormal(loc, torch.ones(2)).rsample(noise=torch.tensor([0.5, 2.0])).sum().backward()
        assert loc.grad.tolist() == [1.0, 0.0]

    def test_fresh_noise_has_the_right_moments(self) -> None:
        torch.manual_seed(0)
        sample = BoxNormal(torch.tensor([0.3]), torch.tensor([0.1])).rsample((20_000,))
        assert sample.mean().item() == pytest.approx(0.3, abs=3e-3)
        assert sample.std().item() == pytest.approx(0.1, abs=3e-3)

    def test_expand(self) -> None:
        dist = BoxNormal(torch.zeros(2), torch.ones(2), high=0.5).expand(torch.Size([3]))
        assert dist.batch_shape == (3,)
        assert dist.rsample(noise=torch.full((3, 2), 9.0)).eq(0.5).all()

    def test_losses_feed_it_their_noise(self) -> None:
        dist, noise = BoxNormal(torch.zeros(4, 2), torch.ones(4, 2)), torch.full((5, 4, 2), 0.25)
        action, log_prob = sample_policy(dist, noise, (5,))
        assert torch.equal(action, noise)
        assert log_prob.shape == (5, 4)


class TestGaussianVectorHead:
    def test_standard_deviations(self) -> None:
        clip = GaussianVectorHead(4, 2, log_std_bounds=(-5.0, 1.0))
        sigmoid = GaussianVectorHead(4, 2, std="sigmoid", log_std_bounds=(-6.0, 0.0))
        for head, parameter, expected in [(clip, 0.0, 0.0), (clip, 3.0, 1.0), (clip, -9.0, -5.0), (sigmoid, 0.0, -3.0)]:
            head.log_std.data.fill_(parameter)
            scale = head(torch.randn(7, 4))[1]
            torch.testing.assert_close(scale, torch.full((7, 2), math.exp(expected)))
        sigmoid.log_std.data.fill_(1.0)
        assert sigmoid(torch.randn(1, 4))[1][0, 0].item() == pytest.approx(math.exp(-6 + 6 / (1 + math.exp(-1))))

    def test_unknown_options_are_refused(self) -> None:
        with pytest.raises(O2OSpecError, match="got std='exp', expected one of 'clip', 'sigmoid'"):
            GaussianVectorHead(4, 2, std="exp")
        with pytest.raises(O2OSpecError, match="got mean='relu'"):
            make_gaussian_actor(5, 2, mean="relu")


class TestMakeGaussianActor:
    @pytest.mark.parametrize("action", [2, WIDE])
    def test_actions_stay_in_the_box(self, action: Bounded | int) -> None:
        actor, box = make_gaussian_actor(5, action, hidden_sizes=(16,)), action_box(action)
        for kind in (ExplorationType.RANDOM, ExplorationType.DETERMINISTIC):
            with set_exploration_type(kind):
                got = actor(observations())["action"]
            assert box.is_in(got)

    def test_deterministic_action_is_the_mean(self) -> None:
        actor, data = make_gaussian_actor(5, 2, hidden_sizes=(16,)), observations()
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            data = actor(data)
        torch.testing.assert_close(data["action"], data["loc"])

    def test_linear_mean_leaves_the_box_its_action_does_not(self) -> None:
        actor, data = make_gaussian_actor(5, 2, hidden_sizes=(16,), mean="linear"), observations()
        actor[0].module[1].mean.bias.data.fill_(5.0)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            data = actor(data)
        assert (data["loc"] > 1).any()
        assert (data["action"] <= 1).all()

    def test_small_last_layer(self) -> None:
        actor = make_gaussian_actor(5, 2, initialization="uniform_small_last")
        assert actor[0].module[1].mean.weight.abs().max() <= 1e-3

    def test_dropout_only_while_training(self) -> None:
        actor, data = make_gaussian_actor(5, 2, dropout=0.5), observations(4)
        assert not torch.equal(actor(data.clone())["loc"], actor(data.clone())["loc"])
        actor.eval()
        assert torch.equal(actor(data.clone())["loc"], actor(data.clone())["loc"])


class TestMakeDeterministicActor:
    def test_output_is_the_squashed_network(self) -> None:
        actor, data = make_deterministic_actor(5, WIDE, hidden_sizes=(16,)), observations()
        features = actor.module[0](data["observation"])
        expected = torch.stack([2 * features[:, 0].tanh(), 0.5 + 0.5 * features[:, 1].tanh()], -1)
        torch.testing.assert_close(actor(data)["action"], expected)
        assert WIDE.is_in(data["action"])

    def test_nested_keys(self) -> None:
        actor = make_deterministic_actor(5, 2, observation_key=("agent", "state"), action_key=("agent", "action"))
        data = actor(TensorDict({"agent": {"state": torch.zeros(3, 5)}}, [3]))
        assert data["agent", "action"].shape == (3, 2)


def test_value_network() -> None:
    value = make_value_network(5, hidden_sizes=(8, 8), layer_norm=True, initialization="orthogonal")
    assert value(observations(3))["state_value"].shape == (3, 1)
    assert [type(m).__name__ for m in value.modules()].count("LayerNorm") == 2
    weight = value.module[-1].weight
    assert weight.norm().item() == pytest.approx(math.sqrt(2.0), rel=1e-5)
