# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""PEXLoss against the authors' numbers (Haichao-Zhang/PEX@b0ae11e), in float64: choices, gradients, whole updates."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor
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
    targets,
)
from torchrl_o2o.modules import make_gaussian_actor, make_value_network
from torchrl_o2o.objectives import PEXLoss, RecordedNoise
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

pytestmark = pytest.mark.usefixtures("float64")

SELECT, UPDATES = ("pex/select_A", "pex/select_B"), ("pex/update_A", "pex/update_B")


def build(case: str) -> tuple[golden.Tree, PEXLoss, SoftUpdate]:
    tree = golden.load(case)
    bounds = (golden.hp(tree, "log_std_min"), golden.hp(tree, "log_std_max"))
    policies = [
        make_gaussian_actor(
            5, 3, hidden_sizes=(16,) * depth(tree, "actor"), log_std_bounds=bounds, clip_samples=False
        ).double()
        for _ in range(2)
    ]
    fill_actor(policies[0], tree)
    offline = {f"actor/{name}": value for name, value in golden.sub(tree, "policy_offline").items()}
    fill_actor(policies[1], offline)
    value = make_value_network(5, hidden_sizes=(16,) * depth(tree, "value"))
    golden.fill(value, golden.sub(tree, "value"))
    settings = {name: golden.hp(tree, name) for name in ("inv_temperature", "expectile", "beta")}
    loss = PEXLoss(
        policies[0], critics(tree), value, policies[1], weight_clip=golden.hp(tree, "exp_adv_max"), **settings
    )
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    return tree, loss, targets(loss, tree)


def draws(tree: golden.Tree, prefix: str = "noise") -> dict[str, Tensor]:
    """Uniform numbers as a source hands them out, in [-1, 1)."""
    found = {"action": tree[f"{prefix}/action"], "choice": 2.0 * tree[f"{prefix}/choice_uniform"] - 1.0}
    for name in ("eval_action", "eval_choice"):
        if f"{prefix}/{name}_uniform" in tree:
            found[name] = 2.0 * tree[f"{prefix}/{name}_uniform"] - 1.0
    return found


@pytest.mark.parametrize("case", SELECT)
def test_choices(case: str) -> None:
    tree, loss, _ = build(case)
    noise, state = RecordedNoise(draws(tree)), {"observation": tree["batch/observation"]}
    proposals = loss.propose(state, noise)
    for name, got in (
        ("action_offline", proposals.offline),
        ("action_new", proposals.new),
        ("action", proposals.action),
    ):
        golden.assert_close(got, tree[f"out/{name}"], name)
    golden.assert_close(proposals.probability, tree["out/probability"], "probability")
    assert proposals.takes_new.tolist() == tree["out/choice"].tolist()
    evaluated = loss.propose(state, noise, greedy=golden.hp(tree, "eval_eps"))
    golden.assert_close(evaluated.new, tree["out/eval/action_new"], "action")
    golden.assert_close(evaluated.probability, tree["out/eval/probability"], "probability")
    assert evaluated.takes_new.tolist() == tree["out/eval/choice"].tolist()
    golden.assert_close(evaluated.action, tree["out/eval/action"], "action")


def whole_update(case: str) -> tuple[golden.Tree, PEXLoss, Update]:
    """V and critics at the old parameters, targets, then the policy."""
    tree, loss, updater = build(case)
    names = (("value", "value"), ("qvalue", "critic"), ("actor", "actor"))
    steps = {
        name: Descend(name, adam(getattr(loss, f"{name}_network_params"), golden.hp(tree, f"{theirs}_lr")))
        for name, theirs in names
    }
    joint = Joint(steps["value"], steps["qvalue"])
    return tree, loss, Update(loss, joint, MoveTargets(updater), steps["actor"])


def check_end(tree: golden.Tree, loss: PEXLoss) -> None:
    same_actor(loss, tree, "out/actor_after")
    same_critic(loss, tree, "out/critic_after")
    same_critic(loss, tree, "out/target_critic_after", target=True)
    value, net = flat(loss.value_network_params), loss.value_network.module
    golden.assert_params(value, net, golden.sub(tree, "out/value_after"), "module.")
    frozen, net = flat(loss.offline_actor_network_params), loss.offline_actor_network[0].module
    golden.assert_params(frozen, net, golden.sub(tree, "out/policy_offline_after"), "module.0.module.")


@pytest.mark.parametrize("case", UPDATES)
def test_first_gradients(case: str) -> None:
    tree, loss, _ = build(case)
    batch = golden.transitions(tree, "step0/batch")
    value, _ = loss.value_loss(batch)
    golden.assert_close(value, tree["step0/out/value_loss"], "value loss")
    value.backward()
    net, expected = loss.value_network.module, golden.sub(tree, "step0/out/value_grad")
    golden.assert_params(flat(loss.value_network_params, grad=True), net, expected, "module.")
    critic, _ = loss.qvalue_loss(batch)
    golden.assert_close(critic, tree["step0/out/critic_loss"], "critic loss")
    critic.backward()
    same_critic(loss, tree, "step0/out/critic_grad", grad=True)


@pytest.mark.parametrize("case", UPDATES)
def test_whole_updates(case: str) -> None:
    tree, loss, update = whole_update(case)
    for index in range(int(golden.hp(tree, "n_updates"))):
        loss.noise = RecordedNoise(draws(tree, f"step{index}/noise"))
        metrics: dict[str, Any] = update(golden.transitions(tree, f"step{index}/batch"))
        for name, theirs in (("value", "value"), ("qvalue", "critic"), ("actor", "actor")):
            golden.assert_close(metrics[f"loss_{name}"], tree[f"step{index}/out/{theirs}_loss"], f"{name} loss")
        golden.assert_close(metrics["advantage"], tree[f"step{index}/out/adv"].mean(), "advantage")
        golden.assert_close(metrics["weight"], tree[f"step{index}/out/weight"].mean(), "weight")
        golden.assert_close(1.0 - metrics["offline_share"], tree[f"step{index}/out/choice"].double().mean(), "choice")
    check_end(tree, loss)
