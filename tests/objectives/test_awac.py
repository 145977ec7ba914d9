# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import NormalParamExtractor, ProbabilisticActor

from tests.objectives.offline_losses import act, assert_discounted, assert_optimal, train
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import AWACLoss, RecordedNoise
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
    action: int = 3,
    *,
    keys: tuple[Any, Any] = ("observation", "action"),
    squashed: bool = False,
    **settings: Any,
) -> AWACLoss:
    make = make_actor if squashed else make_gaussian_actor
    actor = make(observation, action, hidden_sizes=(16, 16), observation_key=keys[0], action_key=keys[1])
    critics = make_qvalue_ensemble(
        observation, action, num_qvalue_nets=2, hidden_sizes=(16, 16), in_keys=keys, layer_norm=False
    )
    return AWACLoss(actor, critics, **settings)


class TestContract(LossContract):
    trains = {"loss_qvalue": ("qvalue_network_params",), "loss_actor": ("actor_network_params",)}
    settings: dict[str, Any] = {}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> AWACLoss:
        return build(self.observation_dim, self.action_dim, keys=(observation_key, action_key), **self.settings)


class TestContractSoftmaxMeanAction(TestContract):
    settings = {"weight": "softmax", "value_samples": 0, "score_clip": 0.5, "advantage_q": "first"}


class TestContractSquashedManySamples(TestContract):
    settings = {"squashed": True, "value_samples": 4, "weight": "whiten", "q_max": 0.5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": "clip"}, "got weight='clip', expected one of 'exp_clip'"),
        ({"advantage_q": "max"}, "got advantage_q='max'"),
        ({"awac_lambda": 0.0}, "got awac_lambda=0.0, expected a positive temperature"),
        ({"value_samples": -1}, "got value_samples=-1"),
        ({"reduction": "avg"}, "got reduction='avg'"),
    ],
)
def test_options_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(O2OSpecError, match=message):
        build(**settings)


def test_no_critic_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="got no critic"):
        AWACLoss(make_gaussian_actor(5, 3), [])


@pytest.mark.parametrize("weight", ["exp_clip", "exp", "softmax", "whiten"])
def test_infinite_temperature_is_behavior_cloning(weight: Any) -> None:
    loss, batch = build(awac_lambda=math.inf, weight=weight), random_transitions(12, 5, 3)
    with loss.actor_network_params.to_module(loss.actor_network):
        expected = -loss.actor_network.get_dist(batch).log_prob(batch["action"]).mean()
    torch.testing.assert_close(loss.actor_loss(batch)[0], expected)


def test_more_samples_average_the_value() -> None:
    """K samples: critics are averaged over the samples, then the minimum is taken (jaxrl's order)."""
    batch, noise = random_transitions(6, 5, 3), torch.randn(3, 6, 3)
    torch.manual_seed(0)
    loss = build(value_samples=3)
    loss.noise = RecordedNoise({"action": noise})
    with loss.actor_network_params.to_module(loss.actor_network):
        dist = loss.actor_network.get_dist(batch)
    qvalues = torch.zeros(3, 2, 6)
    for k in range(3):
        single = batch.clone().set("action", dist.rsample(noise=noise[k]).detach())
        qvalues[k] = loss.qvalue_loss(single, target_value=torch.zeros(6))[1]["qvalue"]
    data = loss.qvalue_loss(batch, target_value=torch.zeros(6))[1]["qvalue"].amin(0)
    torch.testing.assert_close(loss.advantage(batch), data - qvalues.mean(0).amin(0))


def test_mean_action_needs_no_noise_and_gives_no_advantage_to_itself() -> None:
    loss, batch = build(value_samples=0), random_transitions(6, 5, 3)
    loss.noise = RecordedNoise({})
    batch["action"] = act(loss, batch["observation"])
    torch.testing.assert_close(loss.advantage(batch), torch.zeros(6))


def test_torch_s_own_distributions_have_a_mean_action_too() -> None:
    """They have no ``deterministic_sample``."""

    class Gaussian(torch.distributions.Independent):
        def __init__(self, loc: torch.Tensor, scale: torch.Tensor) -> None:
            super().__init__(torch.distributions.Normal(loc, scale), 1)

    body = TensorDictModule(nn.Sequential(nn.Linear(5, 6), NormalParamExtractor()), ["observation"], ["loc", "scale"])
    actor = ProbabilisticActor(body, in_keys=["loc", "scale"], distribution_class=Gaussian)
    loss = AWACLoss(actor, make_qvalue_ensemble(5, 3, num_qvalue_nets=2, hidden_sizes=(16,)), value_samples=0)
    batch = random_transitions(6, 5, 3)
    batch["action"] = body(batch.clone())["loc"].detach()
    torch.testing.assert_close(loss.advantage(batch), torch.zeros(6))


def test_q_max_caps_predictions_and_targets() -> None:
    loss, batch = build(q_max=-0.5), random_transitions(12, 5, 3)
    info = loss.qvalue_loss(batch)[1]
    assert (info["qvalue"] <= -0.5).all()
    following = (info["target_value"] - batch["next", "reward"].squeeze(-1)) / 0.99
    assert (following[~batch["next", "terminated"].squeeze(-1)] <= -0.5 + 1e-6).all()


def test_clipped_weights_are_counted() -> None:
    torch.manual_seed(0)  # an advantage of less than 1e-4 ln 5 would be above 0 and not clipped
    loss, batch = build(awac_lambda=1e-4, weight_clip=5.0), random_transitions(12, 5, 3)
    info = loss.actor_loss(batch)[1]
    assert torch.equal(info["clipped"], (info["advantage"] > 0).float())
    assert info["weight"].max() == 5.0


def test_importance_weights_multiply_the_critics_errors() -> None:
    loss, batch, weights = build(reduction="none"), random_transitions(12, 5, 3), torch.rand(12)
    target = loss.target_value(batch)
    rows = loss.qvalue_loss(batch, target_value=target)[0]
    torch.testing.assert_close(
        loss.qvalue_loss(batch.set("priority_weight", weights), target_value=target)[0], weights * rows
    )


def test_probe_actor_finds_the_contextual_optimum() -> None:
    torch.manual_seed(0)
    loss = build(1, 1, awac_lambda=0.03)
    train(loss, probe_transitions(ContextualTargetEnv(), 1024), 300, lr=1e-2)
    assert_optimal(loss)


def test_probe_critic_discounts_a_delayed_reward() -> None:
    torch.manual_seed(0)
    loss, data = build(1, 1), probe_transitions(DelayedRewardEnv(), 64)
    loss.make_value_estimator(gamma=0.5)
    train(loss, data, 200, lr=1e-2)
    assert_discounted(loss, data)


def test_the_advantage_is_of_the_clamped_actions() -> None:
    loss, batch = build(5, 3, action_clip=0.3, value_samples=0), random_transitions(8, 5, 3)
    clamped = batch.clone().set("action", batch["action"].clamp(-0.3, 0.3))
    _, info = loss.actor_loss(batch)
    for other in (loss.advantage(batch), loss.advantage(clamped), loss.actor_loss(clamped)[1]["advantage"]):
        assert torch.equal(info["advantage"], other)
    assert not torch.equal(loss.qvalue_loss(batch)[1]["qvalue"], loss.qvalue_loss(clamped)[1]["qvalue"])
