# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Segments on rings counted out by hand."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage

from tests.checkpoint.tiny_run import new_buffer, rows
from torchrl_o2o.checkpoint import segments
from torchrl_o2o.checkpoint.segments import Region, buffer_regions, read_segment, write_segments
from torchrl_o2o.errors import O2OCheckpointError


def write_ring(storage, region, start):
    """Put the rows from ``start`` on into their slots, as a writer would."""
    for row in range(start, region.total):
        storage.set(torch.tensor([region.slot(row)]), rows(row, 1), set_cursor=False)
    storage._len = region.first + min(region.total, region.capacity)


def spans(entries):
    return [(entry["start"], entry["stop"]) for entry in entries]


@pytest.mark.parametrize(
    ("total", "oldest", "slot_of_last"), [(0, 0, None), (3, 0, 12), (4, 0, 13), (5, 1, 10), (11, 7, 12)]
)
def test_ring_arithmetic(total, oldest, slot_of_last):
    region = Region("online", first=10, capacity=4, total=total)
    assert region.oldest == oldest
    if total:
        assert region.slot(total - 1) == slot_of_last


def test_runs_break_where_the_ring_wraps_and_where_a_file_would_be_too_long(monkeypatch):
    region = Region("online", first=10, capacity=5, total=12)
    assert list(region.runs(3, 12)) == [(3, 5), (5, 10), (10, 12)]
    monkeypatch.setattr(segments, "_ROWS_PER_SEGMENT", 2)
    assert list(region.runs(3, 9)) == [(3, 5), (5, 7), (7, 9)]
    assert list(region.runs(4, 4)) == []


def test_regions_of_an_offline_online_buffer():
    buffer = new_buffer(online=20, offline=30)
    buffer.extend(rows(0, 7))
    assert buffer_regions(buffer) == [Region("offline", 0, 30, 30), Region("online", 30, 20, 7)]


def test_saves_write_only_what_is_new_and_name_only_what_is_alive(tmp_path):
    storage, entries, written = LazyTensorStorage(6), [], 0
    expected = {3: [(0, 3)], 5: [(0, 3), (3, 5)], 8: [(0, 3), (3, 5), (5, 6), (6, 8)], 14: [(8, 12), (12, 14)]}
    for total, named in expected.items():
        region = Region("online", 0, 6, total)
        write_ring(storage, region, written)
        entries = write_segments(tmp_path, storage, region, entries)
        assert spans(entries) == named
        written = total


@pytest.mark.parametrize("saves", [[5], [3, 8], [6, 6], [7, 20], [2, 4, 9, 13, 14, 31]])
def test_rows_come_back_into_their_slots(tmp_path, saves):
    storage, entries, written = LazyTensorStorage(6), [], 0
    for total in saves:
        region = Region("online", 0, 6, total)
        write_ring(storage, region, written)
        entries = write_segments(tmp_path, storage, region, entries)
        written = total
    copy = LazyTensorStorage(6)
    for entry in entries:
        read_segment((tmp_path / entry["file"]).read_bytes(), entry, copy, region)
    alive = min(saves[-1], 6)
    copy._len = alive
    torch.testing.assert_close(copy[:alive].to_dict(), storage[:alive].to_dict(), rtol=0, atol=0)


def test_an_emptied_buffer_starts_anew(tmp_path):
    storage = LazyTensorStorage(6)
    write_ring(storage, Region("online", 0, 6, 5), 0)
    entries = write_segments(tmp_path, storage, Region("online", 0, 6, 5), [])
    assert spans(write_segments(tmp_path, storage, Region("online", 0, 6, 2), entries)) == [(0, 2)]


def test_a_segment_holds_its_rows_only(tmp_path):
    storage = LazyTensorStorage(100_000)
    storage.set(torch.arange(100_000), TensorDict({"observation": torch.zeros(100_000, 8)}, [100_000]))
    (entry,) = write_segments(tmp_path, storage, Region("online", 0, 100_000, 10), [])
    assert entry["bytes"] < 4_000


def test_segments_of_different_rows_have_different_names(tmp_path):
    region = Region("online", 0, 6, 3)
    files = set()
    for first in (0, 50):
        storage = LazyTensorStorage(6)
        storage.set(torch.arange(3), rows(first, 3))
        files |= {entry["file"] for entry in write_segments(tmp_path, storage, region, [])}
    assert len(files) == 2


def test_rows_of_another_type_are_refused(tmp_path):
    storage = LazyTensorStorage(6)
    region = Region("online", 0, 6, 3)
    write_ring(storage, region, 0)
    (entry,) = write_segments(tmp_path, storage, region, [])
    other = LazyTensorStorage(6)
    other.set(torch.arange(3), rows(0, 3).to(torch.float64))
    with pytest.raises(O2OCheckpointError, match=r"float64.*float32"):
        read_segment((tmp_path / entry["file"]).read_bytes(), entry, other, region)
