# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict

from tests.objectives.offline_losses import act, assert_optimal, train
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import ReBRACLoss, RecordedNoise, TD3BCLoss
from torchrl_o2o.testing import ContextualTargetEnv, LossContract, probe_transitions, random_transitions

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def networks(observation: int = 5, action: int = 3, keys: tuple[Any, Any] = ("observation", "action")) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_sizes": (16, 16)}
    actor = make_deterministic_actor(observation, action, observation_key=keys[0], action_key=keys[1], **sizes)
    return actor, make_qvalue_ensemble(
        observation, action, num_qvalue_nets=2, in_keys=keys, layer_norm="after_activation", **sizes
    )


def with_next_action(batch: TensorDict) -> TensorDict:
    return batch.set(("next", "action"), torch.linspace(-1, 1, 3).expand(len(batch), 3).contiguous())


class TestContract(LossContract):
    trains = {"loss_qvalue": ("qvalue_network_params",), "loss_actor": ("actor_network_params",)}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> ReBRACLoss:
        return ReBRACLoss(*networks(self.observation_dim, self.action_dim, (observation_key, action_key)))

    def make_batch(self, **keys: Any) -> TensorDict:
        return with_next_action(super().make_batch(**keys))


class TestContractOnline(TestContract):
    """Without the critics' penalty no next action is read."""

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> ReBRACLoss:
        keys = (observation_key, action_key)
        return ReBRACLoss(*networks(self.observation_dim, self.action_dim, keys), critic_bc_coef=0.0)

    def make_batch(self, **keys: Any) -> TensorDict:
        return LossContract.make_batch(self, **keys)


class TestContractCalibrated(TestContract):
    """The row's return is read as well."""

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> ReBRACLoss:
        return ReBRACLoss(
            *networks(self.observation_dim, self.action_dim, (observation_key, action_key)), calibrate=True
        )

    def make_batch(self, **keys: Any) -> TensorDict:
        batch = super().make_batch(**keys)
        return batch.set("mc_return", torch.full((len(batch), 1), -100.0))  # below every target


@pytest.mark.parametrize("name", ["actor_bc_coef", "critic_bc_coef"])
def test_negative_weights_are_refused(name: str) -> None:
    with pytest.raises(O2OSpecError, match=f"{name}=-1"):
        ReBRACLoss(*networks(), **{name: -1.0})


def test_a_batch_without_next_actions_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="add_next_action"):
        ReBRACLoss(*networks()).qvalue_loss(random_transitions(4, 5, 3))


def test_without_penalty_the_critics_are_td3s() -> None:
    noise, batch = torch.randn(12, 3), random_transitions(12, 5, 3)
    losses = ReBRACLoss(*networks(), critic_bc_coef=0.0), TD3BCLoss(*networks())
    for loss in losses:
        loss.noise = RecordedNoise({"target_smoothing": noise})
    torch.testing.assert_close(losses[0].qvalue_loss(batch)[0], losses[1].qvalue_loss(batch)[0])


def test_target_actions_pay_for_their_distance() -> None:
    """The penalty is inside of the discount: gamma c_Q (1 - d) |a' - a|^2 is taken from the target."""
    batch = with_next_action(random_transitions(12, 5, 3))
    noise = torch.zeros(12, 3)
    targets = []
    for weight in (0.0, 0.5):
        loss = ReBRACLoss(*networks(), critic_bc_coef=weight)
        loss.noise = RecordedNoise({"target_smoothing": noise})
        targets.append(loss.target_value(batch))
    distance = (act(loss, batch["next", "observation"]) - batch["next", "action"]).square().sum(-1)
    goes_on = ~batch["next", "terminated"].squeeze(-1)
    torch.testing.assert_close(targets[0] - targets[1], 0.99 * 0.5 * goes_on * distance)


def test_no_calibrated_target_is_below_its_rows_return() -> None:
    """CORL's ``use_calibration``: max(r + gamma (1 - d) [min_j Q'_j - c_Q |a' - a|^2], G)."""
    batch, noise = with_next_action(random_transitions(12, 5, 3)), torch.randn(12, 3)
    loss = ReBRACLoss(*networks(), critic_bc_coef=0.5)
    loss.noise = RecordedNoise({"target_smoothing": noise})
    plain = loss.target_value(batch)
    batch["mc_return"] = (plain + torch.tensor([-1.0, 1.0]).repeat(6)).unsqueeze(-1)
    assert "mc_return" not in loss.in_keys
    loss.calibrate = True
    assert "mc_return" in loss.in_keys
    raised = torch.tensor([0.0, 1.0]).repeat(6)
    torch.testing.assert_close(loss.target_value(batch), plain + raised)
    value, info = loss.qvalue_loss(batch)
    torch.testing.assert_close(value, (info["qvalue"] - plain - raised).square().sum(0).mean())
    with pytest.raises(O2OSpecError, match=r"without 'mc_return', expected each row's return; .*add_mc_return"):
        loss.target_value(batch.exclude("mc_return"))


def test_the_weight_on_the_actor_is_read_anew() -> None:
    loss, batch = ReBRACLoss(*networks(), actor_bc_coef=1.0), with_next_action(random_transitions(12, 5, 3))
    before, info = loss.actor_loss(batch)
    loss.actor_bc_coef.fill_(0.5)
    torch.testing.assert_close(before - loss.actor_loss(batch)[0], 0.5 * info["bc_error"].mean())


def test_probe_actor_finds_the_contextual_optimum() -> None:
    torch.manual_seed(0)
    loss = ReBRACLoss(*networks(1, 1), actor_bc_coef=0.0, critic_bc_coef=0.0)
    train(loss, probe_transitions(ContextualTargetEnv(), 1024), 800, lr=5e-3)
    assert_optimal(loss)
