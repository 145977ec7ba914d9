# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Buffers whose rows lie in memory-mapped files: the same run as from memory, and saves that read no offline row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchrl.data import TensorDictReplayBuffer

from torchrl_o2o.checkpoint import Checkpointer, buffer, segments
from torchrl_o2o.data import BalancedReplaySampler, BalancedSampler, OnlineWriter, PrioritizedReplaySampler
from torchrl_o2o.data.storage import offline_online_storage
from torchrl_o2o.testing import random_transitions

OFFLINE, ONLINE, RESERVED = 40, 20, 4
SAMPLERS = {
    "balanced": lambda: BalancedSampler(OFFLINE),
    "prioritized": lambda: PrioritizedReplaySampler(OFFLINE + ONLINE, 0.6, 0.4),
    "replay": lambda: BalancedReplaySampler(OFFLINE, ONLINE, first_epoch_frames=5),
}


def rows(count: int, seed: int) -> Any:
    return random_transitions(count, 3, 2, generator=torch.Generator().manual_seed(seed))


def run(folder: Path, scratch_dir: Path | None, kind: str = "balanced") -> tuple[TensorDictReplayBuffer, Checkpointer]:
    replay = TensorDictReplayBuffer(
        storage=offline_online_storage(rows(OFFLINE, 0), ONLINE, scratch_dir=scratch_dir),
        sampler=SAMPLERS[kind](),
        writer=OnlineWriter(OFFLINE, num_reserved=RESERVED),
        batch_size=8,
    )
    replay.set_rng(torch.Generator().manual_seed(0))
    return replay, Checkpointer(folder, objects={}, buffer=replay, copies=False)


def steps(replay: TensorDictReplayBuffer, first: int, last: int) -> list[Any]:
    drawn = []
    for step in range(first, last):
        replay.extend(rows(3, step))
        if step % 4 == 0:
            replay.writer.write_offline(rows(1, 100 + step))
        batch = replay.sample()
        replay.update_priority(batch["index"], torch.linspace(0.1, 2.0, len(batch)))
        drawn.append(batch.to_dict())
    return drawn


def saved(folder: Path, region: str = "offline") -> set[str]:
    return {path.name for path in (folder / "segments").glob(f"{region}-*")}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_mapped_run_that_stops_twice_equals_the_one_in_memory(tmp_path: Path, kind: str) -> None:
    replay, _ = run(tmp_path / "memory", None, kind)
    expected, drawn = [*steps(replay, 0, 30), replay.storage[:].to_dict()], []
    for number, (first, last) in enumerate([(0, 9), (9, 10), (10, 30)]):
        replay, checkpoint = run(tmp_path / "mapped", tmp_path / f"rows-{number}", kind)
        assert checkpoint.restore() == (first or None)
        drawn += steps(replay, first, last)
        checkpoint.save(last)
    drawn.append(replay.storage[:].to_dict())
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0)


def test_a_save_reads_no_offline_row_that_was_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_ROWS_PER_SEGMENT", 10)
    replay, checkpoint = run(tmp_path / "run", tmp_path / "rows")
    checkpoint.save(1)
    read: list[tuple[int, int]] = []
    inner = segments.stored_rows
    for module in (segments, buffer):
        monkeypatch.setattr(module, "stored_rows", lambda part, *slots: read.append(slots) or inner(part, *slots))
    steps(replay, 1, 3)
    checkpoint.save(2)
    assert {start for start, _ in read} == {OFFLINE}
    first = saved(tmp_path / "run")
    replay.writer.write_offline(rows(1, 9))
    checkpoint.save(3)
    assert min(read) == (OFFLINE - 10, OFFLINE)
    assert len(saved(tmp_path / "run") - first) == 1


@pytest.mark.parametrize("how", ["int", "slice", "tensor", "mask", "patch", "state"])
def test_offline_rows_that_were_written_are_saved_again(tmp_path: Path, how: str) -> None:
    replay, checkpoint = run(tmp_path / "run", tmp_path / "rows")
    other = Checkpointer(tmp_path / "other", objects={}, buffer=replay, copies=False)
    for one in (checkpoint, other):
        one.save(1)
    new = rows(OFFLINE, 5)[:2]
    mask = torch.zeros(OFFLINE + ONLINE, dtype=torch.bool).index_fill_(0, torch.tensor([7, 8]), True)
    if how == "patch":
        replay.storage._apply_conditional_patch(torch.tensor([7]), {("next", "reward"): torch.tensor([[5.0]])})
    elif how == "state":
        replay.storage.load_state_dict(offline_online_storage(rows(OFFLINE, 6), ONLINE).state_dict())
    else:
        where = {"int": 7, "slice": slice(7, 9), "tensor": torch.tensor([-53, 8]), "mask": mask}[how]
        replay.storage.set(where, new[0] if how == "int" else new, set_cursor=False)
    expected = replay.storage[:].clone()
    for number, one in enumerate((checkpoint, other)):  # both see it
        one.save(2)
        again, _ = run(tmp_path / "none", tmp_path / f"again-{number}")
        assert Checkpointer(one.folder, objects={}, buffer=again, copies=False).restore() == 2
        assert bool((again.storage[:] == expected).all())
