# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Phases of the critics; the authors' numbers are in tests/objectives/test_golden_sope.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrl.objectives import SoftUpdate

from torchrl_o2o.data import TRANSITION
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.noise import RecordedNoise
from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers import HandOver, Learner
from torchrl_o2o.trainers.stabilization import (
    StoppingRule,
    critics_alone,
    hold_out,
    is_due,
    policy_value_loss,
    stabilize,
)
from torchrl_o2o.updates import Descend, MoveTargets, Repeat, Update


def learner(dropout: float | None = None) -> Learner:
    torch.manual_seed(0)
    actor = make_actor(3, 2, hidden_sizes=(8,))
    critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,), dropout=dropout)
    loss = EnsembleSACLoss(actor, critics)
    groups = {"qvalue": loss.qvalue_network_params, "actor": loss.actor_network_params, "alpha": loss.temperature}
    steps = {name: Descend(name, torch.optim.Adam(group.parameters(), lr=1e-2)) for name, group in groups.items()}
    repeat = Repeat(2, steps["qvalue"], MoveTargets(SoftUpdate(loss, tau=0.05)))
    return Learner(actor, loss, Update(loss, repeat, steps["actor"], steps["alpha"]))


def buffer(num_offline: int = 40, num_online: int = 30, data: Any = "symmetric") -> Any:
    offline = random_transitions(num_offline, 3, 2)
    made = HandOver(data=data).buffer(offline, num_online, batch_size=8)
    made.extend(random_transitions(num_online, 3, 2).select(*TRANSITION))
    return made


def test_a_phase_moves_critics_and_targets_alone() -> None:
    agent, rule = learner(), StoppingRule(max_updates=7, check_every=2, patience=100)
    before = {name: value.clone() for name, value in agent.loss.state_dict().items()}
    alone, rows = critics_alone(agent), buffer()
    content = rows[:].clone()
    report = stabilize(agent, alone, rows, rule, num_offline=40, batch_size=8)
    assert (report.updates, len(report.losses), report.stopped) == (7, 1 + 3, False)
    moved = {name for name, value in agent.loss.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("qvalue_network_params" in name for name in moved)
    assert any(name.startswith("target_") for name in moved)
    assert (rows[:] == content).all(), "rows held out stay where they are"
    assert int(agent.optims["qvalue"].state_dict()["state"][0]["step"]) == 7


def test_held_out_rows_are_not_learned_from() -> None:
    agent, rows = learner(), buffer()
    seen: list[torch.Tensor] = []
    alone = critics_alone(agent)

    def spy(batch: Any) -> None:
        seen.append(batch["observation"])

    alone.__class__ = type("Spy", (Update,), {"__call__": lambda self, batch: spy(batch)})
    torch.manual_seed(3)
    held = hold_out(40, 30, batch_size=8)
    torch.manual_seed(3)
    stabilize(agent, alone, rows, StoppingRule(max_updates=200, check_every=1000), num_offline=40, batch_size=8)
    learned, apart = torch.cat(seen), rows[:]["observation"][torch.cat(held.batches)]
    assert not (learned.unsqueeze(1) == apart).all(-1).any()
    assert seen[0].shape == (16, 3), "as many offline rows as online ones"


def test_without_data_and_without_a_watch() -> None:
    """SPEQ: online rows alone, all of them, for exactly as long as is said."""
    agent, rows = learner(), buffer(data="none")
    rule = StoppingRule(max_updates=5, patience=None)
    report = stabilize(agent, critics_alone(agent), rows, rule, num_offline=0, batch_size=8)
    assert report == (5, [], [], False)
    assert report.metrics() == {"phase_updates": torch.tensor(5.0)}


def test_too_few_rows_to_hold_out() -> None:
    with pytest.raises(O2OSpecError, match="begin phases later"):
        stabilize(learner(), critics_alone(learner()), buffer(9, 9), StoppingRule(), num_offline=9, batch_size=8)


def test_the_validation_loss_is_the_actors() -> None:
    agent, batches = learner(), [random_transitions(8, 3, 2) for _ in range(2)]
    agent.loss.noise = RecordedNoise({"action": torch.zeros(8, 2)})
    expected = torch.stack([agent.loss.actor_loss(batch)[0] for batch in batches]).mean()
    assert policy_value_loss(agent.loss, batches) == pytest.approx(expected.item())


def test_target_networks_drop_out_as_well() -> None:
    loss, batch = learner(dropout=0.5).loss, random_transitions(8, 3, 2)
    loss.noise = RecordedNoise({"next_action": torch.zeros(8, 2), "target": torch.tensor([0, 1])})
    assert not torch.equal(loss.target_value(batch), loss.target_value(batch))


def test_the_critics_step_of_any_update_at_half_its_loss() -> None:
    agent = learner()
    alone = critics_alone(agent)
    assert repr(alone).splitlines() == [
        "Update of EnsembleSACLoss",
        "  Descend('qvalue', Adam, scale=0.5)",
        "  MoveTargets(SoftUpdate)",
    ]
    assert alone.optims["qvalue"] is agent.optims["qvalue"]
    batch = random_transitions(8, 3, 2)
    agent.loss.noise = RecordedNoise({"next_action": torch.zeros(8, 2)})
    whole = agent.loss.qvalue_loss(batch)[0]
    assert alone(batch)["loss_qvalue"].item() == pytest.approx(0.5 * whole.item())


@pytest.mark.parametrize(
    "settings", [{"max_updates": 0}, {"check_every": 0}, {"patience": 0}, {"tolerance": 1.0}, {"tolerance": -0.1}]
)
def test_rules_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(O2OSpecError, match=next(iter(settings))):
        StoppingRule(**settings)


def test_when_phases_are_due() -> None:
    assert [step for step in range(25) if is_due(step, 10)] == [10, 20]
