# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, RandomSampler, SamplerWithoutReplacement, TensorDictReplayBuffer

from tests import golden_vectors as golden
from torchrl_o2o.data import (
    BalancedSampler,
    ChunkSampler,
    OnlineWriter,
    PrioritizedReplaySampler,
    offline_online_storage,
    reserve_slots,
)
from torchrl_o2o.data.buffers import starting_buffer
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
    with pytest.raises(O2OSpecError, match="span several steps"):
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
    data = reserve_slots(numbered(0, 6), 3)
    writer = OnlineWriter(len(data), num_reserved=3)
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


@pytest.mark.parametrize("left", [slice(0, 20, 2), torch.tensor([4, 0, 9, 3, 12, 7])])
def test_chunks_over_rows_that_were_left_out_are_told(left: Any, recwarn: pytest.WarningsRecorder) -> None:
    for data, told in ((numbered(0, 20, (6,)), False), (numbered(0, 20)[left], True)):
        storage = offline_online_storage(data, 4)
        sampler = ChunkSampler(BalancedSampler(len(data), 1.0), 3, gamma=1.0)
        buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=OnlineWriter(len(data)), batch_size=64)
        for _ in range(2):
            buffer.sample()
        said = [each for each in recwarn if "chunks are no sequences of steps" in str(each.message)]
        assert len(said) == told


def stored(data: TensorDict) -> LazyTensorStorage:
    storage = LazyTensorStorage(len(data))
    storage.set(torch.arange(len(data)), data)
    return storage


def test_everything_that_the_rows_lead_to_is_of_the_last_one() -> None:
    """Pixels, a state beside them and the next action stood at s + 1, beside rewards and discounts of h steps."""
    data = numbered(0, 9)
    number = data["observation"]
    data["next", "pixels"] = (number + 1).to(torch.uint8).reshape(9, 1, 1, 1).expand(9, 3, 2, 2).clone()
    data["next", "agent"] = TensorDict({"state": number + 1}, [9])
    data["next", "action"] = number + 1
    replay = TensorDictReplayBuffer(
        storage=stored(data), sampler=ChunkSampler(RandomSampler(), 3, gamma=0.5), batch_size=64
    )
    batch = replay.sample()
    batch = batch[batch["priority_weight"] == 1]
    after = batch["observation"] + 3
    assert torch.equal(batch["next", "observation"], after)
    assert torch.equal(batch["next", "pixels"][:, 0, 0, 0].float(), after.squeeze(-1))
    assert torch.equal(batch["next", "agent", "state"], after)
    assert torch.equal(batch["next", "action"], after)
    start = batch["observation"]
    torch.testing.assert_close(batch["next", "reward"], start + 0.5 * (start + 1) + 0.25 * (start + 2))


def test_discounts_of_the_rows_take_the_place_of_gamma() -> None:
    """Row by row y = r + D V(s'), so that three rows give r0 + D0 (r1 + D1 (r2 + D2 V))."""
    data = numbered(1, 5, ends=(5,))
    each = torch.tensor([0.9, 0.5, 0.8, 0.0, 0.7]).unsqueeze(-1)
    data["next", "discount"] = each
    got = ChunkSampler(RandomSampler(), 3, gamma=0.1).chunks(stored(data), torch.tensor([0, 1, 4]))
    assert got["next", "discount"].flatten().tolist() == pytest.approx([0.9 * 0.5 * 0.8, 0.0, 0.7])
    assert got["next", "reward"].flatten().tolist() == pytest.approx(
        [1 + 0.9 * 2 + 0.9 * 0.5 * 3, 2 + 0.5 * 3 + 0.5 * 0.8 * 4, 5]
    )


def test_rows_without_truncated_are_so_where_they_are_done_and_not_terminated() -> None:
    data = numbered(0, 6, ends=(2,))
    data["next", "terminated"][5] = data["next", "done"][5] = True
    sampler = ChunkSampler(RandomSampler(), 2, gamma=1.0)
    start = torch.arange(5)
    expected = sampler.chunks(stored(data), start)
    del data["next", "truncated"]
    got = sampler.chunks(stored(data), start)
    assert torch.equal(got["next", "done"], expected["next", "done"])
    assert got["next", "done"].flatten().tolist() == [False, True, False, False, True]


def test_renamed_and_nested_entries_give_the_same_chunks() -> None:
    """Also where turns of environments are told by what they saw."""
    names = {
        "observation": ("agent", "pixels"),
        "action": ("agent", "action"),
        "reward": ("agent", "r"),
        "done": ("agent", "over"),
        "terminated": "dead",
        "truncated": "late",
    }
    keys = {f"{name}_key": key for name, key in names.items() if name != "observation"}

    def renamed(rows: TensorDict) -> TensorDict:
        out = TensorDict({}, rows.batch_size)
        for key, value in rows.items(True, True):
            words = (key,) if isinstance(key, str) else key
            new = names[words[-1]]
            out[(*words[:-1], *((new,) if isinstance(new, str) else new))] = value
        return out

    plain = two_regions(2, 8, 0, num_envs=2)
    storage = stored(torch.cat([renamed(numbered(0, 2)), renamed(numbered(0, 8))]))
    sampler = ChunkSampler(
        BalancedSampler(2, 0.5), 3, gamma=1.0, num_envs=2, observation_keys=[names["observation"]], **keys
    )
    other = TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=OnlineWriter(2), batch_size=8)
    for step in range(6):
        rows = torch.cat([numbered(200 + step, 1, ends=(203,)), numbered(300 + step, 1)])
        plain.extend(rows)
        other.extend(renamed(rows))
    start = torch.tensor([2, 3, 4, 6, 7, 9])
    got, expected = sampler.chunks(other.storage, start), plain.sampler.chunks(plain.storage, start)
    for key in ("action", ("next", "observation"), *(("next", name) for name in ("reward", "done", "terminated"))):
        words = (key,) if isinstance(key, str) else key
        new = names[words[-1]]
        assert torch.equal(got[_key((*words[:-1], *((new,) if isinstance(new, str) else new)))], expected[key]), key
    for key in ("valid", "priority_weight", "steps_to_next_obs"):
        assert torch.equal(got[key], expected[key]), key
    batch = other.sample()
    assert batch["agent", "action"].shape == (8, 3)
    loss = EnsembleSACLoss(
        make_actor(1, 3, hidden_sizes=(8,), observation_key=names["observation"], action_key=names["action"]),
        make_qvalue_ensemble(1, 3, hidden_sizes=(8,), in_keys=(names["observation"], names["action"])),
    )
    loss.set_keys(action=names["action"], reward=names["reward"], done=names["done"], terminated="dead")
    assert loss(batch)["loss_qvalue"].isfinite()


def _key(words: tuple[str, ...]) -> Any:
    return words[0] if len(words) == 1 else words


@pytest.mark.parametrize(("gone", "argument"), [("action", "action_key"), (("next", "reward"), "reward_key")])
def test_an_entry_that_is_missing_is_named(gone: Any, argument: str) -> None:
    data = numbered(0, 6)
    del data[gone]
    with pytest.raises(O2OSpecError, match=rf"without .*name it: ChunkSampler\(\.\.\., {argument}=\.\.\.\)"):
        ChunkSampler(RandomSampler(), 2, gamma=1.0).chunks(stored(data), torch.arange(2))


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 4, 2]), (True, [4, 4])])
def test_going_through_a_buffer_once_comes_to_an_end(drop_last: bool, sizes: list[int]) -> None:
    sampler = ChunkSampler(SamplerWithoutReplacement(drop_last=drop_last), 3, gamma=1.0)
    replay = TensorDictReplayBuffer(storage=stored(numbered(0, 10)), sampler=sampler, batch_size=4)
    for _ in range(2):
        drawn = list(itertools.islice(replay, 4))
        assert [len(batch) for batch in drawn] == sizes
        rows = torch.cat([batch["index"] for batch in drawn])
        assert len(rows.unique()) == len(rows)
    assert replay.can_sample(11) == (not drop_last)
    assert sampler.ran_out
    assert sampler._remaining_batches == sampler.sampler._remaining_batches
    assert sampler._sampleable_count(replay.storage, 4) == 10
    assert sampler.drop_last == drop_last
