# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Bounded
from torchrl.objectives import TD3BCLoss as UpstreamTD3BCLoss

from tests.objectives.offline_losses import act, assert_discounted, assert_optimal, train
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_deterministic_actor, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import BCLoss, RecordedNoise, TD3BCLoss
from torchrl_o2o.testing import (
    ContextualTargetEnv,
    DelayedRewardEnv,
    LossContract,
    probe_transitions,
    random_transitions,
)

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def build(
    observation: int = 5,
    action: Any = 3,
    *,
    keys: tuple[Any, Any] = ("observation", "action"),
    **settings: Any,
) -> TD3BCLoss:
    actor = make_deterministic_actor(
        observation, action, hidden_sizes=(16, 16), observation_key=keys[0], action_key=keys[1]
    )
    critics = make_qvalue_ensemble(
        observation, action, num_qvalue_nets=2, hidden_sizes=(16, 16), in_keys=keys, layer_norm=False
    )
    return TD3BCLoss(actor, critics, **settings)


class TestContract(LossContract):
    trains = {"loss_qvalue": ("qvalue_network_params",), "loss_actor": ("actor_network_params",)}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> TD3BCLoss:
        return build(self.observation_dim, self.action_dim, keys=(observation_key, action_key))


class TestContractWideBox(TestContract):
    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> TD3BCLoss:
        box = Bounded(-2 * torch.ones(self.action_dim), torch.ones(self.action_dim), (self.action_dim,))
        return build(self.observation_dim, box, keys=(observation_key, action_key), ensemble_reduction="mean")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "got alpha=-1.0"),
        ({"policy_noise": -0.1}, "got policy_noise=-0.1"),
        ({"ensemble_reduction": "none"}, "got ensemble_reduction='none'"),
    ],
)
def test_options_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(O2OSpecError, match=message):
        build(**settings)


def test_actors_that_do_not_fit_are_refused() -> None:
    critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=2)
    with pytest.raises(O2OSpecError, match="got a stochastic actor"):
        TD3BCLoss(make_gaussian_actor(5, 3), critics)
    plain = TensorDictModule(nn.Linear(5, 3), in_keys=["observation"], out_keys=["action"])
    with pytest.raises(O2OSpecError, match="expected one bounded action"):
        TD3BCLoss(plain, critics)


def test_alpha_zero_is_behavior_cloning() -> None:
    loss, batch = build(alpha=0.0), random_transitions(12, 5, 3)
    cloning = BCLoss(loss.actor_network)
    cloning.actor_network_params = loss.actor_network_params
    torch.testing.assert_close(loss.actor_loss(batch)[0], cloning.actor_loss(batch)[0])


def test_the_actor_climbs_the_first_critic_only() -> None:
    loss, batch = build(), random_transitions(12, 5, 3)
    before = loss.actor_loss(batch)[0]
    bias = loss.qvalue_network_params["module", "head", "bias"]
    bias.data[1] += 10.0
    assert torch.equal(loss.actor_loss(batch)[0], before)
    bias.data[0] += 10.0
    assert loss.actor_loss(batch)[0] != before


def test_the_actors_loss_does_not_depend_on_the_scale_of_rewards() -> None:
    loss, batch = build(), random_transitions(12, 5, 3)
    before = loss.actor_loss(batch)[0]
    for name in ("weight", "bias"):
        loss.qvalue_network_params["module", "head", name].data.mul_(100.0)
    torch.testing.assert_close(loss.actor_loss(batch)[0], before)


def test_no_noise_gives_the_target_actors_own_action() -> None:
    loss, batch = build(policy_noise=0.0), random_transitions(12, 5, 3)
    loss.noise = RecordedNoise({"target_smoothing": torch.randn(12, 3)})
    following = batch["next"].clone().set("next", batch["next"])
    following["action"] = act(loss, following["observation"])
    value = loss.qvalue_loss(following)[1]["qvalue"].amin(0)
    mask = ~batch["next", "terminated"].squeeze(-1)
    torch.testing.assert_close(loss.target_value(batch), batch["next", "reward"].squeeze(-1) + 0.99 * mask * value)


def test_it_is_torchrls_td3_bc() -> None:
    """Against upstream's TD3BCLoss on the same networks, without smoothing noise."""
    torch.manual_seed(0)
    actor = make_deterministic_actor(5, 3, hidden_sizes=(16,))
    critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=2, hidden_sizes=(16,), layer_norm=False)
    ours, batch = TD3BCLoss(actor, critics, policy_noise=0.0), random_transitions(12, 5, 3)
    theirs = UpstreamTD3BCLoss(
        actor, critics, num_qvalue_nets=2, policy_noise=0.0, action_spec=actor.spec["action"], alpha=2.5
    )
    torch.testing.assert_close(ours.actor_loss(batch)[0], theirs.actor_loss(batch.clone())[0].mean())
    # Theirs defaults to the smooth l1 distance; with l2 it is the sum over both critics.
    theirs.loss_function = "l2"
    torch.testing.assert_close(ours.qvalue_loss(batch)[0], theirs.qvalue_loss(batch.clone())[0])


def test_probe_actor_finds_the_contextual_optimum() -> None:
    torch.manual_seed(0)
    loss = build(1, 1, alpha=50.0)
    train(loss, probe_transitions(ContextualTargetEnv(), 1024), 400, lr=5e-3)
    assert_optimal(loss)


def test_probe_critic_discounts_a_delayed_reward() -> None:
    torch.manual_seed(0)
    loss, data = build(1, 1), probe_transitions(DelayedRewardEnv(), 64)
    loss.make_value_estimator(gamma=0.5)
    train(loss, data, 200, lr=1e-2)
    assert_discounted(loss, data)
