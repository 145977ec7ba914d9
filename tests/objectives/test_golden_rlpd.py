# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""EnsembleSACLoss against the numbers of the RLPD authors' code (ikostrikov/rlpd@c90fd4b), in float64."""

from __future__ import annotations

import pytest
import torch
from torchrl.objectives import SoftUpdate

from tests import golden_vectors as golden
from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss, RecordedNoise
from torchrl_o2o.trainers.optim import weight_decay_groups

pytestmark = pytest.mark.usefixtures("float64")

SINGLE = ["A", "B", "C_saturated"]
UPDATES = ["update_A", "update_B"]
ACTOR_PREFIX = "module.0.module."


def build(tree: golden.Tree) -> tuple[EnsembleSACLoss, SoftUpdate]:
    hidden = (16,) * int(golden.hp(tree, "n_hidden"))
    unit_norm = bool(golden.hp(tree, "use_pnorm"))
    bounds = (golden.hp(tree, "log_std_min"), golden.hp(tree, "log_std_max"))
    actor = make_actor(5, 3, hidden_sizes=hidden, log_std_bounds=bounds, unit_norm=unit_norm)
    critics = make_qvalue_ensemble(
        5,
        3,
        num_qvalue_nets=int(golden.hp(tree, "num_qs")),
        hidden_sizes=hidden,
        layer_norm=bool(golden.hp(tree, "layer_norm")),
        layer_norm_eps=golden.hp(tree, "ln_eps"),
        unit_norm=unit_norm,
    )
    golden.fill(actor, golden.sub(tree, "actor"))
    for member, critic in enumerate(critics):
        golden.fill(critic, golden.sub(tree, "critic"), member)
    temperature = Temperature(golden.hp(tree, "target_entropy"))
    temperature.log_alpha.data.copy_(tree["log_alpha"])
    loss = EnsembleSACLoss(
        actor,
        critics,
        temperature=temperature,
        sub_sample_len=int(golden.hp(tree, "num_min_qs")),
        entropy_backup=bool(golden.hp(tree, "backup_entropy")),
        ensemble_reduction="mean",
    )
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    updater = SoftUpdate(loss, tau=golden.hp(tree, "tau"))  # copies the critics into the targets, so it comes first
    target, net = loss.target_qvalue_network_params, loss.qvalue_network.module
    golden.fill_stacked(target, net, golden.sub(tree, "target_critic"))
    return loss, updater


def optimizers(loss: EnsembleSACLoss, tree: golden.Tree) -> dict[str, torch.optim.Optimizer]:
    betas, eps = (golden.hp(tree, "adam_b1"), golden.hp(tree, "adam_b2")), golden.hp(tree, "adam_eps")
    critic_groups = weight_decay_groups(loss.qvalue_network_params, golden.hp(tree, "critic_weight_decay"))
    return {
        "critic": torch.optim.AdamW(critic_groups, lr=golden.hp(tree, "critic_lr"), betas=betas, eps=eps),
        "actor": torch.optim.Adam(
            loss.actor_network_params.parameters(), lr=golden.hp(tree, "actor_lr"), betas=betas, eps=eps
        ),
        "alpha": torch.optim.Adam(loss.temperature.parameters(), lr=golden.hp(tree, "temp_lr"), betas=betas, eps=eps),
    }


def flat(params: torch.nn.Module, grad: bool = False) -> dict[str, torch.Tensor]:
    return {key: (value.grad if grad else value) for key, value in params.flatten_keys(".").items()}


@pytest.mark.parametrize("case", SINGLE)
class TestSingleLosses:
    def test_target_and_policy(self, case: str) -> None:
        tree = golden.load(f"rlpd/{case}")
        loss, _ = build(tree)
        loss.noise = RecordedNoise({"next_action": tree["noise/next_action"], "target": tree["subset"]})
        following = golden.transitions(tree)["next"]
        with loss.actor_network_params.to_module(loss.actor_network):
            dist = loss.actor_network.get_dist(following)
        action, log_prob = dist.rsample_and_log_prob(noise=tree["noise/next_action"])
        golden.assert_close(dist.loc, tree["out/next_mean"], "mean")
        golden.assert_close(dist.scale, tree["out/next_std"], "std")
        golden.assert_close(action, tree["out/next_action"], "next action")
        golden.assert_close(log_prob, tree["out/next_log_prob"], "log prob")
        golden.assert_close(loss.target_value(golden.transitions(tree)), tree["out/target"], "target")

    def test_critic(self, case: str) -> None:
        tree = golden.load(f"rlpd/{case}")
        loss, updater = build(tree)
        loss.noise = RecordedNoise({"next_action": tree["noise/next_action"], "target": tree["subset"]})
        value, info = loss.qvalue_loss(golden.transitions(tree))
        golden.assert_close(value, tree["out/critic_loss"], "critic loss")
        golden.assert_close(info["qvalue"], tree["out/q"], "q")
        value.backward()
        params, net = loss.qvalue_network_params, loss.qvalue_network.module
        golden.assert_params(flat(params, grad=True), net, golden.sub(tree, "out/critic_grad"), "module.")
        optimizers(loss, tree)["critic"].step()
        updater.step()
        golden.assert_params(flat(params), net, golden.sub(tree, "out/critic_after"), "module.")
        golden.assert_params(
            flat(loss.target_qvalue_network_params), net, golden.sub(tree, "out/target_critic_after"), "module."
        )

    def test_actor_and_temperature(self, case: str) -> None:
        tree = golden.load(f"rlpd/{case}")
        loss, _ = build(tree)
        loss.noise = RecordedNoise({"action": tree["noise/action"]})
        optims = optimizers(loss, tree)
        value, info = loss.actor_loss(golden.transitions(tree))
        golden.assert_close(value, tree["out/actor_loss"], "actor loss")
        golden.assert_close(info["log_prob"], tree["out/log_prob"], "log prob")
        value.backward()
        net = loss.actor_network[0].module
        params = loss.actor_network_params
        golden.assert_params(flat(params, grad=True), net, golden.sub(tree, "out/actor_grad"), ACTOR_PREFIX)
        optims["actor"].step()
        golden.assert_params(flat(params), net, golden.sub(tree, "out/actor_after"), ACTOR_PREFIX)
        value, info = loss.alpha_loss(golden.transitions(tree), log_prob=info["log_prob"])
        golden.assert_close(value, tree["out/temp_loss"], "temperature loss")
        golden.assert_close(info["entropy"], tree["out/entropy"], "entropy")
        golden.assert_close(info["alpha"], tree["out/alpha"], "alpha")
        value.backward()
        golden.assert_close(loss.temperature.log_alpha.grad, tree["out/temp_grad"], "temperature gradient")
        optims["alpha"].step()
        golden.assert_close(loss.temperature.log_alpha, tree["out/log_alpha_after"], "log alpha")


@pytest.mark.parametrize("case", UPDATES)
def test_whole_updates(case: str) -> None:
    """utd_ratio critic steps, then one actor and one temperature step on the last minibatch, several times over."""
    tree = golden.load(f"rlpd/{case}")
    loss, updater = build(tree)
    optims = optimizers(loss, tree)
    for t in range(int(golden.hp(tree, "n_updates"))):
        step, minibatch = golden.sub(tree, f"step{t}"), None
        batch = golden.transitions(step)
        for u, minibatch in enumerate(batch.split(8)):
            loss.noise = RecordedNoise(
                {
                    "next_action": step["noise/next_action"][u],
                    "target": step["subset"][u],
                    "action": step["noise/action"],
                }
            )
            critic_loss, info = loss.qvalue_loss(minibatch)
            golden.assert_close(info["target_value"], step["out/target"][u], f"target {t}/{u}")
            optims["critic"].zero_grad()
            critic_loss.backward()
            optims["critic"].step()
            updater.step()
        actor_loss, actor_info = loss.actor_loss(minibatch)
        optims["actor"].zero_grad()
        actor_loss.backward()
        optims["actor"].step()
        alpha_loss, alpha_info = loss.alpha_loss(batch, log_prob=actor_info["log_prob"])
        optims["alpha"].zero_grad()
        alpha_loss.backward()
        optims["alpha"].step()
        golden.assert_close(critic_loss, step["out/critic_loss"], "critic loss")
        golden.assert_close(actor_loss, step["out/actor_loss"], "actor loss")
        golden.assert_close(alpha_info["entropy"], step["out/entropy"], "entropy")
        golden.assert_close(alpha_loss, step["out/temperature_loss"], "temperature loss")
    net, actor = loss.qvalue_network.module, loss.actor_network[0].module
    golden.assert_params(flat(loss.qvalue_network_params), net, golden.sub(tree, "out/critic_after"), "module.")
    golden.assert_params(
        flat(loss.target_qvalue_network_params), net, golden.sub(tree, "out/target_critic_after"), "module."
    )
    golden.assert_params(flat(loss.actor_network_params), actor, golden.sub(tree, "out/actor_after"), ACTOR_PREFIX)
    golden.assert_close(loss.temperature.log_alpha, tree["out/log_alpha_after"], "log alpha")
