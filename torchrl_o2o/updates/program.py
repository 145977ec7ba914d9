# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One call of a compiled update for batches of one shape: inputs prepared outside the graphs, and the graphs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, fx
from torch._inductor.runtime.cache_dir_utils import cache_dir

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.noise import NoiseSource
from torchrl_o2o.updates.adam import count_steps, moments_of, step_scalars
from torchrl_o2o.updates.draws import DrawFinder, find_draws
from torchrl_o2o.updates.graph import Graph, Named, capture, hoist, over_leading_dim
from torchrl_o2o.updates.loss_calls import LossResults, joined_rows
from torchrl_o2o.updates.precision import lower_products
from torchrl_o2o.updates.pure import Learning, minibatch_of, run_part
from torchrl_o2o.updates.replay import CudaGraphProgram
from torchrl_o2o.updates.state import state_of
from torchrl_o2o.updates.steps import WHOLE, Plan, stepped

__all__ = ["Mode", "Program", "Runner", "columns_of", "compiled_runner"]

_LOG = logging.getLogger(__name__)
Mode = Literal["default", "max-autotune-no-cudagraphs", "reduce-overhead"]
Execute = Callable[[dict[str, Tensor]], dict[str, Tensor]]
#: A graph and example inputs.
Captured = tuple[Graph, dict[str, Tensor]]


class Runner(Protocol):
    """The interface of objects that compute one call."""

    def inputs(self, columns: Named, noise: NoiseSource | None = None) -> dict[str, Tensor]:
        """See :meth:`Program.inputs`."""
        ...

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """See :meth:`Program.run`."""
        ...


class Program:
    """One call of an update, for batches of one shape.

    Args:
        learning: what is moved.
        plan: what is done.
        columns: a batch, ``batch:<key>`` -> [number of minibatches * B, ...].
    """

    def __init__(self, learning: Learning, plan: Plan, columns: Named) -> None:
        self.learning, self.plan = learning, plan
        self._state = {f"state:{name}": value for name, value in state_of(learning.loss).items()}
        minibatch = {name: value[: len(value) // plan.minibatches] for name, value in columns.items()}
        self._draws = [
            find_draws(learning.loss, part, minibatch_of(columns if index in plan.whole else minibatch), LossResults())
            for index, part in enumerate(plan.parts)
        ]
        moving = [stepped(part) for part in plan.parts]
        descends = [*enumerate(learning.descends)]
        self._moved = [[position for position, step in descends if step in part] for part in moving]
        self._sources = [self._source(turn, columns) for turn in range(len(plan.sequence))]
        self._before: Execute | None = None
        self._parts: list[Execute] = []

    @torch.no_grad()
    def compile(self, columns: Named, options: dict[str, Any], matmul_dtype: torch.dtype | None = None) -> None:
        """Capture the parts as graphs, split off the work that can be done beforehand, and compile all.

        Args:
            columns: an example batch.
            options: inductor's.
            matmul_dtype: dtype of the products of wide matrices; ``None`` (default) does not change them.
        """
        loss = type(self.learning.loss).__name__
        _LOG.info(
            "compiling the update of %s: half a minute on an idle core, or seconds if %s holds it from an earlier run",
            loss,
            cache_dir(),
        )
        began = time.perf_counter()

        def compiled(module: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
            # Compiling a graph returns a function; the annotation includes the result of ahead-of-time compilation.
            return cast(Callable[..., Any], torch._inductor.compile(module, [*inputs], options))

        def finished(graph: Graph, example: Named) -> Execute:
            if matmul_dtype is not None:
                lower_products(graph.module.graph, matmul_dtype)
            return graph.executable(compiled, example)

        before, parts = self.capture(columns)
        self._before = None if before is None else finished(*self._all_rounds(before))
        self._parts = [finished(*part) for part in parts]
        _LOG.info("compiled the update of %s in %.1f s", loss, time.perf_counter() - began)

    def capture(self, columns: Named, *, decompose: bool = True) -> tuple[Captured | None, list[Captured]]:
        """The parts as graphs of one round; work of the first part that can be done beforehand is a separate graph.

        Args:
            columns: an example batch.
            decompose: see :func:`~torchrl_o2o.updates.graph.capture`.

        Returns:
            The graph to compute beforehand, if there is one, and the parts, each with example inputs.
        """
        values, inputs = self._values(), self.inputs(columns, DrawFinder())
        entries = {name: value.unbind() for name, value in inputs.items()}
        first = {part: turn for turn, (part, _) in reversed([*enumerate(self.plan.sequence)])}
        parts: list[Captured] = []
        for index, part in enumerate(self.plan.parts):
            example = values | self._round(first[index], inputs, entries)
            graph = capture(lambda now, part=part: run_part(self.learning, part, now), example, decompose=decompose)
            self._check_constants(graph)
            parts.append((graph, example))
        if not self._hoists:
            return None, parts
        graph, example = parts[0]
        outside = [name for name in graph.inputs if name.startswith("scalars:") or name == "ok"]
        before, rest = hoist(graph, _per_round(graph), outside)
        if before is None:
            return None, parts
        results = before.executable(lambda module, _: module, example)(example)
        return (before, example), [(rest, example | results), *parts[1:]]

    @property
    def _hoists(self) -> bool:
        """Whether all minibatches run only the first part."""
        rounds = self.plan.minibatches
        return rounds > 1 and [part for part, _ in self.plan.sequence[:rounds]] == [0] * rounds

    def _all_rounds(self, before: Captured) -> Captured:
        """The hoisted part, for all rounds in one pass."""
        graph, example = before
        mapped = _per_round(graph)
        rounds = self.plan.minibatches
        stacked = {name: value.expand(rounds, *value.shape).clone() for name, value in example.items()}
        example = example | {name: stacked[name] for name in mapped}
        return over_leading_dim(graph, example, mapped), example

    def _check_constants(self, graph: Graph) -> None:
        """Raise if a graph contains a parameter as a constant, because it would keep the captured value."""
        own = {value.data_ptr(): name for name, value in self._state.items()}
        for node in graph.module.graph.find_nodes(op="get_attr"):
            name = own.get(getattr(graph.module, str(node.target)).data_ptr())
            if name is not None:
                raise O2OSpecError(
                    f"{type(self.learning.loss).__name__} reads {name!r} outside its registered modules, expected a "
                    "registered one, because a compiled update would keep the present value; register the object that "
                    "holds it, or do not compile the update"
                )

    def _count(self, position: int, steps: Tensor) -> None:
        count_steps(self.learning.descends[position].optim, steps)

    def tensors(self) -> dict[str, Tensor]:
        """The loss's tensors and the optimizers' moments by name, without copies."""
        values = dict(self._state)
        for step, params in zip(self.learning.descends, self.learning.trained, strict=True):
            for key, (param, _) in params.items():
                state = moments_of(step.optim, param)
                values[f"exp_avg:{key}"], values[f"exp_avg_sq:{key}"] = state["exp_avg"], state["exp_avg_sq"]
        return values

    def pointers(self) -> tuple[int, ...]:
        """Addresses of all tensors besides the inputs that the update uses; a CUDA graph is bound to them."""
        return tuple(value.data_ptr() for value in self._values().values())[:-1]

    def _values(self) -> dict[str, Tensor]:
        """The loss's and the optimizers' tensors by name, and last, whether everything is finite so far."""
        values = {name: value.detach() for name, value in self.tensors().items()}
        device = next(iter(values.values())).device
        return values | {"ok": torch.ones((), dtype=torch.bool, device=device)}

    def inputs(self, columns: Named, noise: NoiseSource | None = None) -> dict[str, Tensor]:
        """The inputs prepared outside the graphs: all random numbers, drawn in the order of use, and the step sizes.

        Args:
            columns: a batch.
            noise: source of the numbers; ``None`` (default) is the loss's own source.

        Returns:
            ``batch:<key>`` with one leading entry per minibatch, ``noise:<part>:<i>`` with one per use of the part,
            ``scalars:<position>:<group>`` with one per use of the step.
        """
        noise = self.learning.loss.noise if noise is None else noise
        inputs = {name: value.unflatten(0, (self.plan.minibatches, -1)) for name, value in columns.items()}
        drawn: dict[str, list[Tensor]] = {}
        for part, _ in self.plan.sequence:
            for i, draw in enumerate(self._draws[part]):
                drawn.setdefault(f"noise:{part}:{i}", []).append(draw.take(noise))
        inputs |= {name: torch.stack(each) for name, each in drawn.items()}
        for position, step in enumerate(self.learning.descends):
            uses = sum(position in self._moved[part] for part, _ in self.plan.sequence)
            for i, group in _filled_groups(step.optim):
                inputs[f"scalars:{position}:{i}"] = step_scalars(step.optim, group, uses)
        return inputs

    def _source(self, turn: int, columns: Named) -> dict[str, tuple[str, int]]:
        """The inputs of a turn: graph input -> name of the program's input, and index of its entry."""
        part, minibatch = self.plan.sequence[turn]
        before = [earlier for earlier, _ in self.plan.sequence[:turn]]
        found = {name: (name, minibatch) for name in columns}
        found |= {f"noise:{i}": (f"noise:{part}:{i}", before.count(part)) for i in range(len(self._draws[part]))}
        for position in self._moved[part]:
            use = sum(position in self._moved[earlier] for earlier in before)
            for i, _ in _filled_groups(self.learning.descends[position].optim):
                found[f"scalars:{position}:{i}"] = (f"scalars:{position}:{i}", use)
        return found

    def _round(self, turn: int, inputs: Named, entries: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
        """The inputs of one turn.

        Args:
            turn: index of the turn in the plan.
            inputs: inputs of all turns.
            entries: the same, each split along its leading dimension.
        """
        return {
            name: self._joined_rounds(inputs[source]) if entry == WHOLE else entries[source][entry]
            for name, (source, entry) in self._sources[turn].items()
        }

    def _joined_rounds(self, value: Tensor) -> Tensor:
        """A column of all minibatches together, from [rounds, B, ...]."""
        return value.flatten(0, 1)

    def _repeated(self, inputs: Named) -> dict[str, Tensor]:
        """Batch columns and noise of the repeated part, for all rounds."""
        batch = {name: value for name, value in inputs.items() if name.startswith("batch:")}
        return batch | {f"noise:{name[8:]}": value for name, value in inputs.items() if name.startswith("noise:0:")}

    @torch.no_grad()
    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute one update in place.

        Args:
            inputs: from :meth:`inputs`.

        Returns:
            Metrics of the last minibatch, rows of all minibatches, and ``finite``.
        """
        values = self._values()
        hoisted = {} if self._before is None else self._before(values | self._repeated(inputs))
        entries = {name: value.unbind() for name, value in (inputs | hoisted).items()}
        done = [torch.zeros_like(values["ok"], dtype=torch.float32) for _ in self.learning.descends]
        outputs: list[dict[str, Tensor]] = []
        for turn, (part, minibatch) in enumerate(self.plan.sequence):
            now = values | self._round(turn, inputs, entries)
            now |= {name: entries[name][minibatch] for name in hoisted} if part == 0 else {}
            outputs.append(self._parts[part](now))
            for position in self._moved[part]:
                done[position] += outputs[-1].pop(f"done:{position}")
        for position, count in enumerate(done):
            self._count(position, count)
        return _merged(outputs, self.plan.minibatches, self.learning.rows) | {"finite": values["ok"]}


def _filled_groups(optim: torch.optim.Optimizer) -> list[tuple[int, dict[str, Any]]]:
    """The numbered groups of an optimizer that hold parameters; a network without biases leaves one empty."""
    return [(i, group) for i, group in enumerate(optim.param_groups) if group["params"]]


def _per_round(graph: Graph) -> list[str]:
    """Inputs that differ between rounds and are known beforehand."""
    return [name for name in graph.inputs if name.startswith(("batch:", "noise:"))]


def _merged(outputs: list[dict[str, Tensor]], minibatches: int, rows: tuple[str, ...]) -> dict[str, Tensor]:
    """Scalars of the last minibatch, and rows of all of them."""
    last = outputs[minibatches - 1] | outputs[-1]
    metrics = {name: value for name, value in last.items() if not name.startswith("rows:")}
    return metrics | joined_rows(outputs[:minibatches], rows, metrics, prefix="rows:")


def columns_of(batch: TensorDictBase) -> tuple[dict[str, Tensor], Any]:
    """The columns of a batch, and their properties on which a compiled function depends.

    Args:
        batch: transitions.

    Returns:
        ``batch:<key>`` -> column, contiguous, and the columns' names, shapes, types and devices.
    """
    tensors = {key: value for key, value in batch.items(True, True) if isinstance(value, Tensor)}
    columns = {f"batch:{_joined(key)}": value.contiguous() for key, value in tensors.items()}
    return columns, tuple((name, value.shape, value.dtype, value.device) for name, value in columns.items())


def _joined(key: str | tuple[str, ...]) -> str:
    return key if isinstance(key, str) else "/".join(key)


def compiled_runner(program: Program, columns: dict[str, Tensor], options: tuple[Mode, torch.dtype | None]) -> Runner:
    """Compile a program with the given options.

    Args:
        program: not compiled yet.
        columns: an example batch.
        options: mode and ``matmul_dtype`` of :meth:`~torchrl_o2o.updates.Update.compile`.

    Returns:
        What runs.

    Raises:
        O2OSpecError: if a CUDA graph is asked for on another device.
    """
    mode, matmul_dtype = options
    device = next(iter(columns.values())).device
    if mode == "reduce-overhead" and device.type != "cuda":
        raise O2OSpecError(
            f"mode='reduce-overhead' records a CUDA graph, expected a batch on a CUDA device, got {device}; leave mode "
            "out"
        )
    search = {"max_autotune": True} if mode == "max-autotune-no-cudagraphs" else {}
    program.compile(columns, search, matmul_dtype)
    return CudaGraphProgram(program) if mode == "reduce-overhead" else program
