# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.objectives import SoftUpdate, TD3BCLoss

from tests import golden_vectors as golden
from torchrl_o2o.checkpoint import Checkpointer, load_objects
from torchrl_o2o.data import TRANSITION, n_step
from torchrl_o2o.data.transforms import add_mc_return, episode_returns
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.soft import tanh_normal_log_prob
from torchrl_o2o.modules import Temperature, make_actor, make_baselines, make_qvalue_ensemble
from torchrl_o2o.modules.gaussian_policies import make_gaussian_actor
from torchrl_o2o.objectives import BaselineLoss, CalQLLoss, CQLLoss, EnsembleSACLoss, SACMLLoss
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.handover import HandOver, align, carry_optimizer, carry_over, starting_buffer, top_episodes

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def actor(**settings: Any) -> Any:
    return make_actor(5, 3, hidden_sizes=(16, 16), **settings)


def critics(number: int = 2) -> Any:
    return make_qvalue_ensemble(5, 3, num_qvalue_nets=number, hidden_sizes=(16, 16), layer_norm=False)


def sacml(policy: Any = None) -> SACMLLoss:
    return SACMLLoss(policy or actor(), critics(), make_baselines(5, hidden_sizes=(16, 16)))


def sac(**settings: Any) -> EnsembleSACLoss:
    return EnsembleSACLoss(actor(**settings), critics(), actor_q="min")


def equal(first: Any, second: Any) -> bool:
    pairs = zip(first.flatten_keys(".").values(), second.flatten_keys(".").values(), strict=True)
    return all(torch.equal(one, two) for one, two in pairs)


class TestCarryOver:
    def test_named_networks_and_their_targets_go_and_the_others_stay(self) -> None:
        offline, online = sacml(), sac()
        offline.target_qvalue_network_params.data.apply_(lambda x: x + 1.0)
        offline.temperature.log_alpha.data.fill_(-2.0)
        assert carry_over(offline, online) == ["temperature"]
        assert equal(offline.actor_network_params, online.actor_network_params)
        assert equal(offline.qvalue_network_params, online.qvalue_network_params)
        assert equal(offline.target_qvalue_network_params, online.target_qvalue_network_params)
        assert online.temperature.log_alpha == 0.0
        assert carry_over(offline, online, ("temperature",)) == ["actor_network", "qvalue_network"]
        assert online.temperature.log_alpha == -2.0

    def test_copies_do_not_tie_the_two(self) -> None:
        offline, online = sacml(), sac()
        carry_over(offline, online)
        online.qvalue_network_params["module", "head", "bias"].data.add_(1.0)
        assert not equal(offline.qvalue_network_params, online.qvalue_network_params)

    def test_one_pre_training_serves_many_from_its_checkpoint(self, tmp_path: Path) -> None:
        offline = CQLLoss(actor(), critics())
        Checkpointer(tmp_path, objects={"loss": offline}).save(1)
        for online in (sac(), CalQLLoss(actor(), critics())):
            state: dict[str, Any] = {}
            load_objects(tmp_path, {"loss": state})
            carry_over(state, online)
            assert equal(offline.qvalue_network_params, online.qvalue_network_params)

    def test_targets_start_at_the_network_where_the_source_has_none(self) -> None:
        state = {k: v for k, v in sacml().state_dict().items() if not k.startswith("target_")}
        online = sac()
        carry_over(state, online)
        assert equal(online.target_qvalue_network_params, online.qvalue_network_params)

    @pytest.mark.parametrize(
        ("offline", "names", "message"),
        [
            (lambda: CQLLoss(actor(), critics(4)), ("qvalue_network",), r"\(4, 16, 8\), the latter \(2, 16, 8\)"),
            (lambda: CQLLoss(actor(affine_log_std=True), critics()), ("actor_network",), "policy family"),
            (lambda: BaselineLoss(actor(), make_baselines(5)), ("qvalue_network",), "has no 'qvalue_network'"),
            (sacml, ("value_network",), "online loss has no 'value_network'"),
        ],
    )
    def test_what_does_not_fit_is_refused_with_the_reason(self, offline: Any, names: Any, message: str) -> None:
        with pytest.raises(O2OSpecError, match=message):
            carry_over(offline(), sac(), names)

    def test_a_deterministic_policy_cannot_start_a_stochastic_one(self) -> None:
        with pytest.raises(O2OSpecError, match="the offline actor_network does not fit"):
            carry_over(td3_bc(), sac(), ("actor_network",))


def td3_bc() -> TD3BCLoss:
    deterministic = TensorDictModule(
        nn.Sequential(nn.Linear(5, 3), nn.Tanh()), in_keys=["observation"], out_keys=["action"]
    )
    return TD3BCLoss(deterministic, critics(), num_qvalue_nets=2, bounds=(-1.0, 1.0))


class TestCarryOptimizer:
    def test_moments_go_over_and_the_next_step_is_the_uninterrupted_one(self) -> None:
        torch.manual_seed(0)
        nets = [nn.Linear(3, 2) for _ in range(2)]
        optims = [torch.optim.Adam(net.parameters(), lr=1e-2) for net in nets]
        data = torch.randn(4, 3)
        for _ in range(3):
            advance(nets[0], optims[0], data)
        nets[1].load_state_dict(nets[0].state_dict())
        carry_optimizer(optims[0].state_dict(), optims[1])
        for net, optim in zip(nets, optims, strict=True):
            advance(net, optim, data)
        assert torch.equal(nets[0].weight, nets[1].weight)

    def test_other_parameters_are_refused(self) -> None:
        first, second = nn.Linear(3, 2), nn.Linear(4, 2)
        offline = torch.optim.Adam(first.parameters())
        advance(first, offline, torch.randn(4, 3))
        with pytest.raises(O2OSpecError, match="start the online optimizer afresh"):
            carry_optimizer(offline, torch.optim.Adam(second.parameters()))
        with pytest.raises(O2OSpecError, match="steers 2 parameters, the online one 1"):
            carry_optimizer(offline, torch.optim.Adam([second.weight]))


def advance(net: nn.Module, optim: torch.optim.Optimizer, data: torch.Tensor) -> None:
    optim.zero_grad()
    net(data).square().sum().backward()
    optim.step()


class TestAlign:
    def test_before_training_the_critic_is_the_log_density_plus_a_function_of_the_state(self) -> None:
        torch.manual_seed(0)
        offline, batch = sacml(), random_transitions(12, 5, 3)
        loss = align(offline, actor(), critics())
        other = batch.clone()
        other["action"] = (torch.rand(12, 3) - 0.5) * 0.5
        infos = [loss.qvalue_loss(data)[1] for data in (batch, other)]
        difference = infos[0]["qvalue"] - infos[1]["qvalue"]
        log_ratio = infos[0]["reference_log_prob"] - infos[1]["reference_log_prob"]
        torch.testing.assert_close(difference, log_ratio.expand(2, -1), atol=1e-4, rtol=1e-4)

        self.step(loss, batch)
        infos = [loss.qvalue_loss(data)[1] for data in (batch, other)]
        difference = infos[0]["qvalue"] - infos[1]["qvalue"]
        assert (difference - log_ratio).abs().max() > 0.1, "after training the residual depends on the action"

    @staticmethod
    def step(loss: Any, batch: TensorDict) -> None:
        SoftUpdate(loss, tau=0.005)
        optim = torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=0.01)
        for _ in range(20):
            optim.zero_grad()
            loss.qvalue_loss(batch)[0].backward()
            optim.step()

    def test_action_gradient_of_the_critic_is_that_of_the_offline_policy(self) -> None:
        torch.manual_seed(0)
        offline = sacml()
        loss = align(offline, actor(), critics())
        batch = random_transitions(6, 5, 3)
        action = (torch.rand(6, 3) - 0.5).requires_grad_()
        residual = dict(loss.qvalue_network_params.data.flatten_keys(".").items())
        value, _ = loss._aligned({"observation": batch["observation"]}, action, residual)
        (gradient,) = torch.autograd.grad(value[0].sum(), action)
        with offline.actor_network_params.to_module(offline.actor_network):
            dist = offline.actor_network.get_dist(batch)
        density = tanh_normal_log_prob(action.atanh(), dist.loc.detach(), dist.scale.detach())
        (expected,) = torch.autograd.grad(density.sum(), action)
        torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-3)

    def test_policy_temperature_and_targets(self) -> None:
        offline, policy = sacml(), actor()
        offline.temperature.log_alpha.data.fill_(-3.0)
        loss = align(offline, policy, critics())
        assert equal(loss.actor_network_params, offline.actor_network_params)
        assert equal(loss.reference_network_params, offline.actor_network_params)
        assert equal(loss.qvalue_network_params, loss.target_qvalue_network_params)
        assert loss.temperature.alpha == 1.0
        policy[0].module[1].mean.bias.data.add_(1.0)
        assert not equal(loss.actor_network_params, offline.actor_network_params), "the given actor is the online one"

    @pytest.mark.parametrize("kind", ["cql", "unsquashed"])
    def test_any_policy_with_a_density_through_baselines_on_top(self, kind: str) -> None:
        def make() -> Any:
            return actor() if kind == "cql" else make_gaussian_actor(5, 3, hidden_sizes=(16, 16), std="sigmoid")

        policy = make()
        if kind == "cql":
            CQLLoss(policy, critics())
        baselines = BaselineLoss(policy, make_baselines(5, hidden_sizes=(16, 16)))
        loss = align(baselines.state_dict(), make(), critics(), beta=3.0, interpolation=0.5)
        batch = random_transitions(12, 5, 3)
        assert loss(batch)["loss_qvalue"].isfinite()
        assert loss.interpolation == 0.5

    def test_refusals(self) -> None:
        with pytest.raises(O2OSpecError, match="the offline policy is deterministic"):
            align(td3_bc(), actor(), critics())
        with pytest.raises(O2OSpecError, match="no baseline Z"):
            align(CQLLoss(actor(), critics()), actor(), critics())
        with pytest.raises(O2OSpecError, match="the same number of members"):
            align(sacml(), actor(), critics(4))
        with pytest.raises(O2OSpecError, match="policy family"):
            align(sacml(), make_gaussian_actor(5, 3, hidden_sizes=(16, 16)), critics())

    def test_golden_initialization(self, request: pytest.FixtureRequest) -> None:
        """Layers, zero columns, targets and values as the authors' critic_init makes them."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        request.addfinalizer(lambda: torch.set_default_dtype(before))
        tree = golden.load("aca/init_A")
        offline = sacml()
        net = offline.baseline_network.module
        golden.fill_stacked(offline.baseline_network_params, net, golden.sub(tree, "baseline"))
        loss = align(offline, actor(), critics())
        for params, name in (
            (loss.qvalue_network_params, "critic_after"),
            (loss.target_qvalue_network_params, "target_critic_after"),
        ):
            flat = dict(params.flatten_keys(".").items())
            golden.assert_params(flat, loss.qvalue_network.module, golden.sub(tree, f"out/{name}"), "module.")
        loss.interpolation = 0.0
        batch = double_transitions(8)
        batch["observation"], batch["action"] = tree["probe/observation"], tree["probe/action"]
        qvalue = loss.qvalue_loss(batch)[1]["qvalue"]
        golden.assert_close(qvalue, tree["out/probe_q"], "q")
        golden.assert_close(qvalue, tree["out/probe_z"], "z")


def double_transitions(number: int) -> TensorDict:
    return random_transitions(number, 5, 3).apply(lambda x: x.double() if x.is_floating_point() else x)


def toy_dataset() -> TensorDict:
    """The golden file's toy episodes with all their transitions."""
    tree = golden.load("aca/init_A")
    lengths = tree["dataset/episode_length"]
    data = double_transitions(int(lengths.sum()))
    data["observation"], data["action"] = tree["dataset/observation"], tree["dataset/action"]
    data["next", "reward"] = tree["dataset/reward"].unsqueeze(-1)
    data["next", "terminated"] = tree["dataset/terminated"].bool().unsqueeze(-1)
    data["next", "truncated"] = tree["dataset/truncated"].bool().unsqueeze(-1)
    data["next", "done"] = data["next", "terminated"] | data["next", "truncated"]
    data["episode"] = torch.arange(len(lengths)).repeat_interleave(lengths)
    return data


class TestData:
    def test_golden_ranking_of_episodes(self) -> None:
        tree, data = golden.load("aca/init_A"), toy_dataset()
        golden.assert_close(episode_returns(data), tree["out/episode_return_full"], "returns", rtol=1e-6)
        best = top_episodes(data, int(golden.hp(tree, "n_top")))
        expected = tree["out/top_episode_index_by_full_return_ascending"]
        assert best["episode"].unique_consecutive().tolist() == expected.tolist()

    @pytest.mark.parametrize(("number", "episodes"), [(0, 0), (2, 2), (6, 6), (99, 6)])
    def test_top_episodes_are_whole(self, number: int, episodes: int) -> None:
        data = toy_dataset()
        best = top_episodes(data, number)
        assert len(best["episode"].unique()) == episodes
        for index in best["episode"].unique():
            assert (best["episode"] == index).sum() == (data["episode"] == index).sum()

    @pytest.mark.parametrize(("data", "rows"), [("none", 0), ("all", 29), ("symmetric", 29)])
    def test_buffers_start_with_the_rows_they_name(self, data: Any, rows: int) -> None:
        buffer = starting_buffer(toy_dataset(), 10, data=data)
        assert len(buffer) == rows
        assert buffer.storage.max_size == rows + 10

    def test_only_symmetric_buffers_never_overwrite_offline_rows(self) -> None:
        data = toy_dataset()
        online = double_transitions(13).select(*TRANSITION)
        for kind, intact in (("symmetric", True), ("all", False)):
            buffer = starting_buffer(data, 10, data=kind)
            for row in range(13):
                buffer.extend(online[row : row + 1])
            assert torch.equal(buffer.storage[:29]["observation"], data["observation"]) == intact, kind
            if not intact:
                assert torch.equal(buffer.storage[:3]["observation"], online["observation"][10:]), "oldest first"

    def test_steps_of_rows_over_several_steps_are_kept(self) -> None:
        rows = n_step(toy_dataset(), n=2, gamma=0.9)
        buffer = starting_buffer(rows, 10, data="all")
        assert torch.equal(buffer.storage[:]["steps_to_next_obs"], rows["steps_to_next_obs"])

    def test_top_buffer_is_filled_best_last_and_symmetric_keeps_its_fraction(self) -> None:
        data = toy_dataset()
        buffer = starting_buffer(data, 10, data="top", num_top_episodes=2)
        assert torch.equal(buffer.storage[:]["observation"], top_episodes(data, 2)["observation"])
        buffer = starting_buffer(data, 10, data="symmetric", batch_size=8, offline_fraction=0.25)
        buffer.extend(double_transitions(10).select(*TRANSITION))
        assert (buffer.sample()["index"] < 29).sum() == 2

    def test_more_entries_go_along(self) -> None:
        data = add_mc_return(toy_dataset(), gamma=0.99)
        buffer = starting_buffer(data, 10, data="symmetric", keys=(*TRANSITION, "mc_return"))
        assert torch.equal(buffer.storage[:]["mc_return"], data["mc_return"])
        with pytest.raises(O2OSpecError, match="lack"):
            starting_buffer(toy_dataset(), 10, keys=(*TRANSITION, "mc_return"))

    def test_refusals(self) -> None:
        data = toy_dataset()
        for settings, message in (
            ({"data": "some"}, "got data='some'"),
            ({"online_capacity": 0}, "got online_capacity=0"),
            ({"data": "top", "num_top_episodes": -1}, "got number=-1"),
        ):
            with pytest.raises(O2OSpecError, match=message):
                starting_buffer(data, **{"online_capacity": 5, **settings})
        with pytest.raises(O2OSpecError, match="no 'episode' entry"):
            top_episodes(data.exclude("episode"), 1)


class TestHandOver:
    def test_applies_all_its_parts(self) -> None:
        offline, online = sacml(), sac()
        optims = [torch.optim.Adam(loss.qvalue_network_params.parameters()) for loss in (offline, online)]
        offline.qvalue_loss(random_transitions(6, 5, 3))[0].backward()
        optims[0].step()
        plan = HandOver(keep_optimizers=True, init_alpha=0.2, warmup_steps=3, data="none")
        assert plan.apply(offline, online, [(optims[0], optims[1])]) == ["temperature"]
        torch.testing.assert_close(online.temperature.alpha, torch.tensor(0.2))
        assert len(optims[1].state) == len(optims[0].state)
        assert [plan.may_update(step) for step in (0, 2, 3, 4)] == [False, False, True, True]
        assert len(plan.buffer(toy_dataset(), 5)) == 0

    def test_refusals(self) -> None:
        with pytest.raises(O2OSpecError, match="got warmup_steps=-1"):
            HandOver(warmup_steps=-1)
        with pytest.raises(O2OSpecError, match=r"init_alpha=0\.0"):
            HandOver(init_alpha=0.0)
        with pytest.raises(O2OSpecError, match="got data='best'"):
            HandOver(data="best")  # type: ignore[arg-type]
        with pytest.raises(O2OSpecError, match="no optimizers were given"):
            HandOver(keep_optimizers=True).apply(sacml(), sac())

    def test_a_fixed_temperature_can_be_set_too(self) -> None:
        online = EnsembleSACLoss(actor(), critics(), temperature=Temperature(None))
        HandOver(init_alpha=0.5).apply(sacml(), online)
        torch.testing.assert_close(online.temperature.alpha, torch.tensor(0.5))
