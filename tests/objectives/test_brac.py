# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.objectives.offline_losses import assert_optimal, train
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import Multiplier, Temperature, make_actor, make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import BRACLoss, EnsembleSACLoss, RecordedNoise
from torchrl_o2o.objectives.carry import carry_over
from torchrl_o2o.testing import ContextualTargetEnv, LossContract, probe_transitions, random_transitions

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def build(
    observation: int = 5, action: int = 3, *, keys: tuple[Any, Any] = ("observation", "action"), **settings: Any
) -> BRACLoss:
    torch.manual_seed(0)
    names = {"observation_key": keys[0], "action_key": keys[1]}
    actor, behavior = (make_actor(observation, action, hidden_sizes=(16, 16), **names) for _ in range(2))
    critics = make_qvalue_ensemble(observation, action, num_qvalue_nets=2, hidden_sizes=(16, 16), in_keys=keys)
    return BRACLoss(actor, critics, behavior, **settings)


class TestContractPolicyPenalty(LossContract):
    """Weights that are learned; BRAC-p."""

    trains = {
        "loss_qvalue": ("qvalue_network_params",),
        "loss_actor": ("actor_network_params",),
        "loss_alpha": ("temperature",),
        "loss_multiplier": ("multiplier",),
    }
    settings: dict[str, Any] = {"soft_min_weight": 0.75}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> BRACLoss:
        learned = {"multiplier": Multiplier(0.5, target=0.0), "temperature": Temperature(-3.0, init=0.2)}
        keys = (observation_key, action_key)
        return build(self.observation_dim, self.action_dim, keys=keys, **learned, **self.settings)


class TestContractValuePenalty(TestContractPolicyPenalty):
    settings = {"value_penalty": True}


class TestContractDiscrepancy(TestContractPolicyPenalty):
    settings = {"value_penalty": True, "divergence": "mmd"}


def test_settings_out_of_range_are_refused() -> None:
    wrong = {"divergence_samples": 0, "soft_min_weight": 1.5, "mmd_sigma": 0.0, "action_margin": 0.0}
    for name, value in wrong.items():
        with pytest.raises(O2OSpecError, match=f"{name}={value}"):
            build(**{name: value})
    with pytest.raises(O2OSpecError, match="divergence"):
        build(divergence="w")


def test_a_behavior_without_density_is_refused() -> None:
    loss = build()
    with pytest.raises(O2OSpecError, match="BCLoss"):
        BRACLoss(loss.actor_network, make_qvalue_ensemble(5, 3), make_deterministic_actor(5, 3))


def test_without_weight_it_is_sac() -> None:
    batch, noise = random_transitions(12, 5, 3), torch.randn(12, 3)
    loss = build(multiplier=Multiplier(0.0), value_penalty=True, temperature=Temperature(None, init=0.2))
    sac = EnsembleSACLoss(
        make_actor(5, 3, hidden_sizes=(16, 16)),
        make_qvalue_ensemble(5, 3, num_qvalue_nets=2, hidden_sizes=(16, 16)),
        temperature=Temperature(None, init=0.2),
        actor_q="min",
    )
    carry_over(loss, sac)
    recorded = {"action": noise, "next_action": noise, "divergence": torch.randn(4, 12, 3)}
    loss.noise = sac.noise = RecordedNoise({**recorded, "next_divergence": recorded["divergence"]})
    torch.testing.assert_close(loss.target_value(batch), sac.target_value(batch))
    torch.testing.assert_close(loss.actor_loss(batch)[0], sac.actor_loss(batch)[0])


def test_the_penalty_in_the_target_is_discounted_and_cut() -> None:
    batch = random_transitions(12, 5, 3)
    draws = {"next_action": torch.randn(12, 3), "next_divergence": torch.randn(4, 12, 3)}
    plain, penalized = build(multiplier=Multiplier(2.0)), build(multiplier=Multiplier(2.0), value_penalty=True)
    plain.noise = penalized.noise = RecordedNoise(draws)
    penalized.load_state_dict(plain.state_dict())
    difference = plain.target_value(batch) - penalized.target_value(batch)
    plain.noise = RecordedNoise({"divergence": draws["next_divergence"]})
    there = batch.clone().set("observation", batch["next", "observation"])
    goes_on = ~batch["next", "terminated"].squeeze(-1)
    torch.testing.assert_close(difference, 0.99 * 2.0 * goes_on * plain.estimate_divergence(there))


def test_a_policy_at_its_clone_diverges_little() -> None:
    loss = build(divergence_samples=64)
    away = loss.estimate_divergence(random_transitions(64, 5, 3))
    loss.behavior_network_params.data.copy_(loss.actor_network_params.data)
    near = loss.estimate_divergence(random_transitions(64, 5, 3))
    assert near.abs().mean() < 0.05 * away.mean(), "nothing but the clip"


def test_the_divergence_of_the_actors_step_is_used() -> None:
    loss, batch = build(multiplier=Multiplier(0.5, target=1.0)), random_transitions(12, 5, 3)
    value, _ = loss.multiplier_loss(batch, divergence=torch.full((12,), 3.0))
    assert value.item() == pytest.approx(-0.5 * 2.0)
    drawn, _ = loss.multiplier_loss(batch)
    assert drawn.item() != value.item()


def test_a_warm_start_has_no_values() -> None:
    loss, batch = build(), random_transitions(12, 5, 3)
    loss.q_weight.fill_(0.0)
    value, info = loss.actor_loss(batch)
    torch.testing.assert_close(value, 0.1 * info["divergence"].mean())


def test_probe_actor_finds_the_contextual_optimum() -> None:
    loss = build(1, 1, multiplier=Multiplier(0.0))
    train(loss, probe_transitions(ContextualTargetEnv(), 1024), 800, lr=5e-3)
    assert_optimal(loss)
