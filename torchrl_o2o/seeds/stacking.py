# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""N agents' tensors as slices of one, and one elementwise optimizer over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.functional.diagnostics import NonFiniteError, finite_or_raise

__all__ = ["StackedNonFiniteError", "StackedOptimizer", "stack_leaves"]

# Optimizers whose step treats every element by itself; others would mix the agents.
_ELEMENTWISE = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop)


class StackedNonFiniteError(NonFiniteError):
    """A loss or gradient of some of the agents is not finite.

    Args:
        message: what was found.
        agents: the positions of those agents.

    Examples:
        >>> StackedNonFiniteError("not finite", [1]).agents
        [1]
    """

    def __init__(self, message: str, agents: list[int]) -> None:
        super().__init__(message)
        self.agents = agents


@torch.no_grad()
def stack_leaves(agents: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the agents' tensors name by name; the agents' own tensors become views of the result.

    Whatever holds the agents' tensors (modules, losses, optimizers) sees every later change of the stack, and changes
    made in place, such as loading a state, reach the stack.

    Args:
        agents: per agent its tensors by name, of the same names, shapes and types; changed in place.

    Returns:
        By name one leaf of shape [N, ...], which requires a gradient where the agents' tensors do.

    Raises:
        O2OSpecError: if names, shapes or types differ.

    Examples:
        >>> import torch
        >>> nets = [torch.nn.Linear(2, 1) for _ in range(3)]
        >>> leaves = stack_leaves([dict(net.named_parameters()) for net in nets])
        >>> leaves["weight"].shape
        torch.Size([3, 1, 2])
        >>> _ = leaves["bias"].data[1].fill_(7.0)
        >>> nets[1].bias.item()
        7.0
    """
    kinds = [{name: (value.shape, value.dtype, value.device) for name, value in agent.items()} for agent in agents]
    for position, kind in enumerate(kinds):
        if kind != kinds[0]:
            differing = sorted(name for name in kind.keys() | kinds[0].keys() if kind.get(name) != kinds[0].get(name))
            raise O2OSpecError(
                f"agent {position} differs from agent 0 in {', '.join(differing)}; stack agents built from one "
                "configuration, that differ in nothing but the seed"
            )
    leaves: dict[str, Tensor] = {}
    for name, first in agents[0].items():
        leaf = torch.stack([agent[name].detach() for agent in agents])
        for agent, view in zip(agents, leaf, strict=True):
            agent[name].data = view
        leaves[name] = leaf.requires_grad_(first.requires_grad)
    return leaves


class StackedOptimizer:
    """One optimizer over stacked leaves in the place of N equal ones.

    The agents' optimizers keep their places in checkpoints: :meth:`share` hands them their slices of the state,
    :meth:`adopt` takes over what they have loaded.

    Args:
        agents: per agent its optimizer, of equal settings: Adam, AdamW, SGD or RMSprop.
        leaves: the stacked leaves of which all their parameters are slices.

    Raises:
        O2OSpecError: if the optimizers differ, are none of those, or have other parameters.

    Examples:
        >>> import torch
        >>> nets = [torch.nn.Linear(2, 1) for _ in range(3)]
        >>> leaves = stack_leaves([dict(net.named_parameters()) for net in nets])
        >>> single = [torch.optim.Adam(net.parameters(), lr=0.1) for net in nets]
        >>> optim = StackedOptimizer(single, leaves.values())
        >>> before = nets[2].bias.item()
        >>> optim.descend(leaves["bias"].squeeze(-1) * torch.tensor([1.0, 2.0, -3.0]), "loss")
        >>> round(nets[2].bias.item() - before, 3)
        0.1
    """

    def __init__(self, agents: Sequence[torch.optim.Optimizer], leaves: Iterable[Tensor]) -> None:
        first = agents[0]
        if type(first) not in _ELEMENTWISE:
            known = ", ".join(kind.__name__ for kind in _ELEMENTWISE)
            raise O2OSpecError(f"got {type(first).__name__}, expected an optimizer that works elementwise: {known}")
        settings = [[type(agent), *map(_options, agent.param_groups)] for agent in agents]
        if any(other != settings[0] for other in settings):
            raise O2OSpecError("the agents' optimizers have different settings; one optimizer steps all of them")
        owners = {leaf.untyped_storage().data_ptr(): leaf for leaf in leaves}
        groups = []
        for group in first.param_groups:
            try:
                groups.append({"params": [owners[param.untyped_storage().data_ptr()] for param in group["params"]]})
            except KeyError as error:
                raise O2OSpecError("an optimizer has a parameter that is no slice of the leaves given") from error
        self.agents = list(agents)
        #: The optimizer that steps.
        self.optim = type(first)(groups, lr=first.defaults["lr"])  # pyright: ignore[reportCallIssue]
        for stacked, group in zip(self.optim.param_groups, first.param_groups, strict=True):
            stacked.update(_options(group))

    def _slices(self) -> list[tuple[Tensor, list[Tensor]]]:
        """Each stacked leaf with the agents' parameters."""
        stacked = [leaf for group in self.optim.param_groups for leaf in group["params"]]
        single = [[param for group in agent.param_groups for param in group["params"]] for agent in self.agents]
        return [(leaf, list(params)) for leaf, *params in zip(stacked, *single, strict=True)]

    def descend(self, losses: Tensor, name: str) -> None:
        """One step of gradient descent for all agents, refused if a loss or gradient of any is not finite.

        Args:
            losses: one per agent, shape [N].
            name: what the losses are called in the error.

        Raises:
            StackedNonFiniteError: naming what is not finite, and whose; no agent's parameters are changed.
        """
        self.optim.zero_grad()
        losses.sum().backward()
        gradients = [leaf.grad for leaf, _ in self._slices()]
        named = {f"{name}.gradient{index}": gradient for index, gradient in enumerate(gradients)}
        try:
            finite_or_raise({name: losses} | named)
        except NonFiniteError as error:
            rows = [value.detach().flatten(1) for value in (losses.unsqueeze(-1), *gradients) if value is not None]
            bad = ~torch.cat(rows, 1).isfinite().all(1)
            raise StackedNonFiniteError(str(error), bad.nonzero().flatten().tolist()) from error
        self.optim.step()

    def share(self) -> None:
        """Let the agents' optimizers hold their slices of the state, so that their ``state_dict()`` is a single
        run's."""
        for leaf, params in self._slices():
            state = self.optim.state.get(leaf)
            for position, (agent, param) in enumerate(zip(self.agents, params, strict=True)):
                if state:
                    agent.state[param] = {
                        key: value if key == "step" or not isinstance(value, Tensor) else value[position]
                        for key, value in state.items()
                    }

    def adopt(self) -> None:
        """Take over the settings and states that the agents' optimizers have loaded.

        Raises:
            O2OCheckpointError: if the agents have taken different numbers of steps.
        """
        for stacked, group in zip(self.optim.param_groups, self.agents[0].param_groups, strict=True):
            stacked.update(_options(group))
        for leaf, params in self._slices():
            states = [agent.state.get(param, {}) for agent, param in zip(self.agents, params, strict=True)]
            steps = {float(state.get("step", 0.0)) for state in states}
            if len(steps) > 1:
                raise O2OCheckpointError(
                    f"the agents' optimizers have taken {sorted(steps)} steps, expected equal numbers; restore "
                    "checkpoints of one step"
                )
            self.optim.state.pop(leaf, None)
            if all(states):
                self.optim.state[leaf] = {key: _merged(key, [state[key] for state in states]) for key in states[0]}


def _merged(key: str, values: list[Any]) -> Any:
    if not isinstance(values[0], Tensor):
        return values[0]
    return values[0].clone() if key == "step" else torch.stack(values)  # cloned: a loaded state may be another's


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}
