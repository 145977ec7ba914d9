# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The rows of a replay buffer in files that never change, each row written once.

A region of the storage is a ring: the k-th row written (from 0) is in slot ``first + k % capacity``, and the last
``capacity`` rows are live. A segment is a file with the rows ``start <= k < stop``. A save adds a segment with the rows
written since the last save, and lists all segments that still hold a live row. The offline data are a region that is
full from the start, so they are written once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import ReplayBuffer, Storage, TensorStorage
from torchrl.data.replay_buffers.writers import RoundRobinWriter

from torchrl_o2o.checkpoint.folders import copy_of
from torchrl_o2o.checkpoint.manifest import digest, dump, load
from torchrl_o2o.durable import replace_durably
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError

__all__ = [
    "KeepsFrames",
    "Region",
    "buffer_regions",
    "part_of",
    "read_segment",
    "stored_rows",
    "tensor_storage",
    "write_segments",
]

_ROWS_PER_SEGMENT = 2**17
_FRAMES_PER_SEGMENT = 2**13


@dataclass(frozen=True)
class Region:
    """A ring of slots in a storage.

    Args:
        name: the region's name, ``"offline"`` or ``"online"``.
        first: its first slot.
        capacity: its number of slots.
        total: number of rows ever written to it.
        rows_per_file: the largest number of rows in one segment; ``None`` (default) uses the number for rows without
            frames.

    Examples:
        >>> region = Region("online", first=10, capacity=4, total=6)
        >>> region.oldest, list(region.runs(2, 6))
        (2, [(2, 4), (4, 6)])
        >>> region.slot(5)
        11
    """

    name: str
    first: int
    capacity: int
    total: int
    rows_per_file: int | None = field(default=None, repr=False)

    @property
    def oldest(self) -> int:
        """The number of the oldest row that is not overwritten."""
        return max(0, self.total - self.capacity)

    def slot(self, row: int) -> int:
        """Return the slot of a row."""
        return self.first + row % self.capacity

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Split the rows ``start <= k < stop`` into runs of neighboring slots, none too long for one file."""
        while start < stop:
            wrap = (start // self.capacity + 1) * self.capacity
            end = min(stop, wrap, start + (self.rows_per_file or _ROWS_PER_SEGMENT))
            yield start, end
            start = end


def buffer_regions(buffer: ReplayBuffer) -> list[Region]:
    """Divide a buffer's storage into the offline region, if its writer has one, and the online ring.

    A storage that keeps frames besides its rows, such as :class:`~torchrl_o2o.data.FrameStorage`, adds regions for
    them.

    Args:
        buffer: with a tensor storage of one dimension, and TorchRL's round-robin writer or one that has the attributes
            ``num_offline`` (number of leading slots that it never writes) and ``total_written`` (number of rows ever
            written after them, in order), such as :class:`~torchrl_o2o.data.OnlineWriter`.

    Raises:
        O2OSpecError: if the buffer's rows are not in this order.

    Examples:
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(8))
        >>> _ = buffer.extend(TensorDict({"reward": torch.zeros(5, 1)}, [5]))
        >>> buffer_regions(buffer)
        [Region(name='online', first=0, capacity=8, total=5)]
    """
    storage, writer = tensor_storage(buffer), buffer.writer
    if isinstance(writer, RoundRobinWriter):
        num_offline, total = 0, writer._write_count
    elif isinstance(writer, _Counting):
        num_offline, total = writer.num_offline, writer.total_written
    else:
        raise O2OSpecError(
            f"got a buffer with a {type(writer).__name__}, expected an OnlineWriter or a RoundRobinWriter"
        )
    online = Region("online", num_offline, storage.max_size - num_offline, total)
    if isinstance(writer, RoundRobinWriter) and writer._cursor != online.slot(total):
        raise O2OSpecError(
            f"got a buffer with {total} rows written to {online.capacity} slots and the next slot {writer._cursor}, "
            "expected rows written in order; use add and extend, because rows written with write_at cannot be saved"
        )
    parts = _frame_parts(storage).items()
    frames = [Region(name, first, size, total, _FRAMES_PER_SEGMENT) for name, (_, first, size, total) in parts]
    if not num_offline:
        return [online, *frames]
    return [Region("offline", 0, num_offline, num_offline), online, *frames]


def tensor_storage(buffer: ReplayBuffer) -> TensorStorage:
    """Return a buffer's storage after checking that its rows can be saved.

    Args:
        buffer: see :func:`buffer_regions`.

    Raises:
        O2OSpecError: if it is not a tensor storage of one dimension.

    Examples:
        >>> from torchrl.data import LazyTensorStorage
        >>> storage = LazyTensorStorage(4)
        >>> tensor_storage(ReplayBuffer(storage=storage)) is storage
        True
    """
    storage = buffer.storage
    if not isinstance(storage, TensorStorage) or storage.ndim != 1:
        raise O2OSpecError(f"got a buffer with a {type(storage).__name__}, expected a tensor storage of one dimension")
    return storage


@runtime_checkable
class _Counting(Protocol):
    """A writer that keeps the first slots and counts the rows that it writes after them."""

    num_offline: int
    total_written: int


@runtime_checkable
class KeepsFrames(Protocol):
    """A storage that keeps frames besides its rows."""

    def frame_parts(self) -> Mapping[str, Any]:
        """By region: the store of its frames, the first slot, the number of slots, the frames ever written."""
        ...

    def frame_state(self) -> Any:
        """The state that belongs to the frames."""
        ...

    def load_frame_state(self, state: Any) -> None:
        """Restore what :meth:`frame_state` returned."""
        ...


def _frame_parts(storage: Storage) -> Mapping[str, Any]:
    return storage.frame_parts() if isinstance(storage, KeepsFrames) else {}


def part_of(storage: Storage, region: Region) -> Any:
    """The object with a region's rows: the storage itself, or its store of frames.

    Args:
        storage: the buffer's storage.
        region: one of its regions.

    Examples:
        >>> from torchrl.data import LazyTensorStorage
        >>> storage = LazyTensorStorage(4)
        >>> part_of(storage, Region("online", 0, 4, 0)) is storage
        True
    """
    parts = _frame_parts(storage)
    return parts[region.name][0] if region.name in parts else storage


def stored_rows(storage: Any, start: int, stop: int) -> TensorDictBase:
    """Rows by slot, including those beyond the storage's length, which starts at 0 again after ``buffer.empty()``.

    Args:
        storage: a tensor storage.
        start: first slot.
        stop: the slot after the last one.

    Examples:
        >>> from torchrl.data import LazyTensorStorage
        >>> storage = LazyTensorStorage(4)
        >>> storage.set(torch.arange(4), TensorDict({"reward": torch.arange(4)}, [4]))
        >>> storage._empty(); len(storage), stored_rows(storage, 1, 3)["reward"]
        (0, tensor([1, 2]))
    """
    get = (
        storage.get_rows if hasattr(storage, "get_rows") else storage.get
    )  # from a storage of frames, the rows as they are stored
    return get(slice(start, stop)) if stop <= len(storage) else storage._storage[start:stop]


def write_segments(
    folder: Path, storage: Storage, region: Region, known: list[dict[str, Any]], *, copies: bool = False
) -> list[dict[str, Any]]:
    """Write the live rows of a region that no known segment contains.

    Args:
        folder: the folder of the segments.
        storage: the buffer's storage.
        region: the region to write.
        known: the manifest entries of the region's segments that were written or read by this run, in order.

    Keyword Args:
        copies: write each segment twice. Defaults to ``False``.

    Returns:
        The entries of all segments that contain a live row, in order: ``file``, ``region``, ``start``, ``stop``,
        ``bytes``, ``blake2b``.

    Raises:
        OSError: if a segment cannot be written.

    Examples:
        >>> import tempfile
        >>> from torchrl.data import LazyTensorStorage
        >>> storage, folder = LazyTensorStorage(4), Path(tempfile.mkdtemp())
        >>> storage.set(torch.arange(4), TensorDict({"reward": torch.zeros(4, 1)}, [4]))
        >>> entries = write_segments(folder, storage, Region("online", 0, 4, 4), [])
        >>> entries = write_segments(folder, storage, Region("online", 0, 4, 6), entries)
        >>> [(entry["start"], entry["stop"]) for entry in entries]
        [(0, 4), (4, 6)]
    """
    written = known[-1]["stop"] if known else 0
    if written > region.total:  # the buffer was emptied, so the count of its rows restarts
        known, written = [], 0
    living = [entry for entry in known if entry["stop"] > region.oldest]
    for start, stop in region.runs(max(written, region.oldest), region.total):
        rows = stored_rows(part_of(storage, region), region.slot(start), region.slot(start) + stop - start)
        living.append(_write_segment(folder, rows, region.name, start, stop, copies))
    return living


def _write_segment(
    folder: Path, rows: TensorDictBase, region: str, start: int, stop: int, copies: bool
) -> dict[str, Any]:
    # Clone: torch.save writes the whole storage behind a view.
    leaves = {key: value.cpu().clone() for key, value in rows.items(include_nested=True, leaves_only=True)}
    data = dump(f"{region} rows {start} to {stop}", leaves)
    name = f"{region}-{start}-{stop}-{digest(data)[:16]}.pt"
    for path in (folder / name, *([copy_of(folder / name)] if copies else [])):
        replace_durably(path, data)
    span = {"region": region, "start": start, "stop": stop}
    return {"file": name} | span | {"bytes": len(data), "blake2b": digest(data)}


def read_segment(data: bytes, entry: Mapping[str, Any], storage: TensorStorage, region: Region) -> None:
    """Write the live rows of a segment back into their slots.

    Args:
        data: the segment's content.
        entry: its manifest entry.
        storage: the buffer's storage.
        region: the region as it was when the checkpoint was taken.

    Raises:
        O2OCheckpointError: if the rows do not have the keys, shapes and types of the storage.

    Examples:
        >>> from torchrl.data import LazyTensorStorage
        >>> storage, region = LazyTensorStorage(4), Region("online", first=0, capacity=4, total=5)
        >>> data = dump("rows", {"reward": torch.arange(10.0, 14.0)})
        >>> read_segment(data, {"start": 0, "stop": 4}, storage, region)  # row 4 has taken the slot of row 0
        >>> storage._storage["reward"][1:]
        tensor([11., 12., 13.])
    """
    rows, part = TensorDict(load(data), [entry["stop"] - entry["start"]]), part_of(storage, region)
    if part.initialized:
        _check_layout(_layout(rows), _layout(stored_rows(part, 0, 1)))
    skipped = max(0, region.oldest - entry["start"])
    slot = region.slot(entry["start"] + skipped)
    slots = torch.arange(slot, slot + len(rows) - skipped)
    device = None if storage.device == "auto" else storage.device
    (part.set_rows if hasattr(part, "set_rows") else part.set)(slots, rows[skipped:].to(device), set_cursor=False)


def _layout(rows: TensorDictBase) -> dict[Any, tuple[torch.Size, torch.dtype]]:
    return {key: (leaf.shape[1:], leaf.dtype) for key, leaf in rows.items(include_nested=True, leaves_only=True)}


def _check_layout(saved: Mapping[Any, Any], present: Mapping[Any, Any]) -> None:
    for key in sorted(saved.keys() | present.keys(), key=str):
        if saved.get(key) != present.get(key):
            raise O2OCheckpointError(
                f"got buffer rows with {key!r} as {present.get(key, 'absent')}, expected {saved.get(key, 'absent')} as "
                "in the checkpoint; build the buffer as the checkpoint's run did"
            )
