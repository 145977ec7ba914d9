# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrl.objectives import SACLoss, SoftUpdate

from tests import golden_vectors as golden
from tests.objectives.golden_offline import critics, depth, fill_actor, same_actor, same_critic
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss, TD3BCLoss, load_parameters

SMALL: dict[str, Any] = {"hidden_sizes": (16,)}


def build() -> EnsembleSACLoss:
    return EnsembleSACLoss(make_actor(5, 2, **SMALL), make_qvalue_ensemble(5, 2, num_qvalue_nets=2, **SMALL))


@pytest.mark.usefixtures("float64")
def test_golden_parameters_survive_the_updater() -> None:
    tree = golden.load("td3_bc/A")
    targets = {key.removeprefix("target_"): value for key, value in tree.items() if key.startswith("target_")}

    def actor() -> Any:
        return make_deterministic_actor(5, 3, hidden_sizes=(16,) * depth(tree, "actor"))

    loss = TD3BCLoss(actor(), critics(tree))
    updater = SoftUpdate(loss, tau=1.0)
    networks = {"actor_network": actor(), "target_actor_network": actor()}
    fill_actor(networks["actor_network"], tree)
    fill_actor(networks["target_actor_network"], targets)
    load_parameters(loss, {**networks, "target_qvalue_network": critics(targets)})
    same_actor(loss, tree, "actor")
    same_actor(loss, tree, "target_actor", target=True)
    same_critic(loss, tree, "target_critic", target=True)
    updater.step()  # tau = 1: what the updater moves is what was loaded
    same_actor(loss, tree, "actor", target=True)
    same_critic(loss, tree, "critic", target=True)


def test_state_dicts_lists_and_stacked_tensors_are_one() -> None:
    theirs = make_qvalue_ensemble(5, 2, num_qvalue_nets=2, **SMALL)
    states = [member.state_dict() for member in theirs]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    for given in (theirs, states, stacked):
        loss = build()
        load_parameters(loss, {"qvalue_network": given})
        for name, value in loss.qvalue_network_params.flatten_keys(".").items():
            assert torch.equal(value, stacked[name])


def test_torchrls_losses_take_parameters_too() -> None:
    policy, theirs = make_actor(5, 2, **SMALL), make_actor(5, 2, **SMALL)
    loss = SACLoss(policy, make_qvalue_ensemble(5, 2, num_qvalue_nets=2, **SMALL))
    load_parameters(loss, {"actor_network": theirs})
    for name, value in theirs.state_dict().items():
        assert torch.equal(loss.actor_network_params.flatten_keys(".")[name], value)


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ({"critic": {}}, "got 'critic', expected one of .*'target_qvalue_network'"),
        ({"temperature": {"alpha": torch.zeros(())}}, "'alpha'.*none for .*'log_alpha'"),
        ({"temperature": {"log_alpha": torch.zeros(2)}}, r"shape \[2\].*expected \[\]"),
        ({"qvalue_network": make_qvalue_ensemble(5, 2, num_qvalue_nets=3, **SMALL)}, "stack the tensors"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(networks: Any, message: str) -> None:
    loss = build()
    before = {name: value.clone() for name, value in loss.state_dict().items() if isinstance(value, torch.Tensor)}
    with pytest.raises(O2OSpecError, match=message):
        load_parameters(loss, {"actor_network": make_actor(5, 2, **SMALL), **networks})
    for name, value in before.items():
        assert torch.equal(loss.state_dict()[name], value), name
