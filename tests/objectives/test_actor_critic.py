# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import SoftUpdate

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import (
    ACALoss,
    AWACLoss,
    BRACLoss,
    CQLLoss,
    EnsembleSACLoss,
    FrozenCritic,
    IQLLoss,
    PessimisticEnsembleLoss,
)
from torchrl_o2o.priorities import Advantage
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.updates import Descend, MoveTargets, Update

SMALL: dict[str, Any] = {"hidden_sizes": (8,)}


def critics() -> list:
    return make_qvalue_ensemble(3, 2, num_qvalue_nets=2, **SMALL)


@pytest.mark.parametrize("build", [EnsembleSACLoss, AWACLoss, CQLLoss])
class TestNetworks:
    """Networks that cannot work are refused when the loss is built, not in the middle of an update."""

    def test_deterministic_actor(self, build: type) -> None:
        with pytest.raises(O2OSpecError, match="deterministic actor Actor, expected a stochastic one"):
            build(make_deterministic_actor(3, 2, **SMALL), critics())

    def test_one_critic_in_place_of_a_list(self, build: type) -> None:
        with pytest.raises(O2OSpecError, match="got one ValueOperator, expected a list"):
            build(make_actor(3, 2, **SMALL), critics()[0])

    def test_a_list_of_one_critic_is_trained(self, build: type) -> None:
        """It gets the gradient that it has among two; TorchRL's stack of one has no parameters."""
        actor, (one, other) = make_actor(3, 2, **SMALL), critics()
        alone, pair = build(actor, [one]), build(actor, [one, other])
        batch, given = random_transitions(4, 3, 2), copy.deepcopy(one.state_dict())
        for loss in (alone, pair):
            loss._qvalues({"observation": batch["observation"]}, batch["action"])[0].square().sum().backward()
        params = list(alone.qvalue_network_params.parameters())
        assert params
        for mine, theirs in zip(params, pair.qvalue_network_params.parameters(), strict=True):
            assert mine.is_leaf
            torch.testing.assert_close(mine.grad, theirs.grad[:1])
        before = [param.detach().clone() for param in params]
        targets = MoveTargets(SoftUpdate(alone, tau=0.5))
        Update(alone, Descend("qvalue", torch.optim.SGD(params, lr=0.1)), targets)(batch)
        assert all(not torch.equal(now, old) for now, old in zip(params, before, strict=True))
        assert all(torch.equal(one.state_dict()[name], value) for name, value in given.items())

    def test_one_critic_several_times(self, build: type) -> None:
        with pytest.raises(O2OSpecError, match="one critic several times"):
            build(make_actor(3, 2, **SMALL), critics()[:1] * 2)

    def test_copies_of_one_critic(self, build: type) -> None:
        one = critics()[0]
        with pytest.raises(O2OSpecError, match="one critic several times"):
            build(make_actor(3, 2, **SMALL), [one, copy.deepcopy(one)])

    def test_critics_with_a_trunk_in_common(self, build: type) -> None:
        one, other = critics()
        other.module.trunk = one.module.trunk
        with pytest.raises(O2OSpecError, match="critics that share parameters"):
            build(make_actor(3, 2, **SMALL), [one, other])

    def test_critics_with_a_layer_of_the_actor(self, build: type) -> None:
        actor, member = make_actor(2, 2, **SMALL), critics()[0]
        member.module.trunk = next(layer for layer in actor.modules() if isinstance(layer, torch.nn.Linear))
        with pytest.raises(O2OSpecError, match=r"with another network of this loss, .*build each network separately"):
            build(actor, [member])

    def test_layers_without_a_size(self, build: type) -> None:
        members = [ValueOperator(torch.nn.LazyLinear(1), in_keys=["action"]) for _ in range(2)]
        with pytest.raises(O2OSpecError, match=r"critic whose 'module.weight' has no size yet"):
            build(make_actor(3, 2, **SMALL), members)

    def test_no_critic(self, build: type) -> None:
        with pytest.raises(O2OSpecError, match="no critic"):
            build(make_actor(3, 2, **SMALL), [])

    def test_members_draw_as_they_are_told(self, build: type) -> None:
        torch.manual_seed(0)
        one, other = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, dropout=0.5, layer_norm=False, hidden_sizes=(64,))
        for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
            theirs.data.copy_(mine.data + 1e-6)  # apart from what they draw they agree
        loss, batch = build(make_actor(3, 2, **SMALL), [one, other]), random_transitions(16, 3, 2)
        state = {"observation": batch["observation"]}

        def apart() -> float:
            values = loss._qvalues(state, batch["action"])
            return float((values[0] - values[1]).detach().abs().max())

        assert loss.vmap_randomness == "different"
        assert apart() > 1e-2
        loss.set_vmap_randomness("same")
        assert apart() < 1e-3
        loss.deactivate_vmap = True
        with pytest.raises(O2OSpecError, match="deactivate_vmap=True and randomness 'same'"):
            apart()
        loss.set_vmap_randomness("different")
        assert apart() > 1e-2
        loss.deactivate_vmap = False
        loss.set_vmap_randomness("error")
        with pytest.raises(RuntimeError, match="randomness error mode"):
            apart()

    def test_members_one_after_the_other(self, build: type) -> None:
        """For networks that vmap cannot take, also where operations are recorded."""

        class InPlace(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(5, 1)

            def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
                return torch.zeros(4, 1).add_(self.layer(torch.cat([observation, action], -1)))

        members = [ValueOperator(InPlace(), in_keys=["observation", "action"]) for _ in range(2)]
        loss, batch = build(make_actor(3, 2, **SMALL), members), random_transitions(4, 3, 2)
        state = {"observation": batch["observation"]}
        expected = loss._qvalues(state, batch["action"])
        loss.set_vmap_randomness("error")
        with pytest.raises(RuntimeError, match="broadcast shape"):
            loss._qvalues(state, batch["action"])
        loss.deactivate_vmap = True
        assert torch.equal(loss._qvalues(state, batch["action"]), expected)

        frozen, score = FrozenCritic.from_loss(loss), Advantage(loss)._networks("online", None)
        for ask in (lambda: frozen(batch).squeeze(-1), lambda: score.qvalues(state, batch["action"]).amin(0)):
            traced = make_fx(ask)()
            torch.testing.assert_close(traced(), expected.amin(0))

    def test_module_lists_are_lists(self, build: type) -> None:
        assert build(make_actor(3, 2, **SMALL), torch.nn.ModuleList(critics())).num_qvalue_nets == 2


@pytest.mark.filterwarnings("ignore:No target network updater")
def test_critics_that_read_no_action() -> None:
    values = [ValueOperator(MLP(in_features=3, out_features=1, num_cells=[8])) for _ in range(2)]
    with pytest.raises(O2OSpecError, match=r"read \['observation'\], expected the action 'action'"):
        EnsembleSACLoss(make_actor(3, 2, **SMALL), values)(random_transitions(4, 3, 2))


@pytest.mark.filterwarnings("ignore:No target network updater")
def test_networks_of_several_outputs() -> None:
    batch, actor = random_transitions(4, 3, 2), make_actor(3, 2, **SMALL)
    wide = [ValueOperator(torch.nn.Linear(2, 2), in_keys=["action"]) for _ in range(2)]
    with pytest.raises(
        O2OSpecError, match=r"of shape \[4, 2\] for actions of shape \[4, 2\], expected one number per action"
    ):
        EnsembleSACLoss(actor, wide)(batch)
    with pytest.raises(O2OSpecError, match=r"'state_value' of shape \[4, 2\], expected one number per row"):
        IQLLoss(actor, critics(), ValueOperator(torch.nn.Linear(3, 2)))(batch)


def test_default_temperature_under_a_renamed_action() -> None:
    actor = make_actor(3, 2, action_key=("agent", "action"), **SMALL)
    loss = EnsembleSACLoss(actor, critics())
    assert loss.temperature.target_entropy == -1.0


@pytest.mark.parametrize("kind", ["aca", "awac", "brac", "cql", "ensemble_sac", "off2on"])
def test_the_copies_of_a_shared_output_layer_stay_equal_bit_for_bit(kind: str) -> None:
    torch.manual_seed(0)
    qvalues = make_qvalue_ensemble(3, 2, num_qvalue_nets=4, shared_head=True, **SMALL)
    actor, other = (make_actor(3, 2, **SMALL) for _ in range(2))
    losses: dict[str, Any] = {
        "aca": lambda: ACALoss(actor, qvalues, other),
        "awac": lambda: AWACLoss(actor, qvalues),
        "brac": lambda: BRACLoss(actor, qvalues, other),
        "cql": lambda: CQLLoss(actor, qvalues),
        "ensemble_sac": lambda: EnsembleSACLoss(actor, qvalues),
        "off2on": lambda: PessimisticEnsembleLoss(actor, qvalues),
    }
    loss, batch = losses[kind](), random_transitions(12, 3, 2)
    head = loss.qvalue_network_params["module", "head", "weight"]
    before, optim = head.detach().clone(), torch.optim.SGD(loss.qvalue_network_params.parameters(), lr=0.01)
    for _ in range(3):
        optim.zero_grad()
        loss.qvalue_loss(batch)[0].backward()
        optim.step()
    assert not torch.equal(head, before)
    assert all(torch.equal(head[0], member) for member in head)
