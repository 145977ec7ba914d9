# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""EnsembleSACLoss on chunks (RLPD-AC, QC-RLPD) against the numbers of QC's authors, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import golden_vectors as golden
from tests.objectives.golden_offline import adam, depth, flat, same_critic, targets
from tests.objectives.test_golden_fql import batch_of
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss, RecordedNoise
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

pytestmark = pytest.mark.usefixtures("float64")

CASES = ("qc/rlpd_A",)
ACTOR_PREFIX = "module.0.module."


def build(case: str) -> tuple[golden.Tree, EnsembleSACLoss, Update]:
    """No entropy in the target, the mean of the target critics, and one step of everything."""
    tree = golden.load(case)
    hidden, size = (16,) * depth(tree, "critic"), tree["actor/mean/bias"].shape[-1]
    bounds = (golden.hp(tree, "log_std_min"), golden.hp(tree, "log_std_max"))
    actor = make_actor(5, size, hidden_sizes=hidden, log_std_bounds=bounds)
    golden.fill(actor, golden.sub(tree, "actor"))
    norm = {"layer_norm": bool(golden.hp(tree, "layer_norm")), "layer_norm_eps": golden.hp(tree, "ln_eps")}
    critics = make_qvalue_ensemble(5, size, num_qvalue_nets=int(golden.hp(tree, "num_qs")), hidden_sizes=hidden, **norm)
    for index, member in enumerate(critics):
        golden.fill(member, golden.sub(tree, "critic"), index)
    temperature = Temperature(golden.hp(tree, "target_entropy"))
    temperature.log_alpha.data.copy_(tree["log_alpha"])
    loss = EnsembleSACLoss(
        actor,
        critics,
        temperature=temperature,
        entropy_backup=False,
        target_q="min" if golden.hp(tree, "q_agg_min") else "mean",
        bc_alpha=golden.hp(tree, "bc_alpha"),
        ensemble_reduction="mean",
    )
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    updater, lr = targets(loss, tree), golden.hp(tree, "lr")
    parts: dict[str, Any] = {"qvalue": loss.qvalue_network_params, "actor": loss.actor_network_params}
    steps = [Descend(name, adam(part, lr)) for name, part in (parts | {"alpha": loss.temperature}).items()]
    return tree, loss, Update(loss, Joint(MoveTargets(updater), *steps))


def noise_of(tree: golden.Tree, index: int) -> dict[str, Tensor]:
    return golden.sub(tree, f"step{index}/noise")


def check_metrics(tree: golden.Tree, index: int, metrics: Any) -> None:
    out = golden.sub(tree, f"step{index}/out")
    golden.assert_close(metrics["loss_qvalue"], out["critic_loss"], "critic loss")
    cloning = golden.hp(tree, "bc_alpha") * metrics["cloning"] if "cloning" in metrics else 0.0
    golden.assert_close(metrics["loss_actor"] - cloning, out["actor_loss"], "actor loss")
    golden.assert_close(metrics["loss_alpha"], out["alpha_loss"], "temperature loss")
    golden.assert_close(metrics["entropy"], out["entropy"], "entropy")
    golden.assert_close(metrics["loss_actor"] + metrics["loss_alpha"], out["actor_total_loss"], "sum")


def check_end(tree: golden.Tree, loss: EnsembleSACLoss) -> None:
    same_critic(loss, tree, "out/critic_after")
    same_critic(loss, tree, "out/target_critic_after", target=True)
    same_actor(loss, tree, "out/actor_after")
    golden.assert_close(loss.temperature.log_alpha, tree["out/log_alpha_after"], "log alpha")


def same_actor(loss: EnsembleSACLoss, tree: golden.Tree, prefix: str, *, grad: bool = False) -> None:
    net = loss.actor_network[0].module
    golden.assert_params(flat(loss.actor_network_params, grad), net, golden.sub(tree, prefix), ACTOR_PREFIX)


@pytest.mark.parametrize("case", CASES)
def test_gradients(case: str) -> None:
    tree, loss, _ = build(case)
    loss.noise, batch = RecordedNoise(noise_of(tree, 0)), batch_of(tree, 0)
    golden.assert_close(loss.target_value(batch), tree["step0/out/target"], "target")
    result = loss(batch)
    sum(value for key, value in result.items() if key.startswith("loss_")).backward()
    same_critic(loss, tree, "step0/out/critic_grad", grad=True)
    same_actor(loss, tree, "step0/out/actor_grad", grad=True)
    golden.assert_close(loss.temperature.log_alpha.grad, tree["step0/out/log_alpha_grad"], "log alpha")


@pytest.mark.parametrize("case", CASES)
def test_whole_updates(case: str) -> None:
    tree, loss, update = build(case)
    for index in range(int(golden.hp(tree, "n_updates"))):
        loss.noise = RecordedNoise(noise_of(tree, index))
        check_metrics(tree, index, update(batch_of(tree, index)))
    check_end(tree, loss)


def test_cloning_stays_inside_of_the_box() -> None:
    """Recorded actions on the edge have a finite density; a box of another size gives the same one, scaled."""
    actor = make_actor(5, 3, hidden_sizes=(8,))
    loss = EnsembleSACLoss(actor, make_qvalue_ensemble(5, 3, num_qvalue_nets=2, hidden_sizes=(8,)), bc_alpha=1.0)
    batch = random_transitions(4, 5, 3).double()
    batch["action"] = torch.ones(4, 3)
    assert loss.actor_loss(batch)[1]["cloning"].isfinite().all()
    with pytest.raises(O2OSpecError, match="bc_alpha=-1"):
        EnsembleSACLoss(actor, make_qvalue_ensemble(5, 3, hidden_sizes=(8,)), bc_alpha=-1.0)
