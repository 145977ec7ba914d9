# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.modules import MLP

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import DensityRatio, DensityRatioConfidence
from torchrl_o2o.objectives import PerturbationRatioLoss, RecordedNoise, join_sources
from torchrl_o2o.testing import LossContract


class TestContract(LossContract):
    trains = {"loss_density_ratio": ("density_ratio_network_params",)}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> PerturbationRatioLoss:
        ratio = DensityRatio(
            self.observation_dim, self.action_dim, hidden_sizes=(16, 16), in_keys=(observation_key, action_key)
        )
        return PerturbationRatioLoss(ratio)


def rows(count: int) -> TensorDict:
    """Actions that follow the first two of three states, but for a little."""
    observation = torch.randn(count, 3) * torch.tensor([1.0, 1.0, 100.0])
    action = (0.5 * observation[:, :2] + 0.05 * torch.randn(count, 2)).clamp(-1, 1)
    return TensorDict({"observation": observation, "action": action}, [count])


def build(**settings: Any) -> PerturbationRatioLoss:
    return PerturbationRatioLoss(DensityRatio(3, 2, hidden_sizes=(32, 32), standardize=True), **settings)


def test_reference_by_hand() -> None:
    loss, data = build(uniform_share=0.25, noise_sizes=(0.1, 10.0)), rows(4)
    noise, other = torch.randn(4, 5), torch.full((4, 2), 0.7)
    size, swap = torch.tensor([[-1.0], [0.0], [1.0], [0.0]]), torch.tensor([[0.0], [-0.4], [0.9], [-0.6]])
    loss.noise = RecordedNoise({"perturbation": noise, "size": size, "other_action": other, "swap": swap})
    got = loss.reference(data)
    pairs = torch.cat([data["observation"], data["action"]], -1)
    expected = pairs + torch.tensor([[0.1], [1.0], [10.0], [1.0]]) * pairs.std(0, correction=0) * noise
    expected[3] = torch.cat([data["observation"][3], other[3]])  # -0.6 < 2 * 0.25 - 1
    torch.testing.assert_close(torch.cat([got["observation"], got["action"]], -1), expected)
    value = loss(data)["loss_density_ratio"]
    torch.testing.assert_close(value, super(PerturbationRatioLoss, loss).density_ratio_loss(join_sources(data, got))[0])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_and_scale_of_the_reference(share: float) -> None:
    torch.manual_seed(0)
    data, loss = rows(4000), build(uniform_share=share, noise_sizes=(0.5, 0.5))
    reference = loss.reference(data)
    kept = (reference["observation"] == data["observation"]).all(-1)
    assert kept.float().mean() == pytest.approx(share, abs=0.03)
    assert reference["action"][kept].abs().le(1.0).all()
    moved = (reference["observation"] - data["observation"])[~kept]
    if len(moved):
        torch.testing.assert_close(moved.std(0), 0.5 * data["observation"].std(0), rtol=0.05, atol=0.0)


def test_tells_strange_states_and_strange_actions() -> None:
    """Neither kind of pair is in the training rows or in the reference; the rows judged are fresh."""
    torch.manual_seed(0)
    data, network = rows(4000), DensityRatio(3, 2, hidden_sizes=(32, 32), standardize=True)
    network.fit_scale(data)
    loss = PerturbationRatioLoss(network)
    optim = torch.optim.Adam(loss.parameters(), lr=3e-3)
    for _ in range(400):
        value = loss(data[torch.randint(4000, (128,))])["loss_density_ratio"]
        optim.zero_grad()
        value.backward()
        optim.step()
    confidence = DensityRatioConfidence(network)  # trained in place
    fresh = rows(1000)
    crossed = fresh.clone().set("action", fresh["action"].flip(0))
    strange = rows(1000)
    strange["observation"] = strange["observation"] + torch.tensor([3.0, -3.0, 300.0])
    parts = {"fresh": fresh, "crossed": crossed, "strange": strange}
    p = {name: float(confidence(part)["p_off"].mean()) for name, part in parts.items()}
    assert p["fresh"] > 0.7
    assert p["crossed"] < 0.35
    assert p["strange"] < 0.2
    report = confidence.check(rows(1000))
    assert 0.85 < report.passing <= 1.0


@pytest.mark.parametrize("settings", [{"uniform_share": 1.5}, {"noise_sizes": (0.0, 1.0)}, {"noise_sizes": (2.0, 1.0)}])
def test_what_makes_no_reference_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(O2OSpecError, match=r"expected a share in .* and two positive numbers in increasing order"):
        build(**settings)


def test_scale_is_fixed_saved_and_asked_for() -> None:
    data = rows(500)
    data["observation"][:, 1] = 3.0  # does not move
    ratio = DensityRatio(3, 2, hidden_sizes=(8,), standardize=True)
    ratio.fit_scale(data)
    scale = ratio.module.trunk[0]
    torch.testing.assert_close(scale.std[0], data["observation"][:, 0].std(correction=0))
    assert scale.std[1] == 1.0
    seen = scale(torch.cat([data["observation"], data["action"]], -1))
    torch.testing.assert_close(seen.mean(0), torch.zeros(5), atol=1e-4, rtol=0.0)
    other = DensityRatio(3, 2, hidden_sizes=(8,), standardize=True)
    other.load_state_dict(ratio.state_dict())
    assert torch.equal(other(data.clone())["log_density_ratio"], ratio(data.clone())["log_density_ratio"])
    with pytest.raises(O2OSpecError, match="standardize=True"):
        DensityRatio(3, 2, hidden_sizes=(8,)).fit_scale(data)


def test_observations_in_several_entries_and_in_any_order() -> None:
    """The reference is that of the one observation that they are together."""
    data, noise = rows(6), {"perturbation": torch.randn(6, 5), "size": torch.zeros(6, 1)}
    noise |= {"other_action": torch.rand(6, 2), "swap": torch.linspace(-1.0, 1.0, 6).unsqueeze(-1)}
    network = TensorDictModule(MLP(5, 1, num_cells=[8]), in_keys=["action", "goal", "at"], out_keys=["log_ratio"])
    whole, parts = build(), PerturbationRatioLoss(network)
    whole.noise = parts.noise = RecordedNoise(noise)
    expected = whole.reference(data)
    data["goal"], data["at"] = data["observation"].split([1, 2], -1)
    got = parts.reference(data)
    torch.testing.assert_close(torch.cat([got["goal"], got["at"]], -1), expected["observation"])
    torch.testing.assert_close(got["action"], expected["action"])
    assert parts(data)["loss_density_ratio"].isfinite()
    parts.set_keys(action="command")
    with pytest.raises(O2OSpecError, match=r"reads .*'at'.*, expected the action 'command'"):
        parts.reference(data)
