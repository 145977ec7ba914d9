# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One update for batches of one shape: what is drawn and prepared outside, and the graphs that compute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._inductor.runtime.cache_dir_utils import cache_dir

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives.noise import NoiseSource
from torchrl_o2o.updates.adam import count_steps, moments_of, step_scalars
from torchrl_o2o.updates.draws import Draw, DrawFinder
from torchrl_o2o.updates.graph import Graph, Named, capture, hoist, over_leading_dim
from torchrl_o2o.updates.precision import lower_products
from torchrl_o2o.updates.state import state_of
from torchrl_o2o.updates.steps import Learning, Part, call_loss, minibatch_of, run_part, trained

__all__ = ["Program"]

_LOG = logging.getLogger(__name__)
Execute = Callable[[dict[str, Tensor]], dict[str, Tensor]]
#: A graph and example inputs.
Captured = tuple[Graph, dict[str, Tensor]]


class Program:
    """An update for batches of one shape.

    Args:
        learning: what is trained.
        parts: the part done on each minibatch, then perhaps one done once on the last minibatch.
        rounds: number of minibatches G.
        columns: a batch, ``batch:<key>`` -> [G * B, ...].
    """

    def __init__(self, learning: Learning, parts: tuple[Part, ...], rounds: int, columns: Named) -> None:
        self.learning, self.parts, self.rounds = learning, parts, rounds
        self._state = {f"state:{name}": value for name, value in state_of(learning.loss).items()}
        self._trained = {name: trained(learning, name) for part in parts for name in part.losses}
        minibatch = {name: value[: len(value) // rounds] for name, value in columns.items()}
        self._draws = [self._find_draws(part, minibatch) for part in parts]
        self._before: Execute | None = None
        self._parts: list[Execute] = [self._eager(part) for part in parts]

    @torch.no_grad()
    def compile(self, columns: Named, options: dict[str, Any], matmul_dtype: torch.dtype | None = None) -> None:
        """Capture the parts as graphs, take out of the repeated one what can be done beforehand, and compile all.

        Args:
            columns: an example batch.
            options: inductor's.
            matmul_dtype: type of the products of wide matrices; ``None`` (default) leaves them as they are.
        """
        loss = type(self.learning.loss).__name__
        _LOG.info(
            "compiling the update of %s: half a minute on an idle core, seconds where %s has it from before",
            loss,
            cache_dir(),
        )
        began = time.perf_counter()

        def finished(graph: Graph, example: Named) -> Execute:
            if matmul_dtype is not None:
                lower_products(graph.module.graph, matmul_dtype)
            return graph.executable(lambda module, inputs: torch._inductor.compile(module, inputs, options), example)

        before, parts = self.capture(columns)
        self._before = None if before is None else finished(*self._all_rounds(before))
        self._parts = [finished(*part) for part in parts]
        _LOG.info("compiled the update of %s in %.1f s", loss, time.perf_counter() - began)

    def capture(self, columns: Named, *, decompose: bool = True) -> tuple[Captured | None, list[Captured]]:
        """The parts as graphs of one round, with what the first one can do beforehand in a graph of its own.

        Args:
            columns: an example batch.
            decompose: see :func:`~torchrl_o2o.updates.capture`.

        Returns:
            What is done beforehand, if there is anything, and the parts, each with example inputs.
        """
        values, inputs = self._values(), self.inputs(columns, DrawFinder())
        parts: list[Captured] = []
        for index, part in enumerate(self.parts):
            example = values | self._round(index, 0, inputs)
            graph = capture(lambda now, part=part: run_part(self.learning, part, now), example, decompose=decompose)
            self._check_constants(graph)
            parts.append((graph, example))
        if self.rounds == 1:
            return None, parts
        graph, example = parts[0]
        outside = [name for name in graph.inputs if name.startswith("scalars:") or name == "ok"]
        before, rest = hoist(graph, _per_round(graph), outside)
        if before is None:
            return None, parts
        results = before.executable(lambda module, _: module, example)(example)
        return (before, example), [(rest, example | results), *parts[1:]]

    def _all_rounds(self, before: Captured) -> Captured:
        """What is done beforehand, for all rounds in one pass."""
        graph, example = before
        mapped = _per_round(graph)
        stacked = {name: value.expand(self.rounds, *value.shape).clone() for name, value in example.items()}
        example = example | {name: stacked[name] for name in mapped}
        return over_leading_dim(graph, example, mapped), example

    def _check_constants(self, graph: Graph) -> None:
        """Refuse a graph that would go on computing with what a parameter was when it was captured."""
        own = {value.data_ptr(): name for name, value in self._state.items()}
        for node in graph.module.graph.find_nodes(op="get_attr"):
            name = own.get(getattr(graph.module, str(node.target)).data_ptr())
            if name is not None:
                raise O2OSpecError(
                    f"{type(self.learning.loss).__name__} reads {name!r} past its registered modules, where a compiled "
                    "update cannot follow; register the object that holds it, or use compile=False"
                )

    def _eager(self, part: Part) -> Execute:
        def execute(values: dict[str, Tensor]) -> dict[str, Tensor]:
            outputs, changed = run_part(self.learning, part, values)
            for name, value in changed.items():
                values[name].copy_(value)
            return outputs

        return execute

    def _find_draws(self, part: Part, columns: Named) -> list[Draw]:
        """Which random numbers a part asks for, in order."""
        loss, finder, known = self.learning.loss, DrawFinder(), {}
        noise, loss.noise = loss.noise, finder
        try:
            for name in part.losses:
                known |= call_loss(loss, name, minibatch_of(columns), known)[1]
        finally:
            loss.noise = noise
        return finder.draws

    def _count(self, name: str, steps: Tensor) -> None:
        count_steps(self.learning.optims[name], steps)

    def _repeats(self, index: int) -> int:
        return 1 if index else self.rounds

    def tensors(self) -> dict[str, Tensor]:
        """The loss's tensors and the optimizers' moments by name, themselves."""
        values = dict(self._state)
        for name, params in self._trained.items():
            for key, (param, _) in params.items():
                state = moments_of(self.learning.optims[name], param)
                values[f"exp_avg:{key}"], values[f"exp_avg_sq:{key}"] = state["exp_avg"], state["exp_avg_sq"]
        return values

    def pointers(self) -> tuple[int, ...]:
        """Where all tensors lie that the update reads or writes besides its inputs; a CUDA graph is bound to them."""
        return tuple(value.data_ptr() for value in self._values().values())[:-1]

    def _values(self) -> dict[str, Tensor]:
        """The loss's and the optimizers' own tensors by name, and whether everything is finite so far, last."""
        values = {name: value.detach() for name, value in self.tensors().items()}
        device = next(iter(values.values())).device
        return values | {"ok": torch.ones((), dtype=torch.bool, device=device)}

    def inputs(self, columns: Named, noise: NoiseSource | None = None) -> dict[str, Tensor]:
        """What is made outside the graphs: all random numbers, drawn minibatch by minibatch, and the step sizes.

        Args:
            columns: a batch.
            noise: where the numbers come from; ``None`` (default) is the loss's own source.

        Returns:
            ``batch:<key>``, ``noise:<part>:<i>`` and ``scalars:<loss>:<group>`` with one leading entry per round.
        """
        noise = self.learning.loss.noise if noise is None else noise
        inputs = {name: value.unflatten(0, (self.rounds, -1)) for name, value in columns.items()}
        for index, (part, draws) in enumerate(zip(self.parts, self._draws, strict=True)):
            drawn = [[draw.take(noise) for draw in draws] for _ in range(self._repeats(index))]
            inputs |= {f"noise:{index}:{i}": torch.stack(each) for i, each in enumerate(zip(*drawn, strict=True))}
            for name in part.losses:
                optim = self.learning.optims[name]
                for i, group in enumerate(optim.param_groups):
                    inputs[f"scalars:{name}:{i}"] = step_scalars(optim, group, self._repeats(index))
        return inputs

    def _round(self, index: int, at: int, inputs: Named) -> dict[str, Tensor]:
        """One round's share of the inputs, by the names the graphs have for them."""
        now = {name: value[-1 if index else at] for name, value in inputs.items() if name.startswith("batch:")}
        prefix = f"noise:{index}:"
        drawn = {name.removeprefix(prefix): value for name, value in inputs.items() if name.startswith(prefix)}
        now |= {f"noise:{name}": value[at] for name, value in drawn.items()}
        for loss in self.parts[index].losses:
            for i in range(len(self.learning.optims[loss].param_groups)):
                now[f"scalars:{loss}:{i}"] = inputs[f"scalars:{loss}:{i}"][at]
        return now

    def _repeated(self, inputs: Named) -> dict[str, Tensor]:
        """The repeated part's batch columns and noise for all rounds."""
        batch = {name: value for name, value in inputs.items() if name.startswith("batch:")}
        return batch | {f"noise:{name[8:]}": value for name, value in inputs.items() if name.startswith("noise:0:")}

    @torch.no_grad()
    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute one update in place.

        Args:
            inputs: from :meth:`inputs`.

        Returns:
            Metrics of the last round, rows of all rounds, and ``finite``.
        """
        values = self._values()
        hoisted = {} if self._before is None else self._before(values | self._repeated(inputs))
        metrics: dict[str, Tensor] = {}
        for index, execute in enumerate(self._parts):
            done, outputs = torch.zeros_like(values["ok"], dtype=torch.float32), []
            for at in range(self._repeats(index)):
                now = values | self._round(index, at, inputs)
                now |= {name: value[at] for name, value in hoisted.items()} if index == 0 else {}
                outputs.append(execute(now))
                done += values["ok"]
            metrics |= _merged(outputs)
            for name in self.parts[index].losses:
                self._count(name, done)
        return metrics | {"finite": values["ok"]}


def _per_round(graph: Graph) -> list[str]:
    """Inputs that differ from round to round and are known before the first."""
    return [name for name in graph.inputs if name.startswith(("batch:", "noise:"))]


def _merged(rounds: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    rows = {name: torch.cat([each[name] for each in rounds], -1) for name in rounds[-1] if name.startswith("rows:")}
    return {name.removeprefix("rows:"): value for name, value in (rounds[-1] | rows).items()}
