# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One copy of the offline data for N agents, whose storages share the first slots and have separate online slots."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.data import TensorStorage

from torchrl_o2o.data.keys import check_steps, stored_keys
from torchrl_o2o.data.storage import offline_online_storage
from torchrl_o2o.errors import O2OSpecError

__all__ = ["AgentStorage", "SharedRows"]


class SharedRows:
    """One copy of the offline rows, followed by the online slots of N agents.

    Call it like :func:`~torchrl_o2o.data.offline_online_storage`, once per agent, to get that agent's storage. The
    offline data of the first call are kept; those of later calls must have the same number of rows.

    Args:
        num_agents: N.

    Raises:
        O2OSpecError: if it is called more than N times, or with other sizes.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.testing import random_transitions
        >>> shared, offline = SharedRows(2), random_transitions(5, 3, 2)
        >>> first, second = shared(offline, 10), shared(offline, 10)
        >>> first.set(torch.arange(5, 7), random_transitions(2, 3, 2))
        >>> len(first), len(second), len(shared.rows)
        (7, 5, 25)
        >>> bool((first.get(torch.arange(5))["action"] == second.get(torch.arange(5))["action"]).all())
        True
    """

    def __init__(self, num_agents: int) -> None:
        self.num_agents = num_agents
        self._given = 0
        self._shape = (0, 0)
        #: All rows, shape [offline + N * online]; ``None`` before the first call.
        self.rows: TensorDictBase | None = None

    def __call__(
        self, offline: TensorDictBase, online_capacity: int, *, device: torch.device | str = "cpu"
    ) -> AgentStorage:
        """The next agent's storage, as ``offline_online_storage(offline, online_capacity)``."""
        if self.rows is None:
            whole = offline_online_storage(offline, self.num_agents * online_capacity, device=device)
            self.rows, self._shape = whole._storage, (len(offline), online_capacity)
        if self._given == self.num_agents or self._shape != (len(offline), online_capacity):
            raise O2OSpecError(
                f"got agent {self._given} with {len(offline)} offline rows and {online_capacity} online slots, "
                f"expected agents 0 to {self.num_agents - 1} with {self._shape}"
            )
        self._given += 1
        return AgentStorage(self.rows, *self._shape, self._given - 1)


class AgentStorage(TensorStorage):
    """One agent's view of :class:`SharedRows`, with slots as in a separate storage, offline data first.

    Indices are as in any storage: numbers, counted from the end if negative, slices, tensors and lists of numbers, and
    masks with one entry per row (per slot in ``set``).

    Args:
        rows: all rows.
        num_offline: number of offline rows at their start.
        online_capacity: online slots of each agent.
        agent: number of the agent.

    Raises:
        O2OSpecError: if rows are read, or slots are written, that the agent does not have.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> AgentStorage(random_transitions(25, 3, 2), 5, 10, agent=1).max_size
        15
    """

    def __init__(self, rows: TensorDictBase, num_offline: int, online_capacity: int, agent: int) -> None:
        super().__init__(None, num_offline + online_capacity, device=rows.device or "cpu")
        check_steps(rows)
        self._storage, self.initialized = rows.select(*stored_keys(rows)), True
        self._num_offline, self._shift = num_offline, agent * online_capacity
        self._len = num_offline

    def _slots(self, index: Any, size: int) -> Any:
        """Map an index into an agent's first ``size`` slots to indices of all rows."""
        if isinstance(index, slice):
            start, stop, step = index.indices(size)
            if step < 0 or start < self._num_offline < stop:
                return self._slots(torch.tensor(range(start, stop, step), dtype=torch.long), size)
            shift = self._shift if start >= self._num_offline else 0
            return slice(start + shift, max(start, stop) + shift, step)
        slots = torch.as_tensor(index)
        if slots.dtype == torch.bool and tuple(slots.shape) == (size,):
            slots = slots.nonzero().squeeze(-1)
        elif slots.dtype == torch.bool or slots.is_floating_point():
            raise O2OSpecError(
                f"got an index of type {str(slots.dtype).removeprefix('torch.')} and shape {list(slots.shape)}, "
                f"expected numbers of rows, or a mask of shape [{size}]"
            )
        slots = slots.long()
        if ((slots < -size) | (slots >= size)).any():
            raise O2OSpecError(f"got an index into {size} rows from {int(slots.min())} to {int(slots.max())}")
        slots = torch.where(slots < 0, slots + size, slots)
        slots = slots + self._shift * (slots >= self._num_offline)
        return int(slots) if slots.ndim == 0 else slots

    def get(self, index: Any) -> Any:
        """The rows in an agent's slots."""
        return self._storage[self._slots(index, len(self))]

    # TorchRL declares overloads, which no single method matches.
    def set(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, cursor: Any, data: Any, *, set_cursor: bool = True
    ) -> None:
        """Write rows into an agent's slots."""
        slots = self._slots(cursor, self.max_size)
        if set_cursor:
            self._get_new_len(data, cursor)
        self._storage[slots] = data
        self._bump_mutation_revision()
