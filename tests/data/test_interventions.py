# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Interventions: the executed action is stored, in both regions, and survives a checkpoint there."""

from __future__ import annotations

import itertools
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import multiprocessing
from torchrl.collectors import Collector
from torchrl.data import TensorDictReplayBuffer

from tests.collectors.actors import Numbered
from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.collectors.actors import actor_env
from torchrl_o2o.data import (
    INTERVENED,
    TRANSITION,
    BalancedSampler,
    OnlineWriter,
    insert_intervened,
    offline_online_storage,
    reserve_slots,
)
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.testing import random_transitions

OFFLINE, RESERVED = random_transitions(10, 3, 1), 4


def buffer_with_reserved_slots(num_reserved: int = RESERVED) -> TensorDictReplayBuffer:
    torch.manual_seed(0)
    offline = reserve_slots(OFFLINE, RESERVED)
    storage = offline_online_storage(offline, 20)
    writer = OnlineWriter(len(offline), num_reserved=num_reserved)
    return TensorDictReplayBuffer(storage=storage, writer=writer, sampler=BalancedSampler(len(offline)), batch_size=8)


def rows(*given: float | None) -> TensorDict:
    data = random_transitions(len(given), 3, 1)
    data[INTERVENED] = torch.tensor([[float("nan") if each is None else each] for each in given])
    return data


def test_the_reserved_slots_are_filled_with_the_data():
    data = reserve_slots(OFFLINE, 14)
    assert len(data) == 24
    for key in TRANSITION:
        assert torch.equal(data[key][10:], torch.cat([OFFLINE[key], OFFLINE[key][:4]]))
    with pytest.raises(O2ODataError, match="got no transitions"):
        reserve_slots(OFFLINE[:0], 3)


def test_interventions_go_into_both_regions_and_the_rest_into_one():
    buffer, data = buffer_with_reserved_slots(), rows(None, 0.5, None, -0.25)
    before = data.clone()
    slots = insert_intervened(buffer, data)
    assert slots.tolist() == [14, 15, 16, 17]
    stored = buffer.storage[14:18]
    assert torch.equal(stored["action"][[0, 2]], before["action"][[0, 2]]), "the policy's own"
    assert stored["action"][[1, 3]].flatten().tolist() == [0.5, -0.25], "what was executed"
    assert torch.equal(buffer.storage[10:12]["action"], stored["action"][[1, 3]])
    assert torch.equal(buffer.storage[10:12]["next", "observation"], before["next", "observation"][[1, 3]])
    assert torch.equal(buffer.storage[:10]["action"], OFFLINE["action"]), "the data set stays"
    assert torch.equal(data["action"], before["action"]), "the input keeps its own"
    assert len(buffer.storage) == 18


def test_the_reserved_slots_cycle_and_the_sampler_draws_from_it():
    buffer = buffer_with_reserved_slots()
    for number in range(6):
        insert_intervened(buffer, rows(number / 10))
    assert buffer.storage[10:14]["action"].flatten().tolist() == pytest.approx([0.4, 0.5, 0.2, 0.3])
    drawn = torch.cat([buffer.sample()["index"] for _ in range(100)])
    assert {10, 11, 12, 13} <= set(drawn.tolist())
    assert ((drawn < 14).float().mean() - 0.5).abs() < 1e-6, "the share stays exact"


def test_rows_without_the_entry_are_stored_as_they_are():
    buffer = buffer_with_reserved_slots()
    insert_intervened(buffer, random_transitions(3, 3, 1))
    assert (buffer.writer.total_written, buffer.writer.offline_written) == (3, 0)
    assert insert_intervened(buffer, rows(0.5)[:0]).tolist() == [], "a fleet may deliver none"


@pytest.mark.parametrize("data", [rows(0.5), random_transitions(1, 3, 1)])
def test_rows_over_several_steps_keep_their_number_of_steps(data: TensorDict):
    data = data.clone().set("steps_to_next_obs", torch.tensor([3]))
    with pytest.raises(O2OSpecError, match="'steps_to_next_obs' is not stored"):
        insert_intervened(buffer_with_reserved_slots(), data)
    offline = reserve_slots(OFFLINE.copy().set("steps_to_next_obs", torch.full((10,), 2)), RESERVED)
    storage = offline_online_storage(offline, 20)
    writer = OnlineWriter(len(offline), num_reserved=RESERVED)
    buffer = TensorDictReplayBuffer(storage=storage, writer=writer, batch_size=8)
    slots = insert_intervened(buffer, data)
    assert buffer.storage[slots]["steps_to_next_obs"].tolist() == [3]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (torch.zeros(2, 2), "of shape"),
        (torch.tensor([[0.0, float("nan")]] * 2), "in a part"),
        (torch.tensor([[float("nan")], [-float("inf")]]), "infinite in row 1"),
        (torch.tensor([[True], [False]]), "expected the executed action"),
        (torch.tensor([[1], [0]]), "expected the executed action"),
    ],
)
def test_actions_that_cannot_be_meant(given: torch.Tensor, sentence: str):
    data = random_transitions(2, 3, 2 if sentence == "in a part" else 1)
    data[INTERVENED] = given
    with pytest.raises(O2OSpecError, match=sentence):
        insert_intervened(buffer_with_reserved_slots(), data)


def test_without_reserved_slots_the_error_says_how_to_reserve_some():
    buffer = buffer_with_reserved_slots(num_reserved=0)
    with pytest.raises(O2OSpecError, match="reserve more in the data"):
        insert_intervened(buffer, rows(0.5))
    assert buffer.writer.total_written == 0, "both regions or none"
    with pytest.raises(O2OSpecError, match="got num_reserved=5 of num_offline=4"):
        OnlineWriter(4, num_reserved=5)
    other = TensorDictReplayBuffer(storage=offline_online_storage(OFFLINE, 5), batch_size=1)
    with pytest.raises(O2OSpecError, match="expected an OnlineWriter with reserved slots"):
        insert_intervened(other, rows(0.5))


def test_checkpoints_keep_what_was_written_into_the_reserved_slots(tmp_path: Path):
    buffer = buffer_with_reserved_slots()
    checkpoint = Checkpointer(tmp_path, objects={}, buffer=buffer)
    insert_intervened(buffer, rows(None, 0.1))
    checkpoint.save(1)
    for number, step in itertools.product(range(2), range(3)):
        insert_intervened(buffer, rows(0.2 + number / 10 + step / 100))
        checkpoint.save(2 + 3 * number + step)
    copy = buffer_with_reserved_slots()
    assert Checkpointer(tmp_path, objects={}, buffer=copy).restore() == 7
    torch.testing.assert_close(copy.storage[:].to_dict(), buffer.storage[:].to_dict(), rtol=0, atol=0)
    assert copy.writer.state_dict() == buffer.writer.state_dict()
    assert insert_intervened(copy, rows(0.9)).tolist() == [22]
    assert copy.storage[10 + 7 % 4]["action"].item() == pytest.approx(0.9)


def test_a_writer_is_not_sent_to_another_process():
    with pytest.raises(O2OSpecError, match="let actors in other processes send their rows"):
        multiprocessing.get_context("spawn").Process(target=len, args=(OnlineWriter(3),)).start()
    assert pickle.loads(pickle.dumps(OnlineWriter(3))).num_offline == 3, "a copy in a file is fine"


class Corrected(Numbered):
    """Somebody takes over in the second step of an episode."""

    def step(self, action: Any) -> Any:
        *outcome, info = super().step(action)
        return *outcome, {**info, "intervened": [0.75]} if self.count == 2 else info


def test_what_the_environment_says_arrives():
    env = actor_env(partial(Corrected, length=4), 0, intervened=True)
    data = torch.cat(list(Collector(env, None, frames_per_batch=2, total_frames=8)))
    assert data[INTERVENED].dtype == torch.float32
    torch.testing.assert_close(
        data[INTERVENED].flatten(), torch.tensor([float("nan"), 0.75, *[float("nan")] * 2] * 2), equal_nan=True
    )
