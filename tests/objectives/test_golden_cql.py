# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""CQLLoss and CalQLLoss against CORL (corl-team/CORL@eeeeef2) and the authors (nakamotoo/Cal-QL@ac6eafe), float64."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate

from tests import golden_vectors as golden
from torchrl_o2o.modules import ConservativePenalty, Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import CalQLLoss, CQLLoss, RecordedNoise

pytestmark = pytest.mark.usefixtures("float64")

CORL = ["cql/A", "cql/B", "cql/C", "cal_ql/A", "cal_ql/B", "cal_ql/C"]
OFFICIAL = "cal_ql/official_A"
ACTOR_PREFIX = "module.0.module."
HEAD = "module.0.module.1."


def two_heads(tree: golden.Tree) -> dict[str, torch.Tensor]:
    """The reference's last actor layer, twice as wide as the action, as a mean head and a log-std head."""
    depth = sum(key.startswith("layer") and key.endswith("/weight") for key in tree) - 1
    out = {key: value for key, value in tree.items() if not key.startswith(f"layer{depth}/")}
    for part in ("weight", "bias"):
        out[f"mean/{part}"], out[f"log_std/{part}"] = tree[f"layer{depth}/{part}"].chunk(2, -1)
    return out


def bound(value: float) -> float:
    """The files store infinite limits as +-1e300."""
    return math.copysign(math.inf, value) if abs(value) > 1e299 else value


def penalty(tree: golden.Tree) -> ConservativePenalty:
    official = "hp/cql_clip_diff_min" not in tree
    limits = (
        (-math.inf, math.inf) if official else [bound(golden.hp(tree, f"cql_clip_diff_{m}")) for m in ("min", "max")]
    )
    out = ConservativePenalty(
        golden.hp(tree, "cql_alpha"),
        num_actions=int(golden.hp(tree, "cql_n_actions")),
        importance_sampling=bool(golden.hp(tree, "cql_importance_sample")),
        softmax_temperature=golden.hp(tree, "cql_temp"),
        gap_bounds=tuple(limits),
        target_gap=golden.hp(tree, "cql_target_action_gap") if golden.hp(tree, "cql_lagrange") else None,
    )
    if out.target_gap is not None:
        out.log_multiplier.data.copy_(tree["log_alpha_prime"])
    return out


def build(case: str, tree: golden.Tree) -> tuple[CQLLoss, SoftUpdate]:
    depth = int(golden.hp(tree, "n_hidden_actor"))
    actor = make_actor(5, 3, hidden_sizes=(16,) * depth, affine_log_std=True)
    hidden = (16,) * int(golden.hp(tree, "n_hidden_critic"))
    critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=2, hidden_sizes=hidden, layer_norm=False)
    golden.fill(actor, two_heads(golden.sub(tree, "actor")))
    for member, critic in enumerate(critics):
        golden.fill(critic, golden.sub(tree, "critic"), member)
    temperature = Temperature(golden.hp(tree, "target_entropy"), form="log_alpha")
    temperature.log_alpha.data.copy_(tree["log_alpha"] + math.log(golden.hp(tree, "alpha_multiplier")))
    loss = (CQLLoss if case.startswith("cql/") else CalQLLoss)(
        actor,
        critics,
        temperature=temperature,
        penalty=penalty(tree),
        max_target_backup=bool(golden.hp(tree, "cql_max_target_backup")),
        entropy_backup=bool(golden.hp(tree, "backup_entropy")),
    )
    if isinstance(loss, CalQLLoss):
        loss.calibrate = bool(golden.hp(tree, "calibration_enabled"))
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    updater = SoftUpdate(loss, tau=golden.hp(tree, "soft_target_update_rate"))
    golden.fill_stacked(
        loss.target_qvalue_network_params, loss.qvalue_network.module, golden.sub(tree, "target_critic")
    )
    loss.noise = recorded(tree)
    return loss, updater


def recorded(tree: golden.Tree) -> RecordedNoise:
    """The file's noise [B, n, A] under this package's names, [n, B, A]."""
    names = {"uniform_action": "uniform", "penalty_action": "current", "penalty_next_action": "next"}
    values = {ours: tree[f"noise/cql_{theirs}"].transpose(0, 1) for ours, theirs in names.items()}
    following = tree["noise/next_action"]
    values["next_action"] = following.unsqueeze(0) if following.ndim == 2 else following.transpose(0, 1)
    return RecordedNoise({**values, "action": tree["noise/action"]})


def batch_of(tree: golden.Tree) -> TensorDict:
    batch = golden.transitions(tree)
    if "batch/mc_return" in tree:
        batch["mc_return"] = tree["batch/mc_return"].unsqueeze(-1)
    return batch


def step(case: str, tree: golden.Tree) -> tuple[CQLLoss, TensorDict]:
    """One complete update in the reference's order: all gradients at the old parameters, then all steps."""
    loss, updater = build(case, tree)
    optims = [
        torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=golden.hp(tree, "qf_lr")),
        torch.optim.Adam(loss.actor_network_params.parameters(), lr=golden.hp(tree, "policy_lr")),
        torch.optim.Adam(loss.temperature.parameters(), lr=golden.hp(tree, "policy_lr")),
    ]
    if loss.penalty.target_gap is not None:
        optims.append(torch.optim.Adam(loss.penalty.parameters(), lr=golden.hp(tree, "qf_lr")))
    out = loss(batch_of(tree))
    (out["loss_qvalue"] + out["loss_actor"] + out["loss_alpha"] + out["loss_alpha_prime"]).backward()
    for optim in optims:
        optim.step()
    updater.step()
    return loss, out


def values(params: torch.nn.Module, grad: bool = False) -> dict[str, torch.Tensor]:
    return {key: (value.grad if grad else value) for key, value in params.flatten_keys(".").items()}


def assert_actor(loss: CQLLoss, tree: golden.Tree, where: str, grad: bool) -> None:
    got, expected = values(loss.actor_network_params, grad), golden.sub(tree, where)
    golden.assert_params(got, loss.actor_network[0].module, two_heads(expected), ACTOR_PREFIX)
    for name in ("log_std_multiplier", "log_std_offset"):
        golden.assert_close(got[HEAD + name], expected[name], name)


@pytest.mark.parametrize("case", CORL)
def test_critic_pieces(case: str) -> None:
    tree = golden.load(case)
    loss, _ = build(case, tree)
    batch = batch_of(tree)
    golden.assert_close(loss.target_value(batch), tree["out/target"], "target")
    count = loss.penalty.num_actions
    action, log_density = loss._proposals(batch)
    for index, name in ((1, "next"), (2, "current")):
        block = slice(index * count, (index + 1) * count)
        golden.assert_close(action[block].transpose(0, 1), tree[f"out/cql_{name}_action"], name)
        golden.assert_close(log_density[block].transpose(0, 1), tree[f"out/cql_{name}_log_prob"], name)
    _, info = loss.qvalue_loss(batch)
    golden.assert_close(info["qvalue"], tree["out/q"], "q")
    for member in range(2):
        golden.assert_close(info["gap"][member].mean(), tree[f"out/cql_qf{member + 1}_diff"], "gap")
        golden.assert_close(
            (info["qvalue"][member] - info["target_value"]).square().mean(), tree[f"out/qf{member + 1}_loss"], "mse"
        )
    if loss.penalty.target_gap is not None:
        golden.assert_close(info["alpha_prime"], tree["out/alpha_prime"], "alpha prime")
    if "out/bound_rate_cql_q1_next_actions" in tree:
        rates = [tree[f"out/bound_rate_cql_q{i}_{a}_actions"] for i in (1, 2) for a in ("current", "next")]
        expected = torch.stack(rates).mean() * loss.calibrate
        golden.assert_close(info["bound_rate"], expected, "bound rate")


@pytest.mark.parametrize("case", CORL)
def test_losses_and_gradients(case: str) -> None:
    tree = golden.load(case)
    loss, out = step(case, tree)
    multiplier = golden.hp(tree, "alpha_multiplier")
    golden.assert_close(out["loss_qvalue"], tree["out/critic_loss"], "critic loss")
    golden.assert_close(out["loss_actor"], tree["out/actor_loss"], "actor loss")
    golden.assert_close(out["loss_alpha_prime"], tree["out/alpha_prime_loss"], "alpha prime loss")
    golden.assert_close(out["alpha"], tree["out/alpha"], "alpha")
    # Their loss is log alpha times the same slope, without the multiplier's logarithm in it.
    slope = out["loss_alpha"] / (tree["log_alpha"] + math.log(multiplier))
    golden.assert_close(slope * tree["log_alpha"], tree["out/alpha_loss"], "alpha loss")
    golden.assert_close(loss.temperature.log_alpha.grad, tree["out/log_alpha_grad"], "alpha gradient")
    net = loss.qvalue_network.module
    golden.assert_params(values(loss.qvalue_network_params, True), net, golden.sub(tree, "out/critic_grad"), "module.")
    assert_actor(loss, tree, "out/actor_grad", True)
    if loss.penalty.target_gap is not None:
        golden.assert_close(loss.penalty.log_multiplier.grad, tree["out/log_alpha_prime_grad"], "alpha prime gradient")
        golden.assert_close(loss.penalty.log_multiplier, tree["out/log_alpha_prime_after"], "alpha prime after")


@pytest.mark.parametrize("case", [*CORL, OFFICIAL])
def test_whole_update(case: str) -> None:
    tree = golden.load(case)
    loss, _ = step(case, tree)
    net = loss.qvalue_network.module
    golden.assert_params(values(loss.qvalue_network_params), net, golden.sub(tree, "out/train/critic_after"), "module.")
    golden.assert_params(
        values(loss.target_qvalue_network_params), net, golden.sub(tree, "out/train/target_critic_after"), "module."
    )
    assert_actor(loss, tree, "out/train/actor_after", False)
    shift = math.log(golden.hp(tree, "alpha_multiplier"))
    golden.assert_close(loss.temperature.log_alpha - shift, tree["out/train/log_alpha_after"], "log alpha")


def test_official_losses_and_gradients() -> None:
    tree = golden.load(OFFICIAL)
    loss, out = step(OFFICIAL, tree)
    info = build(OFFICIAL, tree)[0].qvalue_loss(batch_of(tree))[1]
    golden.assert_close(out["loss_actor"], tree["out/policy_loss"], "actor loss")
    golden.assert_close(out["loss_qvalue"], tree["out/qf1_loss"] + tree["out/qf2_loss"], "critic loss")
    golden.assert_close(out["loss_alpha"], tree["out/alpha_loss"], "alpha loss")
    golden.assert_close(out["alpha_prime"], tree["out/alpha_prime"], "alpha prime")
    for member in (1, 2):
        golden.assert_close(info["gap"][member - 1].mean(), tree[f"out/cql_qf{member}_diff"], "gap")
    golden.assert_params(
        values(loss.qvalue_network_params, True),
        loss.qvalue_network.module,
        golden.sub(tree, "out/critic_grad"),
        "module.",
    )
    assert_actor(loss, tree, "out/actor_grad", True)
    golden.assert_close(loss.temperature.log_alpha.grad, tree["out/log_alpha_grad"], "alpha gradient")
    golden.assert_close(loss.penalty.log_multiplier.grad, tree["out/log_alpha_prime_grad"], "alpha prime gradient")
    golden.assert_close(loss.penalty.log_multiplier, tree["out/train/log_alpha_prime_after"], "alpha prime after")
