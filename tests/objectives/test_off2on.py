# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""PessimisticEnsembleLoss: contract, relations, and the numbers of the Off2On authors' code in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import SoftUpdate

from tests import golden_vectors as golden
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.off2on import off2on_priority
from torchrl_o2o.modules import DensityRatio, Temperature, average_actors, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import (
    DensityRatioLoss,
    EnsembleSACLoss,
    PessimisticEnsembleLoss,
    RecordedNoise,
    join_sources,
)
from torchrl_o2o.testing import LossContract, random_transitions
from torchrl_o2o.updates import Descend, Update

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

ACTOR_PREFIX = "module.0.module.members."


def build(
    num_pairs: int = 3, *, keys: tuple[Any, Any] = ("observation", "action"), **settings: Any
) -> PessimisticEnsembleLoss:
    names = {"observation_key": keys[0], "action_key": keys[1]}
    actor = average_actors([make_actor(5, 3, hidden_sizes=(16, 16), **names) for _ in range(num_pairs)])
    critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=2 * num_pairs, hidden_sizes=(16, 16), in_keys=keys)
    return PessimisticEnsembleLoss(actor, critics, **settings)


class TestContract(LossContract):
    trains = {
        "loss_qvalue": ("qvalue_network_params",),
        "loss_actor": ("actor_network_params",),
        "loss_alpha": ("temperature",),
    }

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> PessimisticEnsembleLoss:
        return build(keys=(observation_key, action_key))


def test_one_pair_is_sac() -> None:
    torch.manual_seed(0)
    actor, critics = make_actor(5, 3, hidden_sizes=(16,)), make_qvalue_ensemble(5, 3, num_qvalue_nets=2)
    ours = PessimisticEnsembleLoss(average_actors([actor]), critics, temperature=Temperature(-3.0))
    sac = EnsembleSACLoss(actor, critics, temperature=Temperature(-3.0), actor_q="min")
    batch = random_transitions(12, 5, 3)
    noise = RecordedNoise({"next_action": torch.randn(12, 3), "action": torch.randn(12, 3)})
    ours.noise = sac.noise = noise
    got, expected = ours(batch.clone()), sac(batch.clone())
    for key in ("loss_qvalue", "loss_actor", "loss_alpha", "target_value"):
        torch.testing.assert_close(got[key], expected[key])
    assert got["qvalue_std"] == 0.0


def test_each_pair_has_a_target_of_its_own() -> None:
    torch.manual_seed(0)
    loss, batch = build(), random_transitions(12, 5, 3)
    loss.noise = RecordedNoise({"next_action": torch.randn(12, 3)})
    before = loss.target_value(batch)
    loss.target_qvalue_network_params["module", "head", "bias"].data[2:4] += 10.0  # both critics of pair 1
    after = loss.target_value(batch)
    alive = ~batch["next", "terminated"].squeeze(-1)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    torch.testing.assert_close((after - before)[1], 9.9 * alive)
    loss.target_qvalue_network_params["module", "head", "bias"].data[0] += 10.0  # the minimum stays with its partner
    assert (loss.target_value(batch)[0] - before[0] < 9.0).all()


def test_all_members_follow_the_actor_gradient() -> None:
    torch.manual_seed(0)
    loss = build()
    loss.actor_loss(random_transitions(12, 5, 3))[0].backward()
    for name, value in loss.actor_network_params.flatten_keys(".").items():
        assert value.grad.flatten(1).any(1).all(), name


def test_default_temperature_is_the_authors() -> None:
    temperature = build().temperature
    assert (temperature.target_entropy, temperature.form) == (-3.0, "log_alpha")


def test_importance_weights_multiply_the_critics_errors() -> None:
    torch.manual_seed(0)
    loss, batch = build(), random_transitions(12, 5, 3)
    loss.noise = RecordedNoise({"next_action": torch.randn(12, 3)})
    weights = torch.rand(12, 1)
    loss.reduction = "none"
    rows = loss.qvalue_loss(batch)[0]
    loss.reduction = "mean"
    got = loss.qvalue_loss(batch.clone().set("priority_weight", weights))[0]
    torch.testing.assert_close(got, (rows * weights.squeeze(-1)).mean())


@pytest.mark.parametrize("number", [1, 5])
def test_critics_come_in_pairs(number: int) -> None:
    with pytest.raises(O2OSpecError, match=f"got {number} critics, expected an even number"):
        PessimisticEnsembleLoss(make_actor(5, 3), make_qvalue_ensemble(5, 3, num_qvalue_nets=number))


@pytest.mark.usefixtures("float64")
class TestGolden:
    """Off2OnRL@6f298fa, ``OursTrainer`` with ``ParallelMlp`` and ``ParallelTanhGaussianPolicy``."""

    @staticmethod
    def member(tree: golden.Tree, k: int) -> ProbabilisticActor:
        bounds = (golden.hp(tree, "log_std_min"), golden.hp(tree, "log_std_max"))
        actor = make_actor(5, 3, hidden_sizes=(16, 16), log_std_bounds=bounds)
        golden.fill(actor, golden.sub(tree, "actor"), k)
        return actor

    def build(self, tree: golden.Tree) -> tuple[PessimisticEnsembleLoss, SoftUpdate]:
        size = int(golden.hp(tree, "ensemble_size"))
        critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=2 * size, hidden_sizes=(16, 16), layer_norm=False)
        for k in range(size):
            for j in (1, 2):
                golden.fill(critics[2 * k + j - 1], golden.sub(tree, f"critic{j}"), k)
        temperature = Temperature(golden.hp(tree, "target_entropy"), form="log_alpha")
        temperature.log_alpha.data.copy_(tree["log_alpha"])
        actor = average_actors([self.member(tree, k) for k in range(size)])
        loss = PessimisticEnsembleLoss(actor, critics, temperature=temperature)
        loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
        updater = SoftUpdate(loss, tau=golden.hp(tree, "tau"))
        net = loss.qvalue_network.module
        golden.fill_stacked(loss.target_qvalue_network_params, net, self.interleaved(tree, "target_critic{}"))
        names = ("action", "next_action")
        loss.noise = RecordedNoise({name: tree[f"noise/{name}"] for name in names})
        return loss, updater

    @staticmethod
    def interleaved(tree: golden.Tree, name: str) -> dict[str, torch.Tensor]:
        """The two golden critics, each [K, ...], as ours, [2K, ...]."""
        first, second = golden.sub(tree, name.format(1)), golden.sub(tree, name.format(2))
        return {key: torch.stack([first[key], second[key]], 1).flatten(0, 1) for key in first}

    @staticmethod
    def flat(params: Any, grad: bool = False) -> dict[str, torch.Tensor]:
        return {key: (value.grad if grad else value) for key, value in params.flatten_keys(".").items()}

    @pytest.mark.parametrize("case", ["A", "B"])
    def test_losses_and_gradients(self, case: str) -> None:
        tree = golden.load(f"off2on/{case}")
        loss, _ = self.build(tree)
        batch = golden.transitions(tree)
        with loss.actor_network_params.to_module(loss.actor_network):
            dist = loss.actor_network.get_dist(batch)
        golden.assert_close(dist.loc, tree["out/policy_mean"], "merged mean")
        golden.assert_close(dist.scale, tree["out/policy_std"], "merged deviation")

        value, info = loss.qvalue_loss(batch)
        golden.assert_close(info["target_value"], tree["out/target"], "targets")
        golden.assert_close(value, tree["out/qf1_loss"] + tree["out/qf2_loss"], "critic loss")
        value.backward()
        net = loss.qvalue_network.module
        gradient = self.flat(loss.qvalue_network_params, grad=True)
        golden.assert_params(gradient, net, self.interleaved(tree, "out/critic{}_grad"), "module.")

        value, info = loss.actor_loss(batch)
        golden.assert_close(value, tree["out/policy_loss"], "policy loss")
        golden.assert_close(info["log_prob"], tree["out/log_prob"], "log prob")
        value.backward()
        actor = loss.actor_network[0].module.members
        gradient = self.flat(loss.actor_network_params, grad=True)
        golden.assert_params(gradient, actor, golden.sub(tree, "out/actor_grad"), ACTOR_PREFIX)

        value, _ = loss.alpha_loss(batch, log_prob=info["log_prob"])
        golden.assert_close(value, tree["out/alpha_loss"], "alpha loss")
        value.backward()
        golden.assert_close(loss.temperature.log_alpha.grad, tree["out/log_alpha_grad"], "alpha gradient")

    @pytest.mark.parametrize("case", ["A", "B"])
    def test_density_ratio_and_priorities(self, case: str) -> None:
        tree = golden.load(f"off2on/{case}")
        network = DensityRatio(5, 3, hidden_sizes=(16, 16), parametrization="relu", eps=0.0)
        golden.fill(network, golden.sub(tree, "weight_net"))
        batches = {name: golden.sub(tree, name) for name in ("offline", "online", "batch")}
        log_ratio = {
            name: network(*(rows[key] for key in ("observation", "action"))).squeeze(-1)
            for name, rows in batches.items()
        }
        for name, key in (("offline", "offline"), ("online", "online"), ("batch", "rl")):
            golden.assert_close(log_ratio[name].exp(), tree[f"out/weight_{key}"], name)
        settings = {"temperature": golden.hp(tree, "temperature"), "mean_eps": golden.hp(tree, "mean_eps")}
        priority = off2on_priority(log_ratio["batch"], log_ratio["offline"], **settings)
        golden.assert_close(priority, tree["out/priority"], "priority")

    @pytest.mark.parametrize("case", ["A", "B"])
    def test_one_network_gives_the_authors_loss_and_their_priorities(self, case: str) -> None:
        """Their constant is inside the loss's logarithms and not in the priorities, whose zeros are exact."""
        tree = golden.load(f"off2on/{case}")
        network = DensityRatio(5, 3, hidden_sizes=(16, 16), parametrization="relu")
        golden.fill(network, golden.sub(tree, "weight_net"))
        density = DensityRatioLoss(network, eps=1e-10)
        rows = {name: rows_of(golden.sub(tree, name)) for name in ("offline", "online", "batch")}
        value, _ = density.density_ratio_loss(join_sources(rows["offline"], rows["online"]))
        golden.assert_close(value, tree["out/weight_loss"], "density-ratio loss")
        settings = {"temperature": golden.hp(tree, "temperature"), "mean_eps": golden.hp(tree, "mean_eps")}
        log_ratio = [density.log_ratio(rows[name]) for name in ("batch", "offline")]
        priority = off2on_priority(*log_ratio, eps=density.eps, **settings)
        golden.assert_close(priority, tree["out/priority"], "priority")
        assert tree["out/weight_rl"].eq(0).any(), "the case has exact zeros"

    @pytest.mark.parametrize("case", ["A", "B"])
    def test_whole_step(self, case: str) -> None:
        """All losses at the old parameters; temperature, actor, critics and density ratio step, then the targets."""
        tree = golden.load(f"off2on/{case}")
        loss, updater = self.build(tree)
        eps = golden.hp(tree, "log_eps")
        ratio = DensityRatio(5, 3, hidden_sizes=(16, 16), parametrization="relu", eps=eps)
        golden.fill(ratio, golden.sub(tree, "weight_net"))
        density = DensityRatioLoss(ratio, eps=eps)
        groups = {
            "alpha": loss.temperature.parameters(),
            "actor": loss.actor_network_params.parameters(),
            "critic": loss.qvalue_network_params.parameters(),
            "weight_net": density.parameters(),
        }
        betas = (golden.hp(tree, "adam_b1"), golden.hp(tree, "adam_b2"))
        optims = [
            torch.optim.Adam(params, lr=golden.hp(tree, f"{name}_lr"), betas=betas, eps=golden.hp(tree, "adam_eps"))
            for name, params in groups.items()
        ]
        rows = {name: rows_of(golden.sub(tree, name)) for name in ("offline", "online")}
        ratio_loss, _ = density.density_ratio_loss(join_sources(rows["offline"], rows["online"]))
        golden.assert_close(ratio_loss, tree["out/weight_loss"], "density-ratio loss")
        out = loss(golden.transitions(tree))
        (ratio_loss + out["loss_qvalue"] + out["loss_actor"] + out["loss_alpha"]).backward()
        for optim in optims:
            optim.step()
        updater.step()

        golden.assert_close(loss.temperature.log_alpha, tree["out/step/log_alpha_after"], "log alpha")
        actor = loss.actor_network[0].module.members
        after = self.flat(loss.actor_network_params)
        golden.assert_params(after, actor, golden.sub(tree, "out/step/actor_after"), ACTOR_PREFIX)
        net = loss.qvalue_network.module
        after = {name: value[::2] for name, value in self.flat(loss.target_qvalue_network_params).items()}
        golden.assert_params(after, net, golden.sub(tree, "out/step/target_critic1_after"), "module.")
        after = self.flat(density.density_ratio_network_params)
        golden.assert_params(
            after, density.density_ratio_network.module, golden.sub(tree, "out/step/weight_net_after"), "module."
        )


def rows_of(entries: golden.Tree) -> TensorDict:
    return TensorDict(dict(entries), [len(entries["action"])])


def test_an_update_keeps_the_deviation_of_the_pairs() -> None:
    """`qvalue_std` of an update is the loss's own, not the deviation of all 2K critics."""
    torch.manual_seed(0)
    critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=4, hidden_sizes=(8,))
    loss = PessimisticEnsembleLoss(make_actor(3, 2, hidden_sizes=(8,)), critics)
    optim = torch.optim.SGD(loss.qvalue_network_params.parameters(), lr=0.0)
    batch = random_transitions(6, 3, 2)
    _, info = loss.qvalue_loss(batch)
    metrics = Update(loss, Descend("qvalue", optim))(batch)
    torch.testing.assert_close(metrics["qvalue_std"], info["qvalue_std"].mean())
    assert not torch.isclose(metrics["qvalue_std"], info["qvalue"].std(0).mean())
