# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Adam and AdamW as functions on the state of the user's optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError

__all__ = ["AdamState", "adam_step", "check_optimizer", "count_steps", "hooks_of", "moments_of", "step_scalars"]


class AdamState(NamedTuple):
    """A parameter with its running averages, each of the parameter's shape."""

    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


def adam_step(now: AdamState, grad: Tensor, scalars: Tensor, group: Mapping[str, Any]) -> AdamState:
    r"""One step of Adam or AdamW, equal to :class:`torch.optim.Adam` up to rounding.

    With :math:`c_i=1-\beta_i^t`,
    :math:`\theta\leftarrow d\theta-\frac{\eta\sqrt{c_2}}{c_1}m/(\sqrt v+\epsilon\sqrt{c_2})`: bias corrections are
    scalars of the whole step, so there is only one division per element.

    Source: Kingma & Ba 2015, section 2; Loshchilov & Hutter 2019 for the decoupled weight decay.

    Args:
        now: parameter and averages.
        grad: gradient, the parameter's shape.
        scalars: of this step, from :func:`step_scalars`, shape [3].
        group: the optimizer's parameter group: betas and weight decay.

    Returns:
        Parameter and averages after the step.
    """
    (beta1, beta2), decay = group["betas"], group["weight_decay"]
    step_size, epsilon, shrink = scalars.unbind()
    param = now.param
    if decay and group.get("decoupled_weight_decay", False):
        param = param * shrink
    elif decay:
        grad = grad + decay * param
    exp_avg = now.exp_avg + (1.0 - beta1) * (grad - now.exp_avg)
    exp_avg_sq = beta2 * now.exp_avg_sq + (1.0 - beta2) * grad * grad
    return AdamState(param - step_size * exp_avg / (exp_avg_sq.sqrt() + epsilon), exp_avg, exp_avg_sq)


def step_scalars(optim: torch.optim.Optimizer, group: Mapping[str, Any], steps: int) -> Tensor:
    """The scalars of the next steps of one parameter group, in its dtype, on the step counter's device.

    They are computed outside the compiled function and passed to it, so that the learning rate may change at any time
    and no power is computed per element. Nothing waits for a device.

    Args:
        optim: the optimizer.
        group: one of its parameter groups.
        steps: number of steps.

    Returns:
        Per step the step size, epsilon and the factor of decoupled weight decay, shape [steps, 3].
    """
    counter = moments_of(optim, group["params"][0])["step"]
    times = counter.double() + torch.arange(1, steps + 1, device=counter.device, dtype=torch.float64)
    beta1, beta2 = group["betas"]
    first, second = 1.0 - beta1**times, (1.0 - beta2**times).sqrt()
    shrink = torch.ones_like(times) - group["lr"] * group["weight_decay"]
    return torch.stack([group["lr"] * second / first, group["eps"] * second, shrink], -1).to(group["params"][0].dtype)


def moments_of(optim: torch.optim.Optimizer, param: Tensor) -> dict[str, Tensor]:
    """The optimizer's state of one parameter; if there is none, it is created as in the optimizer's first step.

    Args:
        optim: Adam or AdamW.
        param: one of its parameters.

    Returns:
        ``step`` (a scalar), ``exp_avg`` and ``exp_avg_sq``: the optimizer's own tensors.

    Raises:
        O2OSpecError: if its step counter is on another device than the parameter.

    Examples:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> moments_of(torch.optim.Adam([weight]), weight)["exp_avg"]
        tensor([0., 0.])
    """
    state = optim.state[param]
    if "exp_avg" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
        state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format).detach()
        state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format).detach()
    if state["step"].device != param.device:
        raise O2OSpecError(
            f"got an optimizer whose step count is on {state['step'].device}, expected the parameter's device; build "
            "it with fused=True, so that nothing waits"
        )
    return state


def count_steps(optim: torch.optim.Optimizer, steps: Tensor) -> None:
    """Add the number of steps that were made without calling the optimizer to its counts.

    Args:
        optim: the optimizer.
        steps: their number, a scalar on the counters' device.
    """
    counters = [optim.state[param]["step"] for group in optim.param_groups for param in group["params"]]
    # torch's own optimizers call this function, which torch does not declare as public.
    add = torch._foreach_add_  # pyright: ignore[reportPrivateImportUsage]
    # One tensor per counter, because the variant for a single tensor may read its value.
    add(counters, [steps.to(counters[0].dtype)] * len(counters))
    optim._opt_called = True  # pyright: ignore[reportAttributeAccessIssue]  # else schedulers warn of no step before theirs


def check_optimizer(name: str, optim: torch.optim.Optimizer) -> None:
    """Raise for optimizers and options that :func:`adam_step` does not support.

    Args:
        name: name of the loss, for the message.
        optim: the optimizer.

    Raises:
        O2OSpecError: if it is not Adam or AdamW, uses ``amsgrad``, or has hooks, which would not run.
    """
    if type(optim) not in (torch.optim.Adam, torch.optim.AdamW):
        raise O2OSpecError(f"got {type(optim).__name__} for {name!r}, expected torch.optim.Adam or AdamW")
    for group in optim.param_groups:
        if group["amsgrad"]:
            raise O2OSpecError(
                f"got amsgrad=True for {name!r}, expected False, because compiled updates do not support it; leave it "
                "out"
            )
    if hooked := hooks_of(optim):
        raise O2OSpecError(
            f"got {hooked} hooks of the optimizer of {name!r} or its parameters, which a compiled update does not run; "
            f"remove them, or leave the update uncompiled"
        )


def hooks_of(optim: torch.optim.Optimizer) -> int:
    """The number of hooks that run in an optimizer's step, or with the gradients of its parameters.

    Args:
        optim: the optimizer.

    Examples:
        >>> optim = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
        >>> handle = optim.register_step_post_hook(lambda optim, args, kwargs: None)
        >>> hooks_of(optim)
        1
    """
    own = len(optim._optimizer_step_pre_hooks) + len(optim._optimizer_step_post_hooks)
    params = [param for group in optim.param_groups for param in group["params"]]
    hooks = [hooks for param in params for hooks in (param._backward_hooks, param._post_accumulate_grad_hooks)]
    return own + sum(len(each or ()) for each in hooks)
