# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Carrying networks and optimizers over; alignment of ACA."""

from __future__ import annotations

from functools import partial
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
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.soft import tanh_normal_log_prob
from torchrl_o2o.modules import make_actor, make_baselines, make_qvalue_ensemble
from torchrl_o2o.modules.gaussian_policies import make_gaussian_actor
from torchrl_o2o.objectives import BaselineLoss, CalQLLoss, CQLLoss, EnsembleSACLoss, SACMLLoss
from torchrl_o2o.objectives.carry import align, carry_optimizer, carry_over
from torchrl_o2o.testing import random_transitions

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


def double_transitions(number: int) -> TensorDict:
    return random_transitions(number, 5, 3).apply(lambda x: x.double() if x.is_floating_point() else x)


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
            (lambda: CQLLoss(actor(), critics(4)), ("qvalue_network",), r"\(4, 16, 8\) at .*, expected \(2, 16, 8\)"),
            (lambda: CQLLoss(actor(affine_log_std=True), critics()), ("actor_network",), "policy family"),
            (
                lambda: BaselineLoss(actor(), make_baselines(5)),
                ("qvalue_network",),
                "got 'qvalue_network' to carry over, expected one of .* the offline loss has",
            ),
            (sacml, ("value_network",), "got 'value_network' to carry over, expected one of .* the online loss has"),
        ],
    )
    def test_what_does_not_fit_is_refused_with_the_reason(self, offline: Any, names: Any, message: str) -> None:
        with pytest.raises(O2OSpecError, match=message):
            carry_over(offline(), sac(), names)

    def test_a_deterministic_policy_cannot_start_a_stochastic_one(self) -> None:
        with pytest.raises(O2OSpecError, match="got an offline actor_network with"):
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
        with pytest.raises(O2OSpecError, match="start with a new online optimizer"):
            carry_optimizer(offline, torch.optim.Adam(second.parameters()))
        with pytest.raises(O2OSpecError, match="of 2 parameters and an online one of 1"):
            carry_optimizer(offline, torch.optim.Adam([second.weight]))

    def test_another_kind_and_other_groups_are_refused(self) -> None:
        """Adam's moments mean nothing to SGD, and parameters are matched by their order."""
        first, second = nn.Linear(3, 2), nn.Linear(3, 2)
        sgd, adam = torch.optim.SGD(first.parameters(), momentum=0.9), torch.optim.Adam(first.parameters())
        for optim in (sgd, adam):
            advance(first, optim, torch.randn(4, 3))
        with pytest.raises(O2OSpecError, match=r"has the options \['momentum'\], expected \['betas'\] as Adam has"):
            carry_optimizer(sgd, torch.optim.Adam(second.parameters()))
        with pytest.raises(O2OSpecError, match=r"has the options \['betas'\], expected \['momentum'\] as SGD has"):
            carry_optimizer(adam.state_dict(), torch.optim.SGD(second.parameters(), momentum=0.9))
        with pytest.raises(O2OSpecError, match=r"has groups of \[2\] parameters, expected \[1, 1\], as the online"):
            carry_optimizer(adam, torch.optim.Adam([{"params": [second.weight]}, {"params": [second.bias]}]))
        assert carry_optimizer(adam, torch.optim.AdamW(second.parameters())).state[second.weight]["step"] == 1

    @pytest.mark.parametrize(
        ("offline", "online", "lacks"),
        [
            (torch.optim.Adam, partial(torch.optim.Adam, amsgrad=True), "max_exp_avg_sq"),
            (torch.optim.Adam, torch.optim.NAdam, "mu_product"),
            (torch.optim.Adam, torch.optim.Adamax, "exp_inf"),
            (torch.optim.RMSprop, partial(torch.optim.RMSprop, momentum=0.9), "momentum_buffer"),
        ],
    )
    def test_moments_that_are_missing_are_refused(self, offline: Any, online: Any, lacks: str) -> None:
        """The next step raised KeyError."""
        first, second = nn.Linear(3, 2), nn.Linear(3, 2)
        source, destination = offline(first.parameters()), online(second.parameters())
        destination.register_step_post_hook(lambda *_: pytest.fail("a step was made"))
        advance(first, source, torch.randn(4, 3))
        with pytest.raises(O2OSpecError, match=f"state has no '{lacks}', expected what a {type(destination).__name__}"):
            carry_optimizer(source, destination)
        assert not destination.state


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
        with pytest.raises(O2OSpecError, match="expected a baseline Z"):
            align(CQLLoss(actor(), critics()), actor(), critics())
        with pytest.raises(O2OSpecError, match="the same number of members"):
            align(sacml(), actor(), critics(4))
        with pytest.raises(O2OSpecError, match="policy family"):
            align(sacml(), make_gaussian_actor(5, 3, hidden_sizes=(16, 16)), critics())

    @pytest.mark.usefixtures("float64")
    def test_golden_initialization(self) -> None:
        """Layers, zero columns, targets and values as the authors' critic_init makes them."""
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
