# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The state of a replay buffer: rows through :mod:`.segments`; sampler, writer and generator as plain values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torchrl.data import ReplayBuffer, TensorStorage

from torchrl_o2o.checkpoint.fingerprints import fingerprint, row_hashes
from torchrl_o2o.checkpoint.segments import (
    KeepsFrames,
    Region,
    buffer_regions,
    part_of,
    read_segment,
    stored_rows,
    tensor_storage,
    write_segments,
)
from torchrl_o2o.errors import O2OCheckpointError

__all__ = ["BufferArchive"]


@runtime_checkable
class _TellsChanges(Protocol):
    """A storage that records which of its offline rows were written, and when."""

    def first_written(self, since: int) -> int: ...


class BufferArchive:
    """Saves a buffer into segments and a small state, and restores it from them.

    Args:
        buffer: the buffer; :func:`~torchrl_o2o.checkpoint.segments.buffer_regions` describes the requirements. Batches
            that a prefetching buffer has drawn ahead are not saved, and a warning says so.
        folder: the folder of the segments.
        copies: write every segment twice. Defaults to ``True``.

    Raises:
        O2OSpecError: if the buffer's rows are not in an order that can be saved.

    Examples:
        >>> import tempfile
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> folder = Path(tempfile.mkdtemp())
        >>> buffer, copy = (TensorDictReplayBuffer(storage=LazyTensorStorage(4)) for _ in range(2))
        >>> _ = buffer.extend(TensorDict({"reward": torch.ones(3, 1)}, [3]))
        >>> archive = BufferArchive(buffer, folder)
        >>> saved, state = archive.save_rows(), archive.state_dict()
        >>> BufferArchive(copy, folder).restore(saved, state, lambda entry: (folder / entry["file"]).read_bytes())
        >>> len(copy)
        3
    """

    def __init__(self, buffer: ReplayBuffer, folder: Path, copies: bool = True) -> None:
        if getattr(buffer, "_prefetch", False):
            warnings.warn(
                "the buffer prefetches, and batches drawn ahead are not part of a checkpoint: a resumed run gets "
                "other batches than an uninterrupted one; build the buffer without prefetch for an exact resume",
                stacklevel=4,
            )
        buffer_regions(buffer)  # raises before the run begins if the buffer cannot be saved
        self._buffer = buffer
        self._folder = folder
        self._copies = copies
        self._known: list[dict[str, Any]] = []
        self._marks: dict[str, Tensor] = {}
        self._new_marks: dict[str, Tensor] = {}
        self._seen = self._newly_seen = 0  # writes of offline rows
        self._given = self._fingerprint()

    @property
    def _storage(self) -> TensorStorage:
        return tensor_storage(self._buffer)

    def save_rows(self) -> dict[str, Any]:
        """Write the rows that are new or changed and return the manifest's part, JSON values.

        Returns:
            ``regions``, ``segments``, the storage's ``length``, and ``given``: a fingerprint of the offline data that
            the run was given, or ``None``.
        """
        regions = buffer_regions(self._buffer)
        self._look(regions)
        segments = []
        for region in regions:
            known = [entry for entry in self._known if entry["region"] == region.name]
            changed = self._first_changed(region, known)
            known = [entry for entry in known if entry["stop"] <= changed]
            segments += write_segments(self._folder, self._storage, region, known, copies=self._copies)
        return {
            "regions": [asdict(region) for region in regions],
            "segments": segments,
            "length": len(self._storage),
            "given": self._given,
        }

    def _look(self, regions: list[Region]) -> None:
        """Record the rows' hashes, which the next save compares with."""
        self._new_marks = {region.name: self._mark(region) for region in regions}
        self._newly_seen = getattr(self._storage, "offline_writes", 0)

    def _mark(self, region: Region) -> Tensor:
        """Hashes of the live rows, by slot."""
        filled = min(region.total, region.capacity)
        frames = part_of(self._storage, region) is not self._storage  # they never change
        if not filled or frames or self._teller(region) is not None:
            return torch.zeros(0, dtype=torch.int64)
        return row_hashes(stored_rows(self._storage, region.first, region.first + filled))

    def _teller(self, region: Region) -> _TellsChanges | None:
        """The storage, if it records writes to its offline rows itself, so that these need not be read."""
        storage = self._storage
        return storage if region.name == "offline" and isinstance(storage, _TellsChanges) else None

    def _first_changed(self, region: Region, known: list[dict[str, Any]]) -> int:
        """The number of the first live row that differs from its segment."""
        written = known[-1]["stop"] if known else 0
        frames = part_of(self._storage, region) is not self._storage
        # Otherwise no row of the segments is live, or the count of rows has restarted.
        if frames or not region.oldest < written <= region.total:
            return written
        if (teller := self._teller(region)) is not None:
            return min(written, teller.first_written(self._seen))
        rows = torch.arange(region.oldest, written)
        slots = rows % region.capacity
        changed = rows[self._marks[region.name][slots] != self._new_marks[region.name][slots]]
        return int(changed[0]) if len(changed) else written

    def _fingerprint(self) -> str | None:
        """Fingerprint of the offline rows before the run; ``None`` if there are none yet."""
        region = buffer_regions(self._buffer)[0]
        if region.name != "offline" or len(self._storage) < region.capacity:
            return None
        return fingerprint(stored_rows(self._storage, 0, region.capacity))

    def adopt(self, saved: Mapping[str, Any]) -> None:
        """Mark segments as known, so that later saves share them; an existing checkpoint must name them.

        Args:
            saved: from :meth:`save_rows`.
        """
        self._known, self._marks = list(saved["segments"]), self._new_marks
        self._seen = self._newly_seen

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sampler, the writer, the transforms and the generator."""
        buffer, storage = self._buffer, self._storage
        return {
            "sampler": buffer.sampler.state_dict(),
            "writer": buffer.writer.state_dict(),
            "transform": buffer._transform.state_dict(),
            "frames": storage.frame_state() if isinstance(storage, KeepsFrames) else None,
            "generator": None if buffer._rng is None else [str(buffer._rng.device), buffer._rng.get_state()],
        }

    def restore(self, saved: Mapping[str, Any], state: Mapping[str, Any], read: Callable[[Mapping], bytes]) -> None:
        """Put rows and state back.

        Args:
            saved: from :meth:`save_rows`.
            state: from :meth:`state_dict`.
            read: returns a segment's content from its manifest entry.

        Raises:
            O2OCheckpointError: if the buffer's layout differs from the saved one's.
        """
        buffer, storage = self._buffer, self._storage
        if state.get("frames") is not None and isinstance(storage, KeepsFrames):
            storage.load_frame_state(state["frames"])
        regions = {region["name"]: Region(**region) for region in saved["regions"]}
        self._check_regions(regions)
        for entry in saved["segments"]:
            read_segment(read(entry), entry, storage, regions[entry["region"]])
        self._check_given(saved.get("given"))
        # The storage's own state_dict would contain the rows; only its length is kept.
        filled = sum(min(region.total, region.capacity) for region in regions.values())
        storage._len = saved.get("length", filled)
        buffer.sampler.load_state_dict(state["sampler"])
        buffer.writer.load_state_dict(state["writer"])
        buffer._transform.load_state_dict(state["transform"])
        self._restore_generator(state["generator"])
        present = buffer_regions(buffer)
        if {region.name: region for region in present} != regions:
            raise O2OCheckpointError(
                f"got a checkpoint with the rows {list(regions.values())} and a writer that counts {present}, expected "
                "the same (one save); move this checkpoint away to continue with the previous one"
            )
        self._look(present)
        self.adopt(saved)

    def _check_regions(self, saved: Mapping[str, Region]) -> None:
        present = {region.name: region for region in buffer_regions(self._buffer)}
        for name in sorted(saved.keys() | present.keys()):
            sizes = [(r.first, r.capacity) if (r := side.get(name)) else None for side in (saved, present)]
            if sizes[0] != sizes[1]:
                raise O2OCheckpointError(
                    f"got a buffer whose {name} region has (first slot, capacity) {sizes[1]}, expected {sizes[0]} as "
                    "in the checkpoint; build the buffer with the same offline data and capacity"
                )

    def _check_given(self, given: str | None) -> None:
        if given is not None and self._given is not None and given != self._given:
            raise O2OCheckpointError(
                "got offline rows with other values than those of the checkpoint's run (other data of the same name, "
                "or a convention that was fitted again); resume with the data and the convention of that run, or "
                "start a new run in another folder"
            )

    def _restore_generator(self, state: list[Any] | None) -> None:
        if state is None:
            return
        device, value = state
        generator = self._buffer._rng
        if generator is None or str(generator.device) != device:
            generator = torch.Generator(device=device)
            self._buffer.set_rng(generator)
        generator.set_state(value)
