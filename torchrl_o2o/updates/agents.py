# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Updates of several agents, one after the other or as one compiled update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.modules.input_checks import described_layers
from torchrl_o2o.updates.built_in import built_in
from torchrl_o2o.updates.program import Mode, Program, Runner, columns_of, compiled_runner
from torchrl_o2o.updates.pure import learning_of
from torchrl_o2o.updates.stacked import StackedProgram
from torchrl_o2o.updates.state import state_of
from torchrl_o2o.updates.steps import MoveTargets, descends_of, walk

if TYPE_CHECKING:
    from torchrl_o2o.updates.update import Update

__all__ = ["StackedNonFiniteError", "StackedUpdate"]


class StackedNonFiniteError(NonFiniteError):
    """A loss or gradient of some of the agents is not finite.

    Args:
        message: the message.
        agents: the positions of those agents.

    Examples:
        >>> StackedNonFiniteError("not finite", [1]).agents
        [1]
    """

    def __init__(self, message: str, agents: list[int]) -> None:
        super().__init__(message)
        self.agents = agents


class StackedUpdate:
    """One update of each of N agents with the same configuration.

    Eagerly, it makes one agent's update after the other. If the updates are compiled, it is one compiled update: the
    captured graphs of a single agent are vectorized over the agents (``torch.func.vmap``), so every loss that compiles
    can be stacked. At the first call, the agents' parameters, targets and optimizer moments become slices of common
    tensors. Each agent's loss, actor, optimizers and ``state_dict()`` stay usable, and states can be loaded into them.
    Never replace a parameter's ``.data`` afterwards.

    Each agent draws from its own ``loss.noise``, in the order of its own update. With a separate generator for each
    loss (:class:`~torchrl_o2o.functional.noise.GeneratorNoise`), every agent's numbers equal those of its single run up
    to rounding.

    Args:
        updates: one per agent, with the same settings.

    Raises:
        O2OSpecError: if it is no list, there are no updates, they have different settings, or they share parameters.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_gaussian_actor
        >>> from torchrl_o2o.objectives import BCLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.updates import Descend, Update
        >>> losses = [BCLoss(make_gaussian_actor(3, 2, hidden_sizes=(8,))) for _ in range(3)]
        >>> optims = [torch.optim.Adam(loss.parameters()) for loss in losses]
        >>> updates = [Update(loss, Descend("actor", optim)) for loss, optim in zip(losses, optims)]
        >>> stacked = Update.stack(updates)
        >>> stacked(torch.stack([random_transitions(16, 3, 2) for _ in range(3)]))["loss_actor"].shape
        torch.Size([3])
    """

    def __init__(self, updates: Sequence[Update]) -> None:
        if not isinstance(updates, Sequence):
            raise O2OSpecError(
                f"got {type(updates).__name__} to stack, expected a list of updates, one per agent; pass [update]"
            )
        if not updates:
            raise O2OSpecError("got no updates to stack, expected one per agent")
        owners = Counter(id(param) for update in updates for param in update.loss.parameters())
        if max(owners.values(), default=1) > 1:
            raise O2OSpecError(
                "got updates that share parameters, expected separate ones for each agent; build a separate loss for "
                "each agent"
            )
        if len({type(update.loss) for update in updates}) > 1:
            raise O2OSpecError("got updates that differ in their losses, expected one configuration; build all alike")
        settings = [_settings(update) for update in updates]
        differing = sorted({name for one in settings for name in one if one[name] != settings[0].get(name)})
        if differing:
            raise O2OSpecError(
                f"got updates that differ in {', '.join(differing)}, expected one configuration; build all updates "
                "alike"
            )
        self.updates = list(updates)
        self._programs: dict[Any, Runner] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The state for pickling and copying, without compiled graphs, which are bound to these tensors."""
        return {**self.__dict__, "_programs": {}}

    @property
    def num_agents(self) -> int:
        """N."""
        return len(self.updates)

    @property
    def num_minibatches(self) -> int:
        """Minibatches per call and agent."""
        return self.updates[0].num_minibatches

    def compile(self, *, mode: Mode = "default", matmul_dtype: torch.dtype | None = None) -> StackedUpdate:
        """Compute the same numbers with compiled graphs from now on; see :meth:`Update.compile`.

        Args:
            mode: see there.
            matmul_dtype: see there.

        Returns:
            This update.
        """
        for update in self.updates:
            update.compile(mode=mode, matmul_dtype=matmul_dtype)
        self.recompile()
        return self

    def recompile(self) -> None:
        """Discard compiled graphs, after a change of something that is not a tensor."""
        self._programs.clear()
        for update in self.updates:
            update.recompile()

    def __call__(self, batches: TensorDictBase) -> dict[str, Tensor]:
        """Make one update of every agent.

        Args:
            batches: transitions, shape [N, number of minibatches * B]; row i is agent i's. Not modified. A compiled
                update compiles again for a new shape.

        Returns:
            The result of :class:`Update`, each entry with a leading dimension N. An agent whose ``finite`` is false is
            unchanged since before that step. The other agents are not affected.

        Raises:
            O2OSpecError: if the batches have another shape, or the agents' tensors differ in shape or type. Of compiled
                agents also if a setting changed, or some are at another turn of an ``Every``.
            StackedNonFiniteError: if something is not finite, unless the updates have ``check_finite=False``.
        """
        rounds = self.num_minibatches
        if batches.ndim != 2 or len(batches) != self.num_agents or not batches.shape[1] or batches.shape[1] % rounds:
            raise O2OSpecError(
                f"got batches of shape {list(batches.shape)}, expected [{self.num_agents}, n], n a multiple of {rounds}"
            )
        options = self.updates[0].options
        metrics = self._one_by_one(batches) if options is None else self._compiled(batches, options)
        if self.updates[0].check_finite and not metrics["finite"].all():
            agents = (~metrics["finite"]).nonzero().flatten().tolist()
            raise StackedNonFiniteError(f"not finite: a loss or a gradient of the agents {agents}", agents)
        return metrics

    def _one_by_one(self, batches: TensorDictBase) -> dict[str, Tensor]:
        each = [update.attempt(batch)[0] for update, batch in zip(self.updates, batches.unbind(0), strict=True)]
        shared = set.intersection(*(set(metrics) for metrics in each))  # an agent that stopped early has fewer metrics
        return {name: torch.stack([metrics[name] for metrics in each]) for name in each[0] if name in shared}

    def _compiled(self, batches: TensorDictBase, options: tuple[Mode, torch.dtype | None]) -> dict[str, Tensor]:
        for update in self.updates:
            update.check_built_in()
        turns = [update.turns for update in self.updates]
        if len(set(turns)) > 1:
            raise O2OSpecError(
                f"got agents at different turns of their steps with Every, {turns}, expected the same turn, because "
                "all make the same steps; load states that were saved at one step"
            )
        columns, signature = columns_of(batches)
        plans = [update.plan() for update in self.updates]
        if (signature, plans[0]) not in self._programs:
            programs = [
                Program(
                    learning_of(update.loss, plan, update.rows),
                    plan,
                    {name: value[i] for name, value in columns.items()},
                )
                for i, (update, plan) in enumerate(zip(self.updates, plans, strict=True))
            ]
            self._programs[signature, plans[0]] = compiled_runner(StackedProgram(programs), columns, options)
        runner = self._programs[signature, plans[0]]
        return runner.run(runner.inputs(columns))


def _settings(update: Update) -> dict[str, Any]:
    names = {id(value): name for name, value in state_of(update.loss).items()}
    optims = [
        (type(step.optim), [_of_group(group, names) for group in step.optim.param_groups])
        for step in descends_of(update.steps)
    ]
    moving = [step.updater for step in walk(update.steps) if isinstance(step, MoveTargets)]
    updaters = [(type(each), getattr(each, "eps", None)) for each in moving]
    return {
        "optimizers": optims,
        "target updates": updaters,
        "order or clip_grad_norm": repr(update),
        "rows": update.rows,
        "check_finite": update.check_finite,
        "mode or matmul_dtype": update.options,
        **{each.name: each.value for each in built_in(update.loss, ()) if each.shown},
        **_layers(update.loss),
    }


def _of_group(group: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """The settings of a group of parameters, which stand in it by their names in the loss."""
    return {**group, "params": sorted(names.get(id(param), "") for param in group["params"])}


def _layers(loss: nn.Module) -> dict[str, Any]:
    """The layers of a loss's networks, with their plain settings: one agent's graph computes all agents."""
    networks = {name: value for name, value in vars(loss).items() if isinstance(value, nn.Module)}
    return {f"the layers of {name}": list(described_layers(network)) for name, network in networks.items()}
