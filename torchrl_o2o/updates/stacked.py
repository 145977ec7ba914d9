# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One call of N agents' updates: the graphs of a single agent's update, vectorized over a leading dimension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.noise import NoiseSource
from torchrl_o2o.updates.adam import count_steps
from torchrl_o2o.updates.graph import Named, over_leading_dim
from torchrl_o2o.updates.program import Captured, Program

__all__ = ["StackedProgram"]


class StackedProgram(Program):
    """N programs that differ only in their tensors, as one.

    Args:
        programs: one per agent.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        first = programs[0]
        self.programs = list(programs)
        self.learning, self.plan = first.learning, first.plan
        self._moved, self._sources = first._moved, first._sources
        self._before, self._parts = None, []
        self._whole: dict[str, Tensor] = {}
        self._bound: tuple[int, ...] = ()

    def capture(self, columns: Named, *, decompose: bool = True) -> tuple[Captured | None, list[Captured]]:
        """See :meth:`Program.capture`: the first agent's graphs, over all agents."""
        before, parts = self.programs[0].capture({name: value[0] for name, value in columns.items()}, decompose=False)
        stacked = [self._over_agents(part, decompose=decompose) for part in parts]
        return None if before is None else self._over_agents(before, decompose=False), stacked

    def _over_agents(self, captured: Captured, *, decompose: bool) -> Captured:
        graph, single = captured
        example = {name: value.expand(len(self.programs), *value.shape).clone() for name, value in single.items()}
        return over_leading_dim(graph, example, graph.inputs, decompose=decompose), example

    def inputs(self, columns: Named, noise: NoiseSource | None = None) -> dict[str, Tensor]:
        """See :meth:`Program.inputs`.

        Args:
            columns: batches, each column [N, ...].
            noise: as there; ``None`` (default) is every loss's own source.

        Returns:
            The agents' inputs, stacked after the dimension of rounds, so that those of a round are contiguous.
        """
        each = [
            program.inputs({name: value[i] for name, value in columns.items()}, noise)
            for i, program in enumerate(self.programs)
        ]
        return {name: torch.stack([one[name] for one in each], 1) for name in each[0]}

    def _joined_rounds(self, value: Tensor) -> Tensor:
        """See :meth:`Program._joined_rounds`: from [rounds, N, B, ...]."""
        return value.transpose(0, 1).flatten(1, 2)

    def _values(self) -> dict[str, Tensor]:
        """See :meth:`Program._values`; makes the agents' tensors slices of one tensor if they are not."""
        agents = [program.tensors() for program in self.programs]
        bound = _pointers(agents)
        if bound != self._bound:  # at the first call, and after an agent's optimizer has loaded a state
            self._whole = {name: _joined(name, [tensors[name] for tensors in agents]) for name in agents[0]}
            self._bound = _pointers(agents)
        device = next(iter(self._whole.values())).device
        return self._whole | {"ok": torch.ones(len(self.programs), dtype=torch.bool, device=device)}

    def _count(self, position: int, steps: Tensor) -> None:
        for program, done in zip(self.programs, steps, strict=True):
            count_steps(program.learning.descends[position].optim, done)


def _pointers(agents: Sequence[Named]) -> tuple[int, ...]:
    return tuple(value.data_ptr() for tensors in agents for value in tensors.values())


def _joined(name: str, agents: Sequence[Tensor]) -> Tensor:
    """The tensor of which the agents' tensors are slices; a new one if they are not slices yet."""
    tensors = [tensor.detach() for tensor in agents]
    first = tensors[0]
    if len({(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors}) > 1:
        shapes = ", ".join(sorted({f"{list(tensor.shape)} {tensor.dtype}" for tensor in tensors}))
        raise O2OSpecError(
            f"the agents' {name.partition(':')[2]} differ: {shapes}; expected the same shape and dtype for all; stack "
            "agents of one configuration"
        )
    step = first.numel() * first.element_size()
    adjacent = all(tensor.data_ptr() == first.data_ptr() + i * step for i, tensor in enumerate(tensors))
    one_storage = len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    if adjacent and one_storage and all(tensor.is_contiguous() for tensor in tensors):
        return first.as_strided((len(tensors), *first.shape), (first.numel(), *first.stride()))
    whole = torch.stack(tensors)
    for tensor, view in zip(agents, whole, strict=True):
        tensor.data = view
    return whole
