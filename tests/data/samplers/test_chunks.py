# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, RandomSampler, TensorDictReplayBuffer

from tests import golden_vectors as golden
from torchrl_o2o.data import (
    BalancedSampler,
    ChunkSampler,
    OnlineWriter,
    PrioritizedReplaySampler,
    offline_online_storage,
    with_room,
)
from torchrl_o2o.data.starting import starting_buffer
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.testing import random_transitions


def numbered(first: int, count: int, ends: tuple[int, ...] = ()) -> TensorDict:
    """Rows whose action, observation and reward are their number; episodes end by time where said."""
    number = torch.arange(first, first + count, dtype=torch.float32).unsqueeze(-1)
    truncated = torch.tensor([[int(x) in ends] for x in number.flatten()])
    following = {
        "observation": number + 1,
        "reward": number,
        "terminated": torch.zeros_like(truncated),
        "truncated": truncated,
        "done": truncated,
    }
    return TensorDict({"observation": number, "action": number.clone(), "next": following}, [count])


def two_regions(num_offline: int, slots: int, written: int, **settings: Any) -> TensorDictReplayBuffer:
    """Offline rows 0, 1, ... and online rows 100, 101, ..., written one after the other."""
    storage = LazyTensorStorage(num_offline + slots)
    if num_offline:
        storage.set(torch.arange(num_offline), numbered(0, num_offline))
    sampler = BalancedSampler(num_offline, 0.5 if num_offline else 0.0)
    buffer = TensorDictReplayBuffer(
        storage=storage,
        sampler=ChunkSampler(sampler, 3, gamma=1.0, **settings),
        writer=OnlineWriter(num_offline),
        batch_size=8,
    )
    for step in range(written):
        buffer.extend(numbered(100 + step, 1))
    return buffer


def chunks(buffer: TensorDictReplayBuffer, start: list[int]) -> dict[Any, Tensor]:
    return buffer.sampler.chunks(buffer.storage, torch.tensor(start))


@pytest.mark.parametrize("case", ["qc/chunk_A", "qc/chunk_B"])
def test_chunks_are_the_authors(case: str) -> None:
    tree = golden.load(case)
    rows = golden.sub(tree, "in")
    terminated, ends = rows["mask"] == 0, rows["episode_end"].bool()
    following = {
        "observation": rows["next_observation"],
        "reward": rows["reward"].unsqueeze(-1),
        "terminated": terminated.unsqueeze(-1),
        "truncated": (ends & ~terminated).unsqueeze(-1),
        "done": ends.unsqueeze(-1),
    }
    count = len(ends)
    data = TensorDict({"observation": rows["observation"], "action": rows["action"], "next": following}, [count])
    storage = LazyTensorStorage(count)
    storage.set(torch.arange(count), data)
    horizon = int(golden.hp(tree, "horizon"))
    sampler = ChunkSampler(RandomSampler(), horizon, gamma=golden.hp(tree, "discount"))
    got, out = sampler.chunks(storage, rows["start"].long()), golden.sub(tree, "out")
    golden.assert_close(got["action"], out["action_sequence"].flatten(1), "actions")
    golden.assert_close(got["next", "reward"].squeeze(-1), out["chunk_return"], "return")
    golden.assert_close(1.0 - got["next", "terminated"].squeeze(-1).double(), out["chunk_mask"], "mask")
    golden.assert_close(got["valid"], out["valid"], "valid")
    golden.assert_close(got["priority_weight"], out["chunk_valid"], "valid chunks")
    golden.assert_close(got["next", "observation"], out["chunk_next_observation"], "next observation")


def test_the_ring_is_cut_at_the_write_pointer() -> None:
    """The authors' ring delivers chunks across the pointer; where they are contiguous, both agree."""
    tree = golden.load("qc/ring_A")
    capacity, inserted = (int(golden.hp(tree, name)) for name in ("capacity", "n_inserted"))
    steps = int(golden.hp(tree, "horizon"))
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(capacity),
        sampler=ChunkSampler(RandomSampler(), steps, gamma=1.0),
        writer=OnlineWriter(0),
        batch_size=4,
    )
    for step in range(inserted):
        buffer.extend(numbered(step, 1))
    assert buffer.storage[:]["action"].flatten().tolist() == tree["out/stored_step"].tolist()
    start, whole = tree["in/start"].long(), tree["out/chunk_is_contiguous"].bool()
    got = buffer.sampler.chunks(buffer.storage, start)
    assert torch.equal(got["priority_weight"].bool(), whole)
    assert torch.equal(got["action"][whole].double(), tree["out/action_sequence_step"][whole])


@pytest.mark.parametrize("default_writer", [False, True])
def test_chunks_go_around_the_end_of_the_ring(default_writer: bool) -> None:
    storage = LazyTensorStorage(6)
    writer = {} if default_writer else {"writer": OnlineWriter(0)}
    sampler = ChunkSampler(RandomSampler(), 3, gamma=1.0)
    buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=4, **writer)
    for step in range(9):
        buffer.extend(numbered(100 + step, 1))
    got = chunks(buffer, [4, 0, 1, 2, 3])  # slots hold 106 107 108 103 104 105
    assert got["action"].tolist() == [[104, 105, 106], [106, 107, 108], [107, 108, 108], [108] * 3, [103, 104, 105]]
    assert got["priority_weight"].tolist() == [1, 1, 0, 0, 1]
    assert got["valid"].tolist()[2:4] == [[1, 1, 0], [1, 0, 0]]
    assert got["next", "reward"].flatten().tolist()[:2] == [315, 321]


def test_regions_do_not_run_into_each_other() -> None:
    buffer = two_regions(5, 8, 4)
    got = chunks(buffer, [2, 3, 4, 5, 7, 8])
    assert got["action"].tolist()[0] == [2, 3, 4]
    assert got["priority_weight"].tolist() == [1, 0, 0, 1, 0, 0]
    assert got["action"].tolist()[3] == [100, 101, 102]
    assert got["valid"].sum(1).tolist() == [3, 2, 1, 3, 2, 1]


def test_half_of_a_batch_is_offline_also_in_a_full_ring() -> None:
    buffer = two_regions(20, 8, 21)
    for _ in range(20):
        batch = buffer.sample()
        assert int((batch["index"] < 20).sum()) == 4
        whole = batch[batch["priority_weight"] == 1]
        assert (whole["action"].diff(dim=1) == 1).all()
        assert torch.equal(whole["observation"] + 3, whole["next", "observation"])
    assert two_regions(0, 16, 21).sample()["action"].shape == (8, 3)


def test_data_and_online_rows_in_one_ring() -> None:
    """The starting buffer that keeps all rows: online rows follow the data, and in the end overwrite them."""
    buffer = starting_buffer(numbered(0, 6, ends=(5,)), 4, batch_size=8)
    buffer.set_sampler(ChunkSampler(buffer.sampler, 3, gamma=1.0))
    for step in range(6):
        buffer.extend(numbered(100 + step, 1))
    got = chunks(buffer, [2, 3, 4, 8, 0, 1])  # slots hold 104 105 2 3 4 5 100 101 102 103
    assert got["action"].tolist()[0] == [2, 3, 4]
    assert got["action"].tolist()[3] == [102, 103, 104]
    assert got["priority_weight"].tolist() == [1, 1, 0, 1, 0, 0]
    assert got["valid"].tolist()[2] == [1, 1, 0]


def test_environments_write_in_turns() -> None:
    buffer = two_regions(2, 8, 0, num_envs=2)
    for step in range(6):  # environment 0 delivers 200, 201, ..., environment 1 delivers 300, 301, ...
        buffer.extend(torch.cat([numbered(200 + step, 1), numbered(300 + step, 1)]))
    got = chunks(buffer, [2, 3, 4, 6, 7, 9])  # slots 2.. hold 204 304 205 305 202 302 203 303
    assert got["action"].tolist()[3:] == [[202, 203, 204], [302, 303, 304], [303, 304, 305]]
    assert got["priority_weight"].tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(O2OSpecError, match="a multiple"):
        chunks(two_regions(2, 7, 4, num_envs=2), [2])


def test_a_rejected_step_shifts_the_turns_and_cuts() -> None:
    """Environment 0 misses its second row; later rows of both are chunks again."""
    buffer = two_regions(2, 12, 0, num_envs=2)
    first, second = numbered(200, 5, ends=(201,)), numbered(300, 6)
    order = [first[:1], second[:1], second[1:2]]
    for step in range(2, 6):
        order += [first[step - 1 : step], second[step : step + 1]]
    buffer.extend(torch.cat(order))  # slots 2.. hold 200 300 301 201 302 202 303 203 304 204 305
    got = chunks(buffer, [2, 3, 4, 5, 6])
    assert got["valid"].tolist() == [[1, 0, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]]
    assert got["priority_weight"].tolist() == [0, 0, 1, 0, 1]
    assert got["action"].tolist()[2] == [301, 302, 303]


def test_returns_of_several_steps_keep_the_first_action() -> None:
    got = chunks(two_regions(9, 4, 0, action_chunking=False), [1])
    assert "action" not in got
    assert "valid" not in got
    assert got["next", "reward"].item() == 6
    assert got["steps_to_next_obs"].item() == 3
    batch = two_regions(9, 4, 3, action_chunking=False).sample()
    assert torch.equal(batch["action"], batch["observation"])


def test_a_chunk_of_one_is_the_row() -> None:
    buffer = two_regions(9, 4, 0)
    sampler = ChunkSampler(RandomSampler(), 1, gamma=0.9)
    got = sampler.chunks(buffer.storage, torch.arange(9))
    rows = buffer.storage[:9]
    assert torch.equal(got["action"], rows["action"])
    assert torch.equal(got["next", "reward"], rows["next", "reward"])
    assert got["valid"].all()
    assert got["priority_weight"].all()


def test_weights_of_the_sampler_inside_are_kept() -> None:
    buffer = two_regions(9, 4, 0)
    inside = PrioritizedReplaySampler(13, alpha=0.5, beta=1.0)
    buffer.set_sampler(ChunkSampler(inside, 3, gamma=1.0))
    batch = buffer.sample()
    whole = batch["index"] < 7
    assert (batch["priority_weight"][whole] > 0).all()
    assert not batch["priority_weight"][~whole].any()
    buffer.update_priority(batch["index"], torch.rand(8))
    assert inside.num_updates == 1


def test_losses_discount_by_the_length_of_a_chunk() -> None:
    loss = EnsembleSACLoss(make_actor(1, 3, hidden_sizes=(8,)), make_qvalue_ensemble(1, 3, hidden_sizes=(8,)))
    loss.make_value_estimator(gamma=0.5)
    batch = two_regions(9, 4, 4).sample()
    first = loss._estimate(batch, torch.ones(8))
    second = loss._estimate(batch, torch.zeros(8))
    torch.testing.assert_close(first - second, torch.full((8,), 0.125))


@pytest.mark.parametrize(("settings", "message"), [({"horizon": 0}, "horizon=0"), ({"gamma": 2.0}, "gamma=2")])
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(O2OSpecError, match=message):
        ChunkSampler(RandomSampler(), **{"horizon": 2, "gamma": 0.9, **settings})


def test_rows_over_several_steps_are_refused() -> None:
    storage = LazyTensorStorage(8)
    rows = random_transitions(8, 3, 1).set("steps_to_next_obs", torch.full((8,), 3))
    storage.set(torch.arange(8), rows)
    with pytest.raises(O2OSpecError, match="several steps already"):
        ChunkSampler(RandomSampler(), 2, gamma=0.9).sample(storage, 4)


def test_the_state_is_that_of_the_sampler_inside(tmp_path: Any) -> None:
    buffer, other = two_regions(20, 8, 12), two_regions(20, 8, 12)
    buffer.sampler.sampler.offline_fraction = 0.25
    buffer.sampler.dumps(tmp_path)
    other.sampler.loads(tmp_path)
    assert other.sampler.sampler.offline_fraction == 0.25
    generator = torch.Generator().manual_seed(3)
    drawn = TensorDictReplayBuffer(
        storage=buffer.storage, sampler=buffer.sampler, writer=OnlineWriter(20), batch_size=4, generator=generator
    )
    assert buffer.sampler.sampler._rng is generator
    assert drawn.sample()["action"].shape == (4, 3)


def test_rows_in_the_room_that_do_not_follow_one_another_are_no_chunk() -> None:
    """`write_offline` keeps what a human did, here steps 101 and 104 and then 105, each where there is room."""
    data = with_room(numbered(0, 6), 3)
    writer = OnlineWriter(len(data), room=3)
    buffer = TensorDictReplayBuffer(
        storage=offline_online_storage(data, 4),
        sampler=ChunkSampler(BalancedSampler(len(data)), 2, gamma=1.0),
        writer=writer,
    )
    for step in (101, 104, 105):
        writer.write_offline(numbered(step, 1))
    buffer.extend(numbered(200, 4))
    first = len(data) - 3
    weight = chunks(buffer, [0, first, first + 1, first + 2, len(data)])["priority_weight"]
    assert weight.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]
