# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Frames stored once: the stacks of the authors' buffers, episodes' ends, wraps, growth, checkpoints."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer

from tests import golden_vectors as golden
from torchrl_o2o.checkpoint.buffer import BufferArchive
from torchrl_o2o.data import (
    INTERVENED,
    BalancedSampler,
    FrameStorage,
    OnlineWriter,
    PixelData,
    insert_intervened,
    n_step,
    pixel_data,
    reserve_slots,
)
from torchrl_o2o.data.buffers import starting_buffer
from torchrl_o2o.data.pixels import stack_numbers
from torchrl_o2o.errors import O2OSpecError


def image(number: int, *, size: tuple[int, int] = (3, 2)) -> np.ndarray:
    """A tiny image that says which frame it is."""
    channels = (number + 10 * np.arange(3)) % 256
    return np.broadcast_to(channels[:, None, None], (3, *size)).astype(np.uint8)


def named(stacks: Tensor) -> Tensor:
    """Frame numbers [n, S] of stacks [n, 3 S, H, W]."""
    return stacks[:, ::3, 0, 0].long()


def transitions(lengths: list[int], terminated: list[bool], num_stack: int = 3) -> tuple[TensorDict, Tensor, Tensor]:
    """Rows as an environment that stacks frames delivers them, and the numbers of their frames."""
    now, following = stack_numbers(lengths, num_stack)
    every = torch.stack([torch.from_numpy(image(number)) for number in range(int(following.max()) + 1)])
    ends = torch.zeros(len(now), 1, dtype=torch.bool)
    ends[torch.tensor(lengths).cumsum(0) - 1] = True
    final = torch.cat([torch.full((length, 1), flag) for length, flag in zip(lengths, terminated, strict=True)])
    after = {
        "observation": every[following].flatten(1, 2),
        "reward": torch.arange(len(now), dtype=torch.float32).unsqueeze(-1),
        "terminated": ends & final,
        "truncated": ends & ~final,
        "done": ends,
    }
    data = {"observation": every[now].flatten(1, 2), "action": torch.zeros(len(now), 2), "next": after}
    return TensorDict(data, [len(now)]), now, following


def empty_storage(capacity: int) -> FrameStorage:
    return FrameStorage(capacity, {"observation": torch.zeros(0, 3, 3, 2, dtype=torch.uint8)})


@pytest.mark.parametrize("case", ["buffer_A", "buffer_B", "buffer_vd4rl_A"])
def test_stacks_are_those_that_the_authors_meant(case: str) -> None:
    """Written row by row; the ring of the second case wraps inside an episode."""
    tree = golden.load(f"rlpd_pixels/{case}")
    lengths = tree["input/episode_length"].tolist()
    ended = tree.get("input/episode_terminated", torch.zeros(len(lengths))).bool().tolist()
    data, now, following = transitions(lengths, ended)
    capacity = int(golden.hp(tree, "capacity"))
    storage = empty_storage(capacity)
    buffer = TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(0), batch_size=4)
    for row in range(len(data)):
        buffer.extend(data[row : row + 1])
    starts = torch.tensor([0, *lengths]).cumsum(0)
    rows = starts[tree["query/episode"]] + tree["query/t"]
    assert (rows >= len(data) - capacity).all()
    found = storage.get(rows % capacity)
    assert torch.equal(named(found["observation"]), tree["intended/obs_frame_id"])
    assert torch.equal(named(found["next", "observation"]), tree["intended/next_frame_id"])
    assert torch.equal(found["next", "reward"].squeeze(-1).long(), rows)
    if "out/mask" in tree:
        assert torch.equal(1 - found["next", "terminated"].squeeze(-1).long(), tree["out/mask"].long())
    assert torch.equal(now[rows], tree["intended/obs_frame_id"])
    assert torch.equal(following[rows], tree["intended/next_frame_id"])


@pytest.mark.parametrize("case", ["buffer_A", "buffer_B"])
def test_sums_over_n_steps_are_the_authors(case: str) -> None:
    tree = golden.load(f"drqv2/{case}")
    lengths = tree["input/episode_length"].tolist()
    bounds = torch.tensor([0, *(length + 1 for length in lengths)]).cumsum(0).tolist()
    episodes: list[dict[str, Any]] = []
    for first, last in itertools.pairwise(bounds):
        images = np.stack([image(int(number)) for number in tree["input/frame_id"][first:last]])
        ends = tree["input/discount"][first + 1 : last] == 0
        rows = {"action": tree["input/action"][first + 1 : last], "reward": tree["input/reward"][first + 1 : last]}
        episodes.append({"observation": images, "terminated": ends, **rows})
    data, gamma = pixel_data(episodes), golden.hp(tree, "discount")
    data = replace(data, rows=n_step(data.rows, n=int(golden.hp(tree, "nstep")), gamma=gamma))
    index = torch.tensor([0, *lengths]).cumsum(0)[tree["drqv2/query_episode"]] + tree["drqv2/query_t"]
    found = data.stacks(index)
    assert torch.equal(named(found["observation"]), tree["drqv2/out/obs_frame_id"])
    assert torch.equal(named(found["next", "observation"]), tree["drqv2/out/next_frame_id"])
    golden.assert_close(found["action"].double(), tree["drqv2/out/action"], "action", rtol=1e-7)
    golden.assert_close(found["next", "reward"].squeeze(-1).double(), tree["drqv2/out/reward"], "reward", rtol=1e-6)
    goes_on = 1.0 - found["next", "terminated"].squeeze(-1).double()
    golden.assert_close(gamma ** found["steps_to_next_obs"] * goes_on, tree["drqv2/out/discount"], "discount", 1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_random_episodes_wraps_and_growth(seed: int) -> None:
    """What is delivered is what was written, bit for bit, whatever the lengths of episodes; no frame is kept twice."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 4 if seed == 0 else 9, (400,), generator=generator).tolist()
    data, _, following = transitions(lengths, [False] * len(lengths))
    storage = FrameStorage(600, {"observation": torch.zeros(0, 3, 3, 2, dtype=torch.uint8)})
    storage.rings["observation"].grow(620)  # less than the rows need if episodes are short
    buffer = TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(0), batch_size=4)
    row = 0
    while row < len(data):
        count = int(torch.randint(1, 5, (1,), generator=generator))
        buffer.extend(data[row : row + count])
        row += count
    kept = torch.arange(max(0, len(data) - 600), len(data))
    found = storage.get(kept % 600)
    assert torch.equal(found["observation"], data["observation"][kept])
    assert torch.equal(found["next", "observation"], data["next", "observation"][kept])
    assert storage.rings["observation"].total <= int(following.max()) + 1


def test_rows_over_several_steps_and_of_several_environments_share_frames() -> None:
    data, _, _ = transitions([30, 30], [False, False])
    order = torch.arange(60).reshape(2, 30).T.flatten()
    storage = empty_storage(100)
    buffer = TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(0), batch_size=4)
    buffer.extend(data[order])
    assert storage.rings["observation"].total == 62
    rows = n_step(data.set("episode", torch.arange(60) // 30), n=3, gamma=0.9).exclude("episode")
    storage = empty_storage(100)
    TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(0), batch_size=4).extend(rows)
    assert storage.rings["observation"].total == 62
    assert torch.equal(storage.get(torch.arange(60))["next", "observation"], rows["next", "observation"])


def offline() -> PixelData:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 6, 3, 3, 2), dtype=np.uint8)
    return pixel_data([{"observation": each, "action": np.zeros((5, 2)), "reward": np.ones(5)} for each in images])


def build(capacity: int = 40) -> TensorDictReplayBuffer:
    data = offline()
    generator = torch.Generator().manual_seed(0)
    buffer = TensorDictReplayBuffer(
        storage=data.storage(capacity), writer=OnlineWriter(10), sampler=BalancedSampler(10, 0.5), batch_size=8
    )
    buffer.set_rng(generator)
    return buffer


def test_a_resumed_buffer_goes_on_bit_for_bit(tmp_path: Path) -> None:
    data, _, _ = transitions([2, 7] * 12, [False] * 24)
    first = build()
    archive = BufferArchive(first, tmp_path)
    first.extend(data[:30])
    archive.adopt(archive.save_rows())
    for row in range(30, 71):  # in the middle of an episode, after a wrap
        first.extend(data[row : row + 1])
    saved, state = archive.save_rows(), archive.state_dict()
    second = build()
    BufferArchive(second, tmp_path).restore(saved, state, lambda entry: (tmp_path / entry["file"]).read_bytes())
    for buffer in (first, second):
        buffer.extend(data[71:])
    assert first.storage.frame_state() == second.storage.frame_state()
    whole = torch.arange(len(first))
    assert (first.storage.get_rows(whole) == second.storage.get_rows(whole)).all()
    for _ in range(3):
        assert (first.sample() == second.sample()).all()


@pytest.mark.parametrize("by_files", [False, True])
def test_torchrls_own_ways_to_save_keep_the_frames(tmp_path: Path, by_files: bool) -> None:
    data, _, _ = transitions([2, 7] * 12, [False] * 24)
    first, second = build(), build()
    for row in range(50):  # the ring has wrapped
        first.extend(data[row : row + 1])
    if by_files:
        first.dumps(tmp_path)
        second.loads(tmp_path)
    else:
        second.load_state_dict(first.state_dict())
    slots = first.extend(data[50:60])
    assert torch.equal(second.extend(data[50:60]), slots)
    assert (first[:] == second[:]).all()
    assert torch.equal(second[slots]["observation"], data["observation"][50:60])


def test_frames_that_do_not_belong_to_the_rows_are_refused(tmp_path: Path) -> None:
    data, _, _ = transitions([5], [False])
    storage = empty_storage(5)
    storage.set(slice(0, 5), data)
    other = FrameStorage(5, {"observation": torch.zeros(1, 3, 3, 2, dtype=torch.uint8)})
    with pytest.raises(O2OSpecError, match="0 offline frames under 'observation', expected 1"):
        other.load_state_dict(storage.state_dict())
    storage.dumps(tmp_path)
    (tmp_path / "frames.pt").unlink()
    with pytest.raises(O2OSpecError, match="the frames none, expected those of"):
        empty_storage(5).loads(tmp_path)


@pytest.mark.parametrize(
    "index",
    [slice(1, 3), [1, 2], np.array([1, 2]), torch.tensor([-4, -3]), torch.tensor([False, True, True, False, False])],
)
def test_rows_are_written_by_any_index(index: Any) -> None:
    data, _, _ = transitions([5], [False])
    storage = empty_storage(5)
    storage.set(slice(0, 5), data)
    storage.set(index, data[3:5])
    expected = data["observation"][torch.tensor([0, 3, 4, 3, 4])]
    assert torch.equal(storage.get(slice(0, 5))["observation"], expected)


def test_the_last_row_can_be_truncated() -> None:
    buffer = build()
    data, _, _ = transitions([5], [False])
    buffer.extend(data[:3])
    buffer.writer.truncate_last()
    row = buffer.storage.get(12)
    assert row["next", "truncated"].item()
    assert torch.equal(row["observation"], data["observation"][2])


def test_offline_frames_stay() -> None:
    buffer = build(8)
    before = offline().stacks(torch.arange(10))
    data, _, _ = transitions([3] * 20, [True] * 20)
    buffer.extend(data[:8])
    for row in range(8, 60):
        buffer.extend(data[row : row + 1])
    after = buffer.storage.get(torch.arange(10))
    assert torch.equal(before["observation"], after["observation"])
    assert torch.equal(before["next", "observation"], after["next", "observation"])


def test_memory_per_transition_is_a_frame_and_scalars() -> None:
    storage = FrameStorage(10_000, {"observation": torch.zeros(0, 3, 64, 64, dtype=torch.uint8)})
    ring = storage.rings["observation"].ring
    assert ring.numel() / 10_000 < 1.12 * 64 * 64 * 3  # a sixteenth of slack, and the frames that are compared


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        (torch.zeros(2, 9, 3, 2), "float32"),
        (torch.zeros(2, 3, 2, 9, dtype=torch.uint8), "channels first"),
        (torch.zeros(2, 9, 4, 2, dtype=torch.uint8), "size of the stored"),
        (torch.zeros(2, 8, 3, 2, dtype=torch.uint8), "alpha"),
    ],
)
def test_what_is_no_stack_is_refused(frames: Tensor, match: str) -> None:
    data, _, _ = transitions([2], [False])
    data["observation"] = frames
    with pytest.raises(O2OSpecError, match=match):
        empty_storage(10).set(torch.arange(2), data)


def fresh_rows(data: PixelData, count: int) -> TensorDict:
    """Rows of an episode whose frames all differ."""
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count + 1, 3, 3, 2), dtype=np.uint8))
    now, following = stack_numbers([count], 3)
    rows = data.stacks(torch.zeros(count, dtype=torch.long))
    rows["observation"], rows["next", "observation"] = frames[now].flatten(1, 2), frames[following].flatten(1, 2)
    return rows


@pytest.mark.parametrize("num_online", [10, 60])
def test_offline_rows_that_go_are_overwritten_with_their_own_frames(num_online: int) -> None:
    """The writer comes round to the offline slots, again and again; the ring holds what every row needs."""
    images = np.stack([image(number) for number in range(101)])
    data = pixel_data([{"observation": images, "action": np.zeros((100, 2)), "reward": np.zeros(100)}])
    buffer = starting_buffer(data.rows, num_online, make_storage=data.make_storage)
    rows = fresh_rows(data, 1_300)
    for first in range(0, 1_300, 5):
        buffer.extend(rows[first : first + 5])
    size = 100 + num_online
    stored = buffer.storage.get((100 + 1_300 + torch.arange(size)) % size)  # oldest first
    for entry in ("observation", ("next", "observation")):
        assert torch.equal(stored[entry], rows[-size:][entry])


def looked_at(monkeypatch: pytest.MonkeyPatch, num_offline: int, *, let_go: bool) -> int:
    """Rows that a storage reads while 2000 are written, online or, if the offline ones go, round to their slots too."""
    images = np.stack([image(number % 90) for number in range(num_offline + 1)])
    columns = {"action": np.zeros((num_offline, 2)), "reward": np.zeros(num_offline)}
    data = pixel_data([{"observation": images, **columns}])
    storage = data.storage(20)
    buffer = TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(num_offline), batch_size=4)
    rows, count = fresh_rows(data, 2_000), 0
    buffer.extend(rows[:20])  # full, as it is before a writer comes round to offline slots: no slot holds garbage
    counted = FrameStorage.get_rows

    def count_rows(storage: FrameStorage, index: Any) -> Any:
        nonlocal count
        found = counted(storage, index)
        count += len(found)
        return found

    monkeypatch.setattr(FrameStorage, "get_rows", count_rows)
    for row in range(20, 2_000):
        if let_go:  # twelve slots on both sides of the last offline row's end, from the first slot on
            slots = torch.tensor([row % 12 if row % 2 else num_offline + row % 12])
            storage.set(slots, rows[row : row + 1])
        else:
            buffer.extend(rows[row : row + 1])
    monkeypatch.undo()
    return count


@pytest.mark.parametrize("let_go", [False, True])
def test_a_full_ring_costs_no_more_with_more_offline_rows(monkeypatch: pytest.MonkeyPatch, let_go: bool) -> None:
    few, many = (looked_at(monkeypatch, number, let_go=let_go) for number in (40, 4_000))
    assert 0 < many <= few


def test_interventions_have_no_room_among_frames() -> None:
    data = offline()
    rows = reserve_slots(data.rows, 2)
    storage = data.make_storage(rows, 20)
    buffer = TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(12, num_reserved=2), batch_size=2)
    online = data.stacks(torch.tensor([4, 7]))
    with pytest.raises(O2OSpecError, match="FrameStorage has no slots"):
        insert_intervened(buffer, online.set(INTERVENED, torch.ones(2, 2)))
