# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""EnsembleSACLoss with WSRL's switches against its authors' numbers (zhouzypaul/wsrl@891ee35), in float64."""

from __future__ import annotations

import math

import pytest
from torch import Tensor
from torch.optim import Adam
from torchrl.objectives import SoftUpdate

from tests import golden_vectors as golden
from tests.objectives.golden_offline import adam, flat
from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss, RecordedNoise
from torchrl_o2o.updates import Descend, Ghost, Joint, MoveTargets, Repeat, Update, Whole

pytestmark = pytest.mark.usefixtures("float64")

CASES = ("A", "B")
ACTOR = "module.0.module."


def with_head(tree: golden.Tree, prefix: str) -> golden.Tree:
    """The shared output layer as every member's last one."""
    net = dict(golden.sub(tree, prefix))
    size = len(net["layer0/bias"])
    for name in ("weight", "bias"):
        value = net.pop(f"shared_head/{name}")
        net[f"layer2/{name}"] = value.expand(size, *value.shape)
    return net


def build(tree: golden.Tree) -> tuple[EnsembleSACLoss, SoftUpdate]:
    norm = {"layer_norm": bool(golden.hp(tree, "use_layer_norm")), "layer_norm_eps": golden.hp(tree, "ln_eps")}
    vector = bool(golden.hp(tree, "state_independent_std"))
    bounds = math.log(golden.hp(tree, "std_min")), math.log(golden.hp(tree, "std_max"))
    hidden = (16,) * int(golden.hp(tree, "n_hiddens"))
    actor = make_actor(
        5, 3, hidden_sizes=hidden, log_std_bounds=bounds, std="vector" if vector else "head", **norm
    ).double()
    golden.fill(actor, golden.sub(tree, "actor"))
    if vector:
        actor[0].module[-1].log_std.data.copy_(tree["actor/log_std"])
    size = int(golden.hp(tree, "ensemble_size"))
    critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=size, hidden_sizes=hidden, shared_head=True, **norm)
    for index, member in enumerate(critics):
        golden.fill(member, with_head(tree, "critic"), index)
    temperature = Temperature(golden.hp(tree, "target_entropy"), form="softplus")
    temperature.raw_alpha.data.copy_(tree["temperature_raw"])
    best_of_many = bool(golden.hp(tree, "max_target_backup"))
    loss = EnsembleSACLoss(
        actor,
        critics,
        temperature=temperature,
        sub_sample_len=int(golden.hp(tree, "subset_size")),
        subset_replacement=True,
        num_target_actions=int(golden.hp(tree, "n_actions")) if best_of_many else 1,
        entropy_at="next_state",
        entropy_backup=bool(golden.hp(tree, "backup_entropy")),
        actor_q="min",
        ensemble_reduction="mean",
    )
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    updater = SoftUpdate(loss, tau=golden.hp(tree, "tau"))
    net = loss.qvalue_network.module
    golden.fill_stacked(loss.target_qvalue_network_params, net, with_head(tree, "target_critic"))
    return loss, updater


def samples_first(noise: Tensor) -> Tensor:
    """[B, n, A] or [B, A] as [n, B, A]."""
    return noise.transpose(0, 1) if noise.ndim == 3 else noise.unsqueeze(0)


def recorded(tree: golden.Tree, loss: EnsembleSACLoss) -> RecordedNoise:
    following = samples_first(tree["noise/next_action"])
    return RecordedNoise(
        {
            "next_action": following if loss.num_target_actions > 1 else following[0],
            "action": tree["noise/action"],
            "temperature_next_action": samples_first(tree["noise/temperature_next_action"]),
            "target": tree["subset"],
        }
    )


def same_critics(loss: EnsembleSACLoss, tree: golden.Tree, prefix: str, **which: bool) -> None:
    params = loss.target_qvalue_network_params if which.get("target") else loss.qvalue_network_params
    values = flat(params, which.get("grad", False))
    golden.assert_params(values, loss.qvalue_network.module, with_head(tree, prefix), "module.")


def same_actor(loss: EnsembleSACLoss, tree: golden.Tree, prefix: str, *, grad: bool = False) -> None:
    values = flat(loss.actor_network_params, grad)
    golden.assert_params(values, loss.actor_network[0].module, golden.sub(tree, prefix), ACTOR)
    if f"{prefix}/log_std" in tree:
        golden.assert_close(values[f"{ACTOR}1.log_std"], tree[f"{prefix}/log_std"], "log std")


@pytest.mark.parametrize("case", CASES)
class TestSingleLosses:
    def test_critic(self, case: str) -> None:
        tree = golden.load(f"wsrl/{case}")
        loss, _ = build(tree)
        loss.noise, batch = recorded(tree, loss), golden.transitions(tree)
        golden.assert_close(loss.target_value(batch), tree["out/target"], "target")
        value, info = loss.qvalue_loss(batch)
        golden.assert_close(value, tree["out/critic_loss"], "critic loss")
        golden.assert_close(info["qvalue"].mean(), tree["out/q_mean"], "Q")
        value.backward()
        same_critics(loss, tree, "out/critic_grad", grad=True)

    def test_actor_and_temperature(self, case: str) -> None:
        tree = golden.load(f"wsrl/{case}")
        loss, _ = build(tree)
        loss.noise, batch = recorded(tree, loss), golden.transitions(tree)
        value, info = loss.actor_loss(batch)
        golden.assert_close(value, tree["out/actor_loss"], "actor loss")
        golden.assert_close(info["log_prob"], tree["out/log_prob"], "log-density")
        value.backward()
        same_actor(loss, tree, "out/actor_grad", grad=True)
        value, info = loss.alpha_loss(batch, log_prob=info["log_prob"])
        golden.assert_close(info["alpha"], tree["out/temperature"], "temperature")
        golden.assert_close(value, tree["out/temp_loss"], "temperature loss")
        value.backward()
        golden.assert_close(loss.temperature.raw_alpha.grad, tree["out/temp_grad"], "temperature gradient")


def whole_update(tree: golden.Tree, *, ghosts: bool = True) -> tuple[EnsembleSACLoss, Update]:
    """One critic step a slice, then actor and temperature on the whole batch; every call moves all three Adams."""
    loss, updater = build(tree)
    critic = Descend("qvalue", adam(loss.qvalue_network_params, golden.hp(tree, "critic_lr")))
    actor = Descend("actor", adam(loss.actor_network_params, golden.hp(tree, "actor_lr")))
    alpha = Descend("alpha", Adam(loss.temperature.parameters(), lr=golden.hp(tree, "temp_lr")))
    between, last = ((Ghost(actor), Ghost(alpha)), (Ghost(critic),)) if ghosts else ((), ())
    repeat = Repeat(int(golden.hp(tree, "utd_ratio")), critic, *between, MoveTargets(updater))
    return loss, Update(loss, repeat, Whole(Joint(actor, alpha), *last))


def noise_of(step: golden.Tree) -> dict[str, list[Tensor]]:
    return {
        "next_action": list(step["noise/next_action"]),
        "target": list(step["subset"]),
        "action": [step["noise/action"]],
        "temperature_next_action": [step["noise/temperature_next_action"].unsqueeze(0)],
    }


def check_step(step: golden.Tree, loss: EnsembleSACLoss, metrics: dict[str, Tensor]) -> None:
    golden.assert_close(metrics["loss_actor"], step["out/actor_loss"], "actor loss")
    golden.assert_close(metrics["loss_alpha"], step["out/temp_loss"], "temperature loss")
    golden.assert_close(-metrics["log_prob"], step["out/entropy"], "entropy at s")  # the temperature's is at s'
    same_critics(loss, step, "out/critic_after")
    same_actor(loss, step, "out/actor_after")
    golden.assert_close(loss.temperature.raw_alpha, step["out/temperature_raw_after"], "temperature")
