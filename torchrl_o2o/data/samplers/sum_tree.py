# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Proportional draws from stored values, in pure torch.

Shapes: ``N`` slots, ``n`` rows of one call.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError, check_count, check_state

__all__ = ["SumTree", "last_of_each"]

_FAN_OUT = 32  # children of a node; the speeds of 16 to 64 differ by less than a fifth
_BLOCKS_AT_ONCE = 2**16
_TOP = 2048  # largest number of nodes at the top level, which one cumulative sum searches


class SumTree:
    r"""Non-negative values on N slots, with their sums kept so that proportional draws are cheap.

    It is a tree in which each node sums 32 children. One cumulative sum searches the top level, and one gather and one
    cumulative sum search each level below for all queries at once. A search and an update of n rows cost
    :math:`O(n\log N)` in a few torch calls. Changed sums are recomputed from their children and not corrected by
    differences, so rounding errors do not accumulate. Sums are in units of a power of two of at least N, which is
    exact, so the sum of any finite values is finite.

    torchrl has a C++ tree with the same purpose, which only loads with the version of torch that it was built for.

    Args:
        capacity: number of slots N; all start at zero.
        dtype: ``torch.float64`` (default), or ``torch.float32`` as in Off2On's code and TorchRL, at half the memory.

    Raises:
        O2OSpecError: if the capacity is below 1 or the dtype is not a floating-point one.

    Examples:
        >>> import torch
        >>> tree = SumTree(5)
        >>> tree.update(torch.tensor([1, 2, 4]), torch.tensor([1.0, 2.0, 3.0]))
        >>> tree.total
        tensor(6., dtype=torch.float64)
        >>> tree.search(torch.tensor([0.5, 1.0, 1.5, 3.5]))  # cumulative sums are 0, 1, 3, 3, 6
        tensor([1, 1, 2, 4])
    """

    def __init__(self, capacity: int, *, dtype: torch.dtype = torch.float64) -> None:
        capacity = check_count("capacity", capacity, least=1)
        if not dtype.is_floating_point:
            raise O2OSpecError(f"got dtype={dtype}, expected a floating point type such as torch.float64")
        self.capacity = capacity
        self.dtype = dtype
        #: Factor of the sums: a power of two, at most 1/N.
        self.unit = 2.0 ** -math.ceil(math.log2(capacity))
        self._levels: list[Tensor] = []  # [blocks, 32] from the slots upward; the top level is flat
        size = capacity
        while size > _TOP:
            blocks = -(-size // _FAN_OUT)
            self._levels.append(torch.zeros(blocks, _FAN_OUT, dtype=dtype))
            size = blocks
        self._levels.append(torch.zeros(size, dtype=dtype))

    @property
    def values(self) -> Tensor:
        """All values, shape [N]; a view, which must not be changed."""
        return self._levels[0].view(-1)[: self.capacity]

    @property
    def total(self) -> Tensor:
        """Sum of all values, a scalar; infinite if it exceeds their dtype."""
        return self.scaled_total / self.unit

    @property
    def scaled_total(self) -> Tensor:
        """Sum of all values times :attr:`unit`, a scalar, always finite."""
        return self._scaled(len(self._levels) - 1, self._levels[-1]).sum()

    def _scaled(self, level: int, values: Tensor) -> Tensor:
        """Values of a level in units of the sums; only the lowest level, that of the slots, has other units."""
        return values if level else values * self.unit

    def __getitem__(self, index: Tensor) -> Tensor:
        """Values at ``index``, shape of ``index``."""
        return self.values[index]

    def update(self, index: Tensor, value: Tensor | float) -> None:
        """Set values; if a slot occurs twice, the last value counts.

        Args:
            index: slots, shape [n].
            value: finite and non-negative, shape [n] or one for all.

        Raises:
            O2OSpecError: if a slot is out of range or a value negative or not finite. Nothing is changed then.
        """
        value = torch.as_tensor(value, dtype=self.dtype).expand(index.shape)
        if index.numel() == 0:
            return
        self.check(index, value)
        index, value = last_of_each(index, value)
        self._levels[0].view(-1)[index] = value
        for level, above in enumerate(self._levels[1:]):
            index = index // _FAN_OUT  # a block that occurs twice is written twice, with the same sum
            above.view(-1)[index] = self._scaled(level, self._levels[level][index]).sum(-1)

    def fill(self, start: int, stop: int, value: Tensor | float) -> None:
        """Set the contiguous slots ``start .. stop - 1``, which costs one pass and no sorting.

        Args:
            start: first slot.
            stop: one past the last slot.
            value: finite and non-negative, shape [stop - start] or one for all.

        Raises:
            O2OSpecError: as :meth:`update`.
        """
        value = torch.as_tensor(value, dtype=self.dtype)
        if start >= stop:
            return
        self.check(torch.tensor([start, stop - 1]), value)
        self._levels[0].view(-1)[start:stop] = value
        for level, above in enumerate(self._levels[1:]):
            start, stop = start // _FAN_OUT, -(-stop // _FAN_OUT)
            for first in range(start, stop, _BLOCKS_AT_ONCE):  # scaled values of all slots would double the memory
                blocks = slice(first, min(stop, first + _BLOCKS_AT_ONCE))
                above.view(-1)[blocks] = self._scaled(level, self._levels[level][blocks]).sum(-1)

    def search(self, position: Tensor) -> Tensor:
        """First slot whose cumulative sum reaches each position; a slot of value zero is never found.

        Args:
            position: numbers in [0, total], shape [n]; beyond the ends they are clipped.

        Returns:
            Slots, shape [n], int64.

        Raises:
            O2OSpecError: if all values are zero.
        """
        return self._find(position * self.unit)

    def draw(self, share: Tensor) -> Tensor:
        """First slot whose cumulative sum reaches each share of the total.

        Args:
            share: numbers in [0, 1], shape [n].

        Returns:
            Slots, shape [n], int64.

        Raises:
            O2OSpecError: if all values are zero.
        """
        return self._find(share * self.scaled_total)

    def _find(self, position: Tensor) -> Tensor:
        if not self.scaled_total > 0:
            raise O2OSpecError(
                "got only values of zero, expected a positive one to draw; give some slots a positive value"
            )
        # A position of exactly 0 would select a leading zero; rounding can move one past the last positive child.
        smallest = torch.finfo(self.dtype).tiny
        last = len(self._levels) - 1
        top = self._scaled(last, self._levels[last]).cumsum(0).unsqueeze(0)
        node, position = (row.squeeze(0) for row in _descend(top, position.to(self.dtype).unsqueeze(0), smallest))
        for level in reversed(range(last)):
            children = self._scaled(level, self._levels[level][node])
            child, rest = _descend(children.cumsum(-1), position.unsqueeze(-1), smallest)
            node, position = node * _FAN_OUT + child.squeeze(-1), rest.squeeze(-1)
        return node

    def check(self, index: Tensor, value: Tensor) -> None:
        """Raise for slots and values that the tree cannot hold.

        Args:
            index: slots, shape [n] with n at least 1.
            value: any shape.

        Raises:
            O2OSpecError: if a slot is out of range or a value negative or not finite.
        """
        low, high = index.aminmax()
        if low < 0 or high >= self.capacity:
            raise O2OSpecError(f"got slots {int(low)} to {int(high)}, expected 0 to {self.capacity - 1}")
        if not ((value >= 0) & value.isfinite()).all():
            bad = value[~((value >= 0) & value.isfinite())].flatten()[:3].tolist()
            raise O2OSpecError(
                f"got values such as {bad}, expected finite non-negative ones; clamp priorities before storing them"
            )

    def state_dict(self) -> dict[str, Any]:
        """Copies of the values and of all sums, so that a restored tree draws the same rows."""
        return {"capacity": self.capacity, "unit": self.unit, "levels": [level.clone() for level in self._levels]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            O2OSpecError: if the state has another capacity.
        """
        slots = "the saved tree has {} slots, this one {}; build it with the capacity with which the run was started"
        check_state(self, state_dict, self.state_dict(), same={"capacity": slots}, optional=("unit",))
        to_unit = self.unit / state_dict.get("unit", 1.0)  # the first edition stored unscaled sums
        for level, saved in zip(self._levels, state_dict["levels"], strict=True):
            level.copy_(saved if level is self._levels[0] else saved * to_unit)


def _descend(sums: Tensor, position: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """First child whose cumulative sum reaches the position, and the remaining position within that child.

    ``sums`` has shape [r, children], ``position`` and both results [r, q].
    """
    position = position.clamp_min(smallest).minimum(sums[:, -1:])
    child = torch.searchsorted(sums, position)
    before = sums.gather(-1, (child - 1).clamp_min(0)).where(child > 0, 0.0)
    return child, position - before


def last_of_each(index: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs without repeated slots, sorted by slot; torch does not define which of them an indexed assignment uses.

    Args:
        index: slots, shape [n].
        value: their values, shape [n].

    Returns:
        Slots and values, shape [m] with m at most n; the last value of a repeated slot is kept.

    Examples:
        >>> import torch
        >>> last_of_each(torch.tensor([3, 1, 3]), torch.tensor([0.1, 0.2, 0.3]))
        (tensor([1, 3]), tensor([0.2000, 0.3000]))
    """
    index, order = index.sort(stable=True)
    last = torch.ones_like(index, dtype=torch.bool)
    torch.ne(index[1:], index[:-1], out=last[:-1])
    return index[last], value[order][last]
