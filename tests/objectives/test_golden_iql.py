# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""IQLLoss against CORL's numbers (old value, mean over critics) and the authors' (new value, sum), in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrl.objectives import SoftUpdate

from tests import golden_vectors as golden
from tests.objectives.golden_offline import (
    adam,
    critics,
    depth,
    fill_actor,
    flat,
    same_actor,
    same_critic,
    step,
    targets,
)
from torchrl_o2o.modules import make_deterministic_actor, make_gaussian_actor, make_value_network
from torchrl_o2o.objectives import IQLLoss

pytestmark = pytest.mark.usefixtures("float64")

CORL = ["iql/A", "iql/B", "iql/C"]
AUTHORS = "iql/jax_A"


def build(case: str) -> tuple[golden.Tree, IQLLoss, SoftUpdate]:
    tree = golden.load(case)
    hidden = (16,) * depth(tree, "actor")
    if "actor/log_std" in tree:
        bounds = (golden.hp(tree, "log_std_min"), golden.hp(tree, "log_std_max"))
        actor = make_gaussian_actor(5, 3, hidden_sizes=hidden, log_std_bounds=bounds)
    else:
        actor = make_deterministic_actor(5, 3, hidden_sizes=hidden)
    fill_actor(actor, tree)
    value = make_value_network(5, hidden_sizes=(16,) * depth(tree, "value"))
    golden.fill(value, golden.sub(tree, "value"))
    loss = IQLLoss(
        actor,
        critics(tree),
        value,
        expectile=golden.hp(tree, "expectile"),
        beta=golden.hp(tree, "beta"),
        weight_clip=golden.hp(tree, "exp_adv_max"),
        ensemble_reduction="sum" if case == AUTHORS else "mean",
    )
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    return tree, loss, targets(loss, tree)


def same_value(loss: IQLLoss, tree: golden.Tree, prefix: str, *, grad: bool = False) -> None:
    params = flat(loss.value_network_params, grad)
    golden.assert_params(params, loss.value_network.module, golden.sub(tree, prefix), "module.")


def optimizers(loss: IQLLoss, tree: golden.Tree) -> dict[str, Any]:
    optims = {name: adam(getattr(loss, f"{net}_network_params"), golden.hp(tree, f"{name}_lr")) for name, net in _NETS}
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optims["actor"], int(golden.hp(tree, "actor_cosine_T_max")))
    return {**optims, "schedule": cosine}


_NETS = [("actor", "actor"), ("critic", "qvalue"), ("value", "value")]


@pytest.mark.parametrize("case", [*CORL, AUTHORS])
class TestLosses:
    def test_value(self, case: str) -> None:
        tree, loss, _ = build(case)
        value, info = loss.value_loss(golden.transitions(tree))
        golden.assert_close(info["advantage"], tree["out/adv"], "advantage")
        if "out/v" in tree:
            golden.assert_close(info["value"], tree["out/v"], "value")
        golden.assert_close(value, tree["out/value_loss"], "value loss")
        value.backward()
        same_value(loss, tree, "out/value_grad", grad=True)

    def test_critic(self, case: str) -> None:
        tree, loss, _ = build(case)
        value, info = loss.qvalue_loss(golden.transitions(tree))
        golden.assert_close(info["target_value"], tree["out/target"], "target")
        golden.assert_close(info["qvalue"], tree["out/q"], "q")
        golden.assert_close(value, tree["out/critic_loss"], "critic loss")
        value.backward()
        same_critic(loss, tree, "out/critic_grad", grad=True)

    def test_actor(self, case: str) -> None:
        tree, loss, _ = build(case)
        value, info = loss.actor_loss(golden.transitions(tree))
        golden.assert_close(info["weight"], tree["out/weight"], "weight")
        if "out/log_prob_data" in tree:
            golden.assert_close(-info["imitation_error"], tree["out/log_prob_data"], "log prob")
        golden.assert_close(value, tree["out/actor_loss"], "actor loss")
        value.backward()
        same_actor(loss, tree, "out/actor_grad", grad=True)


@pytest.mark.parametrize("case", CORL)
def test_two_updates_in_corls_order(case: str) -> None:
    """V(s') and the advantage are from the old value; V, critics, targets, actor."""
    tree, loss, updater = build(case)
    batch, optims = golden.transitions(tree), optimizers(loss, tree)
    for _ in range(2):
        target = loss.target_value(batch)
        value_loss, info = loss.value_loss(batch)
        last = {"value_loss": step(optims["value"], value_loss)}
        last["q_loss"] = step(optims["critic"], loss.qvalue_loss(batch, target_value=target)[0])
        updater.step()
        last["actor_loss"] = step(optims["actor"], loss.actor_loss(batch, old_advantage=info["advantage"])[0])
        optims["schedule"].step()
    for name, value in last.items():
        golden.assert_close(value, tree[f"out/train2/{name}"], name)
    same_actor(loss, tree, "out/train2/actor_after")
    same_critic(loss, tree, "out/train2/critic_after")
    same_critic(loss, tree, "out/train2/target_critic_after", target=True)
    same_value(loss, tree, "out/train2/value_after")


def test_two_updates_in_the_authors_order() -> None:
    """V first; the actor and the critics see the new value; targets last."""
    tree, loss, updater = build(AUTHORS)
    batch, optims = golden.transitions(tree), optimizers(loss, tree)
    for t in range(2):
        last = {"value_loss": step(optims["value"], loss.value_loss(batch)[0])}
        last["actor_loss"] = step(optims["actor"], loss.actor_loss(batch)[0])
        last["critic_loss"] = step(optims["critic"], loss.qvalue_loss(batch)[0])
        updater.step()
        optims["schedule"].step()
        for name, value in last.items():
            golden.assert_close(value, tree[f"out/update{t}/{name}"], f"{name} {t}")
    same_actor(loss, tree, "out/update1/actor_after")
    same_critic(loss, tree, "out/update1/critic_after")
    same_critic(loss, tree, "out/update1/target_critic_after", target=True)
    same_value(loss, tree, "out/update1/value_after")
