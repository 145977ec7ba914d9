# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""FQLLoss and BestOfNLoss against the authors' numbers, in float64: losses, gradients, whole updates, chunks too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives import SoftUpdate

from tests import golden_vectors as golden
from tests.objectives.golden_offline import adam, depth, flat, same_critic, targets
from torchrl_o2o.modules import make_flow_network, make_one_step_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import BestOfNLoss, FQLLoss, RecordedNoise
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

pytestmark = pytest.mark.usefixtures("float64")

FQL = ("fql/update_A", "fql/update_B")
CHUNKS = ("qc/fql_A", "qc/nstep_A", "qc/best_of_n_A")
CASES = (*FQL, *CHUNKS)


def setting(tree: golden.Tree, name: str, default: float) -> float:
    return float(tree.get(f"hp/{name}", torch.tensor(default)))


def build(case: str) -> tuple[golden.Tree, Any, SoftUpdate]:
    tree = golden.load(case)
    eps, size = golden.hp(tree, "ln_eps"), tree["bc_flow/layer0/weight"].shape[-2] - 6
    norm = "after_activation" if setting(tree, "actor_layer_norm", 0) else False
    widths = {net: (16,) * depth(tree, net) for net in ("bc_flow", "one_step", "critic")}
    flow = make_flow_network(5, size, hidden_sizes=widths["bc_flow"], layer_norm=norm, layer_norm_eps=eps).double()
    golden.fill(flow, golden.sub(tree, "bc_flow"))
    critics = make_qvalue_ensemble(
        5,
        size,
        num_qvalue_nets=len(tree["critic/layer0/weight"]),
        hidden_sizes=widths["critic"],
        layer_norm="after_activation" if golden.hp(tree, "layer_norm") else False,
        layer_norm_eps=eps,
        activation="gelu",
    )
    for index, member in enumerate(critics):
        golden.fill(member, golden.sub(tree, "critic"), index)
    common = {
        "flow_steps": int(golden.hp(tree, "flow_steps")),
        "aggregation": "min" if golden.hp(tree, "q_agg_min") else "mean",
    }
    if setting(tree, "best_of_n", 0):
        loss: Any = BestOfNLoss(flow, critics, num_samples=int(golden.hp(tree, "actor_num_samples")), **common)
    else:
        actor = make_one_step_actor(5, size, hidden_sizes=widths["one_step"], layer_norm=norm, layer_norm_eps=eps)
        golden.fill(actor.double(), golden.sub(tree, "one_step"))
        normalize = bool(setting(tree, "normalize_q_loss", 0))
        loss = FQLLoss(actor, flow, critics, alpha=golden.hp(tree, "alpha"), normalize_q_loss=normalize, **common)
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    return tree, loss, targets(loss, tree)


def batch_of(tree: golden.Tree, index: int) -> TensorDict:
    """The batch as the chunk sampler delivers it, or plain transitions."""
    prefix = f"step{index}/batch"
    if f"{prefix}/action_sequence" not in tree:
        return golden.transitions(tree, prefix)
    batch = golden.sub(tree, prefix)
    actions, steps = batch["action_sequence"], batch["action_sequence"].shape[1]
    rows, chunked = len(actions), golden.hp(tree, "action_chunking")
    terminated = batch["chunk_mask"].unsqueeze(-1) == 0
    following = {
        "observation": batch["next_observation_sequence"][:, -1],
        "reward": batch["chunk_return"].unsqueeze(-1),
        "terminated": terminated,
        "done": terminated,
    }
    entries = {
        "observation": batch["observation"],
        "action": actions.flatten(1) if chunked else actions[:, 0],
        "steps_to_next_obs": torch.full((rows,), steps),
        "priority_weight": batch["valid"][:, -1],
        "next": following,
    }
    return TensorDict(entries | ({"valid": batch["valid"]} if chunked else {}), [rows])


def noise_of(tree: golden.Tree, index: int) -> dict[str, Tensor]:
    drawn = golden.sub(tree, f"step{index}/noise")
    following = drawn["next_action"]
    return {
        "next_action": following if following.ndim == 2 else following.transpose(0, 1),
        "flow_start": drawn["flow_x0"],
        "flow_time": 2.0 * drawn["flow_time"] - 1.0,
        **({"distill": drawn["distill"]} if "distill" in drawn else {}),
    }


def whole_update(case: str) -> tuple[golden.Tree, Any, Update]:
    """One Adam for everything is an Adam for each part; the targets follow the critics from before the step."""
    tree, loss, updater = build(case)
    parts = {"qvalue": loss.qvalue_network_params, "flow": loss._flow_params}
    if isinstance(loss, FQLLoss):
        parts["actor"] = loss.actor_network_params
    decay = setting(tree, "weight_decay", 0.0)
    kind = {"kind": torch.optim.AdamW, "weight_decay": decay} if decay else {}
    steps = [Descend(name, adam(part, golden.hp(tree, "lr"), **kind)) for name, part in parts.items()]
    return tree, loss, Update(loss, Joint(MoveTargets(updater), *steps))


def same_net(loss: Any, name: str, tree: golden.Tree, prefix: str, *, grad: bool = False) -> None:
    net = getattr(loss, name).module
    golden.assert_params(flat(getattr(loss, f"{name}_params"), grad), net, golden.sub(tree, prefix), "module.")


def check_end(tree: golden.Tree, loss: Any) -> None:
    same_critic(loss, tree, "out/critic_after")
    same_critic(loss, tree, "out/target_critic_after", target=True)
    same_net(loss, loss._flow, tree, "out/bc_flow_after")
    if isinstance(loss, FQLLoss):
        same_net(loss, "actor_network", tree, "out/one_step_after")


def check_metrics(tree: golden.Tree, index: int, metrics: Any) -> None:
    out = golden.sub(tree, f"step{index}/out")
    golden.assert_close(metrics["loss_qvalue"], out["critic_loss"], "critic loss")
    golden.assert_close(metrics["loss_flow"], out["bc_flow_loss"], "flow loss")
    golden.assert_close(metrics["qvalue"], out["q_mean"], "Q")
    if "loss_actor" in metrics:
        golden.assert_close(metrics["loss_flow"] + metrics["loss_actor"], out["actor_loss"], "actor loss")


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case: str) -> None:
    tree, loss, _ = build(case)
    loss.noise, batch, out = RecordedNoise(noise_of(tree, 0)), batch_of(tree, 0), golden.sub(tree, "step0/out")
    golden.assert_close(loss.target_value(batch), out["target"], "target")
    result = loss(batch)
    golden.assert_close(result["loss_qvalue"], out["critic_loss"], "critic loss")
    golden.assert_close(result["loss_flow"], out["bc_flow_loss"], "flow loss")
    sum(value for key, value in result.items() if key.startswith("loss_")).backward()
    same_critic(loss, tree, "step0/out/critic_grad", grad=True)
    same_net(loss, loss._flow, tree, "step0/out/bc_flow_grad", grad=True)
    if isinstance(loss, FQLLoss):
        golden.assert_close(result["distill_error"], out["distill_loss"], "distillation")
        same_net(loss, "actor_network", tree, "step0/out/one_step_grad", grad=True)


@pytest.mark.parametrize("case", CASES)
def test_whole_updates(case: str) -> None:
    tree, loss, update = whole_update(case)
    for index in range(int(golden.hp(tree, "n_updates"))):
        loss.noise = RecordedNoise(noise_of(tree, index))
        check_metrics(tree, index, update(batch_of(tree, index)))
    check_end(tree, loss)


@pytest.mark.parametrize("case", FQL)
def test_actions(case: str) -> None:
    """The clipped next action, and where the flow carries the noise of the distillation."""
    tree, loss, _ = build(case)
    batch, noise = batch_of(tree, 0), noise_of(tree, 0)
    action = loss._clip(loss._one_step(loss._next_state(batch), noise["next_action"]))
    golden.assert_close(action, tree["step0/out/next_action"], "next action")
    golden.assert_close(
        loss._end_of_flow(loss._state(batch), noise["distill"]), tree["step0/out/flow_action"], "end of the flow"
    )


def test_the_best_of_n(monkeypatch: pytest.MonkeyPatch) -> None:
    """The acting policy makes the choice of the target, given the same noise."""
    tree, loss, _ = build("qc/best_of_n_A")
    noise, batch = noise_of(tree, 0)["next_action"], batch_of(tree, 0)
    monkeypatch.setattr(torch, "randn", lambda *shape, **more: noise)
    with torch.no_grad():
        action = loss.make_actor()(TensorDict({"observation": batch["next", "observation"]}, [8]))["action"]
    golden.assert_close(action, tree["step0/out/next_action"], "chosen action")
