# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Store each frame once: rows hold indices of frames, and stacks are assembled when rows are drawn.

Shapes: N rows, stacks of S frames, F frames of C channels, H x W pixels, uint8.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError

__all__ = ["FrameRing", "FrameStorage"]

_FRAMES_FILE = "frames.pt"
_REMEMBERED = 256  # recent frames with which new ones are compared, for overlapping stacks


class FrameRing:
    """The frames of one camera: the data set's, which stay, followed by a ring, which grows when needed.

    Frames are numbered in the order of writing. Number k is in slot k if it is one of the data set's F frames,
    otherwise in slot ``(k - F) % capacity`` of the ring.

    Args:
        fixed: the data set's frames, shape [F, C, H, W].
        capacity: slots of the ring.

    Examples:
        >>> ring = FrameRing(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 4)
        >>> ring.write(torch.ones(3, 8, 8, dtype=torch.uint8)), ring.take(torch.tensor([[0, 2]])).shape
        (2, torch.Size([1, 2, 3, 8, 8]))
    """

    initialized = True

    def __init__(self, fixed: Tensor, capacity: int) -> None:
        self.fixed, self.device = fixed, fixed.device
        self.ring = fixed.new_empty((capacity, *fixed.shape[1:]))
        #: Frames ever written after those of the data set.
        self.total = 0

    @property
    def capacity(self) -> int:
        """Slots of the ring."""
        return len(self.ring)

    def __len__(self) -> int:
        """All slots, filled or not."""
        return len(self.fixed) + self.capacity

    @property
    def newest(self) -> int:
        """Number of the frame written last."""
        return len(self.fixed) + self.total - 1

    def frame(self, number: int) -> Tensor:
        """One frame [C, H, W], without a copy."""
        fixed = len(self.fixed)
        return self.fixed[number] if number < fixed else self.ring[(number - fixed) % self.capacity]

    def write(self, frame: Tensor) -> int:
        """Store a frame [C, H, W] in place of the ring's oldest, and return its number."""
        number = len(self.fixed) + self.total
        self.ring[self.total % self.capacity] = frame
        self.total += 1
        return number

    def take(self, numbers: Tensor) -> Tensor:
        """Frames by number, shape [*numbers, C, H, W]."""
        flat = numbers.reshape(-1)
        online = flat >= len(self.fixed)
        slots = torch.where(online, (flat - len(self.fixed)) % self.capacity, flat)
        count = int(online.sum())
        if count == 0 or count == len(flat):
            frames = (self.ring if count else self.fixed).index_select(0, slots)
        else:
            frames = self.fixed.new_empty((len(flat), *self.fixed.shape[1:]))
            for part, kept in ((self.ring, online), (self.fixed, ~online)):
                rows = kept.nonzero().squeeze(-1)
                _words(frames).index_copy_(0, rows, _words(part).index_select(0, slots[rows]))
        return frames.reshape(*numbers.shape, *self.fixed.shape[1:])

    def grow(self, capacity: int) -> None:
        """Give the ring more slots; every frame keeps its number."""
        alive = torch.arange(max(0, self.total - self.capacity), self.total, device=self.ring.device)
        ring = self.ring.new_empty((capacity, *self.ring.shape[1:]))
        ring[alive % capacity] = self.ring[alive % self.capacity]
        self.ring = ring

    def get_rows(self, index: Any) -> TensorDictBase:
        """The slots of the data set's frames and then of the ring, as rows for a checkpoint."""
        start, stop, _ = index.indices(len(self))
        parts = self.fixed[start:stop], self.ring[max(start - len(self.fixed), 0) : max(stop - len(self.fixed), 0)]
        return TensorDict({"frame": torch.cat(parts)}, [stop - start])

    def set_rows(self, slots: Tensor, rows: TensorDictBase, *, set_cursor: bool = False) -> None:
        """Restore rows of a checkpoint; ``set_cursor`` has no effect here."""
        online = slots >= len(self.fixed)
        frames = rows["frame"].to(self.ring.device)
        self.fixed[slots[~online]] = frames[~online]
        self.ring[slots[online] - len(self.fixed)] = frames[online]


def _words(frames: Tensor) -> Tensor:
    """The same memory as 8-byte integers, if frames are multiples of 8 bytes: index writes work element by element."""
    flat = frames.flatten(1)
    return flat.view(torch.int64) if flat.shape[1] % 8 == 0 else flat


class FrameStorage(LazyTensorStorage):
    """A storage of transitions that keeps each frame once and delivers stacks.

    Rows are written and delivered with stacks [n, S C, H, W] of uint8, as from an environment that stacks frames.
    Inside, a row holds the numbers of its frames at s and s'. Every byte is delivered as written: a new frame reuses
    the number of a recent one only if both are equal. Starts and cuts of episodes, rows over several steps and several
    environments therefore need no flag. The offline rows and frames come first and stay. The ring of online frames
    after them grows (by one copy) if episodes are so short that it needs slots for more than 17/16 of the number of
    rows.

    Use it with :class:`~torchrl_o2o.data.OnlineWriter` and any sampler; checkpoints, ``state_dict`` and ``dumps`` save
    each frame once.

    Args:
        max_size: slots for rows, offline and online.
        frames: image entry -> frames of the data set, uint8 [F, C, H, W], F may be 0. The same entry under ``"next"``
            is s'.

    Keyword Args:
        num_offline: offline rows at the start. Defaults to 0.
        device: where rows and frames live. Defaults to ``"cpu"``.

    Raises:
        O2OSpecError: if written rows have images that are not stacks of such frames.

    Examples:
        >>> from torchrl.data import TensorDictReplayBuffer
        >>> from torchrl_o2o.testing import random_transitions
        >>> storage = FrameStorage(10, {"observation": torch.zeros(0, 3, 8, 8, dtype=torch.uint8)})
        >>> buffer = TensorDictReplayBuffer(storage=storage, batch_size=4)
        >>> rows, stack = random_transitions(2, 1, 1), torch.zeros(2, 9, 8, 8, dtype=torch.uint8)
        >>> rows["observation"], rows["next", "observation"] = stack, stack + 1
        >>> _ = buffer.extend(rows)
        >>> buffer.sample()["next", "observation"].shape, storage.rings["observation"].total
        (torch.Size([4, 9, 8, 8]), 2)
    """

    @checked_arguments
    def __init__(
        self,
        max_size: int,
        frames: Mapping[str, Tensor],
        *,
        num_offline: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(max_size, device=device)
        online = max_size - num_offline
        if online < 1:
            raise O2OSpecError(f"got {max_size} slots for {num_offline} offline rows, expected at least one more")
        self.num_offline = num_offline
        capacity = online + online // 16 + 2 * _REMEMBERED
        self.rings = {key: FrameRing(value.to(device), capacity) for key, value in frames.items()}
        # Recently written frames: checksum -> index, oldest first.
        self._recent: dict[str, dict[int, int]] = {key: {} for key in frames}
        # No online row refers to a frame with a smaller index.
        self._oldest = {key: len(ring.fixed) for key, ring in self.rings.items()}
        # Number of the first offline slots that a writer has released for online rows.
        self._let_go = 0

    def get(self, indices: Any) -> Any:
        """Rows with their stacks, shape [*B, S C, H, W]."""
        rows = self.get_rows(indices).copy()
        for key, ring in self.rings.items():
            for entry in (key, ("next", key)):
                rows.set(entry, ring.take(rows.get(entry)).flatten(-4, -3))
        return rows

    def get_rows(self, index: Any) -> Any:
        """Rows with the numbers of their frames."""
        return super().get(index)

    # TorchRL declares overloads, which no single method matches.
    def set(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, cursor: Any, data: Any, *, set_cursor: bool = True
    ) -> None:
        """Write rows; with ``set_cursor=False``, the frames of existing rows stay.

        Raises:
            O2OSpecError: with ``set_cursor=False``, if the rows' images differ from the stored ones.
        """
        cursor = torch.as_tensor(cursor) if isinstance(cursor, np.ndarray) else cursor
        single = not isinstance(cursor, Tensor | Sequence | range | slice)
        rows = data.unsqueeze(0) if single else data
        if not set_cursor:
            slots = self._slots(cursor)
            self._check_same(rows, slots)
            entries = [entry for key in self.rings for entry in (key, ("next", key))]
            rows = self.get_rows(slots).clone().update(rows.exclude(*entries))
        elif any(rows.get(key).dtype != torch.long for key in self.rings):
            slots = self._slots(cursor)
            rows = rows.copy()
            for key in self.rings:
                self._number(rows, key, slots)
            self._let_go = max([self._let_go, *(slots[slots < self.num_offline] + 1).tolist()])
        self.set_rows(cursor, rows.squeeze(0) if single else rows, set_cursor=set_cursor)

    def _slots(self, cursor: Any) -> Tensor:
        """The slots of an index, shape [n]."""
        if isinstance(cursor, slice):
            return torch.arange(*cursor.indices(self.max_size))
        slots = torch.as_tensor(cursor)
        slots = (slots.nonzero() if slots.dtype == torch.bool else slots).reshape(-1)
        return torch.where(slots < 0, slots + self.max_size, slots)

    def set_rows(self, slots: Any, rows: Any, *, set_cursor: bool = True) -> None:
        """Write rows that hold the numbers of their frames."""
        super().set(slots, rows, set_cursor=set_cursor)

    def _check_same(self, rows: TensorDictBase, slots: Tensor) -> None:
        """Raise if fixed rows get other images, because the ring would have to keep all frames since then."""
        stored = self.get(slots)
        for entry in (entry for key in self.rings for entry in (key, ("next", key))):
            given = rows.get(entry, None)
            if given is not None and not torch.equal(given.to(self.device), stored.get(entry)):
                raise O2OSpecError(
                    f"got rows with other {entry!r} than the stored rows that they replace, expected the same; a "
                    "FrameStorage has no slots for images among the offline rows (OnlineWriter(..., num_reserved=R)). "
                    "Use offline_online_storage with whole stacks, or write such rows to the online region only"
                )

    def _number(self, rows: TensorDictBase, key: str, slots: Tensor) -> None:
        """Replace the stacks of some rows by frame indices, and store the new frames."""
        stacks = [self._split(rows.get(entry), key) for entry in (key, ("next", key))]
        found: list[list[list[int]]] = []
        # Row by row, s before s': all frames of a stack but the last are in the stack before it.
        for pair in zip(*stacks, strict=True):
            self._make_room(key, 2 * len(pair[0]), slots, found)
            found.append([self._numbers(key, each) for each in pair])
            self._oldest[key] = min(self._oldest[key], *found[-1][0], *found[-1][1])
        for position, entry in enumerate((key, ("next", key))):
            rows.set(entry, torch.tensor([each[position] for each in found], device=rows.device))

    def _split(self, stack: Tensor, key: str) -> Tensor:
        """A stack [n, S C, H, W] as frames [n, S, C, H, W]."""
        shape = self.rings[key].fixed.shape[1:]
        if stack.dtype != torch.uint8 or stack.ndim != 4 or stack.shape[2:] != shape[1:] or stack.shape[1] % shape[0]:
            kind = str(stack.dtype).removeprefix("torch.")
            raise O2OSpecError(
                f"got {key!r} as {kind} of shape {list(stack.shape)}, expected uint8 [n, S * {shape[0]}, {shape[1]}, "
                f"{shape[2]}]: stacked frames, channels first, of the size of the stored ones, without alpha"
            )
        return stack.unflatten(1, (-1, shape[0])).contiguous()

    def _numbers(self, key: str, stack: Tensor) -> list[int]:
        """Indices of the frames [S, C, H, W] of one stack; equal frames that were written recently are reused."""
        ring, recent, out = self.rings[key], self._recent[key], []
        for frame in stack:
            mark = zlib.crc32(frame.cpu().numpy())  # pyright: ignore[reportArgumentType]
            number = recent.get(mark)
            placed = frame.to(ring.device)
            if number is None or number < ring.newest - _REMEMBERED or not torch.equal(ring.frame(number), placed):
                recent.pop(mark, None)
                number = recent[mark] = ring.write(placed)
                while next(iter(recent.values())) < number - _REMEMBERED:
                    recent.pop(next(iter(recent)))
            out.append(number)
        return out

    def _make_room(self, key: str, count: int, slots: Tensor, written: list[list[list[int]]]) -> None:
        """Grow the ring if ``count`` more frames would overwrite a frame of a row that is kept or was just written."""
        ring = self.rings[key]
        end = ring.newest + 1 + count - ring.capacity
        if end <= self._oldest[key]:
            return
        last = [min(*now, *following) for now, following in written]
        self._oldest[key] = min([self._oldest_kept(key, slots), *last])
        if end > self._oldest[key]:
            ring.grow(ring.capacity + max(end - self._oldest[key], ring.capacity // 4))

    def _oldest_kept(self, key: str, slots: Tensor) -> int:
        """The smallest index of an online frame in any row, except the rows to be overwritten.

        Online rows may be in any slot: a writer that has released the offline rows reuses their slots.
        """
        ring = self.rings[key]
        if not self.initialized or len(self) == 0:
            return ring.newest + 1
        oldest, written_over = ring.newest + 1, slots.tolist()
        for start, stop in ((0, min(self._let_go, len(self))), (self.num_offline, len(self))):
            if start >= stop:
                continue
            rows = self.get_rows(slice(start, stop))
            numbers = torch.stack([rows.get(entry).amin(-1) for entry in (key, ("next", key))]).amin(0)
            online = numbers >= len(ring.fixed)
            if start == 0 and self.num_offline:
                self._let_go = int(online.nonzero()[-1]) + 1 if online.any() else 0
            online[[slot - start for slot in written_over if start <= slot < stop]] = False
            oldest = min([oldest, *numbers[online].tolist()])
        return oldest

    def state_dict(self) -> dict[str, Any]:
        """Rows and frames, without a copy as in any storage of TorchRL."""
        return {**super().state_dict(), **self._frames()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            O2OSpecError: if it has no frames, or the data set has another number of frames.
        """
        self._load_frames(state_dict)
        super().load_state_dict(state_dict)

    def dumps(self, path: str | Path) -> None:
        """Write rows and frames into a folder."""
        super().dumps(path)
        torch.save(self._frames(), Path(path) / _FRAMES_FILE)

    def loads(self, path: str | Path) -> None:
        """Read what :meth:`dumps` wrote.

        Raises:
            O2OSpecError: if there are no frames, or the data set has another number of frames.
        """
        file = Path(path) / _FRAMES_FILE
        self._load_frames(torch.load(file, map_location="cpu", weights_only=True) if file.exists() else {})
        super().loads(path)

    def _frames(self) -> dict[str, Any]:
        frames = {key: {"fixed": ring.fixed, "ring": ring.ring} for key, ring in self.rings.items()}
        return {"frames": frames, "frame_state": self.frame_state()}

    def _load_frames(self, state: Mapping[str, Any]) -> None:
        if "frames" not in state or set(state["frames"]) != set(self.rings):
            found = sorted(state["frames"]) if "frames" in state else "none"
            raise O2OSpecError(
                f"got a state with the frames {found}, expected those of {sorted(self.rings)}, because rows only hold "
                "numbers of frames; load what a FrameStorage of the same images saved"
            )
        self.load_frame_state(state["frame_state"])
        for key, saved in state["frames"].items():
            self.rings[key].fixed.copy_(saved["fixed"])
            self.rings[key].ring.copy_(saved["ring"])

    def frame_state(self) -> dict[str, Any]:
        """State for a checkpoint besides rows and frames: counts, and the recently written frames."""
        counts = {key: [len(ring.fixed), ring.capacity, ring.total] for key, ring in self.rings.items()}
        recent = {key: list(each.items()) for key, each in self._recent.items()}
        return {"rings": counts, "recent": recent, "oldest": dict(self._oldest)}

    def load_frame_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`frame_state` returned, before the frames themselves.

        Raises:
            O2OSpecError: if the data set has another number of frames.
        """
        for key, (fixed, capacity, total) in state["rings"].items():
            ring = self.rings.get(key)
            if ring is None or len(ring.fixed) != fixed:
                raise O2OSpecError(
                    f"got a checkpoint with {fixed} offline frames under {key!r}, expected "
                    f"{None if ring is None else len(ring.fixed)} as in this storage; load the data set with which the "
                    "run was started"
                )
            if capacity != ring.capacity:
                ring.ring = ring.ring.new_empty((capacity, *ring.ring.shape[1:]))
            ring.total = total
        self._recent = {key: dict(each) for key, each in state["recent"].items()}
        self._oldest = dict(state["oldest"])
        self._let_go = self.num_offline  # until the rows are examined

    def frame_parts(self) -> dict[str, tuple[FrameRing, int, int, int]]:
        """The frames as regions of rows, for a checkpoint: name -> ring, first slot, slots, frames ever written."""
        out: dict[str, tuple[FrameRing, int, int, int]] = {}
        for key, ring in self.rings.items():
            fixed = len(ring.fixed)
            if fixed:
                out[f"offline_frames_{key}"] = (ring, 0, fixed, fixed)
            out[f"frames_{key}"] = (ring, fixed, ring.capacity, ring.total)
        return out
