# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Execute the steps of an update eagerly: the loss's methods, autograd, and the optimizers' own steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives.common import LossModule

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.diagnostics import NonFiniteError, finite_or_raise
from torchrl_o2o.objectives.base import TransitionLoss
from torchrl_o2o.updates.draws import find_draws
from torchrl_o2o.updates.loss_calls import LossResults, call_loss, joined_rows, summary
from torchrl_o2o.updates.state import copied_pairs, state_of, target_pairs
from torchrl_o2o.updates.steps import WHOLE, Copy, Descend, Ghost, Joint, MoveTargets, Plan, Primitive

__all__ = ["execute", "execute_step"]


def execute(
    loss: LossModule, plan: Plan, batch: TensorDictBase, rows: Sequence[str]
) -> tuple[dict[str, Tensor], NonFiniteError | None]:
    """Execute all steps of one call, and stop at the first that is not finite.

    The random draws of the steps that are left out are made, so that the next call has the same numbers as in a
    compiled update, which draws everything beforehand.

    Args:
        loss: the loss whose parameters are moved.
        plan: the steps of this call.
        batch: transitions, shape [number of minibatches * B].
        rows: metrics of the losses to be returned row by row.

    Returns:
        The result of :meth:`Update.__call__ <torchrl_o2o.updates.Update>`, and the error about what was not finite.

    Raises:
        O2OSpecError: if a loss gives a parameter of its optimizer no gradient, or returns no such row.
    """
    minibatches = batch.split(len(batch) // plan.minibatches) if plan.minibatches > 1 else [batch]
    measured = [LossResults() for _ in plan.sequence]
    turns = zip(plan.sequence, measured, strict=True)
    sequence = [
        (step, batch if index == WHOLE else minibatches[index], results)
        for (part, index), results in turns
        for step in plan.parts[part]
    ]
    for position, (step, minibatch, results) in enumerate(sequence):
        try:
            execute_step(loss, step, minibatch, results)
        except NonFiniteError as error:
            known = {name: value for name, value in results.entries.items() if name not in rows}  # a mean is no row
            if isinstance(loss, TransitionLoss):  # TorchRL's losses have no replaceable noise source
                for left_out in sequence[position + 1 :]:
                    _draw(loss, *left_out)
            return summary(known, ()) | {"finite": torch.tensor(False)}, error
    metrics = summary(measured[plan.minibatches - 1].entries | measured[-1].entries, ())
    metrics |= joined_rows([each.entries for each in measured[: plan.minibatches]], rows, measured[0].entries)
    return metrics | {"finite": torch.tensor(True)}, None


def execute_step(loss: LossModule, step: Primitive, minibatch: TensorDictBase, measured: LossResults) -> None:
    """Execute one step.

    Args:
        loss: the loss whose parameters are moved.
        step: the step.
        minibatch: transitions, shape [B].
        measured: results of earlier losses on this minibatch; those of this step's losses are added.

    Raises:
        NonFiniteError: before a parameter changes, if a loss or a gradient is not finite.
        O2OSpecError: if a parameter of the optimizer is frozen, has no gradient, or has hooks that would not run.
    """
    if isinstance(step, Copy | MoveTargets):
        _copy(loss, step) if isinstance(step, Copy) else _move(loss, step)
        measured.outdate(step)
        return
    if isinstance(step, Ghost):
        _coast(step.step)
        return
    descends = step.descends if isinstance(step, Joint) else (step,)
    gradients = [_gradients(loss, each, minibatch, measured) for each in descends]
    seen = {f"loss_{each.name}": measured.entries[f"loss_{each.name}"] for each in descends}
    for each, found in zip(descends, gradients, strict=True):
        seen |= {f"loss_{each.name}.gradient{index}": gradient for index, gradient in enumerate(found)}
    finite_or_raise(seen)
    for move in step.moves if isinstance(step, Joint) else ():
        _move(loss, move)
    for each, found in zip(descends, gradients, strict=True):
        for param, gradient in zip(each.parameters, found, strict=True):
            param.grad = _laid_out_as(param, gradient)
        if each.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(each.parameters, each.clip_grad_norm)
        each.optim.step()
    measured.outdate(step)


def _draw(loss: TransitionLoss, step: Primitive, minibatch: TensorDictBase, measured: LossResults) -> None:
    """Make the random draws of a step, and nothing else."""
    for draw in find_draws(loss, (step,), minibatch, measured):
        draw.take(loss.noise)


def _move(loss: LossModule, step: MoveTargets) -> None:
    """Move all targets with the updater's own step, or only those of some networks."""
    if step.names is None:
        step.updater.step()
        return
    state = state_of(loss)
    with torch.no_grad():
        for target, source in target_pairs(loss, step.names).items():
            state[target].lerp_(state[source], 1.0 - step.updater.eps)  # type: ignore[union-attr]


def _coast(step: Descend) -> None:
    for param in step.parameters:
        param.grad = torch.zeros_like(param)
    step.optim.step()


def _copy(loss: LossModule, step: Copy) -> None:
    state = state_of(loss)
    with torch.no_grad():
        for target, source in copied_pairs(loss, step.source, step.target).items():
            state[target].copy_(state[source])


def _gradients(loss: LossModule, step: Descend, minibatch: TensorDictBase, measured: LossResults) -> tuple[Tensor, ...]:
    """The loss's gradients at the step's parameters; adds the loss and its metrics to ``measured``."""
    value, info = call_loss(loss, step.name, minibatch, measured.handed_to(step.name))
    value = value if step.scale == 1.0 else step.scale * value
    measured.add(step.name, value.detach(), info)
    params = step.parameters
    if frozen := [param for param in params if not param.requires_grad]:
        raise O2OSpecError(
            f"the optimizer of {step.name!r} holds {_names(loss, frozen)}, which have requires_grad=False, expected "
            "only trained parameters; build it from [param for param in ... if param.requires_grad]"
        )
    if hooked := [param for param in params if param._post_accumulate_grad_hooks]:
        raise O2OSpecError(
            f"got hooks after the accumulation of gradients of {_names(loss, hooked)}, which an update does not run, "
            "because it accumulates none; remove them, and do their work after the update"
        )
    found = torch.autograd.grad(value, params, allow_unused=True) if value.requires_grad else (None,) * len(params)
    gradients = tuple(gradient for gradient in found if gradient is not None)
    if len(gradients) < len(params):
        own = {id(param) for param in loss.parameters()}
        without = [param for param, got in zip(params, found, strict=True) if got is None]
        if foreign := [list(param.shape) for param in without if id(param) not in own]:
            raise O2OSpecError(
                f"the optimizer of {step.name!r} holds parameters of shape {foreign}, which are none of this "
                f"{type(loss).__name__}; build it of the loss's own, such as loss.qvalue_network_params.parameters(): "
                f"a loss copies the critics that it is given"
            )
        raise O2OSpecError(
            f"{step.name}_loss gives {_names(loss, without)} no gradient; leave them out of the optimizer of "
            f"{step.name!r}"
        )
    return gradients


def _names(loss: LossModule, params: Sequence[Tensor]) -> list[str]:
    """Parameters by their names in the loss, or by their shapes."""
    names = {id(param): name for name, param in loss.named_parameters()}
    return [names.get(id(param), str(list(param.shape))) for param in params]


def _laid_out_as(param: Tensor, gradient: Tensor) -> Tensor:
    """A gradient in its parameter's memory layout, which fused optimizers assume."""
    if gradient.stride() == param.stride():
        return gradient
    return torch.empty_like(param, memory_format=torch.preserve_format).copy_(gradient)
