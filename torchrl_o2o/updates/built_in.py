# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What a compiled update has built in, and therefore does not follow when it is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tensordict.nn import TensorDictParams
from torch import nn
from torchrl.objectives import SoftUpdate

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.updates.steps import MoveTargets, Step, descends_of, walk

__all__ = ["built_in", "check_built_in"]

# Entries of a parameter group that are built in; the learning rate and epsilon are inputs of each step.
_OF_GROUPS = ("betas", "weight_decay", "decoupled_weight_decay", "amsgrad", "maximize")


class _Which(NamedTuple):
    """The identities of the objects that a setting consists of, which are not shown in messages."""

    ids: tuple[int, ...]


def built_in(loss: nn.Module, steps: tuple[Step, ...]) -> dict[str, Any]:
    """The settings of an update that are read only when it is compiled.

    Layers of networks are not included: checking them would take as long as a small update.

    Args:
        loss: the loss of the update.
        steps: the steps of the update.

    Returns:
        Description of a setting -> its value, comparable by ``==``.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_gaussian_actor
        >>> from torchrl_o2o.objectives import BCLoss
        >>> from torchrl_o2o.updates import Descend
        >>> loss = BCLoss(make_gaussian_actor(3, 2, hidden_sizes=(8,)))
        >>> found = built_in(loss, (Descend("actor", torch.optim.Adam(loss.parameters())),))
        >>> found["weight_decay of the optimizer of 'actor'"]
        0
    """
    found: dict[str, Any] = {}
    for step in descends_of(steps):
        for index, group in enumerate(step.optim.param_groups):
            whose = f"the optimizer of {step.name!r}" + (f", group {index}" if index else "")
            found[f"the parameters of {whose}"] = _Which(tuple(map(id, group["params"])))
            for name in _OF_GROUPS:
                value = group.get(name)
                found[f"{name} of {whose}"] = tuple(value) if isinstance(value, list) else value
    for step in walk(steps):
        if isinstance(step, MoveTargets) and isinstance(step.updater, SoftUpdate):
            found[f"eps of the SoftUpdate of {step.names or 'all targets'}"] = step.updater.eps
    owner = type(loss).__name__
    found |= {f"{owner}.{name}": value for name, value in _plain(loss)}
    for name, child in loss._modules.items():
        if child is not None and not isinstance(child, TensorDictParams):
            found[f"{owner}.{name}"] = _Which((id(child),))
            found |= {f"{owner}.{name}.{own}": value for own, value in _plain(child)}
    return found


def _plain(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """A module's own settings that are not tensors, without its training mode, which acting may change temporarily."""
    for name, value in vars(module).items():
        if not name.startswith("_") and name != "training" and isinstance(value, bool | int | float | str | None):
            yield name, value


def check_built_in(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise if graphs were compiled with other settings.

    Args:
        before: result of :func:`built_in` when they were compiled.
        now: its result now.

    Raises:
        O2OSpecError: naming a setting that has changed.
    """
    if before == now:
        return
    name = next(name for name in (*before, *now) if before.get(name) != now.get(name))
    values = (before.get(name), now.get(name))
    change = "" if any(isinstance(value, _Which) for value in values) else f" from {values[0]} to {values[1]}"
    raise O2OSpecError(
        f"{name} changed{change} since the update was compiled, and the compiled graphs would go on with what was; "
        "call update.recompile() after such a change, or set it back"
    )
