# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A whole update as one CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from torchrl_o2o.functional.noise import NoiseSource

__all__ = ["CudaGraphProgram", "Replayed"]

_WARM_UP = 2


class Replayed(Protocol):
    """The interface of programs that can be recorded; see :class:`~torchrl_o2o.updates.program.Program`."""

    def inputs(self, columns: Mapping[str, Tensor], noise: NoiseSource | None = None) -> dict[str, Tensor]:
        """The inputs prepared outside the graph."""
        ...

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute one update in place."""
        ...

    def pointers(self) -> tuple[int, ...]:
        """Addresses of all tensors that the update reads or writes besides its inputs."""
        ...


class CudaGraphProgram:
    """Runs a program normally at first, then records all its kernels once and replays them with one launch.

    Recording executes nothing, so every call is exactly one update.

    Args:
        program: a program with all tensors on one CUDA device.
    """

    def __init__(self, program: Replayed) -> None:
        self._program = program
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._bound: tuple[int, ...] = ()

    def inputs(self, columns: Mapping[str, Tensor], noise: NoiseSource | None = None) -> dict[str, Tensor]:
        """See :meth:`Program.inputs`.

        Args:
            columns: a batch.
            noise: source of the numbers; ``None`` (default) is the loss's own source.
        """
        return self._program.inputs(columns, noise)

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Program.run`.

        Args:
            inputs: from :meth:`Program.inputs`.

        Returns:
            The program's result, copied out of the graph's memory.
        """
        self._calls += 1
        if self._calls <= _WARM_UP:
            return self._warm_up(inputs)
        bound = self._program.pointers()
        if self._graph is None or bound != self._bound:  # loading an optimizer's state replaces its tensors
            self._record(inputs, bound)
        for name, value in inputs.items():
            self._inputs[name].copy_(value, non_blocking=True)
        assert self._graph is not None
        self._graph.replay()
        return {name: value.clone() for name, value in self._outputs.items()}

    def _warm_up(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self._program.run(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return outputs

    def _record(self, inputs: dict[str, Tensor], bound: tuple[int, ...]) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        self._graph, self._bound = torch.cuda.CUDAGraph(), bound
        with torch.cuda.graph(self._graph):
            self._outputs = self._program.run(self._inputs)
