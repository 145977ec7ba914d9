# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Scores, density ratio, sampling and whole updates against the A3RL authors' code (xuefeng-cs/A3RL@0770a7d)."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from tests import golden_vectors as golden
from tests.objectives.test_golden_rlpd import ACTOR_PREFIX, build, flat
from torchrl_o2o.data import PoolSampler
from torchrl_o2o.functional.replay import (
    advantage_aligned_log_priority,
    annealed_beta,
    importance_log_weight,
    kl_to_uniform,
    resampling_log_prob,
)
from torchrl_o2o.modules import DensityRatio
from torchrl_o2o.objectives import DensityRatioLoss, EnsembleSACLoss, RecordedNoise, join_sources
from torchrl_o2o.priorities import Advantage, AdvantageAligned, DensityRatioScore, LogPriority, TDError

pytestmark = pytest.mark.usefixtures("float64")

CASES = ["A", "B", "update_A"]
ALIGNMENTS = ["official", "gathered"]


def pool_rows(tree: golden.Tree) -> TensorDict:
    """All rows in the authors' order: even ones offline, odd ones online."""
    both = torch.stack([golden.transitions(tree, "offline"), golden.transitions(tree, "online")], 1).reshape(-1)
    return both.set("is_offline", torch.arange(len(both)) % 2 == 0)


def learner(tree: golden.Tree) -> tuple[EnsembleSACLoss, torch.optim.Optimizer, torch.optim.Optimizer, object]:
    """The RLPD learner with A3RL's switch, its optimizers and its target updater."""
    loss, updater = build({**tree, "hp/use_pnorm": torch.tensor(0)})
    loss.weight_actor = True
    betas, eps = (golden.hp(tree, "adam_b1"), golden.hp(tree, "adam_b2")), golden.hp(tree, "adam_eps")
    critic = torch.optim.Adam(
        loss.qvalue_network_params.parameters(), lr=golden.hp(tree, "critic_lr"), betas=betas, eps=eps
    )
    rates = {"actor_network_params": "actor_lr", "temperature": "temp_lr"}
    groups = [
        {"params": list(getattr(loss, name).parameters()), "lr": golden.hp(tree, rate)} for name, rate in rates.items()
    ]
    return loss, critic, torch.optim.Adam(groups, betas=betas, eps=eps), updater


def density(tree: golden.Tree) -> tuple[DensityRatio, DensityRatioLoss, torch.optim.Optimizer]:
    ratio = DensityRatio(5, 3, hidden_sizes=(16, 16), parametrization="relu")
    golden.fill(ratio, golden.sub(tree, "density"))
    loss = DensityRatioLoss(ratio, eps=1e-10)
    optim = torch.optim.Adam(
        loss.parameters(),
        lr=golden.hp(tree, "density_lr"),
        betas=(golden.hp(tree, "adam_b1"), golden.hp(tree, "adam_b2")),
        eps=golden.hp(tree, "adam_eps"),
    )
    return ratio, loss, optim


def heuristic(
    tree: golden.Tree, loss: EnsembleSACLoss, kind: Literal["advantage", "td", "used"] = "used"
) -> Advantage | TDError:
    """The authors' scores, with their noise and members."""
    advantage = bool(golden.hp(tree, "use_advantage")) if kind == "used" else kind == "advantage"
    settings = {"num_samples": int(golden.hp(tree, "n_action_samples")), "shared_noise": False, "antithetic": False}
    score = Advantage(loss, **settings) if advantage else TDError(loss, form="signed", **settings)  # type: ignore[arg-type]
    name = "advantage" if advantage else "td"
    noise = tree.get("noise/heuristic_action", tree.get(f"noise/{name}{'' if advantage else '_next'}_action"))
    members = tree.get("subset_heuristic", tree.get(f"subset_{name}"))
    score.noise = RecordedNoise({f"{name}_action": noise, name: members})  # type: ignore[dict-item]
    return score


def aligned(tree: golden.Tree, loss: EnsembleSACLoss) -> LogPriority:
    ratio, _, _ = density(tree)
    score = DensityRatioScore(ratio, normalize=False)
    return AdvantageAligned(heuristic(tree, loss), score, adv_temp=golden.hp(tree, "density_lambda_heuristic"))


def draw(
    tree: golden.Tree, loss: EnsembleSACLoss, misaligned: bool, normalize: Literal["pool", "batch", "max"] = "pool"
) -> tuple[TensorDict, PoolSampler]:
    """The authors' pool and draws in place of random ones."""
    size = int(golden.hp(tree, "N"))
    sampler = PoolSampler(
        aligned(tree, loss), size // 2, pool_size=None, normalize=normalize, misaligned_weights=misaligned
    )
    sampler.alpha = golden.hp(tree, "priority_alpha")
    sampler.beta = annealed_beta(golden.hp(tree, "beta0"), golden.hp(tree, "step") / golden.hp(tree, "max_steps"))
    offline, online = torch.arange(size).chunk(2)
    sampler.noise = RecordedNoise({"offline_rows": offline, "online_rows": online, "drawn": tree["sampled_indices"]})
    storage = LazyTensorStorage(size)
    rows = torch.cat([golden.transitions(tree, "offline"), golden.transitions(tree, "online")])
    storage.set(torch.arange(size), rows)
    batch = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=size).sample()
    golden.assert_close(sampler._last[0].exp(), tree["out/priority/prob"], "P")  # type: ignore[index]
    return batch, sampler


@pytest.mark.parametrize("case", ["A", "B"])
class TestScores:
    def test_advantage(self, case: str) -> None:
        tree = golden.load(f"a3rl/{case}")
        loss, *_ = learner(tree)
        golden.assert_close(heuristic(tree, loss, "advantage")(pool_rows(tree)), tree["out/advantage"], "A")

    def test_td_error(self, case: str) -> None:
        tree = golden.load(f"a3rl/{case}")
        loss, *_ = learner(tree)
        golden.assert_close(heuristic(tree, loss, "td")(pool_rows(tree)), tree["out/td"], "td")

    def test_density_ratio(self, case: str) -> None:
        tree = golden.load(f"a3rl/{case}")
        ratio, loss, optim = density(tree)
        for source in ("offline", "online"):
            got = loss.log_ratio(golden.transitions(tree, source)).exp() - 1e-10
            golden.assert_close(got, tree[f"out/density_{source}"], source)
        value, _ = loss.density_ratio_loss(
            join_sources(golden.transitions(tree, "offline"), golden.transitions(tree, "online"))
        )
        golden.assert_close(value, tree["out/density_loss"], "loss")
        golden.assert_close(loss(pool_rows(tree))["loss_density_ratio"], tree["out/density_loss"], "loss, one batch")
        value.backward()
        params = loss.density_ratio_network_params
        golden.assert_params(flat(params, grad=True), ratio.module, golden.sub(tree, "out/density_grad"), "module.")
        optim.step()
        golden.assert_params(flat(params), ratio.module, golden.sub(tree, "out/density_after"), "module.")


@pytest.mark.parametrize("case", CASES)
def test_priority_equations(case: str) -> None:
    tree = golden.load(f"a3rl/{case}")
    out = golden.sub(tree, "out/priority")
    offline = torch.arange(16) % 2 == 0
    log_ratio = torch.zeros(16)
    log_ratio[offline] = (out["offline_density"] + 1e-10).log()
    factor = golden.hp(tree, "density_lambda_heuristic")
    log_priority = advantage_aligned_log_priority(log_ratio, out["heuristic"], offline, factor)
    golden.assert_close(log_priority, out["log_priority"], "log priority")
    log_prob = resampling_log_prob(log_priority, golden.hp(tree, "priority_alpha"))
    golden.assert_close(log_prob.exp(), out["prob"], "P")
    beta = annealed_beta(golden.hp(tree, "beta0"), golden.hp(tree, "step") / golden.hp(tree, "max_steps"))
    golden.assert_close(torch.tensor(beta), out["beta"], "beta")
    golden.assert_close(importance_log_weight(log_prob, beta).exp(), out["is_weight_unnormalised"], "u")
    golden.assert_close(kl_to_uniform(log_prob), out["kl_to_uniform"], "KL")


@pytest.mark.parametrize("case", CASES)
def test_log_priority_from_the_networks(case: str) -> None:
    tree = golden.load(f"a3rl/{case}")
    loss, *_ = learner(tree)
    golden.assert_close(aligned(tree, loss)(pool_rows(tree)), tree["out/priority/log_priority"], "log priority")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ALIGNMENTS)
def test_sampler_weights(case: str, variant: str) -> None:
    """Weights times the minibatch's size, since our losses average where the authors sum."""
    tree = golden.load(f"a3rl/{case}")
    loss, *_ = learner(tree)
    batch, sampler = draw(tree, loss, variant == "official")
    golden.assert_close(batch["priority_weight"], 8 * tree[f"out/priority/is_weight_{variant}"], "weights")
    golden.assert_close(sampler.metrics()["kl_to_uniform"], tree["out/priority/kl_to_uniform"], "KL")
    if variant == "gathered":
        for normalize, name, factor in (("batch", "renorm", 8), ("max", "per_max", 1)):
            batch, _ = draw(tree, loss, False, normalize)  # type: ignore[arg-type]
            expected = factor * tree[f"out/priority/is_weight_gathered_{name}"]
            golden.assert_close(batch["priority_weight"], expected, name)


@pytest.mark.parametrize("case", ["A", "B"])
def test_weighted_losses(case: str) -> None:
    tree = golden.load(f"a3rl/{case}")
    loss, critic, others, updater = learner(tree)
    batch = golden.transitions(tree, "minibatch").set("priority_weight", 8 * tree["minibatch/is_weight"])
    loss.noise = RecordedNoise(
        {"next_action": tree["noise/next_action"], "target": tree["subset"], "action": tree["noise/action"]}
    )
    actor_loss, info = loss.actor_loss(batch)
    golden.assert_close(actor_loss, tree["out/actor_loss"], "actor loss")
    actor_loss.backward()
    net = loss.actor_network[0].module
    golden.assert_params(
        flat(loss.actor_network_params, grad=True), net, golden.sub(tree, "out/actor_grad"), ACTOR_PREFIX
    )
    alpha_loss, alpha_info = loss.alpha_loss(batch, log_prob=info["log_prob"])
    golden.assert_close(alpha_loss, tree["out/temp_loss"], "temperature loss")
    golden.assert_close(alpha_info["entropy"], tree["out/entropy_weighted_sum"], "weighted entropy")
    value, info = loss.qvalue_loss(batch)
    golden.assert_close(info["target_value"], tree["out/target"], "target")
    golden.assert_close(value, tree["out/critic_loss"], "critic loss")
    golden.assert_close(
        (batch["priority_weight"] * info["qvalue"]).mean(), tree["out/q_weighted_mean"], "weighted mean of Q"
    )
    value.backward()
    params, net = loss.qvalue_network_params, loss.qvalue_network.module
    golden.assert_params(flat(params, grad=True), net, golden.sub(tree, "out/critic_grad"), "module.")
    critic.step()
    updater.step()  # type: ignore[attr-defined]
    golden.assert_params(
        flat(loss.target_qvalue_network_params), net, golden.sub(tree, "out/target_critic_after"), "module."
    )
    alpha_loss.backward()
    golden.assert_close(loss.temperature.log_alpha.grad, tree["out/temp_grad"], "temperature gradient")
    others.step()
    golden.assert_close(loss.temperature.log_alpha, tree["out/log_alpha_after"], "log alpha")


@pytest.mark.parametrize("variant", ALIGNMENTS)
def test_whole_update(variant: str) -> None:
    """Score, draw, utd_ratio critic steps, one actor and one temperature step, then utd_ratio density steps."""
    tree = golden.load("a3rl/update_A")
    loss, critic, others, updater = learner(tree)
    batch, _ = draw(tree, loss, variant == "official")
    out = golden.sub(tree, f"out/{variant}")
    for u, minibatch in enumerate(batch.split(8)):
        loss.noise = RecordedNoise(
            {
                "next_action": tree["noise/next_action"][u],
                "target": tree["subset"][u],
                "action": tree["noise/action"],
            }
        )
        value, info = loss.qvalue_loss(minibatch)
        critic.zero_grad()
        value.backward()
        critic.step()
        updater.step()  # type: ignore[attr-defined]
    golden.assert_close(value, out["critic_loss"], "critic loss")
    golden.assert_close((minibatch["priority_weight"] * info["qvalue"]).mean(), out["q"], "q")
    others.zero_grad()
    actor_loss, info = loss.actor_loss(minibatch)
    actor_loss.backward()
    alpha_loss, alpha_info = loss.alpha_loss(minibatch, log_prob=info["log_prob"])
    alpha_loss.backward()
    golden.assert_close(actor_loss, out["actor_loss"], "actor loss")
    golden.assert_close(alpha_info["entropy"], out["entropy"], "entropy")
    golden.assert_close(alpha_info["alpha"], out["temperature"], "temperature")
    golden.assert_close(alpha_loss, out["temperature_loss"], "temperature loss")
    others.step()
    net, actor = loss.qvalue_network.module, loss.actor_network[0].module
    golden.assert_params(flat(loss.qvalue_network_params), net, golden.sub(out, "critic_after"), "module.")
    if variant == "official":  # not recorded for the other
        target = golden.sub(out, "target_critic_after")
        golden.assert_params(flat(loss.target_qvalue_network_params), net, target, "module.")
    golden.assert_params(flat(loss.actor_network_params), actor, golden.sub(out, "actor_after"), ACTOR_PREFIX)
    golden.assert_close(loss.temperature.log_alpha, out["log_alpha_after"], "log alpha")


def test_density_updates() -> None:
    """utd_ratio steps on consecutive slices of the uniform pool."""
    tree = golden.load("a3rl/update_A")
    ratio, loss, optim = density(tree)
    offline, online = golden.transitions(tree, "offline"), golden.transitions(tree, "online")
    for first, second in zip(offline.split(4), online.split(4), strict=True):
        value, _ = loss.density_ratio_loss(join_sources(first, second))
        optim.zero_grad()
        value.backward()
        optim.step()
    golden.assert_close(value, tree["out/density_loss_last"], "loss")
    params = loss.density_ratio_network_params
    golden.assert_params(flat(params), ratio.module, golden.sub(tree, "out/density_after"), "module.")
