# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Pixel data sets: episodes, or transitions with single images, become rows of frame indices and separate frames.

Shapes: N rows, stacks of S frames, F frames of C channels, H x W pixels, uint8.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.audit import audit
from torchrl_o2o.data.datasets.names import speaks_of_ends
from torchrl_o2o.data.episodes import number_episodes
from torchrl_o2o.data.frames import FrameStorage
from torchrl_o2o.data.keys import CONVENTION_APPLIED, EPISODE, TRANSITION, check_one_step
from torchrl_o2o.errors import O2ODataError

__all__ = ["PixelData", "as_frames", "pixel_data", "stack_numbers", "stack_rows"]

_AT_ONCE = 1_000  # number of frames examined at a time
_NOT_REPLAYED = (EPISODE, CONVENTION_APPLIED)
_EDGE = 2e-6  # tolerance for rounded actions at the edge of [-1, 1]


def as_frames(array: np.ndarray | Tensor, name: str = "frames") -> Tensor:
    """Convert images to this package's form: uint8, three channels, channels first.

    Channels in the last dimension are moved to the front, and a fourth channel (alpha) is dropped.

    Args:
        array: images, shape [F, H, W, 3 or 4] or [F, 3 or 4, H, W].
        name: their name in messages.

    Returns:
        Shape [F, 3, H, W].

    Raises:
        O2ODataError: if they are not uint8 images of three or four channels, or the first and the last dimension of an
            image could both be its channels.

    Examples:
        >>> as_frames(np.zeros((5, 64, 48, 4), np.uint8)).shape
        torch.Size([5, 3, 64, 48])
    """
    frames = torch.as_tensor(array)
    if frames.dtype != torch.uint8:
        raise O2ODataError(
            f"got {name} of type {str(frames.dtype).removeprefix('torch.')}, expected uint8; convert values in [0, 1] "
            "with (255 * frames).round() and cast them. Frames are stored as bytes, and the encoder scales them"
        )
    first, last = frames.ndim == 4 and frames.shape[1] in (3, 4), frames.ndim == 4 and frames.shape[-1] in (3, 4)
    if first and last:
        raise O2ODataError(
            f"got {name} of shape {list(frames.shape)}, in which dimension 1 or dimension 3 could be the channels, "
            "expected images of which only one is 3 or 4; resize or pad the images so that no side has 3 or 4 pixels"
        )
    if last:
        frames = frames.movedim(-1, 1)
    if not first and not last:
        raise O2ODataError(
            f"got {name} of shape {list(frames.shape)}, expected color images [F, H, W, 3] or [F, 3, H, W]; repeat a "
            f"gray channel three times"
        )
    return frames[:, :3].contiguous()


def stack_numbers(lengths: Sequence[int], num_stack: int) -> tuple[Tensor, Tensor]:
    """The indices of the stacked frames at s and at s', for episodes with one frame more than transitions.

    At an episode's start, its first frame replaces the missing earlier ones. No stack spans two episodes.

    Args:
        lengths: number of transitions of each episode, in order; frames are numbered consecutively.
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
    """A pixel data set: transitions whose image entries are indices of frames, and the frames.

    Functions that only change rows work on :attr:`rows` (:func:`~torchrl_o2o.data.n_step`, reward transforms, selecting
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
        """Rows with assembled stacks, as a loss reads them.

        Args:
            index: indices of the rows.
        """
        rows = self.rows.exclude(*_NOT_REPLAYED)[index].copy()
        for key, frames in self.frames.items():
            for entry in (key, ("next", key)):
                rows.set(entry, frames[rows.get(entry)].flatten(-4, -3))
        return rows

    def storage(self, online_capacity: int, *, device: torch.device | str = "cpu") -> FrameStorage:
        """Make a storage with the offline rows and frames first and fixed, followed by online ones.

        Args:
            online_capacity: slots for online transitions, at least 1.

        Keyword Args:
            device: where rows and frames live. Defaults to ``"cpu"``.
        """
        return self.make_storage(self.rows.exclude(*_NOT_REPLAYED), online_capacity, device=device)

    def make_storage(
        self, rows: TensorDictBase, online_capacity: int, *, device: torch.device | str = "cpu"
    ) -> FrameStorage:
        """The same for some of the rows: what ``make_storage`` of :func:`~torchrl_o2o.data.buffers.starting_buffer`
        asks for.

        Args:
            rows: of :attr:`rows`.
            online_capacity: slots for online transitions, at least 1.

        Keyword Args:
            device: where rows and frames live. Defaults to ``"cpu"``.
        """
        storage = FrameStorage(len(rows) + online_capacity, self.frames, num_offline=len(rows), device=device)
        if len(rows):
            storage.set(torch.arange(len(rows)), rows.exclude(*_NOT_REPLAYED).to(device))
        return storage


@checked_arguments
def pixel_data(
    episodes: Iterable[Mapping[str, Any]], *, num_stack: int = 3, image_keys: Sequence[str] = ("observation",)
) -> PixelData:
    """Build a pixel data set from whole episodes.

    Args:
        episodes: each with T+1 images under every image key, T ``action`` [T, A] and T ``reward``, and ``terminated``
            [T], or one flag, for an episode that ends in a terminal state. Without it, all ends are truncations.
            Actions are in [-1, 1]. Other entries of T+1 rows are also observations and become float32, unless their
            name suggests that they mark ends.

    Keyword Args:
        num_stack: frames of a stack. Defaults to 3.
        image_keys: entries of images. Defaults to ``"observation"``.

    Returns:
        The data, actions and rewards float32.

    Raises:
        O2ODataError: if there is no episode, an entry is missing, images have several sizes, lengths do not fit, a
            number is not finite, an action is outside [-1, 1], or an unread entry could mark the ends of episodes.

    Warns:
        UserWarning: if images, actions or rewards never change, or rewards are beyond 1e6 in size, as in
            :func:`~torchrl_o2o.data.load_offline`.

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
    named = ((f"episode {number}", episode) for number, episode in enumerate(episodes))
    return assemble(named, "the episodes", num_stack=num_stack, image_keys=image_keys)


def assemble(
    episodes: Iterable[tuple[str, Mapping[str, Any]]],
    name: str,
    *,
    num_stack: int = 3,
    image_keys: Sequence[str] = ("observation",),
) -> PixelData:
    """Build a pixel data set from whole episodes with names; see :func:`pixel_data`.

    Args:
        episodes: pairs of a name for messages and an episode.
        name: name of all of them.

    Keyword Args:
        num_stack: frames of a stack. Defaults to 3.
        image_keys: entries of images. Defaults to ``"observation"``.

    Returns:
        The data.

    Raises:
        O2ODataError: as :func:`pixel_data`.
    """
    frames: dict[str, list[Tensor]] = {key: [] for key in image_keys}
    columns: dict[str, list[Tensor]] = {}
    lengths: list[int] = []
    for where, episode in episodes:
        missing = [key for key in (*image_keys, "action", "reward") if key not in episode]
        if missing:
            raise O2ODataError(f"{where} has no {missing}; it has {sorted(episode)}")
        lengths.append(len(episode["action"]))
        if not lengths[-1]:
            raise O2ODataError(f"{where} has no transition, expected at least one; leave the episode out")
        for key in image_keys:
            frames[key].append(as_frames(episode[key], f"{key!r} of {where}"))
            _check_images(key, where, frames[key], lengths[-1])
        for key, value in _columns(episode, image_keys, lengths[-1], where).items():
            _check_width(key, where, columns.setdefault(key, []), value)
            columns[key].append(value)
    if not lengths:
        raise O2ODataError("got no episode; expected at least one with images, actions and rewards")
    joined = {key: _joined(values, key, lengths) for key, values in columns.items()}
    now, following = stack_numbers(lengths, num_stack)
    rows = _transitions(joined, lengths, dict.fromkeys(image_keys, (now, following)))
    data = PixelData(rows, {key: torch.cat(values) for key, values in frames.items()})
    _audit(data, name)
    return data


def _audit(data: PixelData, name: str) -> None:
    """Apply the checks of :func:`~torchrl_o2o.data.audit`, with one number per channel instead of an image."""
    rows, parts = data.rows, []
    for key, frames in data.frames.items():
        weights = torch.rand(frames[0, 0].numel(), generator=torch.Generator().manual_seed(0))
        numbers = torch.cat([part.flatten(2).float() @ weights for part in frames.split(_AT_ONCE)]).unsqueeze(-1)
        parts.append([numbers[rows.get(entry)[:, -1]] for entry in (key, ("next", key))])
    now, following = (torch.cat(part, 1) for part in zip(*parts, strict=True))  # a channel may be empty, not all
    seen = (
        rows.select("action", EPISODE, *TRANSITION[3:]).set("observation", now).set(("next", "observation"), following)
    )
    report = audit(seen, on_bad="report", name=name)
    for finding in report.warnings:
        warnings.warn(f"{name}: {finding.message}", stacklevel=4)
    report.raise_if_bad()


@checked_arguments
def stack_rows(data: TensorDictBase, *, num_stack: int = 3, image_keys: Sequence[str] = ("observation",)) -> PixelData:
    """Build a pixel data set from transitions with single images, as ``load_offline`` reads them.

    Args:
        data: transitions in TED [N] with ``episode``, whole episodes in order; images [N, H, W, 3] or [N, 3, H, W].

    Keyword Args:
        num_stack: frames of a stack. Defaults to 3.
        image_keys: entries of images. Defaults to ``"observation"``.

    Returns:
        The data, with all other entries.

    Raises:
        O2ODataError: if there is no ``episode``, rows are shuffled or span several steps (apply ``n_step`` to
            :attr:`PixelData.rows` instead), or an entry has no uint8 images.

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


def _check_images(key: str, where: str, frames: list[Tensor], steps: int) -> None:
    if len(frames[-1]) != steps + 1:
        raise O2ODataError(
            f"{where} has {len(frames[-1])} images under {key!r} for {steps} actions, expected one more than actions, "
            "because the image at reset comes first; add the missing frames"
        )
    if frames[-1].shape[1:] != frames[0].shape[1:]:
        raise O2ODataError(
            f"images under {key!r} are {list(frames[-1].shape[1:])} in {where}, {list(frames[0].shape[1:])} "
            f"before; resize them all to one size"
        )


def _check_width(key: str, where: str, before: list[Tensor], column: Tensor) -> None:
    if before and before[0].shape[1:] != column.shape[1:]:
        raise O2ODataError(
            f"{key!r} has rows of shape {list(column.shape[1:])} in {where}, {list(before[0].shape[1:])} before; they "
            f"are recordings of different environments"
        )


def _joined(values: list[Tensor], key: str, lengths: Sequence[int]) -> Tensor:
    if len(values) != len(lengths):
        raise O2ODataError(f"{len(values)} of {len(lengths)} episodes have {key!r}; expected all or none")
    return torch.cat(values)


def _columns(episode: Mapping[str, Any], image_keys: Sequence[str], steps: int, where: str) -> dict[str, Tensor]:
    """All columns except images: [T] rewards and flags, [T, A] actions, other observations [T+1, n]."""
    out: dict[str, Tensor] = {"terminated": torch.zeros(steps, dtype=torch.bool)}
    for key, value in episode.items():
        if key in image_keys:
            continue
        if key != "terminated" and speaks_of_ends(key):
            raise O2ODataError(
                f"{key!r} of {where} is not read, but it could mark how the episode ends; give 'terminated' [{steps}], "
                f"true at the last step of an episode that ends in a terminal state, and leave {key!r} out"
            )
        column = torch.as_tensor(np.asarray(value))
        if column.ndim == 0 and key == "terminated":  # of the whole episode
            column = torch.cat([column.new_zeros(steps - 1), column.reshape(1)])
        if column.ndim == 0:
            raise O2ODataError(f"{key!r} of {where} is one value, expected one row per step")
        expected = steps if key in ("action", "reward", "terminated") else steps + 1
        if len(column) != expected:
            raise O2ODataError(f"{key!r} of {where} has {len(column)} rows, expected {expected}")
        if key in ("reward", "terminated") and column.numel() != steps:
            raise O2ODataError(
                f"{key!r} of {where} has the shape {list(column.shape)}, expected one number per step, [{steps}]; "
                "select the column, or compute the sum, that you mean"
            )
        if key == "terminated" and not ((column == 0) | (column == 1)).all():
            raise O2ODataError(f"'terminated' of {where} holds other values than 0 and 1; expected flags")
        column = column.reshape(-1) if key in ("reward", "terminated") else column
        out[key] = column.bool() if key == "terminated" else column.float()
    for key, column in out.items():
        bad = ~column.isfinite() if key != "action" else ~(column.abs() <= 1 + _EDGE)
        if bad.any():
            step, found = int(bad.reshape(len(column), -1).any(1).nonzero()[0]), float(column[bad][0])
            expected = "finite numbers" if key != "action" else "[-1, 1]; map them to it"
            raise O2ODataError(
                f"{key!r} of {where} is {found:g} at step {step}, expected {expected} ({int(bad.sum())} such numbers "
                f"in the episode)"
            )
    if out["terminated"][:-1].any():
        raise O2ODataError(f"{where} continues after a terminal state, expected none before its end; split it there")
    return out


def _transitions(
    columns: Mapping[str, Tensor], lengths: Sequence[int], stacks: Mapping[str, tuple[Tensor, Tensor]]
) -> TensorDict:
    """TED from joined columns."""
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
