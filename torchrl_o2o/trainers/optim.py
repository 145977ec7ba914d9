# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Optimizer settings of the reference implementations that torch's optimizers do not offer."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError, check_number
from torchrl_o2o.functional.diagnostics import finite_or_raise
from torchrl_o2o.updates.steps import check_descends, check_norm

__all__ = ["descend", "weight_decay_groups"]


def descend(
    optim: torch.optim.Optimizer, loss: Tensor, name: str = "loss", *, max_grad_norm: float | None = None
) -> None:
    """Make one step of gradient descent; raise if the loss or a gradient is not finite.

    Args:
        optim: optimizer of the parameters; its gradients are cleared first.
        loss: a scalar.
        name: name of the loss in messages. Defaults to ``"loss"``.

    Keyword Args:
        max_grad_norm: bound of the gradient's norm over all of the optimizer's parameters; ``None`` (default) does not
            clip.

    Raises:
        NonFiniteError: if the loss or a gradient is not finite; the parameters are unchanged.
        O2OSpecError: if the loss is not one number, has no gradient, or none at any of the optimizer's parameters, the
            optimizer does not descend by one gradient (see :class:`~torchrl_o2o.updates.Descend`), or ``max_grad_norm``
            is not positive.

    Examples:
        >>> weight = torch.nn.Parameter(torch.tensor(1.0))
        >>> descend(torch.optim.SGD([weight], lr=0.5), weight.square())
        >>> weight.item()
        0.0
    """
    check_descends(optim, name)
    check_norm("max_grad_norm", max_grad_norm)
    if loss.numel() != 1:
        raise O2OSpecError(
            f"got {name} of shape {list(loss.shape)}, expected one number; build the loss with reduction='mean', or "
            "average its rows"
        )
    if not loss.requires_grad:
        raise O2OSpecError(
            f"{name} has no gradient, expected one; compute it outside of torch.no_grad() and torch.inference_mode(), "
            "and do not detach it"
        )
    optim.zero_grad()
    loss.backward()
    parameters = [parameter for group in optim.param_groups for parameter in group["params"]]
    if all(parameter.grad is None for parameter in parameters):
        raise O2OSpecError(
            f"{name} has no gradient at any of the {len(parameters)} parameters of its optimizer, expected one, "
            "because otherwise nothing is learned; build the optimizer from the loss's own parameters, such as "
            "loss.qvalue_network_params.parameters(), because a loss copies the critics that it is given"
        )
    gradients = {f"{name}.gradient{index}": parameter.grad for index, parameter in enumerate(parameters)}
    finite_or_raise({name: loss} | gradients)
    if max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optim.step()


def weight_decay_groups(params: TensorDictBase, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of the trained parameters that exempt biases, but not LayerNorm's scales, from weight decay.

    Source: RLPD's code masks decoupled weight decay (AdamW) by the parameter's name and exempts biases.

    Args:
        params: parameters of a loss, for example ``loss.qvalue_network_params``.
        weight_decay: AdamW's coefficient for all other parameters.

    Returns:
        Two groups for the optimizer's constructor.

    Raises:
        O2OSpecError: if the coefficient is negative or not finite, which optimizers do not check in groups.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torch import nn
        >>> groups = weight_decay_groups(TensorDict.from_module(nn.Linear(3, 2)), 0.01)
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(1, 0.01), (1, 0.0)]
    """
    check_number("weight_decay", weight_decay, least=0)
    decayed, exempt = [], []
    for name, value in params.flatten_keys(".").items():
        if not value.requires_grad:  # the statistics of a normalization, and frozen parameters
            continue
        (exempt if name.split(".")[-1].endswith("bias") else decayed).append(value)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]
