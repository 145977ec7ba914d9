# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""TD3BCLoss against CORL's numbers, in float64; case B acts in a box of half-width 2."""

from __future__ import annotations

import pytest
import torch
from torchrl.data import Bounded
from torchrl.objectives import SoftUpdate

from tests import golden_vectors as golden
from tests.objectives.golden_offline import adam, critics, depth, fill_actor, same_actor, same_critic, step, targets
from torchrl_o2o.modules import make_deterministic_actor
from torchrl_o2o.objectives import RecordedNoise, TD3BCLoss

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.parametrize("case", ["td3_bc/A", "td3_bc/B"])]


def build(case: str) -> tuple[golden.Tree, TD3BCLoss, SoftUpdate]:
    tree = golden.load(case)
    edge = golden.hp(tree, "max_action")
    box = Bounded(-edge * torch.ones(3), edge * torch.ones(3), (3,), dtype=torch.float64)
    actor = make_deterministic_actor(5, box, hidden_sizes=(16,) * depth(tree, "actor"))
    fill_actor(actor, tree)
    loss = TD3BCLoss(
        actor,
        critics(tree),
        alpha=golden.hp(tree, "alpha"),
        policy_noise=golden.hp(tree, "policy_noise") / edge,  # the reference scales both before use
        noise_clip=golden.hp(tree, "noise_clip") / edge,
    )
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    return tree, loss, targets(loss, tree)


def use_noise(loss: TD3BCLoss, tree: golden.Tree, index: int) -> None:
    loss.noise = RecordedNoise({"target_smoothing": tree["noise/target_smoothing"][index]})


def test_critic(case: str) -> None:
    tree, loss, _ = build(case)
    use_noise(loss, tree, 0)
    value, info = loss.qvalue_loss(golden.transitions(tree))
    golden.assert_close(info["target_value"], tree["out/target"], "target")
    golden.assert_close(value, tree["out/critic_loss"], "critic loss")
    value.backward()
    same_critic(loss, tree, "out/critic_grad", grad=True)


def test_actor(case: str) -> None:
    tree, loss, _ = build(case)
    value, info = loss.actor_loss(golden.transitions(tree))
    golden.assert_close(info["q_weight"], tree["out/lambda"], "lambda")
    golden.assert_close(info["bc_error"].mean(), tree["out/bc_mse"], "squared error")
    golden.assert_close(value, tree["out/actor_loss"], "actor loss")
    value.backward()
    same_actor(loss, tree, "out/actor_grad", grad=True)


def test_two_updates(case: str) -> None:
    """Critic step; critic step, actor step with the twice updated critic, all targets."""
    tree, loss, updater = build(case)
    batch, lr = golden.transitions(tree), golden.hp(tree, "lr")
    critic_optim, actor_optim = adam(loss.qvalue_network_params, lr), adam(loss.actor_network_params, lr)
    for index in range(2):
        use_noise(loss, tree, index)
        critic_loss = step(critic_optim, loss.qvalue_loss(batch)[0])
    actor_loss = step(actor_optim, loss.actor_loss(batch)[0])
    updater.step()
    golden.assert_close(critic_loss, tree["out/step2/critic_loss"], "critic loss")
    golden.assert_close(actor_loss, tree["out/step2/actor_loss"], "actor loss")
    same_actor(loss, tree, "out/step2/actor_grad", grad=True)
    same_actor(loss, tree, "out/step2/actor_after")
    same_actor(loss, tree, "out/step2/target_actor_after", target=True)
    same_critic(loss, tree, "out/step2/critic_after")
    same_critic(loss, tree, "out/step2/target_critic_after", target=True)
