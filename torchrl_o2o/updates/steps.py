# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What one part of an update computes: gradients of named losses, Adam, target averaging, all as functions of
tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.nn.utils import get_total_norm
from torchrl.objectives.common import LossModule

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.updates.adam import Moments, adam_step
from torchrl_o2o.updates.draws import HandedNoise
from torchrl_o2o.updates.state import replaced, state_of

__all__ = ["Learning", "Part", "call_loss", "minibatch_of", "run_part", "trained"]

Optimizers = Mapping[str, torch.optim.Optimizer]


class Learning(NamedTuple):
    """A loss, who trains it, how its targets follow (target name -> source name, moved by the share tau), and bounds on
    the gradient norms of losses by name."""

    loss: LossModule
    optims: Optimizers
    pairs: dict[str, str]
    tau: float
    max_grad_norm: Mapping[str, float] = MappingProxyType({})


class Part(NamedTuple):
    """One gradient step on each of some losses, then perhaps the targets."""

    losses: tuple[str, ...]
    move_targets: bool
    joint: bool = False
    rows: tuple[str, ...] = ()


def call_loss(
    loss: LossModule, name: str, minibatch: TensorDictBase, known: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Call one loss by name, with what earlier losses have returned where it asks for that.

    Args:
        loss: has a method ``<name>_loss``, or returns ``loss_<name>`` from its ``forward``.
        name: for example ``"qvalue"``.
        minibatch: transitions.
        known: what earlier calls returned beside their losses; ``log_prob`` for ``alpha_loss``, for example.

    Returns:
        The loss, a scalar, and what was returned beside it.

    Raises:
        O2OSpecError: if there is no such loss, or it is not a scalar.
    """
    method = getattr(loss, f"{name}_loss", None)
    if method is None:
        out = loss(minibatch)
        if out.get(f"loss_{name}", None) is None:
            raise O2OSpecError(
                f"{type(loss).__name__} has neither {name}_loss() nor loss_{name}; name one of its losses"
            )
        value, info = out[f"loss_{name}"], {}
    else:
        result = method(minibatch, **_handed_on(method, known))
        value, info = result if isinstance(result, tuple) else (result, {})
    if value.ndim:
        raise O2OSpecError(
            f"{name}_loss has shape {list(value.shape)}, expected a scalar; take reduction='mean' or 'sum'"
        )
    return value, {key: entry.detach() for key, entry in info.items()}


def _handed_on(method: Callable[..., Any], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The keyword-only arguments of a loss method that are known."""
    parameters = inspect.signature(method).parameters.values()
    return {p.name: known[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in known}


def trained(learning: Learning, name: str) -> dict[str, tuple[Tensor, int]]:
    """The parameters an optimizer trains, by their names in the loss, with the number of their group.

    Args:
        learning: what is trained.
        name: of the loss.

    Returns:
        Name -> parameter and group.

    Raises:
        O2OSpecError: if the optimizer holds a tensor that is not the loss's.
    """
    names = {id(value): key for key, value in state_of(learning.loss).items()}
    out: dict[str, tuple[Tensor, int]] = {}
    for index, group in enumerate(learning.optims[name].param_groups):
        for param in group["params"]:
            if id(param) not in names:
                raise O2OSpecError(
                    f"the optimizer of {name!r} holds a tensor of shape {list(param.shape)} that is not one of "
                    f"{type(learning.loss).__name__}; build it from the loss's parameters, after any cast or copy"
                )
            out[names[id(param)]] = (param, index)
    return out


def run_part(
    learning: Learning, part: Part, values: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Compute one part of an update as a function: nothing is overwritten.

    Args:
        learning: what is trained.
        part: which part of it.
        values: ``state:<name>`` of all tensors of the loss, ``exp_avg:<name>`` and ``exp_avg_sq:<name>`` of what is
            trained, ``batch:<key>``, ``noise:<i>``, ``scalars:<loss>:<group>``, and ``ok``, whether all was finite so
            far.

    Returns:
        Metrics, and the new value of everything that changes.
    """
    loss, new = learning.loss, dict(values)
    minibatch = minibatch_of(values)
    noise, loss.noise = loss.noise, HandedNoise(_numbered(values, "noise:"))
    try:
        metrics: dict[str, Tensor] = {}
        for names in [part.losses] if part.joint else [(name,) for name in part.losses]:
            gradients = [(name, _differentiate(learning, name, new, minibatch, metrics)) for name in names]
            for name, gradient in gradients:
                _step(learning, name, _clipped(gradient, learning.max_grad_norm.get(name)), new)
    finally:
        loss.noise = noise
    if part.move_targets:
        for target, source in learning.pairs.items():
            now = new[f"state:{target}"]
            moved = now.lerp(new[f"state:{source}"], learning.tau)
            new[f"state:{target}"] = torch.where(new["ok"], moved, now)
    changed = {name: value for name, value in new.items() if value is not values[name]}
    return _summary(metrics, part.rows), changed


def _numbered(values: Mapping[str, Tensor], prefix: str) -> Sequence[Tensor]:
    count = sum(name.startswith(prefix) for name in values)
    return [values[f"{prefix}{i}"] for i in range(count)]


def minibatch_of(values: Mapping[str, Tensor]) -> TensorDict:
    """Transitions from their columns.

    Args:
        values: ``batch:<key>`` -> [B, ...], nested keys joined by a slash; anything else is left out.

    Returns:
        A new TensorDict of shape [B].
    """
    columns = {name.removeprefix("batch:"): value for name, value in values.items() if name.startswith("batch:")}
    return TensorDict(columns, [len(next(iter(columns.values())))]).unflatten_keys("/")


def _differentiate(
    learning: Learning, name: str, values: dict[str, Tensor], minibatch: TensorDict, metrics: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients by parameter; adds the loss and what came with it to the metrics."""
    state = {key.removeprefix("state:"): value for key, value in values.items() if key.startswith("state:")}
    leaves = {key: state[key].detach().requires_grad_() for key in trained(learning, name)}
    with torch.enable_grad(), replaced(learning.loss, state | leaves):
        value, info = call_loss(learning.loss, name, minibatch.copy(), metrics)
    unused = (None,) * len(leaves)
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True) if value.requires_grad else unused
    metrics |= info | {f"loss_{name}": value.detach()}
    named = dict(zip(leaves, gradients, strict=True))
    missing = [key for key, gradient in named.items() if gradient is None]
    if missing:
        raise O2OSpecError(f"{name}_loss gives {missing} no gradient; leave them out of the optimizer of {name!r}")
    total = value.detach() + sum(gradient.abs().sum() for gradient in named.values() if gradient is not None)
    values["ok"] = values["ok"] & total.isfinite()
    return named  # type: ignore[return-value]


def _clipped(gradients: dict[str, Tensor], max_norm: float | None) -> dict[str, Tensor]:
    """What ``torch.nn.utils.clip_grad_norm_`` would leave, as a function."""
    if max_norm is None:
        return gradients
    share = (max_norm / (get_total_norm(gradients.values()) + 1e-6)).clamp(max=1.0)
    return {name: gradient * share for name, gradient in gradients.items()}


def _step(learning: Learning, name: str, gradients: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Adam on all parameters of a loss, unless something was not finite; replaces their values."""
    groups = learning.optims[name].param_groups
    for key, (_, index) in trained(learning, name).items():
        keys = (f"state:{key}", f"exp_avg:{key}", f"exp_avg_sq:{key}")
        now = Moments(*[values[each] for each in keys])
        after = adam_step(now, gradients[key], values[f"scalars:{name}:{index}"], groups[index])
        for each, old, fresh in zip(keys, now, after, strict=True):
            values[each] = torch.where(values["ok"], fresh, old)


def _summary(metrics: Mapping[str, Tensor], rows: Sequence[str]) -> dict[str, Tensor]:
    """Means of everything measured, the spread between critics, and the rows asked for as they are."""
    out = {key: value.mean() if value.is_floating_point() else value.double().mean() for key, value in metrics.items()}
    if "qvalue" in metrics and len(metrics["qvalue"]) > 1:
        out["qvalue_std"] = metrics["qvalue"].std(0).mean()
    return out | {f"rows:{name}": metrics[name] for name in rows}
