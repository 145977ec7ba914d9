# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrl.data import Bounded

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_action_vae, make_actor, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import BEARLoss, RecordedNoise, VAELoss
from torchrl_o2o.testing import LossContract, random_transitions

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def build(
    observation: int = 5,
    action: Bounded | int = 3,
    *,
    keys: tuple[Any, Any] = ("observation", "action"),
    **settings: Any,
) -> BEARLoss:
    torch.manual_seed(0)
    names: dict[str, Any] = {"hidden_sizes": (16, 16), "observation_key": keys[0], "action_key": keys[1]}
    actor, vae = make_actor(observation, action, **names), make_action_vae(observation, action, **names)
    critics = make_qvalue_ensemble(observation, action, num_qvalue_nets=2, hidden_sizes=(16, 16), in_keys=keys)
    return BEARLoss(actor, critics, vae, **settings)


class TestContract(LossContract):
    trains = {
        "loss_qvalue": ("qvalue_network_params",),
        "loss_actor": ("actor_network_params",),
        "loss_multiplier": ("multiplier",),
        "loss_vae": ("vae_network_params",),
    }
    settings: dict[str, Any] = {}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> BEARLoss:
        return build(self.observation_dim, self.action_dim, keys=(observation_key, action_key), **self.settings)


class TestContractGaussianWithSpread(TestContract):
    settings = {"kernel": "gaussian", "spread_weight": 0.4, "policy_samples": 4, "behavior_samples": 7}


def test_the_authors_widths() -> None:
    assert (build().mmd_sigma, build(kernel="gaussian").mmd_sigma) == (10.0, 20.0)


def test_settings_out_of_range_are_refused() -> None:
    wrong = {"policy_samples": 0, "soft_min_weight": 2.0, "mmd_sigma": 0.0, "spread_confidence": 0.0, "noise_clip": 0.0}
    for name, value in wrong.items():
        with pytest.raises(O2OSpecError, match=f"{name}={value}"):
            build(**{name: value})


def test_a_policy_that_is_not_squashed_is_refused() -> None:
    loss = build()
    other = BEARLoss(make_gaussian_actor(5, 3), make_qvalue_ensemble(5, 3), loss.vae_network)
    with pytest.raises(O2OSpecError, match="before tanh"):
        other.actor_loss(random_transitions(4, 5, 3))


def test_the_vae_is_spots() -> None:
    loss, batch, noise = build(), random_transitions(12, 5, 3), torch.randn(12, 6)
    other = VAELoss(make_action_vae(5, 3, hidden_sizes=(16, 16)))
    other.vae_network_params.data.copy_(loss.vae_network_params.data)
    loss.noise = other.noise = RecordedNoise({"latent": noise})
    torch.testing.assert_close(loss.vae_loss(batch)[0], other.vae_loss(batch)[0])


def test_another_box_than_one_to_one() -> None:
    box = Bounded(torch.tensor([-2.0, 0.0, -1.0]), torch.tensor([2.0, 0.5, 1.0]), shape=(3,))
    loss, wide = build(), build(action=box)  # of the same parameters
    batch, names = random_transitions(12, 5, 3), ("action", "behavior")
    loss.noise = wide.noise = RecordedNoise({name: torch.randn(5, 12, size) for name, size in zip(names, (3, 6))})
    divergence = loss.estimate_divergence(batch)  # is measured before tanh, and so before the box
    torch.testing.assert_close(wide.estimate_divergence(batch), divergence)
    wide.actor_loss(batch)[0].backward()


def test_behavior_is_decoded_before_tanh_from_clamped_latents() -> None:
    loss, state = build(), {"observation": torch.randn(12, 5)}
    far = torch.full((5, 12, 6), 3.0)
    loss.noise = RecordedNoise({"behavior": far})
    with loss.vae_network_params.to_module(loss.vae_network):
        decoded = loss.vae_network.module.decode(state["observation"], far.clamp(max=0.5))
    torch.testing.assert_close(loss._behavior(state, torch.zeros(12, 3)).tanh(), decoded)


@pytest.mark.parametrize(("clip", "same"), [(0.5, True), (None, False)])
def test_the_policys_noise_is_clamped_in_the_actors_loss_and_not_in_the_target(clip: float | None, same: bool) -> None:
    loss, batch = build(noise_clip=clip), random_transitions(12, 5, 3)
    behavior = torch.randn(5, 12, 6)

    def values(action: float, following: float) -> list[torch.Tensor]:
        drawn = {"action": torch.full((5, 12, 3), action), "next_action": torch.full((10, 12, 3), following)}
        loss.noise = RecordedNoise({**drawn, "behavior": behavior})
        target = loss.target_value(batch).clone()
        return [loss.actor_loss(batch)[0].detach(), loss.estimate_divergence(batch), target]

    at_bound, beyond = values(0.5, 0.5), values(3.0, 3.0)
    assert [torch.equal(*pair) for pair in zip(at_bound, beyond, strict=True)] == [same, same, False]
