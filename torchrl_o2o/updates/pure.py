# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One part of an update as a pure function of named tensors; compiled updates are captured from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.utils import get_total_norm
from torchrl.objectives import SoftUpdate
from torchrl.objectives.common import LossModule

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives.base import TransitionLoss
from torchrl_o2o.updates.adam import AdamState, adam_step, check_optimizer
from torchrl_o2o.updates.draws import HandedNoise
from torchrl_o2o.updates.loss_calls import LossResults, call_loss, summary
from torchrl_o2o.updates.state import copied_pairs, replaced, state_of, target_pairs
from torchrl_o2o.updates.steps import Copy, Descend, Ghost, Joint, MoveTargets, Plan, Primitive, stepped, walk

__all__ = ["Learning", "learning_of", "minibatch_of", "run_part"]


class Learning(NamedTuple):
    """The loss, parameters and optimizers of an update, by name.

    Args:
        loss: the loss module.
        descends: the steps of gradient descent; ``scalars:<position>:<group>`` are theirs.
        trained: of each, the parameters by their names in the loss, with the number of their group.
        moves: of each step that moves targets, target name -> source name, and the share tau.
        rows: entries to hand back row by row.
    """

    loss: TransitionLoss
    descends: tuple[Descend, ...]
    trained: tuple[dict[str, tuple[Tensor, int]], ...]
    moves: dict[MoveTargets, tuple[dict[str, str], float]]
    rows: tuple[str, ...]


def learning_of(loss: LossModule, plan: Plan, rows: tuple[str, ...]) -> Learning:
    """Find and check everything that a plan changes.

    Args:
        loss: the loss module.
        plan: plan of the update.
        rows: entries to hand back row by row.

    Raises:
        O2OSpecError: if the loss is not one of this package's, an optimizer is not Adam or AdamW, holds a tensor that
            is not the loss's or that another step trains, or targets are not moved by a ``SoftUpdate``.
    """
    if not isinstance(loss, TransitionLoss):
        raise O2OSpecError(
            f"got {type(loss).__module__}.{type(loss).__name__}, expected a loss of this package, because this one "
            "draws its own random numbers, which a compiled update cannot pass to it; use a loss of this package, or "
            "do not compile the update"
        )
    for part in plan.parts:
        if len(set(stepped(part))) < len(stepped(part)):
            raise O2OSpecError(
                "got a Ghost together with its own step on one minibatch, expected one of them in a compiled update; "
                "remove one"
            )
    descends = tuple(dict.fromkeys(step for part in plan.parts for step in stepped(part)))
    names = {id(value): key for key, value in state_of(loss).items()}
    taken: dict[str, str] = {}
    trained = tuple(_trained(step, names, taken, type(loss).__name__) for step in descends)
    moving = [step for part in plan.parts for step in walk(part) if isinstance(step, MoveTargets)]
    return Learning(loss, descends, trained, {step: _averaging(loss, step) for step in moving}, rows)


def _trained(
    step: Descend, names: Mapping[int, str], taken: dict[str, str], owner: str
) -> dict[str, tuple[Tensor, int]]:
    check_optimizer(step.name, step.optim)
    out: dict[str, tuple[Tensor, int]] = {}
    for index, group in enumerate(step.optim.param_groups):
        for param in group["params"]:
            if id(param) not in names:
                raise O2OSpecError(
                    f"the optimizer of {step.name!r} holds a tensor of shape {list(param.shape)} expected one of "
                    f"{owner}; build it from the loss's parameters, after any cast or copy"
                )
            name = names[id(param)]
            if not param.requires_grad:
                raise O2OSpecError(
                    f"the optimizer of {step.name!r} holds {name}, which has requires_grad=False, expected only "
                    "trained parameters; build it from [param for param in ... if param.requires_grad]"
                )
            if name in taken:
                raise O2OSpecError(
                    f"{name} is trained by the steps {taken[name]!r} and {step.name!r}; expected one step per "
                    "parameter in a compiled update; put the parameter into one optimizer"
                )
            taken[name] = step.name
            out[name] = (param, index)
    return out


def _averaging(loss: LossModule, step: MoveTargets) -> tuple[dict[str, str], float]:
    """Target -> source of a soft update, and tau, the share of the source."""
    updater = step.updater
    if not isinstance(updater, SoftUpdate):
        raise O2OSpecError(
            f"got {type(updater).__name__}, expected a SoftUpdate in a compiled update; use "
            "torchrl.objectives.SoftUpdate"
        )
    return target_pairs(loss, step.names), 1.0 - updater.eps


def run_part(
    learning: Learning, part: tuple[Primitive, ...], values: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compute one part of an update as a function that overwrites nothing.

    Args:
        learning: what is moved.
        part: its steps.
        values: ``state:<name>`` of all tensors of the loss, ``exp_avg:<name>`` and ``exp_avg_sq:<name>`` of trained
            parameters, ``batch:<key>``, ``noise:<i>``, ``scalars:<position>:<group>``, and ``ok``, whether everything
            was finite so far.

    Returns:
        Metrics, with ``done:<position>``, whether each optimizer step was made (1 or 0), and the new value of
        everything that changes.
    """
    loss, new = learning.loss, dict(values)
    done: dict[str, Tensor] = {}
    minibatch = minibatch_of(values)
    noise, loss.noise = loss.noise, HandedNoise(_numbered(values, "noise:"))
    try:
        measured = LossResults()
        for step in part:
            if isinstance(step, MoveTargets):
                _average(*learning.moves[step], new)
                measured.outdate(step)
                continue
            if isinstance(step, Ghost):
                trained = learning.trained[learning.descends.index(step.step)]
                done |= _step(learning, step.step, {key: torch.zeros_like(new[f"state:{key}"]) for key in trained}, new)
                continue
            if isinstance(step, Copy):
                _copy(copied_pairs(loss, step.source, step.target), new)
                measured.outdate(step)
                continue
            descends = step.descends if isinstance(step, Joint) else (step,)
            gradients = [_differentiate(learning, each, new, minibatch, measured) for each in descends]
            for move in step.moves if isinstance(step, Joint) else ():
                _average(*learning.moves[move], new)
            for each, gradient in zip(descends, gradients, strict=True):
                done |= _step(learning, each, _clipped(gradient, each.clip_grad_norm), new)
            measured.outdate(step)
    finally:
        loss.noise = noise
    changed = {name: value for name, value in new.items() if value is not values[name]}
    return summary(measured.entries, learning.rows) | done, changed


def _numbered(values: Mapping[str, Tensor], prefix: str) -> Sequence[Tensor]:
    count = sum(name.startswith(prefix) for name in values)
    return [values[f"{prefix}{i}"] for i in range(count)]


def minibatch_of(values: Mapping[str, Tensor]) -> TensorDict:
    """Transitions from their columns.

    Args:
        values: ``batch:<key>`` -> [B, ...], nested keys joined by a slash; other entries are ignored.

    Returns:
        A new TensorDict of shape [B].
    """
    columns = {name.removeprefix("batch:"): value for name, value in values.items() if name.startswith("batch:")}
    return TensorDict(columns, [len(next(iter(columns.values())))]).unflatten_keys("/")


def _average(pairs: Mapping[str, str], tau: float, values: dict[str, Tensor]) -> None:
    for target, source in pairs.items():
        now = values[f"state:{target}"]
        moved = now.lerp(values[f"state:{source}"], tau)
        values[f"state:{target}"] = torch.where(values["ok"], moved, now)


def _copy(pairs: Mapping[str, str], values: dict[str, Tensor]) -> None:
    for target, source in pairs.items():
        value = values[f"state:{source}"]
        values[f"state:{target}"] = torch.where(values["ok"], value, values[f"state:{target}"])


def _differentiate(
    learning: Learning, step: Descend, values: dict[str, Tensor], minibatch: TensorDict, measured: LossResults
) -> dict[str, Tensor]:
    """Gradients by parameter; adds the loss and its metrics to ``measured``."""
    state = {key.removeprefix("state:"): value for key, value in values.items() if key.startswith("state:")}
    trained = learning.trained[learning.descends.index(step)]
    leaves = {key: state[key].detach().requires_grad_() for key in trained}
    with torch.enable_grad(), replaced(learning.loss, state | leaves):
        value, info = call_loss(learning.loss, step.name, minibatch.copy(), measured.handed_to(step.name))
        value = value if step.scale == 1.0 else step.scale * value
    unused = (None,) * len(leaves)
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True) if value.requires_grad else unused
    measured.add(step.name, value.detach(), info)
    named = {key: gradient for key, gradient in zip(leaves, gradients, strict=True) if gradient is not None}
    missing = [key for key in leaves if key not in named]
    if missing:
        raise O2OSpecError(
            f"{step.name}_loss gives {missing} no gradient, expected one for each parameter of its optimizer; leave "
            f"them out of the optimizer of {step.name!r}"
        )
    total = value.detach() + sum(gradient.abs().sum() for gradient in named.values())
    values["ok"] = values["ok"] & total.isfinite()
    return named


def _clipped(gradients: dict[str, Tensor], max_norm: float | None) -> dict[str, Tensor]:
    """``torch.nn.utils.clip_grad_norm_`` as a pure function."""
    if max_norm is None:
        return gradients
    share = (max_norm / (get_total_norm(list(gradients.values()), foreach=False) + 1e-6)).clamp(max=1.0)
    return {name: gradient * share for name, gradient in gradients.items()}


def _step(
    learning: Learning, step: Descend, gradients: dict[str, Tensor], values: dict[str, Tensor]
) -> dict[str, Tensor]:
    """An Adam step on all parameters of a loss, unless something was not finite; replaces their values.

    Returns:
        ``done:<position>``, whether it was made: a later step of the same part may be the first that is not finite.
    """
    position, groups = learning.descends.index(step), step.optim.param_groups
    for key, (_, index) in learning.trained[position].items():
        keys = (f"state:{key}", f"exp_avg:{key}", f"exp_avg_sq:{key}")
        now = AdamState(*[values[each] for each in keys])
        after = adam_step(now, gradients[key], values[f"scalars:{position}:{index}"], groups[index])
        for each, old, fresh in zip(keys, now, after, strict=True):
            values[each] = torch.where(values["ok"], fresh, old)
    return {f"done:{position}": values["ok"].float()}
