# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The settings that are built into a compiled update, whose changes it does not follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from tensordict.nn import TensorDictParams
from torch import nn
from torch.optim import Optimizer
from torchrl.objectives import SoftUpdate
from torchrl.objectives.common import LossModule
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives.base import TransitionLoss
from torchrl_o2o.objectives.samg import SAMGEstimator
from torchrl_o2o.updates.adam import hooks_of
from torchrl_o2o.updates.steps import MoveTargets, Step, descends_of, walk

__all__ = ["Setting", "built_in", "check_built_in"]

# Entries of a parameter group that are built in; the learning rate and epsilon are inputs of each step.
_OF_GROUPS = ("betas", "weight_decay", "decoupled_weight_decay", "amsgrad", "maximize")


class Setting(NamedTuple):
    """The value of a setting when graphs were compiled, and a function that reads its current value.

    Args:
        name: its name in messages.
        read: returns its current value; called in every update, so it must be fast.
        value: result of ``read`` when the graphs were compiled.
        shown: whether a message can show values; the identities of objects say nothing to a reader.
    """

    name: str
    read: Callable[[], Any]
    value: Any
    shown: bool = True


def built_in(loss: nn.Module, steps: tuple[Step, ...]) -> tuple[Setting, ...]:
    """The settings of an update that are read only when it is compiled.

    Layers of networks are not included: checking them would take as long as a small update.

    Args:
        loss: the loss of the update.
        steps: the steps of the update.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_gaussian_actor
        >>> from torchrl_o2o.objectives import BCLoss
        >>> from torchrl_o2o.updates import Descend
        >>> loss = BCLoss(make_gaussian_actor(3, 2, hidden_sizes=(8,)))
        >>> found = built_in(loss, (Descend("actor", torch.optim.Adam(loss.parameters())),))
        >>> [setting.value for setting in found if setting.name == "weight_decay of the optimizer of 'actor'"]
        [0]
    """
    found: list[Setting] = []
    for step in descends_of(steps):
        found += _of_optimizer(step.optim, f"the optimizer of {step.name!r}")
    for step in walk(steps):
        if isinstance(step, MoveTargets) and isinstance(step.updater, SoftUpdate):
            what = f"eps of the SoftUpdate of {step.names or 'all targets'}"
            found.append(_setting(what, partial(getattr, step.updater, "eps")))
    owner = type(loss).__name__
    found += _plain(loss, owner)
    found += _named(loss, owner)
    found += _tensors(loss, owner)
    for name, child in loss._modules.items():
        if child is not None and not isinstance(child, TensorDictParams):
            found.append(_setting(f"{owner}.{name}", partial(loss._modules.get, name), shown=False))
            found += _plain(child, f"{owner}.{name}")
            found += _named(child, f"{owner}.{name}")
    return tuple(found)


def _tensors(module: nn.Module, owner: str) -> Iterator[Setting]:
    """Which tensors a module and its children hold: the graphs read those, also if others take their place.

    Networks' parameters are changed in place, also by ``load_state_dict(assign=True)``; other tensors it replaces.
    """
    if module._parameters or module._buffers:
        yield _setting(f"a tensor of {owner}", partial(_held, module), shown=False)
    for name, child in module._modules.items():
        if child is not None and not isinstance(child, TensorDictParams):
            yield from _tensors(child, f"{owner}.{name}")


def _held(module: nn.Module) -> list[int]:
    return [id(value) for own in (module._parameters, module._buffers) for value in own.values()]


def _setting(name: str, read: Callable[[], Any], *, shown: bool = True) -> Setting:
    return Setting(name, read, read(), shown)


def _of_optimizer(optim: Optimizer, whose: str) -> Iterator[Setting]:
    """Settings are read through the optimizer, whose ``load_state_dict`` replaces the groups; their number is first."""
    yield _setting(f"the number of groups of {whose}", lambda: len(optim.param_groups))
    yield _setting(f"the number of hooks of {whose}", partial(hooks_of, optim))
    for index, group in enumerate(optim.param_groups):
        of_group = whose + (f", group {index}" if index else "")
        yield _setting(f"the parameters of {of_group}", partial(_parameters, optim, index), shown=False)
        for name in _OF_GROUPS:
            if name in group:
                yield _setting(f"{name} of {of_group}", partial(_entry, optim, index, name))


def _parameters(optim: Optimizer, index: int) -> list[int]:
    return [id(parameter) for parameter in optim.param_groups[index]["params"]]


def _entry(optim: Optimizer, index: int, name: str) -> Any:
    value = optim.param_groups[index].get(name)
    return tuple(value) if isinstance(value, list) else value


def _plain(module: nn.Module, owner: str) -> Iterator[Setting]:
    """A module's own settings that are not tensors, without its training mode, which acting may change temporarily."""
    own = vars(module)
    for name, value in own.items():
        if not name.startswith("_") and name != "training" and _is_plain(value):
            yield _setting(f"{owner}.{name}", partial(own.get, name))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):  # for example two bounds
        return all(_is_plain(each) for each in value)
    return isinstance(value, bool | int | float | str | None)


def _named(module: nn.Module, owner: str) -> Iterator[Setting]:
    """The settings that a module keeps under other names: those of a loss, and the names of the entries it reads."""
    if isinstance(module, TransitionLoss):
        for name in ("reduction", "deactivate_vmap", "vmap_randomness"):
            yield _setting(f"{owner}.{name}", partial(getattr, module, name))
    if isinstance(module, LossModule | ValueEstimatorBase):
        keys = module.tensor_keys  # set_keys changes this object
        for name in vars(keys):
            yield _setting(f"the key {name!r} of {owner}", partial(getattr, keys, name))
    if isinstance(module, SAMGEstimator):
        yield _setting(f"whether {owner} guides", partial(_guides, module, built=module.guides))


def _guides(estimator: SAMGEstimator, *, built: bool) -> bool:
    """Graphs with guidance follow its weight to zero, but graphs without it hold no frozen critic."""
    return built or estimator.guides


def check_built_in(settings: Iterable[Setting]) -> None:
    """Raise if settings have changed since graphs were compiled.

    Args:
        settings: result of :func:`built_in` when they were compiled.

    Raises:
        O2OSpecError: if a setting has changed; the message names it.
    """
    for name, read, before, shown in settings:
        now = read()
        if now is not before and now != before:
            change = f" from {before} to {now}" if shown else ""
            raise O2OSpecError(
                f"{name} changed{change} since the update was compiled, expected no change, because the compiled "
                "graphs keep the old value; call update.recompile() after such a change, or restore the old value"
            )
