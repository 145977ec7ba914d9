# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Frames stored once: rows hold numbers of frames, and stacks are put together when rows are drawn.

Shapes: N rows, stacks of S frames, F frames of C channels, H x W pixels, uint8.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.datasets.columns import speaks_of_ends
from torchrl_o2o.data.episodes import number_episodes
from torchrl_o2o.data.keys import EPISODE
from torchrl_o2o.data.transforms import check_one_step
from torchrl_o2o.errors import O2ODataError, O2OSpecError

__all__ = ["FrameRing", "FrameStorage", "PixelData", "as_frames", "pixel_data", "stack_numbers", "stack_rows"]

_EDGE = 2e-6  # rounding of actions at the edge of [-1, 1]
_REMEMBERED = 256  # frames that are compared with new ones: of stacks that overlap, of environments that take turns


def as_frames(array: np.ndarray | Tensor, name: str = "frames") -> Tensor:
    """Images as this package stores them: uint8, channels first, three of them.

    Channels last are moved to the front and a fourth one (alpha) is left out.

    Args:
        array: images, shape [F, H, W, 3 or 4] or [F, 3 or 4, H, W].
        name: what they are, for the message.

    Returns:
        Shape [F, 3, H, W].

    Raises:
        O2ODataError: if they are no uint8 images of three or four channels.

    Examples:
        >>> as_frames(np.zeros((5, 64, 48, 4), np.uint8)).shape
        torch.Size([5, 3, 64, 48])
    """
    frames = torch.as_tensor(array)
    if frames.dtype != torch.uint8:
        raise O2ODataError(
            f"got {name} of type {str(frames.dtype).removeprefix('torch.')}, expected uint8; convert values in [0, 1] "
            f"with (255 * frames).round() and cast. Frames are stored as bytes and scaled by the encoder"
        )
    channels = (3, 4)
    if frames.ndim == 4 and frames.shape[-1] in channels and (frames.shape[1] not in channels or frames.shape[2] > 4):
        frames = frames.movedim(-1, 1)
    if frames.ndim != 4 or frames.shape[1] not in channels:
        raise O2ODataError(
            f"got {name} of shape {list(frames.shape)}, expected color images [F, H, W, 3] or [F, 3, H, W]; repeat a "
            f"gray channel three times"
        )
    return frames[:, :3].contiguous()


def stack_numbers(lengths: Sequence[int], num_stack: int) -> tuple[Tensor, Tensor]:
    """Which frames are stacked at s and at s', where each episode has one frame more than transitions.

    At an episode's start its first frame takes the places of those before it; no stack spans two episodes.

    Args:
        lengths: transitions of each episode, in order; frames are numbered through.
        num_stack: frames of a stack S, oldest first.

    Returns:
        Two tensors of frame numbers, int64, shape [sum of lengths, S].

    Examples:
        >>> now, following = stack_numbers([2, 1], 3)
        >>> now.tolist(), following.tolist()
        ([[0, 0, 0], [0, 0, 1], [3, 3, 3]], [[0, 0, 1], [0, 1, 2], [3, 3, 4]])
    """
    counts = torch.as_tensor(list(lengths), dtype=torch.long)
    first = (counts + 1).cumsum(0) - counts - 1
    starts = first.repeat_interleave(counts)
    step = torch.arange(len(starts)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    back = torch.arange(num_stack) - num_stack + 1
    now = (step.unsqueeze(-1) + back).clamp(min=0) + starts.unsqueeze(-1)
    return now, (step.unsqueeze(-1) + 1 + back).clamp(min=0) + starts.unsqueeze(-1)


@dataclass(frozen=True)
class PixelData:
    """A data set from pixels: transitions whose image entries are numbers of frames, and the frames.

    Whatever changes rows alone works on :attr:`rows` (:func:`~torchrl_o2o.data.n_step`, reward transforms, selecting
    episodes): ``dataclasses.replace(data, rows=n_step(data.rows, n=3, gamma=0.99))``.

    Args:
        rows: transitions in TED [N] with ``episode``; image entries are int64 [N, S].
        frames: image entry -> uint8 [F, C, H, W].

    Examples:
        >>> episode = {"observation": np.zeros((4, 32, 32, 3), np.uint8), "action": np.zeros((3, 2)),
        ...            "reward": np.ones(3)}
        >>> data = pixel_data([episode])
        >>> len(data), data.stacks(torch.arange(2))["next", "observation"].shape
        (3, torch.Size([2, 9, 32, 32]))
    """

    rows: TensorDictBase
    frames: Mapping[str, Tensor]

    def __len__(self) -> int:
        """Transitions."""
        return len(self.rows)

    def stacks(self, index: Any) -> TensorDictBase:
        """Rows as a loss reads them.

        Args:
            index: of the rows.
        """
        rows = self.rows.exclude(EPISODE)[index].copy()
        for key, frames in self.frames.items():
            for entry in (key, ("next", key)):
                rows.set(entry, frames[rows.get(entry)].flatten(-4, -3))
        return rows

    def storage(self, online_capacity: int, *, device: torch.device | str = "cpu") -> FrameStorage:
        """Offline rows and frames first and fixed, online ones behind them.

        Args:
            online_capacity: slots for online transitions, at least 1.

        Keyword Args:
            device: where rows and frames live. Defaults to ``"cpu"``.
        """
        return self.make_storage(self.rows.exclude(EPISODE), online_capacity, device=device)

    def make_storage(
        self, rows: TensorDictBase, online_capacity: int, *, device: torch.device | str = "cpu"
    ) -> FrameStorage:
        """The same for some of the rows: what ``make_storage`` of :func:`~torchrl_o2o.data.starting.starting_buffer`
        asks for.

        Args:
            rows: of :attr:`rows`.
            online_capacity: slots for online transitions, at least 1.

        Keyword Args:
            device: where rows and frames live. Defaults to ``"cpu"``.
        """
        storage = FrameStorage(len(rows) + online_capacity, self.frames, num_offline=len(rows), device=device)
        if len(rows):
            storage.set(torch.arange(len(rows)), rows.exclude(EPISODE).to(device))
        return storage


def pixel_data(
    episodes: Iterable[Mapping[str, Any]], *, num_stack: int = 3, image_keys: Sequence[str] = ("observation",)
) -> PixelData:
    """A data set from pixels out of whole episodes.

    Args:
        episodes: each with T+1 images under every image key, T ``action`` [T, A] and T ``reward``, and ``terminated``
            [T] where an episode ends in a terminal state; without it, all ends are cuts. Actions are in [-1, 1]. Other
            entries of T+1 rows are observations, too, and become float32, unless their name speaks of ends.

    Keyword Args:
        num_stack: frames of a stack. Defaults to 3.
        image_keys: entries of images. Defaults to ``"observation"``.

    Returns:
        The data, actions and rewards float32.

    Raises:
        O2ODataError: if there is no episode, an entry is missing, images are of several sizes, lengths do not fit, a
            number is not finite or an action beyond [-1, 1], or an entry that could say where episodes end is not read.

    Examples:
        >>> episode = {"pixels": np.zeros((4, 32, 32, 3), np.uint8), "state": np.zeros((4, 5)),
        ...            "action": np.zeros((3, 2)), "reward": np.ones(3)}
        >>> rows = pixel_data([episode], image_keys=["pixels"]).rows
        >>> rows["pixels"].tolist(), rows["next", "state"].shape
        ([[0, 0, 0], [0, 0, 1], [0, 1, 2]], torch.Size([3, 5]))
    """
    if isinstance(episodes, Mapping | TensorDictBase):
        remedy = "take stack_rows of transitions" if isinstance(episodes, TensorDictBase) else "put it into a list"
        raise O2ODataError(f"got a {type(episodes).__name__}, expected a list of episodes; {remedy}")
    frames: dict[str, list[Tensor]] = {key: [] for key in image_keys}
    columns: dict[str, list[Tensor]] = {}
    lengths: list[int] = []
    for number, episode in enumerate(episodes):
        missing = [key for key in (*image_keys, "action", "reward") if key not in episode]
        if missing:
            raise O2ODataError(f"episode {number} has no {missing}; it has {sorted(episode)}")
        lengths.append(len(episode["action"]))
        for key in image_keys:
            frames[key].append(as_frames(episode[key], f"{key!r} of episode {number}"))
            _check_images(key, number, frames[key], lengths[-1])
        for key, value in _columns(episode, image_keys, lengths[-1], number).items():
            columns.setdefault(key, []).append(value)
    if not lengths:
        raise O2ODataError("got no episode; expected at least one with images, actions and rewards")
    joined = {key: torch.cat(values) for key, values in columns.items()}
    now, following = stack_numbers(lengths, num_stack)
    rows = _transitions(joined, lengths, dict.fromkeys(image_keys, (now, following)))
    return PixelData(rows, {key: torch.cat(values) for key, values in frames.items()})


def stack_rows(data: TensorDictBase, *, num_stack: int = 3, image_keys: Sequence[str] = ("observation",)) -> PixelData:
    """A data set from pixels out of transitions with single images, as ``load_offline`` reads them.

    Args:
        data: transitions in TED [N] with ``episode``, whole episodes in order; images [N, H, W, 3] or [N, 3, H, W].

    Keyword Args:
        num_stack: frames of a stack. Defaults to 3.
        image_keys: entries of images. Defaults to ``"observation"``.

    Returns:
        The data; other entries stay.

    Raises:
        O2ODataError: if there is no ``episode``, rows are shuffled or go over several steps (take ``n_step`` of
            :attr:`PixelData.rows`), or an entry holds no uint8 images.

    Examples:
        >>> image = torch.zeros(3, 8, 8, 3, dtype=torch.uint8)
        >>> columns = {"observation": image, "episode": torch.tensor([0, 0, 1]), "next": {"observation": image}}
        >>> data = stack_rows(TensorDict(columns, [3]))
        >>> data.rows["next", "observation"].tolist(), data.frames["observation"].shape
        ([[0, 0, 1], [0, 1, 2], [3, 3, 4]], torch.Size([5, 3, 8, 8]))
    """
    check_one_step(data, "stacks of frames one step apart")
    number = number_episodes(data)
    lengths = torch.bincount(number)
    last = lengths.cumsum(0) - 1
    now, following = stack_numbers(lengths.tolist(), num_stack)
    rows, frames = data.copy(), {}
    for key in image_keys:
        images, ends = (as_frames(data.get(entry), repr(entry)) for entry in (key, ("next", key)))
        every = images.new_empty((len(data) + len(lengths), *images.shape[1:]))
        every[torch.arange(len(data)) + number] = images
        every[last + torch.arange(len(lengths)) + 1] = ends[last]
        frames[key] = every
        rows.set(key, now).set(("next", key), following)
    return PixelData(rows, frames)


def _check_images(key: str, number: int, frames: list[Tensor], steps: int) -> None:
    if len(frames[-1]) != steps + 1:
        raise O2ODataError(
            f"episode {number} has {len(frames[-1])} images under {key!r} for {steps} actions, expected one more than "
            f"actions: the image at reset comes first. Frames are missing, or the reset frame is"
        )
    if frames[-1].shape[1:] != frames[0].shape[1:]:
        raise O2ODataError(
            f"images under {key!r} are {list(frames[-1].shape[1:])} in episode {number}, {list(frames[0].shape[1:])} "
            f"before; resize them all to one size"
        )


def _columns(episode: Mapping[str, Any], image_keys: Sequence[str], steps: int, number: int) -> dict[str, Tensor]:
    """Everything but images: [T] rewards and flags, [T, A] actions, other observations [T+1, n]."""
    out: dict[str, Tensor] = {"terminated": torch.zeros(steps, dtype=torch.bool)}
    for key, value in episode.items():
        if key in image_keys:
            continue
        if key != "terminated" and speaks_of_ends(key):
            raise O2ODataError(
                f"{key!r} of episode {number} is not read, but it could say how the episode ends; give 'terminated' "
                f"[{steps}], true at the last step of an episode that ends in a terminal state, and leave {key!r} out"
            )
        column = torch.as_tensor(np.asarray(value))
        expected = steps if key in ("action", "reward", "terminated") else steps + 1
        if len(column) != expected:
            raise O2ODataError(f"{key!r} of episode {number} has {len(column)} rows, expected {expected}")
        out[key] = column.bool() if key == "terminated" else column.float()
    for key, column in out.items():
        bad = ~column.isfinite() if key != "action" else ~(column.abs() <= 1 + _EDGE)
        if bad.any():
            step, found = int(bad.reshape(len(column), -1).any(1).nonzero()[0]), float(column[bad][0])
            expected = "finite numbers" if key != "action" else "[-1, 1]; map them to it"
            raise O2ODataError(f"{key!r} of episode {number} is {found:g} at step {step}, expected {expected}")
    if out["terminated"][:-1].any():
        raise O2ODataError(f"episode {number} goes on behind a terminal state; split it there")
    return out


def _transitions(
    columns: Mapping[str, Tensor], lengths: Sequence[int], stacks: Mapping[str, tuple[Tensor, Tensor]]
) -> TensorDict:
    """TED out of joined columns."""
    counts = torch.as_tensor(list(lengths))
    terminated = columns["terminated"].unsqueeze(-1)
    last = torch.zeros_like(terminated)
    last[counts.cumsum(0) - 1] = True
    following: dict[str, Any] = {
        "reward": columns["reward"].reshape(-1, 1),
        "terminated": terminated,
        "truncated": last & ~terminated,
        "done": last | terminated,
    }
    current: dict[str, Any] = {"action": columns["action"]}
    row = torch.arange(len(terminated)) + torch.arange(len(counts)).repeat_interleave(counts)
    for key, value in columns.items():
        if key not in ("action", "reward", "terminated"):
            current[key], following[key] = value[row], value[row + 1]
    for key, (now, then) in stacks.items():
        current[key], following[key] = now, then
    episode = torch.arange(len(counts)).repeat_interleave(counts)
    return TensorDict({**current, EPISODE: episode, "next": following}, [len(terminated)])


class FrameRing:
    """The frames of one camera: those of the data set, which stay, and a ring behind them, which grows when needed.

    Frames have numbers that only rise. Number k lies in slot k as long as it is one of the data set's F, in slot
    ``(k - F) % capacity`` of the ring otherwise.

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
        #: Frames ever written behind the data set's.
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
        """Store a frame [C, H, W] and return its number; the oldest of the ring goes."""
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
        """Slots of the data set's frames and then of the ring, as rows for a checkpoint."""
        start, stop, _ = index.indices(len(self))
        parts = self.fixed[start:stop], self.ring[max(start - len(self.fixed), 0) : max(stop - len(self.fixed), 0)]
        return TensorDict({"frame": torch.cat(parts)}, [stop - start])

    def set_rows(self, slots: Tensor, rows: TensorDictBase, *, set_cursor: bool = False) -> None:
        """Put rows of a checkpoint back; ``set_cursor`` is for storages and without effect."""
        online = slots >= len(self.fixed)
        frames = rows["frame"].to(self.ring.device)
        self.fixed[slots[~online]] = frames[~online]
        self.ring[slots[online] - len(self.fixed)] = frames[online]


def _words(frames: Tensor) -> Tensor:
    """The same memory in words of eight bytes, if frames are whole words: scattering goes element by element."""
    flat = frames.flatten(1)
    return flat.view(torch.int64) if flat.shape[1] % 8 == 0 else flat


class FrameStorage(LazyTensorStorage):
    """A storage of transitions that keeps each frame once and delivers stacks.

    Rows are written with stacks [n, S C, H, W] of uint8, as an environment that stacks frames delivers them, and are
    delivered so. Inside, a row has the numbers of its frames at s and s'. What is delivered is always what was written,
    to the byte: a frame gets the number of one written lately only if it is the same, so that starts and cuts of
    episodes, rows over several steps and environments that take turns need no flag. The offline rows and frames come
    first and stay; a ring of frames behind them follows the online rows, and gets more slots (a copy, once) if episodes
    are so short that it has to hold more than a sixteenth over the number of rows.

    Use it with :class:`~torchrl_o2o.data.OnlineWriter` and any sampler; checkpoints save each frame once.

    Args:
        max_size: slots for rows, offline and online.
        frames: image entry -> frames of the data set, uint8 [F, C, H, W], F may be 0. The same entry under ``"next"``
            is s'.

    Keyword Args:
        num_offline: offline rows at the start. Defaults to 0.
        device: where rows and frames live. Defaults to ``"cpu"``.

    Raises:
        O2OSpecError: if rows are written whose images are no stacks of such frames.

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
        # Frames that were written lately: checksum -> number, oldest first.
        self._recent: dict[str, dict[int, int]] = {key: {} for key in frames}
        # No online row has a frame with a smaller number.
        self._oldest = {key: len(ring.fixed) for key, ring in self.rings.items()}
        # Online rows lie behind the offline ones, and in the first so many slots of those, which a writer let go.
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

    # TorchRL's own is a choice among versions, which no method can override by its type.
    def set(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, cursor: Any, data: Any, *, set_cursor: bool = True
    ) -> None:
        """Write rows; with ``set_cursor=False`` everything but the frames of rows that are there.

        Raises:
            O2OSpecError: with ``set_cursor=False``, if the rows have other images than those that are there.
        """
        single = not isinstance(cursor, Tensor | Sequence | range | slice)
        rows = data.unsqueeze(0) if single else data
        if not set_cursor:
            slots = torch.as_tensor(cursor).reshape(-1)
            self._check_same(rows, slots)
            entries = [entry for key in self.rings for entry in (key, ("next", key))]
            rows = self.get_rows(slots).clone().update(rows.exclude(*entries))
        elif any(rows.get(key).dtype != torch.long for key in self.rings):
            slots = torch.as_tensor(cursor).reshape(-1)
            rows = rows.copy()
            for key in self.rings:
                self._number(rows, key, slots)
            self._let_go = max([self._let_go, *(slots[slots < self.num_offline] + 1).tolist()])
        self.set_rows(cursor, rows.squeeze(0) if single else rows, set_cursor=set_cursor)

    def set_rows(self, slots: Any, rows: Any, *, set_cursor: bool = True) -> None:
        """Write rows that hold the numbers of their frames."""
        super().set(slots, rows, set_cursor=set_cursor)

    def _check_same(self, rows: TensorDictBase, slots: Tensor) -> None:
        """Refuse other images for rows that stay: the ring would have to hold all frames since the first of them."""
        stored = self.get(slots)
        for entry in (entry for key in self.rings for entry in (key, ("next", key))):
            given = rows.get(entry, None)
            if given is not None and not torch.equal(given.to(self.device), stored.get(entry)):
                raise O2OSpecError(
                    f"got rows with other {entry!r} than the stored rows whose places they take; a FrameStorage has no "
                    f"room for images among the offline rows (OnlineWriter(..., room=R)). Take offline_online_storage "
                    f"of whole stacks, or write such rows online alone"
                )

    def _number(self, rows: TensorDictBase, key: str, slots: Tensor) -> None:
        """Replace the stacks of some rows by numbers, and store the frames that are new."""
        stacks = [self._split(rows.get(entry), key) for entry in (key, ("next", key))]
        found: list[list[list[int]]] = []
        # Row by row, s before s': the frames of a stack are those of the one before it, but for the last.
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
        """Numbers of the frames [S, C, H, W] of one stack: of one that was written lately, if it is the same."""
        ring, recent, out = self.rings[key], self._recent[key], []
        for frame in stack:
            mark = zlib.crc32(frame.cpu().numpy())  # pyright: ignore[reportArgumentType]
            number = recent.get(mark)
            if number is None or number < ring.newest - _REMEMBERED or not torch.equal(ring.frame(number), frame):
                recent.pop(mark, None)
                number = recent[mark] = ring.write(frame)
                while next(iter(recent.values())) < number - _REMEMBERED:
                    recent.pop(next(iter(recent)))
            out.append(number)
        return out

    def _make_room(self, key: str, count: int, slots: Tensor, written: list[list[list[int]]]) -> None:
        """Let the ring grow if ``count`` more frames would overwrite one of a row that stays or was just written."""
        ring = self.rings[key]
        end = ring.newest + 1 + count - ring.capacity
        if end <= self._oldest[key]:
            return
        last = [min(*now, *following) for now, following in written]
        self._oldest[key] = min([self._oldest_kept(key, slots), *last])
        if end > self._oldest[key]:
            ring.grow(ring.capacity + max(end - self._oldest[key], ring.capacity // 4))

    def _oldest_kept(self, key: str, slots: Tensor) -> int:
        """The smallest number of an online frame that a row has, but for the rows that are written over.

        Online rows may lie anywhere: a writer that lets the offline rows go comes round to their slots.
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

    def frame_state(self) -> dict[str, Any]:
        """What a checkpoint has to know besides rows and frames: counts, and the frames written lately."""
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
                    f"the checkpoint has {fixed} offline frames under {key!r}, this storage "
                    f"{None if ring is None else len(ring.fixed)}; load the data set the run was started with"
                )
            if capacity != ring.capacity:
                ring.ring = ring.ring.new_empty((capacity, *ring.ring.shape[1:]))
            ring.total = total
        self._recent = {key: dict(each) for key, each in state["recent"].items()}
        self._oldest = dict(state["oldest"])
        self._let_go = self.num_offline  # until the rows are looked at

    def frame_parts(self) -> dict[str, tuple[FrameRing, int, int, int]]:
        """The frames as regions of rows, for a checkpoint: name -> ring, first slot, slots, frames ever written."""
        out: dict[str, tuple[FrameRing, int, int, int]] = {}
        for key, ring in self.rings.items():
            fixed = len(ring.fixed)
            if fixed:
                out[f"offline_frames_{key}"] = (ring, 0, fixed, fixed)
            out[f"frames_{key}"] = (ring, fixed, ring.capacity, ring.total)
        return out
