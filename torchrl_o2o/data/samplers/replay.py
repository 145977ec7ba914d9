# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Balanced replay: one sampler for offline and online rows, balanced by priorities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Storage

from torchrl_o2o.data.samplers.stored import StoredPrioritySampler
from torchrl_o2o.data.writers import check_offline_rows
from torchrl_o2o.errors import O2OSpecError, check_count, check_state
from torchrl_o2o.functional.off2on import initial_online_priority

__all__ = ["BalancedReplaySampler"]


class BalancedReplaySampler(StoredPrioritySampler):
    r"""Off2On's balanced replay: proportional draws from offline and online rows by stored density-ratio priorities.

    Offline rows start at priority 1. Online rows start at the largest priority so far, which begins at
    :math:`Mf/((1-f)n)` for M offline rows and never decreases. The n online rows of the first epoch then together have
    the share f of all priorities. After each update, set the priorities of the batch's rows, of both sources, to
    :func:`~torchrl_o2o.functional.off2on_priority` with ``buffer.update_priority(batch["index"], priority)``. There are
    no importance weights.

    The balance results from new rows, which have a larger priority than scored ones until they are drawn for the first
    time (M = 1e6 and f = 0.75 give 3000, while scored priorities are clamped to 1000).

    Priorities of offline rows that are not drawn do not change. With ``refresh_every``, all of them are scored again
    with the current networks after that many batches, which is not in the paper.

    ``TensorDictReplayBuffer.update_tensordict_priority``, and TorchRL's trainer hook that calls it, silently do nothing
    with this sampler, because they would store the TD error.

    Source: Lee et al. 2021 (Off2On), balanced experience replay; the running maximum starts as in the authors' code.

    Args:
        num_offline: number of offline rows M at the storage's start, at least 1.
        online_capacity: number of online slots.

    Keyword Args:
        init_online_fraction: f in (0, 1). Defaults to 0.5, as in the authors' code; their demonstration runs use 0.75.
        first_epoch_frames: n, the number of online rows that together have the share f. Defaults to 1000, the authors'
            epoch.
        refresh_every: number of batches between refreshes; ``None`` (default) never refreshes.
        refresh_with: a function from the offline rows, shape [M], to their priorities, shape [M]. It runs inside
            ``sample``, so the buffer must not prefetch.
        dtype: type of priorities and sums. Defaults to ``torch.float64``; the authors' code has float32.

    Raises:
        O2OSpecError: if an argument is out of range, or only one of the two refresh arguments is given.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> from torchrl_o2o.data import OnlineWriter
        >>> storage = LazyTensorStorage(300)
        >>> storage.set(torch.arange(200), TensorDict({"x": torch.arange(200)}, [200]))
        >>> sampler = BalancedReplaySampler(200, 100, first_epoch_frames=100)
        >>> buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=OnlineWriter(200), batch_size=64)
        >>> _ = buffer.extend(TensorDict({"x": torch.arange(100)}, [100]))
        >>> round(sampler.offline_share, 3)  # the 100 new rows weigh as much as the 200 offline ones
        0.5
        >>> batch = buffer.sample()
        >>> int((batch["index"] < 200).sum())
        32
        >>> buffer.update_priority(batch["index"], torch.full((64,), 0.1))
    """

    def __init__(
        self,
        num_offline: int,
        online_capacity: int,
        *,
        init_online_fraction: float = 0.5,
        first_epoch_frames: int = 1000,
        refresh_every: int | None = None,
        refresh_with: Callable[[TensorDictBase], Tensor] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        online_capacity = check_count("online_capacity", online_capacity, least=1)
        if (refresh_every is None) != (refresh_with is None) or (refresh_every is not None and refresh_every < 1):
            raise O2OSpecError(
                f"got refresh_every={refresh_every} and refresh_with={refresh_with}; expected both, with refresh_every "
                ">= 1, or neither"
            )
        self.num_offline = check_count("num_offline", num_offline, least=1)
        self._initial_online = float(initial_online_priority(num_offline, init_online_fraction, first_epoch_frames))
        super().__init__(self.num_offline + online_capacity, dtype=dtype)
        self.refresh_every = None if refresh_every is None else check_count("refresh_every", refresh_every, least=1)
        self.refresh_with = refresh_with
        self.max_priority = self._initial_online

    @property
    def default_priority(self) -> float:
        """Priority of a new online row, the running maximum."""
        return self.max_priority

    @property
    def offline_share(self) -> float:
        """Probability that a draw is an offline row; 1 before anything was drawn or written."""
        total = float(self._tree.scaled_total)
        offline = float((self.values[: self.num_offline] * self._tree.unit).sum())
        return offline / total if total > 0.0 else 1.0

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Draw rows in proportion to their priorities, after refreshing the offline ones if it is due.

        Args:
            storage: one storage with the offline rows first.
            batch_size: number of rows.

        Returns:
            Row numbers, shape [batch_size], and an empty dictionary.

        Raises:
            O2OSpecError: if there is nothing to draw from, or the buffer's writer overwrites offline rows.
        """
        check_offline_rows(storage, self.num_offline)
        if self.refresh_every and self.num_batches and self.num_batches % self.refresh_every == 0:
            self.refresh(storage)
        return super().sample(storage, batch_size)

    def refresh(self, storage: Storage) -> None:
        """Set the priorities of all offline rows with ``refresh_with``.

        Args:
            storage: one storage with the offline rows first.

        Raises:
            O2OSpecError: if there is no ``refresh_with`` or it returns unusable priorities.
        """
        if self.refresh_with is None:
            raise O2OSpecError(
                "got a sampler without refresh_with, expected a function that scores the offline rows; build the "
                "sampler with it"
            )
        self._meet(storage)
        with torch.no_grad():
            priority = self.refresh_with(storage[: self.num_offline])
        self.update_priority(torch.arange(self.num_offline), priority)

    def _initialize(self, start: int, stop: int) -> None:
        self._tree.fill(start, min(stop, self.num_offline), 1.0)
        self._tree.fill(max(start, self.num_offline), stop, self.max_priority)

    def _store(self, index: Tensor, priority: Tensor) -> None:
        self._tree.update(index, priority)
        self.max_priority = max(self.max_priority, float(priority.max()))

    def _restart(self, index: Tensor, priority: Tensor) -> None:
        # The buffer's own writer may write the offline rows too. They do not count for the maximum of the online rows.
        self._tree.update(index, priority.masked_fill(index < self.num_offline, 1.0))

    def _empty(self) -> None:
        super()._empty()
        self.max_priority = self._initial_online

    def state_dict(self) -> dict[str, Any]:
        """Priorities, sums, running maximum and counters; the random state belongs to the replay buffer's generator."""
        return {**super().state_dict(), "num_offline": self.num_offline, "max_priority": self.max_priority}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            O2OSpecError: if the state belongs to another number of offline rows or slots.
        """
        words = "the saved sampler has {} offline rows, this one {}; load the data set with which the run was started"
        own = {**BalancedReplaySampler.state_dict(self), "tree": None}
        check_state(self, state_dict, own, same={"num_offline": words})
        super().load_state_dict(state_dict)
        self.max_priority = state_dict["max_priority"]

    def __repr__(self) -> str:
        return f"BalancedReplaySampler(num_offline={self.num_offline}, capacity={self.capacity})"
