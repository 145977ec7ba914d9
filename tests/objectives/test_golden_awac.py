# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""AWACLoss against CORL's, the authors' (rlkit) and jaxrl's numbers, in float64."""

from __future__ import annotations

import pytest
import torch
from torchrl.objectives import SoftUpdate

from tests import golden_vectors as golden
from tests.objectives.golden_offline import adam, critics, depth, fill_actor, same_actor, same_critic, step, targets
from torchrl_o2o.modules import make_gaussian_actor
from torchrl_o2o.objectives import AWACLoss, RecordedNoise

pytestmark = pytest.mark.usefixtures("float64")

CORL = ["awac/A", "awac/B"]
RLKIT = ["awac/rlkit_A", "awac/rlkit_B"]


def build(case: str) -> tuple[golden.Tree, AWACLoss, SoftUpdate]:
    tree = golden.load(case)
    corl, rlkit = case in CORL, case in RLKIT
    actor = make_gaussian_actor(
        5,
        3,
        hidden_sizes=(16,) * depth(tree, "actor"),
        mean="linear" if corl else "tanh",
        std="sigmoid" if rlkit else "clip",
        log_std_bounds=(golden.hp(tree, "log_std_min"), golden.hp(tree, "log_std_max")),
        clip_samples=corl,
    )
    fill_actor(actor, tree)
    if corl:
        settings = {"awac_lambda": golden.hp(tree, "awac_lambda"), "weight_clip": golden.hp(tree, "exp_adv_max")}
    else:
        exponential = case == "awac/rlkit_B"
        settings = {"awac_lambda": golden.hp(tree, "beta"), "weight": "exp" if exponential else "softmax"}
        # The authors multiply both forms by the batch size: the softmax then has mean 1, "exp" is a sum.
        settings["actor_reduction"] = "sum" if exponential else "mean"
        settings["advantage_q"] = "min" if golden_flag(tree, "awr_min_q") else "first"
        if "hp/data_action_clip" in tree:
            settings["action_clip"] = golden.hp(tree, "data_action_clip")
    loss = AWACLoss(actor, critics(tree), **settings)
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    noise = tree["noise/action"].reshape(1, 8, 3)
    loss.noise = RecordedNoise({"next_action": tree["noise/next_action"], "action": noise})
    return tree, loss, targets(loss, tree)


def golden_flag(tree: golden.Tree, name: str) -> bool:
    return bool(tree[f"hp/{name}"]) if f"hp/{name}" in tree else True


@pytest.mark.parametrize("case", [*CORL, "awac/jaxrl_A"])
class TestSeparateLosses:
    def test_critic(self, case: str) -> None:
        tree, loss, _ = build(case)
        value, info = loss.qvalue_loss(golden.transitions(tree))
        golden.assert_close(info["target_value"], tree["out/target"], "target")
        golden.assert_close(value, tree["out/critic_loss"], "critic loss")
        value.backward()
        same_critic(loss, tree, "out/critic_grad", grad=True)

    def test_actor(self, case: str) -> None:
        tree, loss, _ = build(case)
        value, info = loss.actor_loss(golden.transitions(tree))
        golden.assert_close(info["advantage"], tree["out/adv"], "advantage")
        golden.assert_close(info["log_prob"], tree["out/log_prob_data"], "log prob")
        weight = info["weight"] if case in CORL else info["weight"] / 8
        golden.assert_close(weight, tree["out/weight"], "weight")
        golden.assert_close(value, tree["out/actor_loss"], "actor loss")
        value.backward()
        same_actor(loss, tree, "out/actor_grad", grad=True)

    def test_update(self, case: str) -> None:
        """CORL: critics, actor with the new critics, targets; jaxrl moves the targets first (the actor sees none)."""
        tree, loss, updater = build(case)
        batch, corl = golden.transitions(tree), case in CORL
        critic_optim = adam(loss.qvalue_network_params, golden.hp(tree, "lr" if corl else "critic_lr"))
        if corl:
            actor_optim = adam(loss.actor_network_params, golden.hp(tree, "lr"))
        else:
            decay = golden.hp(tree, "actor_decoupled_weight_decay")
            actor_lr = golden.hp(tree, "actor_lr")
            actor_optim = adam(loss.actor_network_params, actor_lr, torch.optim.AdamW, weight_decay=decay)
        critic_loss = step(critic_optim, loss.qvalue_loss(batch)[0])
        actor_loss = step(actor_optim, loss.actor_loss(golden.transitions(tree))[0])
        updater.step()
        golden.assert_close(actor_loss, tree["out/update/actor_loss"], "actor loss")
        if corl:
            golden.assert_close(critic_loss, tree["out/update/critic_loss"], "critic loss")
        same_critic(loss, tree, "out/update/critic_after")
        same_critic(loss, tree, "out/update/target_critic_after", target=True)
        same_actor(loss, tree, "out/update/actor_after")


@pytest.mark.parametrize("case", RLKIT)
class TestAuthors:
    def test_losses(self, case: str) -> None:
        tree, loss, _ = build(case)
        loss.reduction = "none"
        error, info = loss.qvalue_loss(golden.transitions(tree))
        golden.assert_close(info["target_value"], tree["out/target"], "target")
        golden.assert_close(error.mean(), tree["out/critic_losses"].sum(), "critic losses")
        _, info = loss.actor_loss(golden.transitions(tree))
        golden.assert_close(info["advantage"], tree["out/adv"], "advantage")
        golden.assert_close(info["log_prob"], tree["out/log_prob_data"], "log prob")
        times_batch = info["weight"] * (8 if loss.weight == "exp" else 1)
        golden.assert_close(times_batch, tree["out/weight_times_batch"], "weight")

    def test_update(self, case: str) -> None:
        """All losses from one set of parameters, the actor's Adam with classic L2 decay."""
        tree, loss, updater = build(case)
        decay, batch = golden.hp(tree, "actor_l2_weight_decay"), golden.transitions(tree)
        actor_optim = adam(loss.actor_network_params, golden.hp(tree, "actor_lr"), weight_decay=decay)
        critic_optim = adam(loss.qvalue_network_params, golden.hp(tree, "critic_lr"))
        actor_loss, _ = loss.actor_loss(batch)
        critic_loss, _ = loss.qvalue_loss(batch)
        golden.assert_close(actor_loss, tree["out/actor_loss"], "actor loss")
        step(critic_optim, critic_loss)
        same_critic(loss, tree, "out/critic_grad", grad=True)
        step(actor_optim, actor_loss)
        same_actor(loss, tree, "out/actor_grad", grad=True)
        updater.step()
        same_critic(loss, tree, "out/critic_after")
        same_critic(loss, tree, "out/target_critic_after", target=True)
        same_actor(loss, tree, "out/actor_after")
