# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The updates of N agents as one: the graphs of a single agent's update, vectorized over a leading dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives.noise import NoiseSource
from torchrl_o2o.updates.adam import count_steps
from torchrl_o2o.updates.graph import Named, over_leading_dim
from torchrl_o2o.updates.program import Captured, Program
from torchrl_o2o.updates.update import CompiledUpdate, Mode, Runner, build, columns_of

__all__ = ["StackedUpdate", "stack_updates"]


def stack_updates(updates: Sequence[CompiledUpdate]) -> StackedUpdate:
    """Make one compiled update of N agents' that differ in nothing but their numbers.

    The graphs that one agent's update is captured as are vectorized over the agents (``torch.func.vmap``) and compiled
    once: any loss that :func:`~torchrl_o2o.updates.compile_update` takes can be stacked. Parameters, targets and the
    optimizers' moments of the agents become slices of common tensors at the first call; each agent's loss, actor,
    optimizers and ``state_dict()`` stay usable, and what is loaded into them is followed. Never replace a parameter's
    ``.data`` afterwards.

    Each agent draws from its own ``loss.noise``, in the order of its own update. Give the losses generators of their
    own (:class:`~torchrl_o2o.objectives.noise.GeneratorNoise`) and every agent's numbers are those of its single run up
    to rounding.

    Args:
        updates: of :func:`~torchrl_o2o.updates.compile_update`, one per agent, with the same settings.

    Returns:
        A function of batches [N, utd_ratio * B].

    Raises:
        O2OSpecError: if there is none, they have different settings, or are not compiled.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.updates import compile_update
        >>> from torchrl_o2o.modules import make_gaussian_actor
        >>> from torchrl_o2o.objectives import BCLoss
        >>> losses = [BCLoss(make_gaussian_actor(3, 2, hidden_sizes=(8,))) for _ in range(3)]
        >>> updates = [compile_update(loss, {"actor": torch.optim.Adam(loss.parameters())}) for loss in losses]
        >>> stack_updates(updates).num_agents
        3
    """
    return StackedUpdate(updates)


class StackedUpdate:
    """What :func:`stack_updates` returns: call it on batches.

    Args:
        updates: one per agent.
    """

    def __init__(self, updates: Sequence[CompiledUpdate]) -> None:
        if not updates:
            raise O2OSpecError("got no updates to stack, expected one per agent")
        settings = [_settings(update) for update in updates]
        differing = sorted({name for one in settings for name in one if one[name] != settings[0][name]})
        mode = updates[0].mode
        if differing or mode is None:
            found = f"updates that differ in {', '.join(differing)}" if differing else "updates with compile=False"
            raise O2OSpecError(f"got {found}, expected compiled ones of one configuration")
        self._mode: Mode = mode
        self._updates = list(updates)
        self._programs: dict[Any, tuple[Program, Runner]] = {}

    @property
    def num_agents(self) -> int:
        """N."""
        return len(self._updates)

    def __call__(self, batches: TensorDictBase) -> dict[str, Tensor]:
        """Do one update of every agent.

        Args:
            batches: transitions, shape [N, utd_ratio * B]; row i is agent i's. Not modified. A new shape compiles anew.

        Returns:
            What :func:`~torchrl_o2o.updates.compile_update` returns, each entry with a leading dimension N. An agent
            whose ``finite`` is false stays as it was before that step; the others are not touched by it.

        Raises:
            O2OSpecError: if the batches have another shape, or the agents' tensors differ in shape or type.
        """
        rounds = self._updates[0].rounds
        if batches.ndim != 2 or len(batches) != self.num_agents or not batches.shape[1] or batches.shape[1] % rounds:
            raise O2OSpecError(
                f"got batches of shape {list(batches.shape)}, expected [{self.num_agents}, n], n a multiple of {rounds}"
            )
        columns, signature = columns_of(batches)
        if signature not in self._programs:
            self._programs[signature] = self._build(columns)
        program, runner = self._programs[signature]
        return runner.run(program.inputs(columns))

    def _build(self, columns: dict[str, Tensor]) -> tuple[Program, Runner]:
        first = self._updates[0]
        programs = [
            Program(update.learning, update.parts, update.rounds, {name: value[i] for name, value in columns.items()})
            for i, update in enumerate(self._updates)
        ]
        return build(StackedProgram(programs), columns, self._mode, first.matmul_dtype)

    def recompile(self) -> None:
        """Forget what was compiled, after a change of something that is not a tensor."""
        self._programs.clear()


class StackedProgram(Program):
    """N programs that differ in nothing but their tensors, as one.

    Args:
        programs: one per agent.
    """

    def __init__(self, programs: Sequence[Program]) -> None:
        first = programs[0]
        self.programs = list(programs)
        self.learning, self.parts, self.rounds = first.learning, first.parts, first.rounds
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
            The agents' inputs, stacked behind the rounds, so that those of a round lie together.
        """
        each = [
            program.inputs({name: value[i] for name, value in columns.items()}, noise)
            for i, program in enumerate(self.programs)
        ]
        return {name: torch.stack([one[name] for one in each], 1) for name in each[0]}

    def _values(self) -> dict[str, Tensor]:
        """See :meth:`Program._values`; tensors that are no slices of one are made so."""
        agents = [program.tensors() for program in self.programs]
        bound = _pointers(agents)
        if bound != self._bound:  # at first, and after an agent's optimizer has loaded a state
            self._whole = {name: _joined(name, [tensors[name] for tensors in agents]) for name in agents[0]}
            self._bound = _pointers(agents)
        device = next(iter(self._whole.values())).device
        return self._whole | {"ok": torch.ones(len(self.programs), dtype=torch.bool, device=device)}

    def _count(self, name: str, steps: Tensor) -> None:
        for program, done in zip(self.programs, steps, strict=True):
            count_steps(program.learning.optims[name], done)


def _pointers(agents: Sequence[Named]) -> tuple[int, ...]:
    return tuple(value.data_ptr() for tensors in agents for value in tensors.values())


def _joined(name: str, agents: Sequence[Tensor]) -> Tensor:
    """One tensor of which the agents' are the slices: the one they are slices of already, or a new one."""
    tensors = [tensor.detach() for tensor in agents]
    first = tensors[0]
    if len({(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors}) > 1:
        shapes = ", ".join(sorted({f"{list(tensor.shape)} {tensor.dtype}" for tensor in tensors}))
        raise O2OSpecError(f"the agents' {name.partition(':')[2]} differ: {shapes}; stack agents of one configuration")
    step = first.numel() * first.element_size()
    adjacent = all(tensor.data_ptr() == first.data_ptr() + i * step for i, tensor in enumerate(tensors))
    one_storage = len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    if adjacent and one_storage and all(tensor.is_contiguous() for tensor in tensors):
        return first.as_strided((len(tensors), *first.shape), (first.numel(), *first.stride()))
    whole = torch.stack(tensors)
    for tensor, view in zip(agents, whole, strict=True):
        tensor.data = view
    return whole


def _settings(update: CompiledUpdate) -> dict[str, Any]:
    learning = update.learning
    optims = {
        name: (type(optim), [{k: v for k, v in group.items() if k != "params"} for group in optim.param_groups])
        for name, optim in learning.optims.items()
    }
    return {
        "their losses": type(learning.loss),
        "optimizers": optims,
        "target updates": (learning.pairs, learning.tau),
        "max_grad_norm": dict(learning.max_grad_norm),
        "order or utd_ratio": (update.parts, update.rounds),
        "mode": update.mode,
        "matmul_dtype": update.matmul_dtype,
    }
