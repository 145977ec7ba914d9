# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Chunks of h consecutive rows as transitions of h steps, from any storage and any sampler of rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.utils import unravel_key
from torch import Tensor
from torchrl.data import PrioritizedSampler, RoundRobinWriter, Storage
from torchrl.data.replay_buffers.samplers import Sampler

from torchrl_o2o.arguments import ChecksArguments
from torchrl_o2o.data.keys import STEPS
from torchrl_o2o.data.storage import rows_of
from torchrl_o2o.data.writers import OnlineWriter
from torchrl_o2o.errors import O2OSpecError, check_count

__all__ = ["ChunkSampler"]

_WEIGHT = "priority_weight"


class ChunkSampler(ChecksArguments, Sampler):
    r"""Deliver, for each row drawn by another sampler, the chunk of h rows that begins with it.

    A chunk is a transition with one long action, so any loss and any critic of the package can train on it:

    ===========================  =============  ====================================================================
    entry                        shape          what it is
    ===========================  =============  ====================================================================
    ``action``                   [B, h A]       the h actions; with ``action_chunking=False`` the first alone, [B, A]
    ``("next", "reward")``       [B, 1]         :math:`\sum_{i<h}\gamma^i r_{s+i}`
    ``("next", "terminated")``   [B, 1]         whether one of the h rows is terminal
    ``("next", "done")``         [B, 1]         that, or row s + h - 1 is truncated
    ``("next", "discount")``     [B, 1]         where it is stored, as the whole factor of a row's next value: the
                                                product of the h rows', which takes the place of :math:`\gamma^h`, and
                                                that of the rows before in the sum of rewards
    other entries in ``"next"``  as stored      of row s + h - 1, the observation among them
    ``steps_to_next_obs``        [B]            h: the losses discount by :math:`\gamma^h`
    ``valid``                    [B, h]         1 for row i unless the episode ended before it; not without chunking
    ``priority_weight``          [B]            1 if the whole chunk lies in one episode, else 0; times the weight of
                                                the inner sampler
    ===========================  =============  ====================================================================

    Chunks follow the order in which rows were written, around the end of the ring. They are cut at the end of the
    offline rows and at the write pointer, where the next rows do not exist yet. In the reserved slots of an
    :class:`~torchrl_o2o.data.OnlineWriter` they are cut where a row does not begin where the one before ended. Cut
    chunks and chunks over an episode's end have weight 0 and therefore dilute the gradient of the critics, as in the
    authors' code. The last h - 1 states of an episode appear only as successors.

    If the inner sampler is prioritized, ``TensorDictReplayBuffer.update_tensordict_priority`` works, too; a chunk's
    priority is its first row's.

    Source: Li, Zhou & Levine 2025 (QC), arXiv:2507.07969, section 4, and the authors' ``Dataset.sample_sequence``.

    Differences from the code: its ring buffer delivers chunks across the write pointer as if they were one episode. It
    draws starts among the rows with h - 1 successors in the array. This class draws among all rows and gives weight 0
    to the last h - 1 ones of a region.

    Args:
        sampler: the sampler of first rows, for example :class:`~torchrl_o2o.data.BalancedSampler`.
        horizon: number h of rows in a chunk.

    Keyword Args:
        gamma: discount within a chunk, the same as the loss's.
        action_chunking: whether the action is the chunk's (QC) or the first row's (returns of h steps). Defaults to
            ``True``.
        num_envs: number of environments that write online rows in turns, as in
            :class:`~torchrl_o2o.collectors.VectorCollector`. The number of online slots must be a multiple of it, and
            offline rows must not be in the ring. If a rejected step has shifted the turns, which observations show,
            chunks are cut. Defaults to 1.
        observation_keys: entries that are compared to find out whether an online row begins where the one before ended,
            if ``num_envs`` is above 1, and in the reserved slots of a writer. Defaults to ``("observation",)``.
        action_key: Defaults to ``"action"``.
        reward_key: under ``"next"``. Defaults to ``"reward"``.
        done_key: likewise. Defaults to ``"done"``.
        terminated_key: likewise. Defaults to ``"terminated"``.
        truncated_key: likewise; rows without it count as truncated if they are done and not terminated. Defaults to
            ``"truncated"``.
        discount_key: likewise, if it exists. Defaults to ``"discount"``.

    Raises:
        O2OSpecError: if a number is out of range, the stored rows already span several steps, or the number of online
            slots is not a multiple of ``num_envs``.

    Warns:
        UserWarning: if chunks of the first batch lead over gaps, because rows were left out or shuffled.

    Examples:
        >>> import torch
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> from torchrl_o2o.data import BalancedSampler, ChunkSampler, OnlineWriter, offline_online_storage
        >>> from torchrl_o2o.testing import random_transitions
        >>> buffer = TensorDictReplayBuffer(
        ...     storage=offline_online_storage(random_transitions(40, 3, 2), 10),
        ...     sampler=ChunkSampler(BalancedSampler(40, 0.5), 5, gamma=0.99),
        ...     writer=OnlineWriter(40),
        ...     batch_size=8,
        ... )
        >>> _ = buffer.extend(random_transitions(10, 3, 2))
        >>> batch = buffer.sample()
        >>> batch["action"].shape, batch["valid"].shape, batch["steps_to_next_obs"].unique()
        (torch.Size([8, 10]), torch.Size([8, 5]), tensor([5]))
    """

    def __new__(cls, sampler: Sampler | None = None, *_: Any, **__: Any) -> Self:
        """If the inner sampler is prioritized, make a sampler whose priorities TorchRL's buffers can set.

        ``sampler`` is ``None`` when a copy is made.
        """
        prioritized = cls is ChunkSampler and isinstance(sampler, PrioritizedSampler)
        return super().__new__(cast(type[Self], _PrioritizedChunkSampler) if prioritized else cls)

    def __init__(
        self,
        sampler: Sampler,
        horizon: int,
        *,
        gamma: float,
        action_chunking: bool = True,
        num_envs: int = 1,
        observation_keys: Sequence[NestedKey] = ("observation",),
        action_key: NestedKey = "action",
        reward_key: NestedKey = "reward",
        done_key: NestedKey = "done",
        terminated_key: NestedKey = "terminated",
        truncated_key: NestedKey = "truncated",
        discount_key: NestedKey = "discount",
    ) -> None:
        if not 0.0 <= gamma <= 1.0:
            raise O2OSpecError(f"got gamma={gamma}, expected a number in [0, 1]")
        self.sampler, self.gamma, self.action_chunking = sampler, gamma, action_chunking
        self.horizon = check_count("horizon", horizon, least=1)
        self.num_envs = check_count("num_envs", num_envs, least=1)
        self.observation_keys, self.action_key = tuple(observation_keys), action_key
        self.reward_key, self.done_key, self.terminated_key = reward_key, done_key, terminated_key
        self.truncated_key, self.discount_key = truncated_key, discount_key
        self._looked = False

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[NestedKey, Any]]:
        """Draw first rows, and gather their chunks.

        Args:
            storage: flat transitions in the order in which they were collected, offline rows first.
            batch_size: number of chunks.

        Returns:
            First rows, shape [batch_size], and the entries of the class docstring.

        Raises:
            O2OSpecError: as in the class docstring, and as in the inner sampler.
        """
        index, info = self.sampler.sample(storage, batch_size)
        return index, {**info, **self.chunks(storage, torch.as_tensor(index), info.get(_WEIGHT))}

    def chunks(self, storage: Storage, start: Tensor, weight: Tensor | None = None) -> dict[NestedKey, Tensor]:
        """The chunks that begin with given rows.

        Args:
            storage: see :meth:`sample`.
            start: their first rows, shape [B].
            weight: of the rows, shape [B]; ``None`` (default) is 1.

        Returns:
            The entries of the class docstring.
        """
        if getattr(storage, "ndim", 1) > 1:
            raise O2OSpecError(f"got a storage of {storage.ndim} dimensions, expected flat transitions (ndim=1)")
        ring = _ring_of(storage)
        row, joined = self._rows(ring, start.cpu())
        flat = storage[row.reshape(-1)]
        if not isinstance(flat, TensorDictBase):
            raise O2OSpecError(f"got a {type(storage).__name__}, expected a tensor storage")
        if flat.get(STEPS, None) is not None:
            raise O2OSpecError(
                f"got stored rows with {STEPS!r}, which span several steps, expected single steps; store rows without "
                "n_step for a ChunkSampler"
            )
        rows = flat.reshape(*row.shape)
        following = self._entry(rows, "next", "")
        joined = joined.to(following.device or "cpu")
        unsure = self._unsure(row, ring)
        if unsure is not None:
            joined = joined & self._in_turns(rows, unsure.to(joined.device))
        if not self._looked:
            self._looked = True
            self._warn_of_gaps(rows, joined)
        done = self._column(following, "done")
        before = torch.cat([torch.zeros_like(done[:, :1]), done[:, :-1]], 1).cumsum(1) > 0  # an episode ended earlier
        out = self._outcome(following, joined)
        valid = (joined & ~before).to(out[unravel_key(("next", self.reward_key))].dtype)
        out[STEPS] = torch.full_like(row[:, 0], self.horizon, device=valid.device)
        out[_WEIGHT] = valid[:, -1] if weight is None else valid[:, -1] * weight.reshape(-1).to(valid)
        if self.action_chunking:
            action = self._entry(rows, self.action_key, "action_key")
            out |= {self.action_key: action.flatten(1), "valid": valid}
        return out

    def _outcome(self, following: TensorDictBase, joined: Tensor) -> dict[NestedKey, Tensor]:
        """The outcome of h rows: ``"next"`` of the last one, with rewards, ends and discounts of all rows."""
        last = cast(TensorDictBase, following[:, -1])
        out: dict[NestedKey, Tensor] = {
            unravel_key(("next", key)): value for key, value in last.items(True, True) if isinstance(value, Tensor)
        }
        reward, ends = self._column(following, "reward"), self._column(following, "terminated")
        factor = self.gamma ** torch.arange(self.horizon, dtype=reward.dtype, device=reward.device)
        if last.get(self.discount_key, None) is not None:  # a row's discount is the whole factor of its next value
            each = torch.where(joined, self._column(following, "discount"), 1.0).cumprod(1)
            factor = torch.cat([torch.ones_like(each[:, :1]), each[:, :-1]], 1)
            out[unravel_key(("next", self.discount_key))] = each[:, -1:]
        truncated = last.get(self.truncated_key, None)
        if truncated is None:
            truncated = self._column(following, "done")[:, -1:] & ~ends[:, -1:]
        terminated = (ends & joined).any(1, keepdim=True)
        of_all: dict[NestedKey, Tensor] = {
            unravel_key(("next", self.reward_key)): (factor * reward * joined).sum(1, keepdim=True),
            unravel_key(("next", self.terminated_key)): terminated,
            unravel_key(("next", self.done_key)): terminated | truncated,
        }
        return out | of_all

    def _column(self, following: TensorDictBase, name: str) -> Tensor:
        """An entry of one number per row, [B, h], under the constructor's key for it."""
        return self._entry(following, getattr(self, f"{name}_key"), f"{name}_key").squeeze(-1)

    def _entry(self, rows: TensorDictBase, key: NestedKey, argument: str) -> Any:
        """A required entry."""
        value = rows.get(key, None)
        if value is None:
            there = sorted(map(str, rows.keys(True, True)))
            named = f"; name it: ChunkSampler(..., {argument}=...)" if argument else "; store whole transitions"
            raise O2OSpecError(f"got stored rows without {key!r}: {there}{named}")
        return value

    def _in_turns(self, rows: TensorDictBase, online: Tensor) -> Tensor:
        """Whether each row of a chunk, and all before it, begin where the preceding row ended, [B, h]."""
        follows = self._follows(rows) | ~online[:, 1:] | self._column(rows["next"], "done")[:, :-1]
        return torch.cat([torch.ones_like(online[:, :1]), follows], 1).cumprod(1) > 0

    def _warn_of_gaps(self, rows: TensorDictBase, joined: Tensor) -> None:
        """Warn if rows were left out, so that chunks lead over gaps; ``joined`` is [B, h]."""
        read = [entry for key in self.observation_keys for entry in (key, unravel_key(("next", key)))]
        if any(rows.get(entry, None) is None for entry in read):
            return  # nothing else reads these entries
        inside = joined[:, 1:] & ~self._column(rows["next"], "done")[:, :-1]
        gaps = int((inside & ~self._follows(rows)).sum())
        if gaps:
            warnings.warn(
                f"{gaps} of {int(inside.sum())} rows inside the first batch's chunks do not begin where the row before "
                "ended, so chunks are no sequences of steps; store whole episodes in order, without leaving rows out",
                stacklevel=5,
            )

    def _follows(self, rows: TensorDictBase) -> Tensor:
        """Whether rows begin where the row before ended, [B, h - 1]."""
        same = torch.ones(rows.shape[0], rows.shape[1] - 1, dtype=torch.bool, device=rows["next"].device)
        for key in self.observation_keys:
            led_to = self._entry(rows["next"], key, "observation_keys")[:, :-1]
            begins = self._entry(rows, key, "observation_keys")[:, 1:]
            same = same & (led_to == begins).flatten(2).all(-1)
        return same

    def _unsure(self, row: Tensor, ring: _Ring) -> Tensor | None:
        """Rows that may not follow the preceding row, [B, h], because of several environments or individual writes."""
        if self.num_envs > 1:
            return row >= ring.first - ring.reserved
        return (row >= ring.first - ring.reserved) & (row < ring.first) if ring.reserved else None

    def _rows(self, ring: _Ring, start: Tensor) -> tuple[Tensor, Tensor]:
        """Row indices of the chunks, and whether each row follows those before it, both [B, h]; others are repeated."""
        if self.num_envs > 1 and ring.slots % self.num_envs:
            raise O2OSpecError(
                f"got {ring.slots} online slots for num_envs={self.num_envs}, expected a multiple, because otherwise "
                "environments change places when the ring restarts; change online_capacity"
            )
        rows, joined = [start], [torch.ones_like(start, dtype=torch.bool)]
        for _ in range(self.horizon - 1):
            row, online = rows[-1], rows[-1] >= ring.first
            step = self.num_envs
            newest = (ring.newest - row) % ring.slots < step
            goes_on = torch.where(online, ~newest, row + 1 < ring.first)
            after = torch.where(online, ring.first + (row - ring.first + step) % ring.slots, row + 1)
            joined.append(joined[-1] & goes_on)
            rows.append(torch.where(joined[-1], after, row))
        return torch.stack(rows, 1), torch.stack(joined, 1)

    @property
    def _rng(self) -> torch.Generator | None:
        """The replay buffer's generator, from which the inner sampler draws."""
        return self.sampler._rng

    @_rng.setter
    def _rng(self, generator: torch.Generator | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.sampler._rng = generator

    @property
    def ran_out(self) -> bool:
        """Whether the inner sampler has delivered all rows, if it delivers each once."""
        return self.sampler.ran_out

    @ran_out.setter
    def ran_out(self, value: bool) -> None:  # TorchRL's buffers set it when an iteration over them restarts
        self.sampler.ran_out = value  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def drop_last(self) -> bool:
        """Whether the inner sampler skips a last batch that is not full."""
        return getattr(self.sampler, "drop_last", False)

    @property
    def _remaining_batches(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.sampler._remaining_batches

    def _sampleable_count(self, storage: Storage, batch_size: int) -> int | Tensor:
        return self.sampler._sampleable_count(storage, batch_size)

    def can_sample(self, storage: Storage, batch_size: int) -> bool:
        """Whether the inner sampler can draw that many rows."""
        return self.sampler.can_sample(storage, batch_size)

    @property
    def default_priority(self) -> float:
        """The inner sampler's."""
        return self.sampler.default_priority

    def update_priority(
        self, index: int | Tensor, priority: float | Tensor, *, storage: Storage | None = None
    ) -> dict | None:
        """Pass on to the inner sampler; a chunk's priority is its first row's."""
        return self.sampler.update_priority(index, priority, storage=storage)

    def mark_update(self, index: int | Tensor, *, storage: Storage | None = None) -> None:
        """Hand on to the sampler inside."""
        self.sampler.mark_update(index, storage=storage)

    def add(self, index: int) -> None:
        """Hand on to the sampler inside."""
        self.sampler.add(index)

    def extend(self, index: Tensor) -> None:
        """Hand on to the sampler inside."""
        self.sampler.extend(index)

    def state_dict(self) -> dict[str, Any]:
        """The state of the inner sampler; a chunk sampler has none."""
        return self.sampler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.sampler.load_state_dict(state_dict)

    def _empty(self) -> None:
        self.sampler._empty()

    def dumps(self, path: str | Path) -> None:
        """Write the state of the inner sampler into a folder."""
        self.sampler.dumps(path)

    def loads(self, path: str | Path) -> None:
        """Read what :meth:`dumps` wrote."""
        self.sampler.loads(path)

    def __getstate__(self) -> Any:
        """The inner sampler itself omits its generator."""
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return f"ChunkSampler({self.sampler}, horizon={self.horizon}, gamma={self.gamma})"


@PrioritizedSampler.register
class _PrioritizedChunkSampler(ChunkSampler):
    """A chunk sampler around a prioritized sampler."""

    @property
    def reduction(self) -> str:
        """How TorchRL's buffers reduce priorities of more dimensions, as in the inner sampler."""
        return self.sampler.reduction  # pyright: ignore[reportAttributeAccessIssue]


class _Ring(NamedTuple):
    """A ring of slots ``first .. first + slots - 1``, written up to ``newest``, and ``reserved`` slots before it."""

    first: int
    slots: int
    newest: int
    reserved: int = 0


def _ring_of(storage: Storage) -> _Ring:
    """The part of a storage that its writer writes to; the slots before it are fixed."""
    size = len(rows_of(storage))
    capacity = int(getattr(storage, "max_size", size))
    ring = _Ring(0, max(capacity, 1), size - 1)
    for buffer in storage._attached_entities_iter():
        writer = getattr(buffer, "_writer", None)
        if isinstance(writer, OnlineWriter):
            slots = max(capacity - writer.num_offline, 1)
            newest = writer.num_offline + (writer.total_written - 1) % slots
            return _Ring(writer.num_offline, slots, newest, writer.num_reserved)
        if isinstance(writer, RoundRobinWriter) and int(getattr(writer, "_write_count", 0)):
            ring = _Ring(0, capacity, (int(getattr(writer, "_cursor", 0)) - 1) % capacity)
    return ring
