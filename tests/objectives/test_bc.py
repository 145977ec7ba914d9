# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import BCLoss as UpstreamBCLoss

from tests.objectives.offline_losses import act, train
from torchrl_o2o.modules import make_actor, make_deterministic_actor, make_gaussian_actor
from torchrl_o2o.objectives import BCLoss, RecordedNoise
from torchrl_o2o.testing import LossContract, random_transitions

MAKERS = {"deterministic": make_deterministic_actor, "gaussian": make_gaussian_actor, "squashed": make_actor}


def build(kind: str = "gaussian", observation: int = 5, action: int = 3, **keys: Any) -> BCLoss:
    return BCLoss(MAKERS[kind](observation, action, hidden_sizes=(16, 16), **keys))


class TestContract(LossContract):
    trains = {"loss_actor": ("actor_network_params",)}
    weighted = ("loss_actor", "loss_value")
    kind = "gaussian"

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> BCLoss:
        keys = {"observation_key": observation_key, "action_key": action_key}
        return build(self.kind, self.observation_dim, self.action_dim, **keys)


class TestContractDeterministic(TestContract):
    kind = "deterministic"


class TestContractSquashed(TestContract):
    kind = "squashed"


def test_it_reads_observations_and_actions_only() -> None:
    loss = build()
    assert loss.in_keys == ["action", "observation"]
    loss.noise = RecordedNoise({})
    batch = random_transitions(6, 5, 3).select("observation", "action")
    assert loss(batch)["loss_actor"].isfinite()


@pytest.mark.parametrize("kind", list(MAKERS))
def test_it_is_torchrls_bc(kind: str) -> None:
    """Where upstream's loss recognizes the actor it computes the same number."""
    torch.manual_seed(0)
    actor, batch = MAKERS[kind](5, 3, hidden_sizes=(16,)), random_transitions(12, 5, 3)
    torch.testing.assert_close(BCLoss(actor)(batch)["loss_actor"], UpstreamBCLoss(actor)(batch)["loss_bc"])


def test_the_kind_of_actor_decides_not_its_keys() -> None:
    """An actor whose outputs have other names is cloned by likelihood all the same."""
    actor = make_gaussian_actor(5, 3, hidden_sizes=(16,))
    batch = random_transitions(12, 5, 3)
    expected = BCLoss(actor)(batch)["loss_actor"]
    actor[0].out_keys = ["mu", "sigma"]
    actor[-1].in_keys = ["mu", "sigma"]
    torch.testing.assert_close(BCLoss(actor)(batch)["loss_actor"], expected)


def test_importance_weights_multiply() -> None:
    loss, batch, weights = build("deterministic"), random_transitions(12, 5, 3), torch.rand(12)
    rows = (act(loss, batch["observation"]) - batch["action"]).square().mean(-1)
    torch.testing.assert_close(loss(batch.set("priority_weight", weights))["loss_actor"], (weights * rows).mean())


@pytest.mark.parametrize("kind", list(MAKERS))
def test_it_clones_a_policy(kind: str) -> None:
    torch.manual_seed(0)
    observation = torch.rand(512, 1) * 2 - 1
    action = 0.8 * observation + 0.05 * torch.randn(512, 1)
    loss = build(kind, 1, 1)
    train(loss, TensorDict({"observation": observation, "action": action}, [512]), 300, lr=2e-2)
    probe = torch.linspace(-0.9, 0.9, 7).unsqueeze(-1)
    assert (act(loss, probe) - 0.8 * probe).abs().max() < 0.1
    if kind == "gaussian":
        with loss.actor_network_params.to_module(loss.actor_network):
            scale = loss.actor_network.get_dist(TensorDict({"observation": probe}, [7])).scale
        assert scale.mean().item() == pytest.approx(0.05, abs=0.03)
