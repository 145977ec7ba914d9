# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import DensityRatio, Parametrization
from torchrl_o2o.objectives import DensityRatioLoss, join_sources
from torchrl_o2o.testing import LossContract


class TestContractLogit(LossContract):
    trains = {"loss_density_ratio": ("density_ratio_network_params",)}
    parametrization: Parametrization = "logit"

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> DensityRatioLoss:
        keys = (observation_key, action_key)
        ratio = DensityRatio(
            self.observation_dim,
            self.action_dim,
            hidden_sizes=(16, 16),
            parametrization=self.parametrization,
            in_keys=keys,
            output_bias=0.5,
        )
        return DensityRatioLoss(ratio)

    def make_batch(self, **keys: Any) -> TensorDict:
        batch = super().make_batch(**keys)
        return batch.set("is_offline", torch.arange(self.batch_size) % 2 == 0)


class TestContractSoftplus(TestContractLogit):
    parametrization: Parametrization = "softplus"


class TestContractReLU(TestContractLogit):
    parametrization: Parametrization = "relu"


def rows(mean: float, count: int, dim: int = 17) -> TensorDict:
    values = torch.randn(count, dim) + mean
    return TensorDict({"observation": values[:, :-2], "action": values[:, -2:]}, [count])


def test_both_ways_in_agree() -> None:
    loss = DensityRatioLoss(DensityRatio(15, 2, hidden_sizes=(16,)))
    offline, online = rows(0.0, 6), rows(1.0, 3)  # uneven on purpose
    expected, info = loss.density_ratio_loss(join_sources(offline, online))
    both = torch.cat([offline, online]).set("is_offline", torch.arange(9) < 6)
    out = loss(both)
    torch.testing.assert_close(out["loss_density_ratio"], expected)
    for key, value in info.items():
        torch.testing.assert_close(out[key], value)


def test_one_source_alone() -> None:
    loss = DensityRatioLoss(DensityRatio(15, 2, hidden_sizes=(16,)))
    batch = rows(0.0, 6).set("is_offline", torch.ones(6, dtype=torch.bool))
    out = loss(batch)
    assert all(value.isfinite() for value in out.values())
    assert out["log_ratio_online"] == 0


@pytest.mark.parametrize(("parametrization", "network_eps"), [("logit", 1e-10), ("softplus", 1e-10), ("relu", 1e-3)])
def test_the_losss_epsilon_need_not_be_the_networks(
    parametrization: Parametrization, network_eps: float, float64: None
) -> None:
    """A3RL's newer script adds 1e-5 to w in the priority only, and 1e-10 in the logarithms of the loss."""
    ratio = DensityRatio(15, 2, hidden_sizes=(16,), parametrization=parametrization, eps=network_eps)
    loss = DensityRatioLoss(ratio, eps=1e-2)
    offline, online = rows(0.0, 7), rows(0.5, 7)
    net = ratio.module
    output = [net.head(net.trunk(torch.cat([part["observation"], part["action"]], -1))) for part in (offline, online)]
    shape = {"logit": torch.exp, "softplus": torch.nn.functional.softplus, "relu": torch.relu}[parametrization]
    of_offline, of_online = shape(output[0]), shape(output[1])
    terms = (2.0 / (of_offline + 1.0) + 1e-2).log() + (2.0 * of_online / (of_online + 1.0) + 1e-2).log()
    for batch in (join_sources(offline, online), TensorDict({"offline": offline, "online": online})):
        loss.zero_grad()
        value, _ = loss.density_ratio_loss(batch)
        torch.testing.assert_close(value, -terms.mean())
        value.backward()
        expected = torch.autograd.grad(-terms.mean(), list(net.parameters()), retain_graph=True)
        own = dict(loss.density_ratio_network_params.named_parameters())
        for name, gradient in zip(dict(net.named_parameters()), expected, strict=True):
            torch.testing.assert_close(own[f"module.{name}"].grad, gradient)


@pytest.mark.parametrize("parametrization", ["logit", "softplus", "relu"])
@pytest.mark.parametrize("output", [-200.0, -20.0, 0.0, 3.0, 200.0])
def test_outputs_and_gradients_are_finite(parametrization: Parametrization, output: float) -> None:
    ratio = DensityRatio(3, 2, hidden_sizes=(8,), parametrization=parametrization, output_bias=output)
    loss = DensityRatioLoss(ratio)
    value, _ = loss.density_ratio_loss(join_sources(rows(0.0, 4, 5), rows(0.0, 4, 5)))
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


def test_softplus_meets_its_linear_tail() -> None:
    ratio = DensityRatio(3, 2, hidden_sizes=(8,), parametrization="softplus")
    ratio.module.head.weight.data.zero_()
    outputs = []
    for bias in (-15.001, -14.999, 2.0):
        ratio.module.head.bias.data.fill_(bias)
        outputs.append(ratio(rows(0.0, 1, 5))["log_density_ratio"].item())
    assert outputs[0] == pytest.approx(-15.001, abs=1e-4)
    assert outputs[1] == pytest.approx(-14.999, abs=1e-4)
    assert outputs[2] == pytest.approx(0.7547, abs=1e-4)  # log log(1 + e^2)


def test_unknown_parametrization() -> None:
    with pytest.raises(O2OSpecError, match="got parametrization='exp', expected one of 'logit', 'softplus', 'relu'"):
        DensityRatio(3, 2, parametrization="exp")  # type: ignore[arg-type]


@pytest.mark.parametrize("parametrization", ["logit", "softplus"])
def test_recovers_the_ratio_of_two_gaussians(parametrization: Parametrization) -> None:
    """N(0, I) offline, N(0.3, I) online, 17 dimensions: log w = 0.3 sum(x) - 17 * 0.045; correlation at least 0.97."""
    torch.manual_seed(0)
    ratio = DensityRatio(15, 2, hidden_sizes=(64, 64), parametrization=parametrization)
    loss = DensityRatioLoss(ratio)
    optim = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for _ in range(800):
        value, _ = loss.density_ratio_loss(join_sources(rows(0.0, 256), rows(0.3, 256)))
        optim.zero_grad()
        value.backward()
        optim.step()
    test = torch.cat([rows(0.0, 2000), rows(0.3, 2000)])
    true = 0.3 * torch.cat([test["observation"], test["action"]], -1).sum(-1) - 17 * 0.045
    got = loss.log_ratio(test).detach()
    correlation = torch.corrcoef(torch.stack([got, true]))[0, 1]
    assert correlation >= 0.97, f"correlation {correlation:.3f}"
    assert (got - true).mean().abs() < 0.2


def test_equal_sources_give_ratio_one() -> None:
    torch.manual_seed(0)
    loss = DensityRatioLoss(DensityRatio(3, 2, hidden_sizes=(32,)))
    optim = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for _ in range(500):
        value, _ = loss.density_ratio_loss(join_sources(rows(0.0, 256, 5), rows(0.0, 256, 5)))
        optim.zero_grad()
        value.backward()
        optim.step()
    assert loss.log_ratio(rows(0.0, 1000, 5)).abs().mean() < 0.1


def test_nested_rows_of_either_source_are_a_batch() -> None:
    loss, offline, online = DensityRatioLoss(DensityRatio(15, 2, hidden_sizes=(16,))), rows(0.0, 8), rows(0.3, 8)
    nested = TensorDict({"offline": offline, "online": online}, [8])
    expected, _ = loss.density_ratio_loss(join_sources(offline, online))
    torch.testing.assert_close(loss.density_ratio_loss(nested)[0], expected)


def test_the_entries_of_both_sources_can_be_renamed() -> None:
    loss, offline, online = DensityRatioLoss(DensityRatio(15, 2, hidden_sizes=(16,))), rows(0.0, 8), rows(0.3, 8)
    expected, _ = loss.density_ratio_loss(join_sources(offline, online))
    loss.set_keys(offline="demonstrations", online=("replay", "rows"), is_offline=("source", "is_offline"))
    nested = TensorDict({"demonstrations": offline, "replay": {"rows": online}}, [8])
    torch.testing.assert_close(loss.density_ratio_loss(nested)[0], expected)
    joined = join_sources(offline, online, is_offline=("source", "is_offline"))
    torch.testing.assert_close(loss(joined)["loss_density_ratio"], expected)


@pytest.mark.parametrize(
    "change", [lambda rows: rows.set("index", torch.arange(len(rows))), lambda rows: rows.double()]
)
def test_sources_with_other_entries_are_not_joined(change: Any) -> None:
    """Of two types torch would make the wider one, and both sources were then of a type that no network has."""
    rows = TensorDict({"observation": torch.zeros(4, 3), "action": torch.zeros(4, 2)}, [4])
    with pytest.raises(O2OSpecError, match=r"got offline and online rows that differ in .*expected the same entries"):
        join_sources(rows, change(rows.clone()))
