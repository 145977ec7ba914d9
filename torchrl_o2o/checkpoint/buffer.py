# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A replay buffer's state: its rows through :mod:`.segments`, the rest (sampler, writer, generator) as plain values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torchrl.data import ReplayBuffer

from torchrl_o2o.checkpoint.segments import Region, buffer_regions, read_segment, write_segments
from torchrl_o2o.errors import O2OCheckpointError

__all__ = ["BufferArchive"]


class BufferArchive:
    """Saves a buffer into segments and a small state, and restores it from them.

    Args:
        buffer: see :func:`~torchrl_o2o.checkpoint.segments.buffer_regions` for what it must be. Draws that a
            prefetching buffer has made ahead are not saved; a warning says so.
        folder: the folder of the segments.

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

    def __init__(self, buffer: ReplayBuffer, folder: Path) -> None:
        if getattr(buffer, "_prefetch", False):
            warnings.warn(
                "the buffer prefetches: batches drawn ahead are not part of a checkpoint, so a resumed run sees other "
                "batches than an uninterrupted one; build the buffer without prefetch for exact resume",
                stacklevel=4,
            )
        buffer_regions(buffer)  # refuses a buffer that cannot be saved, before the run begins
        self._buffer = buffer
        self._folder = folder
        self._known: list[dict[str, Any]] = []

    def save_rows(self) -> dict[str, Any]:
        """Write the rows that are new and return the manifest's part: ``regions`` and ``segments``, JSON values."""
        regions = buffer_regions(self._buffer)
        changed = getattr(self._buffer.writer, "changed_from", None)
        segments = []
        for region in regions:
            known = [entry for entry in self._known if entry["region"] == region.name]
            if changed is not None and region.name == "online":
                known = [entry for entry in known if entry["stop"] <= changed]
            segments += write_segments(self._folder, self._buffer.storage, region, known)
        return {"regions": [asdict(region) for region in regions], "segments": segments}

    def adopt(self, saved: Mapping[str, Any]) -> None:
        """Take segments as known, so that later saves share them; a checkpoint that is in place must name them.

        Args:
            saved: from :meth:`save_rows`.
        """
        self._known = list(saved["segments"])
        if hasattr(self._buffer.writer, "changed_from"):
            self._buffer.writer.changed_from = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sampler, the writer, the transforms and the generator."""
        buffer = self._buffer
        return {
            "sampler": buffer.sampler.state_dict(),
            "writer": buffer.writer.state_dict(),
            "transform": buffer._transform.state_dict(),
            "generator": None if buffer._rng is None else [str(buffer._rng.device), buffer._rng.get_state()],
        }

    def restore(self, saved: Mapping[str, Any], state: Mapping[str, Any], read: Callable[[Mapping], bytes]) -> None:
        """Put rows and state back.

        Args:
            saved: from :meth:`save_rows`.
            state: from :meth:`state_dict`.
            read: returns a segment's content from its manifest entry.

        Raises:
            O2OCheckpointError: if the buffer is not laid out as the saved one.
        """
        buffer = self._buffer
        regions = {region["name"]: Region(**region) for region in saved["regions"]}
        self._check_regions(regions)
        for entry in saved["segments"]:
            read_segment(read(entry), entry, buffer.storage, regions[entry["region"]])
        # The storage's own state_dict would hold the rows; its length is all that is left of it.
        buffer.storage._len = sum(min(region.total, region.capacity) for region in regions.values())
        buffer.sampler.load_state_dict(state["sampler"])
        buffer.writer.load_state_dict(state["writer"])
        buffer._transform.load_state_dict(state["transform"])
        self._restore_generator(state["generator"])
        self.adopt(saved)

    def _check_regions(self, saved: Mapping[str, Region]) -> None:
        present = {region.name: region for region in buffer_regions(self._buffer)}
        for name in sorted(saved.keys() | present.keys()):
            sizes = [(r.first, r.capacity) if (r := side.get(name)) else None for side in (saved, present)]
            if sizes[0] != sizes[1]:
                raise O2OCheckpointError(
                    f"the {name} region of the checkpoint's buffer has (first slot, capacity) {sizes[0]}, "
                    f"this buffer's {sizes[1]}; build the buffer with the same offline data and capacity"
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
