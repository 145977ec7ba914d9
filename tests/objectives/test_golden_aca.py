# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SACMLLoss and ACALoss against the authors' code (ZishunYu/ACA@f875874 on d3rlpy 1.1.0), in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import SoftUpdate

from tests import golden_vectors as golden
from torchrl_o2o.functional.alignment import interpolation_weight
from torchrl_o2o.modules import Temperature, make_actor, make_baselines, make_qvalue_ensemble
from torchrl_o2o.modules.aligned import clipped_log_density, density_floor
from torchrl_o2o.modules.gaussian_policies import make_gaussian_actor
from torchrl_o2o.objectives import ACALoss, RecordedNoise, SACMLLoss
from torchrl_o2o.objectives.soft import SoftLoss

ONLINE = ["aca/A", "aca/B", "aca/C"]
OFFLINE = ["aca/sacml_A", "aca/sacml_B"]
INIT = "aca/init_A"
ACTOR_PREFIX = "module.0.module."
LOGIT = "module.0.module.1.log_std"

pytestmark = pytest.mark.usefixtures("float64")


def make_policy(tree: golden.Tree, name: str) -> ProbabilisticActor:
    hidden = (16,) * int(golden.hp(tree, "n_hidden"))
    bounds = (golden.hp(tree, "log_std_min"), golden.hp(tree, "log_std_max"))
    if golden.hp(tree, "squashed"):
        actor = make_actor(5, 3, hidden_sizes=hidden, log_std_bounds=bounds)
    else:
        actor = make_gaussian_actor(5, 3, hidden_sizes=hidden, std="sigmoid", log_std_bounds=bounds)
        actor[0].module[1].log_std.data.copy_(tree[f"{name}/log_std_logit"])
    golden.fill(actor, golden.sub(tree, name))
    return actor


def make_critics(tree: golden.Tree) -> list[Any]:
    critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=2, hidden_sizes=(16, 16), layer_norm=False)
    for member, critic in enumerate(critics):
        golden.fill(critic, golden.sub(tree, "critic"), member)
    return critics


def finish(loss: SoftLoss, tree: golden.Tree) -> SoftUpdate:
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    updater = SoftUpdate(loss, tau=golden.hp(tree, "tau"))
    golden.fill_stacked(
        loss.target_qvalue_network_params, loss.qvalue_network.module, golden.sub(tree, "target_critic")
    )
    names = ("next_action", "action", "temperature_action", "baseline_next_action")
    loss.noise = RecordedNoise({name: tree[f"noise/{name}"] for name in names if f"noise/{name}" in tree})
    return updater


def make_temperature(tree: golden.Tree) -> Temperature:
    temperature = Temperature(-golden.hp(tree, "target_entropy_positive_convention"), form="log_alpha")
    temperature.log_alpha.data.copy_(tree["log_alpha"])
    return temperature


def aca(tree: golden.Tree) -> tuple[ACALoss, SoftUpdate]:
    loss = ACALoss(
        make_policy(tree, "actor"),
        make_critics(tree),
        make_policy(tree, "reference_actor"),
        temperature=make_temperature(tree),
        beta=golden.hp(tree, "beta"),
        interpolation=golden.hp(tree, "interpolation_weight"),
    )
    return loss, finish(loss, tree)


def sacml(tree: golden.Tree) -> tuple[SACMLLoss, SoftUpdate]:
    baselines = make_baselines(5, hidden_sizes=(16, 16))
    for member, baseline in enumerate(baselines):
        golden.fill(baseline, golden.sub(tree, "baseline"), member)
    loss = SACMLLoss(
        make_policy(tree, "actor"),
        make_critics(tree),
        baselines,
        temperature=make_temperature(tree),
        ml_weight=golden.hp(tree, "ml_alpha"),
    )
    return loss, finish(loss, tree)


def adam(params: Any, tree: golden.Tree, name: str) -> torch.optim.Adam:
    return torch.optim.Adam(params.parameters(), lr=golden.hp(tree, f"{name}_lr"), eps=golden.hp(tree, "adam_eps"))


def values(params: Any, grad: bool = False) -> dict[str, torch.Tensor]:
    return {key: (value.grad if grad else value) for key, value in params.flatten_keys(".").items()}


def assert_actor(loss: SoftLoss, tree: golden.Tree, where: str, grad: bool) -> None:
    got, expected = values(loss.actor_network_params, grad), golden.sub(tree, where)
    golden.assert_params(got, loss.actor_network[0].module, expected, ACTOR_PREFIX)
    if "log_std_logit" in expected:
        golden.assert_close(got[LOGIT], expected["log_std_logit"], "log std logit")


def assert_critics(loss: SoftLoss, tree: golden.Tree, where: str, grad: bool = False, target: bool = False) -> None:
    params = loss.target_qvalue_network_params if target else loss.qvalue_network_params
    golden.assert_params(values(params, grad), loss.qvalue_network.module, golden.sub(tree, where), "module.")


def minimize(value: torch.Tensor, optim: torch.optim.Optimizer) -> None:
    optim.zero_grad()
    value.backward()
    optim.step()


@pytest.mark.parametrize("case", ONLINE)
class TestACA:
    def test_clipped_density(self, case: str) -> None:
        tree = golden.load(case)
        loss, _ = aca(tree)
        batch, beta = golden.transitions(tree), golden.hp(tree, "beta")
        with loss.reference_network_params.to_module(loss.reference_network):
            current = loss.reference_network.get_dist(batch)
            following = loss.reference_network.get_dist(batch["next"])
        for dist, action, name in (
            (current, batch["action"], "data"),
            (current, tree["out/policy_action"], "policy"),
            (following, tree["out/next_action"], "next"),
        ):
            clipped, plain = clipped_log_density(dist, action, beta)
            golden.assert_close(plain, tree[f"out/{name}_log_pi0"], name)
            golden.assert_close(density_floor(dist, beta), tree[f"out/{name}_clip_at"], name)
            golden.assert_close(clipped, tree[f"out/{name}_log_pi0_clipped_unweighted"], name)

    def test_critic(self, case: str) -> None:
        tree = golden.load(case)
        loss, _ = aca(tree)
        value, info = loss.qvalue_loss(golden.transitions(tree))
        golden.assert_close(info["target_value"], tree["out/target"], "target")
        golden.assert_close(info["qvalue"], tree["out/q_total"], "q")
        golden.assert_close(info["reference_log_prob"], tree["out/data_log_pi0"], "log pi_0")
        golden.assert_close(value, tree["out/critic_loss"], "critic loss")
        value.backward()
        assert_critics(loss, tree, "out/critic_grad", grad=True)

    def test_actor(self, case: str) -> None:
        tree = golden.load(case)
        loss, _ = aca(tree)
        value, info = loss.actor_loss(golden.transitions(tree))
        golden.assert_close(value, tree["out/actor_loss"], "actor loss")
        golden.assert_close(info["log_prob"], tree["out/log_prob"], "log prob")
        value.backward()
        assert_actor(loss, tree, "out/actor_grad", grad=True)

    def test_whole_update(self, case: str) -> None:
        """Temperature, critic with the new alpha, actor with the new critic and clipped gradient, targets."""
        tree = golden.load(case)
        loss, updater = aca(tree)
        batch, step = golden.transitions(tree), golden.sub(tree, "out/update")
        loss_alpha, _ = loss.alpha_loss(batch)
        golden.assert_close(loss_alpha, step["temp_loss"], "temperature loss")
        minimize(loss_alpha, adam(loss.temperature, tree, "temp"))
        golden.assert_close(loss.temperature.log_alpha.grad, step["log_alpha_grad"], "temperature gradient")
        golden.assert_close(loss.temperature.log_alpha, step["log_alpha_after"], "log alpha")
        loss_qvalue, _ = loss.qvalue_loss(batch)
        golden.assert_close(loss_qvalue, step["critic_loss"], "critic loss")
        minimize(loss_qvalue, adam(loss.qvalue_network_params, tree, "critic"))
        assert_critics(loss, tree, "out/update/critic_after")
        loss_actor, _ = loss.actor_loss(batch)
        golden.assert_close(loss_actor, step["actor_loss"], "actor loss")
        loss_actor.backward()
        limit = golden.hp(tree, "actor_grad_clip_norm")
        norm = torch.nn.utils.clip_grad_norm_(loss.actor_network_params.parameters(), limit)
        golden.assert_close(norm, step["actor_grad_norm"], "gradient norm")
        assert_actor(loss, tree, "out/update/actor_grad_clipped", grad=True)
        adam(loss.actor_network_params, tree, "actor").step()
        assert_actor(loss, tree, "out/update/actor_after", grad=False)
        updater.step()
        assert_critics(loss, tree, "out/update/target_critic_after", target=True)


@pytest.mark.parametrize("case", OFFLINE)
class TestSACML:
    def test_critic_and_baseline(self, case: str) -> None:
        tree = golden.load(case)
        loss, _ = sacml(tree)
        batch = golden.transitions(tree)
        value, info = loss.qvalue_loss(batch)
        golden.assert_close(info["target_value"], tree["out/target"], "target")
        golden.assert_close(value, tree["out/critic_loss"], "critic loss")
        golden.assert_close(loss.baseline_target(batch), tree["out/baseline_target"], "baseline target")
        baseline_value, _ = loss.baseline_loss(batch)
        golden.assert_close(baseline_value, tree["out/baseline_loss"], "baseline loss")
        (value + baseline_value).backward()
        assert_critics(loss, tree, "out/critic_grad", grad=True)
        golden.assert_params(
            values(loss.baseline_network_params, True),
            loss.baseline_network.module,
            golden.sub(tree, "out/baseline_grad"),
            "module.",
        )

    def test_actor(self, case: str) -> None:
        tree = golden.load(case)
        loss, _ = sacml(tree)
        value, info = loss.actor_loss(golden.transitions(tree))
        golden.assert_close(value, tree["out/actor_loss"], "actor loss")
        golden.assert_close(info["data_log_prob"], tree["out/data_log_prob"], "data log prob")
        golden.assert_close(info["log_prob"], tree["out/policy_log_prob"], "policy log prob")
        golden.assert_close(info["ml_coefficient"], tree["out/lambda"], "lambda")
        value.backward()
        assert_actor(loss, tree, "out/actor_grad", grad=True)

    def test_whole_update(self, case: str) -> None:
        """Temperature, critic, baseline, actor, targets; each with what the steps before left."""
        tree = golden.load(case)
        loss, updater = sacml(tree)
        batch, step = golden.transitions(tree), golden.sub(tree, "out/update")
        minimize(loss.alpha_loss(batch)[0], adam(loss.temperature, tree, "temp"))
        golden.assert_close(loss.temperature.log_alpha, step["log_alpha_after"], "log alpha")
        for value, params, name in (
            (loss.qvalue_loss, loss.qvalue_network_params, "critic"),
            (loss.baseline_loss, loss.baseline_network_params, "baseline"),
            (loss.actor_loss, loss.actor_network_params, "actor"),
        ):
            out = value(batch)[0]
            golden.assert_close(out, step[f"{name}_loss"], f"{name} loss")
            minimize(out, adam(params, tree, name))
        updater.step()
        assert_critics(loss, tree, "out/update/critic_after")
        assert_critics(loss, tree, "out/update/target_critic_after", target=True)
        assert_actor(loss, tree, "out/update/actor_after", grad=False)
        golden.assert_params(
            values(loss.baseline_network_params),
            loss.baseline_network.module,
            golden.sub(tree, "out/update/baseline_after"),
            "module.",
        )


@pytest.mark.parametrize("number", range(4))
def test_interpolation_schedule(number: int) -> None:
    tree = golden.sub(golden.load(INIT), f"schedule{number}")
    expected = golden.load(INIT)[f"out/schedule{number}_weights"]
    settings = {"horizon": float(tree["horizon_thousand_steps"]), "floor": float(tree["floor"])}
    got = [interpolation_weight(t, start=float(tree["start"]), **settings) for t in range(len(expected))]
    golden.assert_close(torch.tensor(got), expected, "schedule")
