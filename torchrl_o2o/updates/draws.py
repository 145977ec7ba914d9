# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Separate a loss's random draws from its equations: find them once, then draw beforehand and pass the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_o2o.functional.noise import NoiseSource
from torchrl_o2o.objectives.base import TransitionLoss
from torchrl_o2o.updates.loss_calls import LossResults, call_loss
from torchrl_o2o.updates.state import replaced, state_of
from torchrl_o2o.updates.steps import Primitive, descends_of

__all__ = ["Draw", "DrawFinder", "HandedNoise", "find_draws"]


class Draw(NamedTuple):
    """One request of a loss to its noise source: the purpose, kind and shape of the numbers."""

    kind: str
    name: str
    like: Tensor
    sample_shape: tuple[int, ...] = ()
    num_members: int = 0
    size: int = 0
    per_row: bool = False
    replacement: bool = False

    def take(self, noise: NoiseSource) -> Tensor:
        """Make the draw.

        Args:
            noise: where from.

        Returns:
            The numbers.
        """
        if self.kind == "subset":
            options = {"replacement": True} if self.replacement else {}
            return noise.subset(self.name, self.num_members, self.size, self.like, per_row=self.per_row, **options)
        draw = noise.normal if self.kind == "normal" else noise.uniform
        return draw(self.name, self.like, self.sample_shape)


class DrawFinder:
    """A noise source that records requests and returns zeros.

    Examples:
        >>> import torch
        >>> finder = DrawFinder()
        >>> _ = finder.normal("action", torch.ones(4, 2))
        >>> [(draw.kind, draw.name) for draw in finder.draws]
        [('normal', 'action')]
    """

    def __init__(self) -> None:
        self.draws: list[Draw] = []

    def _note(self, kind: str, name: str, like: Tensor, sample_shape: tuple[int, ...]) -> Tensor:
        template = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        self.draws.append(Draw(kind, name, template, tuple(sample_shape)))
        return template.new_zeros((*sample_shape, *like.shape))

    def normal(self, name: str, like: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """See :class:`~torchrl_o2o.functional.noise.NoiseSource`."""
        return self._note("normal", name, like, sample_shape)

    def uniform(self, name: str, like: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """See :class:`~torchrl_o2o.functional.noise.NoiseSource`."""
        return self._note("uniform", name, like, sample_shape)

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
        """See :class:`~torchrl_o2o.functional.noise.NoiseSource`."""
        template = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        self.draws.append(Draw("subset", name, template, (), num_members, size, per_row, replacement))
        index = torch.arange(size, device=like.device)
        return index.reshape(-1, *(1,) * like.ndim).expand(size, *like.shape).contiguous() if per_row else index


class HandedNoise:
    """A noise source that returns given numbers in the order of the draws.

    Args:
        values: the numbers, one tensor per draw.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        self._left = list(values)

    def normal(self, name: str, like: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """See :class:`~torchrl_o2o.functional.noise.NoiseSource`."""
        return self._left.pop(0)

    def uniform(self, name: str, like: Tensor, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """See :class:`~torchrl_o2o.functional.noise.NoiseSource`."""
        return self._left.pop(0)

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
        """See :class:`~torchrl_o2o.functional.noise.NoiseSource`."""
        return self._left.pop(0)


@torch.no_grad()
def find_draws(
    loss: TransitionLoss, steps: Sequence[Primitive], minibatch: TensorDictBase, measured: LossResults
) -> list[Draw]:
    """The random draws of some steps, in order. Nothing is drawn, and the loss stays as it is.

    Args:
        loss: the loss.
        steps: steps of one part of a plan.
        minibatch: transitions [B].
        measured: results of earlier losses on this minibatch; those of these steps are added.

    Returns:
        The draws.
    """
    finder, noise = DrawFinder(), loss.noise
    with replaced(loss, {name: value.clone() for name, value in state_of(loss).items()}):
        loss.noise = finder
        try:
            for step in steps:
                for each in descends_of((step,)):
                    known = measured.handed_to(each.name)
                    measured.add(each.name, *call_loss(loss, each.name, minibatch.copy(), known))
                measured.outdate(step)
        finally:
            loss.noise = noise
    return finder.draws
