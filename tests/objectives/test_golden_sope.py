# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SPEQ's and SOPE's phases and update against the authors' numbers (CarloRomeo427/SOPE@3ff2997), in float64."""

from __future__ import annotations

import pytest
import torch
from torch.optim import Adam
from torchrl.objectives import SoftUpdate

from tests import golden_vectors as golden
from tests.objectives.golden_offline import adam, flat
from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss, RecordedNoise
from torchrl_o2o.trainers.stabilization import StoppingRule, hold_out, is_due
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

pytestmark = pytest.mark.usefixtures("float64")


def build(tree: golden.Tree) -> tuple[EnsembleSACLoss, SoftUpdate]:
    norm = {"layer_norm": True, "layer_norm_eps": golden.hp(tree, "ln_eps"), "hidden_sizes": (16, 16)}
    bounds, edge = (golden.hp(tree, "log_std_min"), golden.hp(tree, "log_std_max")), golden.hp(tree, "tanh_log_eps")
    actor = make_actor(5, 3, log_std_bounds=bounds, log_prob_edge=edge, **norm)
    golden.fill(actor, golden.sub(tree, "actor"))
    critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=int(golden.hp(tree, "ensemble_size")), **norm)
    for index, member in enumerate(critics):
        golden.fill(member, golden.sub(tree, "critic"), index)
    temperature = Temperature(golden.hp(tree, "target_entropy"), form="log_alpha")
    temperature.log_alpha.data.copy_(tree["log_alpha"])
    loss = EnsembleSACLoss(actor, critics, temperature=temperature, actor_q="mean")
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    updater = SoftUpdate(loss, tau=golden.hp(tree, "tau"))
    target = golden.sub(tree, "target_critic")
    golden.fill_stacked(loss.target_qvalue_network_params, loss.qvalue_network.module, target)
    return loss, updater


def test_a_phases_update_and_an_ordinary_one() -> None:
    """Half the loss in the phase, critics and targets alone; then all on the critics from before."""
    tree = golden.load("sope/update_A")
    loss, updater = build(tree)
    critic_optim = adam(loss.qvalue_network_params, golden.hp(tree, "critic_lr"))
    actor_optim = adam(loss.actor_network_params, golden.hp(tree, "actor_lr"))
    alpha_optim = Adam(loss.temperature.parameters(), lr=golden.hp(tree, "temp_lr"))
    phase = Update(loss, Descend("qvalue", critic_optim, scale=0.5), MoveTargets(updater))
    ordinary = Update(
        loss,
        Joint(Descend("qvalue", critic_optim), Descend("actor", actor_optim), Descend("alpha", alpha_optim)),
        MoveTargets(updater),
    )
    for index in range(int(golden.hp(tree, "n_updates"))):
        step = golden.sub(tree, f"step{index}")
        batch, noise = golden.transitions(step), {"next_action": step["noise/next_action"]}
        if "noise/action" in step:
            noise["action"] = step["noise/action"]
        loss.noise = RecordedNoise(noise)
        golden.assert_close(loss.target_value(batch), step["out/target"], "target")
        if step["out/is_stabilisation"]:
            phase(batch)
            continue
        metrics = ordinary(batch)
        golden.assert_close(metrics["loss_actor"], step["out/actor_loss"], "actor loss")
        golden.assert_close(metrics["loss_qvalue"] / 2, step["out/critic_loss_per_member"], "critic loss")
    net, actor = loss.qvalue_network.module, loss.actor_network[0].module
    golden.assert_params(flat(loss.qvalue_network_params), net, golden.sub(tree, "out/critic_after"), "module.")
    target = golden.sub(tree, "out/target_critic_after")
    golden.assert_params(flat(loss.target_qvalue_network_params), net, target, "module.")
    after = golden.sub(tree, "out/actor_after")
    golden.assert_params(flat(loss.actor_network_params), actor, after, "module.0.module.")
    golden.assert_close(loss.temperature.log_alpha, tree["out/log_alpha_after"], "log alpha")


def test_the_first_gradient_is_half_of_the_sum_over_members() -> None:
    tree = golden.load("sope/update_A")
    loss, _ = build(tree)
    loss.noise = RecordedNoise({"next_action": tree["step0/noise/next_action"]})
    (0.5 * loss.qvalue_loss(golden.transitions(tree, "step0/batch"))[0]).backward()
    expected, net = golden.sub(tree, "step0/out/critic_grad"), loss.qvalue_network.module
    golden.assert_params(flat(loss.qvalue_network_params, grad=True), net, expected, "module.")


@pytest.mark.parametrize("case", ["stop_A", "stop_B"])
def test_when_their_code_stops(case: str) -> None:
    tree = golden.load(f"sope/{case}")
    rule = StoppingRule(
        max_updates=int(golden.hp(tree, "max_updates")),
        check_every=int(golden.hp(tree, "val_check_interval")),
        patience=int(golden.hp(tree, "val_patience")),
        tolerance=1.0 - golden.hp(tree, "improvement_factor"),
        sope_code=True,
    )
    for row, curve in enumerate(tree["in/validation_loss"].tolist()):
        losses = iter(curve)
        report = rule.run(lambda: None, lambda losses=losses: next(losses))
        assert report.updates == tree["out/updates"][row]
        assert report.updates + report.stopped == tree["out/reported_updates"][row], "theirs counts one more"
        theirs = [bool(value) for value in tree["out/improved_at_check"][row].tolist() if value >= 0]
        assert report.improved == theirs


@pytest.mark.parametrize("case", ["stop_A", "stop_B"])
def test_the_corrected_rule_differs_for_negative_losses_only(case: str) -> None:
    """A flat or rising curve stops; on positive ones both rules are one."""
    tree = golden.load(f"sope/{case}")
    settings = {
        "max_updates": int(golden.hp(tree, "max_updates")),
        "check_every": int(golden.hp(tree, "val_check_interval")),
        "patience": int(golden.hp(tree, "val_patience")),
    }
    ours, theirs = StoppingRule(**settings), StoppingRule(**settings, sope_code=True)
    for curve in tree["in/validation_loss"].tolist():
        ends = []
        for rule in (ours, theirs):
            losses = iter(curve)
            ends.append(rule.run(lambda: None, lambda losses=losses: next(losses)).updates)
        if min(curve) >= 0.0:
            assert ends[0] == ends[1]
        else:
            assert ends[0] <= ends[1]
    flat_curve = [-10.0] * 200
    losses = iter(flat_curve)
    assert ours.run(lambda: None, lambda: next(losses)).updates == settings["patience"]


def test_rows_held_out() -> None:
    tree = golden.load("sope/split_A")
    batch_size = int(golden.hp(tree, "batch_size"))
    sizes = zip(tree["in/offline_size"].tolist(), tree["in/online_size"].tolist(), strict=True)
    for row, (offline, online) in enumerate(sizes):
        held = hold_out(offline, online, batch_size=batch_size, share=golden.hp(tree, "val_pct"))
        assert len(held.offline) == tree["out/offline_left"][row]
        assert len(held.online) == tree["out/online_left"][row]
        apart = torch.cat(held.batches) if held.batches else torch.zeros(0, dtype=torch.long)
        assert int((apart < offline).sum()) == batch_size * int(tree["out/offline_batches"][row])
        assert int((apart >= offline).sum()) == batch_size * int(tree["out/online_batches"][row])
        assert not set(apart.tolist()) & {*held.offline.tolist(), *held.online.tolist()}


def test_phases_follow_online_steps_only() -> None:
    tree = golden.load("sope/trigger_A")
    interval, total = int(golden.hp(tree, "trigger_interval")), int(golden.hp(tree, "total_env_steps"))
    found = [step for step in range(1, total + 1) if is_due(step, interval)]
    assert found == tree["out/phase_after_env_step"].tolist()
