# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The source of all random numbers of losses and samplers: a generator, or recorded numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError

__all__ = ["GeneratorNoise", "NoiseSource", "RecordedNoise", "RowSource"]


class NoiseSource(Protocol):
    """The interface for random draws of losses. Each draw has a name that says what it is for.

    Examples:
        >>> def dithered(action: Tensor, noise: NoiseSource) -> Tensor:
        ...     return action + 0.1 * noise.normal("action", action)
        >>> action = torch.zeros(1, 2)
        >>> dithered(action, GeneratorNoise(torch.Generator().manual_seed(0))).shape
        torch.Size([1, 2])
        >>> dithered(action, RecordedNoise({"action": torch.ones(1, 2)}))  # what a test knows
        tensor([[0.1000, 0.1000]])
    """

    def normal(self, name: str, like: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Standard-normal numbers of shape [*sample_shape, *like.shape], in ``like``'s dtype and device."""
        ...

    def uniform(self, name: str, like: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform numbers in [-1, 1) of shape [*sample_shape, *like.shape], in ``like``'s dtype and device."""
        ...

    def subset(
        self,
        name: str,
        num_members: int,
        size: int,
        like: Tensor,
        *,
        per_row: bool = False,
        replacement: bool = False,
    ) -> Tensor:
        """``size`` of ``num_members`` indices, shape [size], or [size, *like.shape] if drawn per row.

        Losses set ``replacement`` only where repeats may occur, as in WSRL.
        """
        ...


class RowSource(Protocol):
    """The interface for random draws of samplers. All draws are made on the CPU, and each has a name."""

    def integers(self, name: str, low: int, high: int, size: int) -> Tensor:
        """``size`` integers in [low, high), drawn with replacement, int64."""
        ...

    def fractions(self, name: str, size: int) -> Tensor:
        """``size`` numbers in [0, 1), float64."""
        ...

    def choices(self, name: str, prob: Tensor, size: int) -> Tensor:
        """``size`` positions in ``prob``, shape [N], drawn with replacement and in proportion to it, int64."""
        ...


class GeneratorNoise:
    """New random numbers from torch's global generator or from one of your own.

    It is a :class:`NoiseSource` and a :class:`RowSource`.
    Args:
        generator: a generator on the device of the losses' parameters, for a sampler on the CPU; ``None`` (default)
            uses torch's global one.

    Examples:
        >>> import torch
        >>> noise = GeneratorNoise(torch.Generator().manual_seed(0))
        >>> noise.normal("next_action", torch.zeros(4, 2)).shape
        torch.Size([4, 2])
        >>> noise.subset("target", 10, 2, torch.zeros(4)).shape
        torch.Size([2])
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    @property
    def _own(self) -> dict[str, Any]:
        """The generator, if there is one: even ``generator=None`` would tie ``torch.compile`` to one batch size."""
        return {} if self.generator is None else {"generator": self.generator}

    def normal(self, name: str, like: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """See :class:`NoiseSource`."""
        return torch.randn((*sample_shape, *like.shape), dtype=like.dtype, device=like.device, **self._own)

    def uniform(self, name: str, like: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """See :class:`NoiseSource`."""
        shape = (*sample_shape, *like.shape)
        return torch.rand(shape, dtype=like.dtype, device=like.device, **self._own) * 2.0 - 1.0

    def subset(
        self,
        name: str,
        num_members: int,
        size: int,
        like: Tensor,
        *,
        per_row: bool = False,
        replacement: bool = False,
    ) -> Tensor:
        """See :class:`NoiseSource`."""
        if replacement:
            shape = (size, *like.shape) if per_row else (size,)
            return torch.randint(num_members, shape, device=like.device, **self._own)
        if size == num_members:
            return _all_members(num_members, like, per_row)
        # The order of random keys is a uniform permutation; unlike randperm it has a batch dimension and never
        # synchronizes.
        shape = (num_members, *like.shape) if per_row else (num_members,)
        return torch.rand(shape, device=like.device, **self._own).argsort(0)[:size]

    def integers(self, name: str, low: int, high: int, size: int) -> Tensor:
        """See :class:`RowSource`."""
        return torch.randint(low, high, (size,), **self._own)

    def fractions(self, name: str, size: int) -> Tensor:
        """See :class:`RowSource`."""
        return torch.rand(size, dtype=torch.float64, **self._own)

    def choices(self, name: str, prob: Tensor, size: int) -> Tensor:
        """See :class:`RowSource`."""
        return torch.multinomial(prob, size, replacement=True, **self._own)


class RecordedNoise:
    """Recorded numbers, for replaying a run or another implementation's noise.

    They are a :class:`NoiseSource` and a :class:`RowSource`.
    Args:
        values: the numbers by name of the draw, used for every draw of that name.

    Raises:
        O2OSpecError: if a draw was not recorded, has another shape, or contains indices outside the range.

    Examples:
        >>> import torch
        >>> noise = RecordedNoise({"action": torch.ones(4, 2)})
        >>> noise.normal("action", torch.zeros(4, 2)).sum().item()
        8.0
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = dict(values)

    def _recorded(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self.values:
            raise O2OSpecError(
                f"got the draw {name!r} without recorded numbers, expected one of {sorted(self.values)}; record it too"
            )
        value = self.values[name]
        if tuple(value.shape) != tuple(shape):
            raise O2OSpecError(
                f"got recorded numbers of shape {tuple(value.shape)} for {name!r}, expected {tuple(shape)}; record "
                "them for the same batch"
            )
        return value

    def normal(self, name: str, like: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """See :class:`NoiseSource`."""
        return self._recorded(name, (*sample_shape, *like.shape)).to(like)

    def uniform(self, name: str, like: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """See :class:`NoiseSource`."""
        return self.normal(name, like, sample_shape)

    def subset(
        self,
        name: str,
        num_members: int,
        size: int,
        like: Tensor,
        *,
        per_row: bool = False,
        replacement: bool = False,
    ) -> Tensor:
        """See :class:`NoiseSource`."""
        if size == num_members and not replacement and name not in self.values:
            return _all_members(num_members, like, per_row)
        shape = (size, *like.shape) if per_row else (size,)
        return self._recorded(name, shape).to(device=like.device, dtype=torch.long)

    def integers(self, name: str, low: int, high: int, size: int) -> Tensor:
        """See :class:`RowSource`."""
        return _within(name, self._recorded(name, (size,)).long(), low, high)

    def fractions(self, name: str, size: int) -> Tensor:
        """See :class:`RowSource`."""
        return self._recorded(name, (size,)).double()

    def choices(self, name: str, prob: Tensor, size: int) -> Tensor:
        """See :class:`RowSource`."""
        return _within(name, self._recorded(name, (size,)).long(), 0, len(prob))


def _all_members(num_members: int, like: Tensor, per_row: bool) -> Tensor:
    index = torch.arange(num_members, device=like.device)
    return index.reshape(-1, *(1,) * like.ndim).expand(num_members, *like.shape) if per_row else index


def _within(name: str, values: Tensor, low: int, high: int) -> Tensor:
    """Raise if recorded integers are outside the range of the draw."""
    if ((values < low) | (values >= high)).any():
        raise O2OSpecError(
            f"got recorded numbers in {int(values.min())}..{int(values.max())} for {name!r}, expected "
            f"{low}..{high - 1}; record them for the same data"
        )
    return values
