# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Unbounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import TanhNormal as UpstreamTanhNormal

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import (
    BoxNormal,
    QValueNet,
    TanhNormal,
    Temperature,
    UnitNorm,
    initialize_,
    make_action_vae,
    make_actor,
    make_conditional_vae,
    make_gaussian_actor,
    make_qvalue_ensemble,
    make_residual_trunk,
    make_trunk,
)
from torchrl_o2o.modules.trunk import ReLU, feature_dim


class TestTanhNormal:
    def test_agrees_with_torchrls_away_from_the_edge(self) -> None:
        loc, scale = torch.randn(7, 3).double() * 0.5, torch.rand(7, 3).double() * 0.5 + 0.1
        action = (torch.randn(7, 3).double() * 0.5).tanh()
        torch.testing.assert_close(
            TanhNormal(loc, scale).log_prob(action), UpstreamTanhNormal(loc, scale).log_prob(action)
        )

    def test_a_wider_box_scales_actions_and_density(self) -> None:
        low, high = torch.tensor([-2.0, 0.0]).double(), torch.tensor([2.0, 10.0]).double()
        loc, scale, noise = torch.zeros(4, 2).double(), torch.ones(4, 2).double(), torch.randn(4, 2).double()
        unit, wide = TanhNormal(loc, scale), TanhNormal(loc, scale, low=low, high=high)
        action, log_prob = unit.rsample_and_log_prob(noise=noise)
        wide_action, wide_log_prob = wide.rsample_and_log_prob(noise=noise)
        torch.testing.assert_close(wide_action, action * torch.tensor([2.0, 5.0]) + torch.tensor([0.0, 5.0]))
        torch.testing.assert_close(wide_log_prob, log_prob - math.log(2.0) - math.log(5.0))
        torch.testing.assert_close(wide.log_prob(wide_action.clone()), wide_log_prob)

    def test_stored_actions_at_the_edge_have_a_finite_density(self) -> None:
        dist = TanhNormal(torch.zeros(2), torch.ones(2))
        assert dist.log_prob(torch.tensor([1.0, -1.0])).isfinite()

    def test_pathwise_gradients(self) -> None:
        loc = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
        noise = torch.tensor([0.7], dtype=torch.float64)

        def sample(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return TanhNormal(value, torch.full_like(value, 0.5)).rsample_and_log_prob(noise=noise)

        assert torch.autograd.gradcheck(sample, (loc,))

    def test_mode_is_the_squashed_mean(self) -> None:
        dist = TanhNormal(torch.tensor([0.5]), torch.tensor([3.0]))
        assert dist.mode.item() == pytest.approx(math.tanh(0.5))
        assert torch.equal(dist.deterministic_sample, dist.mode)
        assert torch.equal(dist.median, dist.mode)
        with pytest.raises(NotImplementedError, match="average -log_prob over samples"):
            dist.entropy()

    def test_sample_shape_and_expand(self) -> None:
        dist = TanhNormal(torch.zeros(4, 2), torch.ones(4, 2))
        action, log_prob = dist.rsample_and_log_prob((10,))
        assert (action.shape, log_prob.shape) == ((10, 4, 2), (10, 4))
        assert dist.expand(torch.Size([3, 4])).rsample().shape == (3, 4, 2)


class TestNoise:
    def test_a_sample_that_was_changed_in_place_has_the_density_of_its_new_value_under_inference_mode_too(self):
        with torch.inference_mode():
            dist = TanhNormal(torch.full((2,), 20.0), torch.ones(2))
            action, log_prob = dist.rsample_and_log_prob()
            assert torch.equal(dist.log_prob(action), log_prob), "exact where tanh saturates"
            action.mul_(0.5)
            assert torch.equal(dist.log_prob(action), dist.log_prob(action.clone()))

    @pytest.mark.parametrize("kind", [TanhNormal, BoxNormal])
    def test_a_mean_in_whole_numbers_does_not_round_the_box(self, kind: Any):
        dist, same = (kind(loc, torch.ones(1), low=0.5, high=1.5) for loc in (torch.tensor([0]), torch.zeros(1)))
        assert torch.equal(dist.mode, same.mode)
        action = same.rsample()
        assert dist.rsample(noise=torch.zeros(1)).dtype == torch.float32
        assert torch.equal(dist.log_prob(action.clone()), same.log_prob(action.clone()))

    @pytest.mark.parametrize("kind", [TanhNormal, BoxNormal])
    def test_noise_of_another_shape_is_not_broadcast(self, kind: Callable[..., Any]) -> None:
        dist = kind(torch.zeros(3, 2), torch.ones(3, 2))
        for noise in (torch.randn(2), torch.randn(3, 1), torch.randn(3, 2)):
            with pytest.raises(O2OSpecError, match=r"expected \[4, 3, 2\], one number for each entry"):
                dist.rsample((4,), noise=noise)
        assert dist.rsample((4,), noise=torch.randn(4, 3, 2)).shape == (4, 3, 2)

    def test_a_sample_changed_in_place_has_the_density_of_its_new_value(self) -> None:
        dist = TanhNormal(torch.zeros(2), torch.ones(2))
        action = dist.sample()
        action.fill_(0.3)
        # log N(atanh 0.3) - log(1 - 0.3^2), twice
        right = 2 * (-0.5 * math.atanh(0.3) ** 2 - 0.5 * math.log(2 * math.pi) - math.log(1 - 0.09))
        assert dist.log_prob(action).item() == pytest.approx(right, abs=1e-5)


class TestActor:
    def test_collection_is_random_and_evaluation_is_not(self) -> None:
        actor, data = make_actor(3, 2), TensorDict({"observation": torch.zeros(5, 3)}, [5])
        with set_exploration_type(ExplorationType.RANDOM):
            assert not torch.equal(actor(data.clone())["action"], actor(data.clone())["action"])
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            out = actor(data.clone())
        torch.testing.assert_close(out["action"], out["loc"].tanh())

    def test_log_std_is_clipped_hard(self) -> None:
        actor = make_actor(3, 2, log_std_bounds=(-1.0, 0.5))
        for sign in (-1, 1):
            actor[0].module[1].log_std.bias.data.fill_(100.0 * sign)
            scale = actor(TensorDict({"observation": torch.zeros(3)}))["scale"]
            torch.testing.assert_close(scale, torch.full((2,), math.exp(0.5 if sign > 0 else -1.0)))

    def test_actions_follow_the_spec(self) -> None:
        spec = Bounded(torch.tensor([-3.0, 0.0]), torch.tensor([3.0, 1.0]), (2,))
        actor = make_actor(3, spec)
        action = actor(TensorDict({"observation": 100 * torch.randn(500, 3)}, [500]))["action"]
        assert spec.is_in(action[0])
        assert (action >= spec.space.low).all()
        assert (action <= spec.space.high).all()
        assert action[:, 0].abs().max() > 1.0

    @pytest.mark.parametrize(
        ("observation", "action", "message"),
        [
            (3, Unbounded((2,)), "expected a bounded continuous box"),
            (3, Bounded(torch.ones(2), -torch.ones(2), (2,)), "expected low below high"),
            (3, Bounded(-torch.ones(2), torch.tensor([1.0, -1.0]), (2,)), "expected low below high"),
            (Unbounded((4, 4)), 2, r"got observation of shape \[4, 4\], expected one flat vector"),
            (3, Bounded(-torch.ones(2, 2), torch.ones(2, 2), (2, 2)), "got action"),
        ],
    )
    def test_specs_that_do_not_fit(self, observation: object, action: object, message: str) -> None:
        with pytest.raises(O2OSpecError, match=message):
            make_actor(observation, action)  # type: ignore[arg-type]


class TestCritics:
    def test_order_of_layers(self) -> None:
        trunk = make_trunk(4, (8, 8), layer_norm=True, dropout=0.1)[0]
        names = [type(layer).__name__ for layer in trunk]
        assert names == ["Linear", "Dropout", "LayerNorm", "ReLU"] * 2

    def test_epsilon_is_flax_by_default(self) -> None:
        layers = [m for m in make_qvalue_ensemble(3, 2)[0].modules() if isinstance(m, nn.LayerNorm)]
        assert [layer.eps for layer in layers] == [1e-6, 1e-6]
        other = make_qvalue_ensemble(3, 2, layer_norm_eps=1e-5)[0]
        assert all(m.eps == 1e-5 for m in other.modules() if isinstance(m, nn.LayerNorm))

    def test_members_differ(self) -> None:
        first, second = make_qvalue_ensemble(3, 2, num_qvalue_nets=2)
        assert not torch.equal(first.module.head.weight, second.module.head.weight)

    def test_refusals(self) -> None:
        with pytest.raises(O2OSpecError, match="num_qvalue_nets=0"):
            make_qvalue_ensemble(3, 2, num_qvalue_nets=0)
        with pytest.raises(O2OSpecError, match="at least one width"):
            make_qvalue_ensemble(3, 2, hidden_sizes=())
        for widths in (8, "8", [0], [8, -1], [2.5], [None]):
            with pytest.raises(O2OSpecError, match="hidden_sizes"):
                make_qvalue_ensemble(3, 2, hidden_sizes=widths)  # type: ignore[arg-type]
        with pytest.raises(O2OSpecError, match=r"got action of shape \[0\]"):
            feature_dim(0, "action")

    def test_unit_norm_makes_unit_features(self) -> None:
        torch.manual_seed(0)  # with other numbers, all of a row's eight features may be 0
        net = QValueNet(make_trunk(5, (8,), unit_norm=True), 8)
        features = net.trunk(torch.randn(6, 5))
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(6))
        assert UnitNorm()(torch.zeros(3)).isfinite().all()

    def test_relu_is_relu_in_both_forms(self) -> None:
        x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
        for function in (ReLU(), torch.compile(ReLU(), backend="eager")):
            x.grad = None
            function(x).sum().backward()
            assert function(x).tolist() == [0.0, 0.0, 3.0]
            assert x.grad is not None
            assert x.grad.tolist() == [0.0, 0.0, 1.0]


class TestResidualCritics:
    """RLPD's ``use_critic_resnet``."""

    def test_numbers_are_those_of_the_authors_layers(self) -> None:
        """Written out in numpy: Dense, block, LayerNorm, ReLU, Dense; the block adds two normalized layers."""
        net: Any = make_qvalue_ensemble(3, 2, num_qvalue_nets=1, hidden_sizes=(8,), residual_blocks=2)[0].module
        for param in net.double().parameters():
            nn.init.normal_(param)
        first, *blocks, last_norm, _ = net.trunk
        inputs = torch.randn(6, 5, dtype=torch.float64)

        def dense(layer: Any, x: np.ndarray) -> np.ndarray:
            return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()

        def normalized(layer: Any, x: np.ndarray) -> np.ndarray:
            centered = x - x.mean(-1, keepdims=True)
            scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
            return np.maximum(scaled * layer.weight.detach().numpy() + layer.bias.detach().numpy(), 0.0)

        x = dense(first, inputs.numpy())
        for block in blocks:
            norm, _, linear, second_norm, _, second = block.layers
            x = x + dense(second, normalized(second_norm, dense(linear, normalized(norm, x))))
        expected = dense(net.head, normalized(last_norm, x))
        np.testing.assert_allclose(net(inputs[:, :3], inputs[:, 3:]).detach().numpy(), expected, rtol=1e-12)

    def test_sizes(self) -> None:
        """RLPD's: 23 inputs, width 256, one block; the number of widths is not read."""
        sizes: list[tuple[int, ...]] = [(256,), (256, 256, 256)]
        for widths in sizes:
            net = make_qvalue_ensemble(17, 6, num_qvalue_nets=1, hidden_sizes=widths, residual_blocks=1)[0]
            count = sum(param.numel() for param in net.parameters())
            assert count == (23 * 256 + 256) + 2 * (256 * 256 + 256) + 3 * 2 * 256 + (256 + 1)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"hidden_sizes": (8, 16)}, r"hidden_sizes=\(8, 16\), expected one width"),
            ({"hidden_sizes": ()}, "expected one width"),
            ({"layer_norm": False}, "layer_norm=False"),
            ({"layer_norm": "after_activation"}, "layer_norm='after_activation'"),
            ({"dropout": 0.1}, "dropout=0.1"),
            ({"unit_norm": True}, "unit_norm=True"),
            ({"residual_blocks": -1}, "residual_blocks"),
            ({"residual_blocks": 1.5}, "residual_blocks"),
        ],
    )
    def test_refusals(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(O2OSpecError, match=message):
            make_qvalue_ensemble(3, 2, **{"residual_blocks": 1, "hidden_sizes": (8,), **settings})

    def test_no_blocks_are_refused_where_there_is_nothing_else(self) -> None:
        with pytest.raises(O2OSpecError, match="num_blocks"):
            make_residual_trunk(3, 8, 0)


class TestInitialization:
    def net(self) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))

    def test_xavier(self) -> None:
        net = initialize_(self.net(), "xavier_uniform")
        bound = math.sqrt(6 / (64 + 256))
        assert net[0].weight.abs().max().item() == pytest.approx(bound, rel=0.01)  # type: ignore[index]
        assert all((layer.bias == 0).all() for layer in (net[0], net[2], net[4]))  # type: ignore[index]

    @pytest.mark.parametrize(
        ("recipe", "square", "last"),
        [("orthogonal", 2.0, math.sqrt(2)), ("orthogonal_small_last", 2.0, 1e-2), ("orthogonal_unit", 1.0, 1.0)],
    )
    def test_orthogonal(self, recipe: str, square: float, last: float) -> None:
        net = initialize_(self.net(), recipe)  # type: ignore[arg-type]
        weight = net[2].weight  # type: ignore[index]
        torch.testing.assert_close(weight @ weight.T, square * torch.eye(256), atol=1e-4, rtol=0)
        assert net[4].weight.norm().item() == pytest.approx(last, rel=1e-4)  # type: ignore[index]

    def test_fanin_counts_outputs_as_rlkit_does(self) -> None:
        net = initialize_(self.net(), "fanin", last_bound=1e-3)
        assert net[0].weight.abs().max().item() == pytest.approx(1 / 16, rel=0.01)  # type: ignore[index]
        assert net[4].weight.abs().max() <= 1e-3  # type: ignore[index]

    @pytest.mark.parametrize(("recipe", "bias"), [("fanin", 0.0), ("fanin_raised_bias", 0.1)])
    def test_hidden_bias_of_rlkit_and_of_off2on(self, recipe: Any, bias: float) -> None:
        net = initialize_(self.net(), recipe)
        assert net[0].weight.abs().max().item() == pytest.approx(1 / 16, rel=0.01)  # type: ignore[index]
        assert all(torch.equal(net[at].bias, torch.full((256,), bias)) for at in (0, 2))  # type: ignore[index]
        assert 0.0 < net[4].bias.abs().max() <= 3e-3  # type: ignore[index]

    def test_small_last_layer_and_raised_hidden_bias(self) -> None:
        before = self.net()
        net = initialize_(self.net(), "uniform_small_last")
        assert torch.equal(net[0].weight, before[0].weight)  # type: ignore[index]
        assert (net[0].bias == 0.1).all()  # type: ignore[index]
        assert net[4].weight.abs().max() <= 3e-3  # type: ignore[index]

    def test_without_an_output_layer_the_last_is_hidden(self) -> None:
        net = initialize_(self.net(), "orthogonal_small_last", has_output=False)
        assert net[4].weight.norm().item() == pytest.approx(math.sqrt(2), rel=1e-4)  # type: ignore[index]

    def test_torch_leaves_everything(self) -> None:
        before, net = self.net(), initialize_(self.net(), "torch")
        assert all(torch.equal(a, b) for a, b in zip(before.parameters(), net.parameters(), strict=True))

    def test_lecun_normal_is_flax_s(self) -> None:
        """Its variance is 1 / 64 behind the cut at two standard deviations of the uncut draw."""
        net = initialize_(self.net(), "lecun_normal")
        weight = net[0].weight  # type: ignore[index]
        assert weight.std().item() == pytest.approx(1 / 8, rel=0.03)
        assert weight.abs().max().item() == pytest.approx(2 / 8 / 0.8796256610342398, rel=0.01)
        assert net[4].weight.abs().max() <= math.sqrt(6 / 257)  # type: ignore[index]
        assert all((layer.bias == 0).all() for layer in (net[0], net[2], net[4]))  # type: ignore[index]

    def test_unknown_recipe(self) -> None:
        with pytest.raises(O2OSpecError, match="got initialization='he', expected one of xavier_uniform"):
            initialize_(self.net(), "he")  # type: ignore[arg-type]


class TestTemperature:
    def test_entropy_below_its_target_raises_alpha(self) -> None:
        for form in ("alpha", "log_alpha", "softplus"):
            temperature = Temperature(-1.0, init=2.0, form=form)  # type: ignore[arg-type]
            temperature.objective(torch.tensor([5.0])).mean().backward()  # entropy -5, target -1
            (parameter,) = temperature.parameters()
            assert parameter.grad.item() < 0  # type: ignore[union-attr]

    def test_softplus_keeps_its_own_parameter(self) -> None:
        temperature = Temperature(-1.0, form="softplus")
        assert [name for name, _ in temperature.named_parameters()] == ["raw_alpha"]
        assert temperature.raw_alpha.item() == pytest.approx(math.log(math.e - 1.0))
        for alpha in (1e-3, 1.0, 50.0):
            temperature.fill_(alpha)
            assert temperature.alpha.item() == pytest.approx(alpha, rel=1e-5)

    def test_fixed(self) -> None:
        temperature = Temperature(None, init=0.3)
        assert list(temperature.parameters()) == []
        assert temperature.alpha.item() == pytest.approx(0.3)
        assert temperature.objective(torch.ones(3)).tolist() == [0.0, 0.0, 0.0]

    def test_refusals(self) -> None:
        with pytest.raises(O2OSpecError, match=r"got init=0.0, expected a temperature that is positive"):
            Temperature(-1.0, init=0.0)
        for alpha in (-1.0, 0.0, math.nan, math.inf):
            with pytest.raises(O2OSpecError, match=f"got alpha={alpha}, expected a temperature that is positive"):
                Temperature(-1.0).fill_(alpha)
        with pytest.raises(O2OSpecError, match="form='beta'"):
            Temperature(-1.0, form="beta")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [make_actor, make_gaussian_actor, make_action_vae, make_conditional_vae])
def test_bounds_in_the_wrong_order(make: Callable[..., object]) -> None:
    with pytest.raises(O2OSpecError, match=r"log_std_bounds=\(2.0, -5.0\), expected \(lo, hi\)"):
        make(3, 2, hidden_sizes=(8,), log_std_bounds=(2.0, -5.0))


def test_a_fixed_temperature_says_that_a_state_has_set_it() -> None:
    learned, fixed = Temperature(-1.0, init=0.5), Temperature(None, init=0.02)
    with pytest.warns(UserWarning, match=r"changed a fixed temperature from 0\.02 to 0\.5"):
        fixed.load_state_dict(learned.state_dict())
    fixed.fill_(0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fixed.load_state_dict(Temperature(None, init=0.02).state_dict())  # the same run goes on
        learned.load_state_dict(fixed.state_dict())  # what is learned begins anywhere
    assert (fixed.alpha.item(), learned.alpha.item()) == (pytest.approx(0.02), pytest.approx(0.02))
