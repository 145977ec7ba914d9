# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""ReBRACLoss against the authors' numbers, in float64: losses, gradients, whole updates, data, schedule."""

from __future__ import annotations

import pytest
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate

from tests import golden_vectors as golden
from tests.objectives.golden_offline import adam, depth, fill_actor, same_actor, same_critic, targets
from torchrl_o2o.data import add_next_action
from torchrl_o2o.functional import spot_cooling
from torchrl_o2o.modules import make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import ReBRACLoss, RecordedNoise
from torchrl_o2o.updates import Descend, Every, MoveTargets, Update

pytestmark = pytest.mark.usefixtures("float64")

CASES = ("rebrac/update_A", "rebrac/update_B")


def build(case: str) -> tuple[golden.Tree, ReBRACLoss, SoftUpdate]:
    tree = golden.load(case)
    eps = golden.hp(tree, "ln_eps")
    actor_norm = "after_activation" if golden.hp(tree, "actor_ln") else False
    widths = {net: (16,) * depth(tree, net) for net in ("actor", "critic")}
    actor = make_deterministic_actor(
        5, 3, hidden_sizes=widths["actor"], layer_norm=actor_norm, layer_norm_eps=eps
    ).double()
    fill_actor(actor, tree)
    members = make_qvalue_ensemble(
        5, 3, num_qvalue_nets=2, hidden_sizes=widths["critic"], layer_norm="after_activation", layer_norm_eps=eps
    )
    for index, member in enumerate(members):
        golden.fill(member, golden.sub(tree, "critic"), index)
    names = ("actor_bc_coef", "critic_bc_coef", "policy_noise", "noise_clip")
    loss = ReBRACLoss(actor, members, **{name: golden.hp(tree, name) for name in names})
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    return tree, loss, targets(loss, tree)


def batch_of(tree: golden.Tree, index: int) -> TensorDict:
    batch = golden.transitions(tree, f"step{index}/batch")
    batch["next", "action"] = tree[f"step{index}/batch/next_action"]
    return batch


def whole_update(case: str) -> tuple[golden.Tree, ReBRACLoss, Update]:
    """The authors' order: the target actor follows the actor from before its step."""
    tree, loss, updater = build(case)
    critic = adam(loss.qvalue_network_params, golden.hp(tree, "critic_lr"))
    actor = adam(loss.actor_network_params, golden.hp(tree, "actor_lr"))
    update = Update(
        loss,
        Descend("qvalue", critic),
        Every(
            int(golden.hp(tree, "policy_freq")),
            MoveTargets(updater, ("actor_network",)),
            Descend("actor", actor),
            MoveTargets(updater, ("qvalue_network",)),
            first=True,
        ),
    )
    return tree, loss, update


def check_end(tree: golden.Tree, loss: ReBRACLoss) -> None:
    same_actor(loss, tree, "out/actor_after")
    same_actor(loss, tree, "out/target_actor_after", target=True)
    same_critic(loss, tree, "out/critic_after")
    same_critic(loss, tree, "out/target_critic_after", target=True)


@pytest.mark.parametrize("case", CASES)
def test_critic(case: str) -> None:
    tree, loss, _ = build(case)
    loss.noise = RecordedNoise({"target_smoothing": tree["step0/noise/target_smoothing"]})
    value, info = loss.qvalue_loss(batch_of(tree, 0))
    golden.assert_close(value, tree["step0/out/critic_loss"], "critic loss")
    golden.assert_close(info["qvalue"].amin(0).mean(), tree["step0/out/q_min_mean"], "Q")
    value.backward()
    same_critic(loss, tree, "step0/out/critic_grad", grad=True)


@pytest.mark.parametrize("case", CASES)
def test_whole_updates(case: str) -> None:
    tree, loss, update = whole_update(case)
    for index in range(int(golden.hp(tree, "n_updates"))):
        loss.noise = RecordedNoise({"target_smoothing": tree[f"step{index}/noise/target_smoothing"]})
        metrics = update(batch_of(tree, index))
        golden.assert_close(metrics["loss_qvalue"], tree[f"step{index}/out/critic_loss"], "critic loss")
        assert ("loss_actor" in metrics) == bool(tree[f"step{index}/out/full_update"])
        if "loss_actor" in metrics:
            golden.assert_close(metrics["loss_actor"], tree[f"step{index}/out/actor_loss"], "actor loss")
            golden.assert_close(metrics["bc_error"], tree[f"step{index}/out/actor_penalty_mean"], "distance")
    check_end(tree, loss)


def test_rows_with_a_next_action() -> None:
    """The reference drops time limits' rows and the last one; an episode ends where either flag is set."""
    tree = golden.load("rebrac/dataset_A")
    terminated = tree["in/terminals"].bool()
    ends = terminated | tree["in/timeouts"].bool()
    data = TensorDict(
        {
            "observation": tree["in/observations"],
            "action": tree["in/actions"],
            "episode": ends.cumsum(0) - ends.long(),
            "next": {"terminated": terminated.unsqueeze(-1), "reward": tree["in/rewards"].unsqueeze(-1)},
        },
        [len(ends)],
    )
    rows = add_next_action(data)
    golden.assert_close(rows["observation"], tree["out/observation"], "rows")
    golden.assert_close(rows["next", "action"], tree["out/next_action"], "next actions")
    assert rows["next", "terminated"].squeeze(-1).long().tolist() == tree["out/terminated"].tolist()


def test_schedule_of_the_penalty() -> None:
    tree = golden.load("rebrac/schedule_A")
    offline, online = (int(golden.hp(tree, f"num_{phase}_updates")) for phase in ("offline", "online"))
    coef, floor = golden.hp(tree, "actor_bc_coef"), golden.hp(tree, "min_decay_coef")
    for index, expected in zip(tree["in/update_index"].tolist(), tree["out/actor_bc_coef"].tolist(), strict=True):
        found = coef if index < offline else spot_cooling(coef, index - offline, online, floor)
        assert found == pytest.approx(expected, rel=1e-12)
