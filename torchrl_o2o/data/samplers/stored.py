# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The base class of samplers with a stored priority per row: it keeps the priorities in sync with the storage."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchrl.data import Storage

from torchrl_o2o.data.samplers.drawing import DrawingSampler
from torchrl_o2o.data.samplers.sum_tree import SumTree
from torchrl_o2o.data.storage import rows_of
from torchrl_o2o.errors import O2OSpecError, check_count, check_state

__all__ = ["StoredPrioritySampler"]

_BATCHES_BEFORE_WARNING = 1000


class StoredPrioritySampler(DrawingSampler):
    r"""Abstract base: rows are drawn in proportion to a stored value, with one draw from each of n equal strata.

    The values follow the storage automatically: new rows get an initial value, and rows that a writer overwrites get
    the value of a fresh row (writers call ``mark_update`` for every buffer of the storage). Strata are assigned to the
    rows of a batch by a fixed stride. Any consecutive rows, such as a minibatch of a large batch, are then spread
    evenly over all strata. In sorted order, the first minibatch would hold only offline rows.

    A warning is given if no priority was set during the first 1000 batches, because ``update_tensordict_priority`` of
    replay buffers ignores some samplers, such as :class:`~torchrl_o2o.data.BalancedReplaySampler`.

    The draw is called ``"within_strata"``: for each row of a batch, its position within its stratum, in [0, 1). Row i
    of a batch has stratum ``strata(batch_size)[i]``.

    Args:
        capacity: number of slots of the storage.
        dtype: type of the stored values and of their sums.

    Raises:
        O2OSpecError: if the capacity is below 1.
    """

    def __init__(self, capacity: int, *, dtype: torch.dtype = torch.float64) -> None:
        self._tree = SumTree(capacity, dtype=dtype)
        self._num_known = 0
        self._order: Tensor = torch.zeros(0, dtype=torch.long)
        self.num_batches = 0
        self.num_updates = 0

    @abstractmethod
    def _initialize(self, start: int, stop: int) -> None:
        """Initialize the values of rows ``start .. stop - 1``, which are new in the storage."""

    @abstractmethod
    def _store(self, index: Tensor, priority: Tensor) -> None:
        """Store priorities of rows, both of shape [n], as the values that determine the draws."""

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return self._tree.capacity

    @property
    def values(self) -> Tensor:
        """The values in proportion to which rows are drawn, shape [capacity]; 0 for empty slots. Read-only."""
        return self._tree.values

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Draw rows in proportion to their values, with replacement.

        Args:
            storage: the storage whose rows the values belong to.
            batch_size: number of rows.

        Returns:
            Row numbers, shape [batch_size], and the subclass's entries for the batch.

        Raises:
            O2OSpecError: if there is nothing to draw from.
        """
        self._meet(storage)
        batch_size = check_count("batch_size", batch_size, least=1)
        if self._num_known == 0:
            raise O2OSpecError(
                "got an empty storage, expected at least one row to sample; load a data set or collect transitions "
                "first"
            )
        if self.num_batches == _BATCHES_BEFORE_WARNING and self.num_updates == 0:
            warnings.warn(
                f"{_BATCHES_BEFORE_WARNING} batches were drawn and no priority was ever set; call "
                "buffer.update_priority(batch['index'], priority) (update_tensordict_priority ignores a "
                "BalancedReplaySampler, also inside a ChunkSampler)",
                stacklevel=5,
            )
        self.num_batches += 1
        within = self._source().fractions("within_strata", batch_size)
        index = self._tree.draw((self.strata(batch_size) + within) / batch_size)
        return index, self._describe(index)

    def _describe(self, index: Tensor) -> dict[str, Any]:
        return {}

    def strata(self, batch_size: int) -> Tensor:
        """The stratum that each row of a batch is drawn from.

        Args:
            batch_size: number of rows.

        Returns:
            A permutation of 0 .. batch_size - 1, int64.
        """
        if len(self._order) != batch_size:
            stride = max(1, round(batch_size * (math.sqrt(5.0) - 1.0) / 2.0))
            while math.gcd(stride, batch_size) > 1:
                stride += 1
            self._order = torch.arange(batch_size) * stride % batch_size
        return self._order

    def update_priority(self, index: int | Tensor, priority: float | Tensor, *, storage: Storage | None = None) -> None:
        """Set the priorities of rows, typically of the batch just trained on.

        Call it before the next rows are written: a row number, which is all that TorchRL's buffers pass on, does not
        tell whether a writer has overwritten the row since it was drawn. If it has, as also with ``prefetch``, the new
        row gets the priority of the old one.

        Args:
            index: row numbers, shape [n]; -1 means no row and is ignored. If a row occurs twice, the last priority
                counts.
            priority: finite and non-negative, shape [n] or [n, 1], or one number for all.
            storage: passed by the replay buffer; needed if the rows are new to the sampler. Defaults to ``None``.

        Raises:
            O2OSpecError: if shapes do not fit, a row does not exist or a priority is complex, negative or not finite.
        """
        if storage is not None:
            self._meet(storage)
        rows, priorities = self._pairs(index, priority)
        self.num_updates += 1
        if len(rows):
            self._store(rows, priorities)

    def mark_update(self, index: int | Tensor, *, storage: Storage | None = None) -> None:
        """Reset the priority of rows that were just written; writers call this.

        Args:
            index: slots, shape [n].
            storage: passed by the replay buffer. Defaults to ``None``.
        """
        if storage is not None:
            self._meet(storage)
        rows, priorities = self._pairs(index, self.default_priority)
        if len(rows):  # writers may be given no rows
            self._restart(rows, priorities)

    def _restart(self, index: Tensor, priority: Tensor) -> None:
        """Store the first priorities of rows that were just written, both of shape [n]; a row may occur twice."""
        self._store(index, priority)

    def _meet(self, storage: Storage) -> None:
        size = len(rows_of(storage))
        if max(size, getattr(storage, "max_size", 0)) > self.capacity:
            raise O2OSpecError(
                f"got a storage of {getattr(storage, 'max_size', size)} slots, expected {self.capacity}, the sampler's "
                "capacity; build the sampler for this storage"
            )
        if getattr(storage, "ndim", 1) > 1:
            raise O2OSpecError(f"got a storage of {storage.ndim} dimensions, expected flat transitions (ndim=1)")
        if size > self._num_known:
            self._initialize(self._num_known, size)
        else:  # emptied through another buffer
            self._tree.fill(size, self._num_known, 0.0)
        self._num_known = size

    def _pairs(self, index: int | Tensor, priority: float | Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(index, device="cpu").reshape(-1)
        if len(rows) and (rows.dtype == torch.bool or rows.is_floating_point()):
            raise O2OSpecError(
                f"got rows as {rows.dtype}, expected row numbers such as batch['index']; convert a mask with .nonzero()"
            )
        rows = rows.long()
        if isinstance(priority, Tensor) and priority.is_complex():  # its imaginary part would be dropped
            raise O2OSpecError(f"got priorities of {priority.dtype}, expected real numbers; take their .abs()")
        priorities = torch.as_tensor(priority, dtype=self._tree.dtype, device="cpu").detach().reshape(-1)
        if len(priorities) not in (1, len(rows)):
            raise O2OSpecError(f"got {len(priorities)} priorities for {len(rows)} rows, expected one per row")
        if len(rows) and rows.min() < -1:
            raise O2OSpecError(
                f"got row {int(rows.min())}, expected row numbers from 0, or -1 for no row; count from the storage's "
                f"start, as batch['index'] does"
            )
        exists = rows >= 0
        rows, priorities = rows[exists], priorities.expand(len(exists))[exists]
        if len(rows) and rows.max() >= self._num_known:
            raise O2OSpecError(
                f"got row {int(rows.max())}, but only {self._num_known} rows are known; update through the replay "
                "buffer, which passes its storage"
            )
        return rows, priorities

    def state_dict(self) -> dict[str, Any]:
        """Values, sums and counters; the random state belongs to the replay buffer's generator."""
        return {
            "tree": self._tree.state_dict(),
            "num_known": self._num_known,
            "num_batches": self.num_batches,
            "num_updates": self.num_updates,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            O2OSpecError: if the state has another capacity.
        """
        check_state(self, state_dict, {**StoredPrioritySampler.state_dict(self), "tree": None})
        self._tree.load_state_dict(state_dict["tree"])
        self._num_known = state_dict["num_known"]
        self.num_batches = state_dict["num_batches"]
        self.num_updates = state_dict["num_updates"]

    def _empty(self) -> None:
        self._tree.fill(0, self.capacity, 0.0)
        self._num_known = self.num_batches = self.num_updates = 0

    def dumps(self, path: str | Path) -> None:
        """Write :meth:`state_dict` into a folder."""
        folder = Path(path)
        folder.mkdir(exist_ok=True)
        torch.save(self.state_dict(), folder / "stored_priorities.pt")

    def loads(self, path: str | Path) -> None:
        """Read what :meth:`dumps` wrote."""
        self.load_state_dict(torch.load(Path(path) / "stored_priorities.pt", weights_only=True))
