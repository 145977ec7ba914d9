# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Checks that inputs and parameters fit a network, and the messages if they do not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NoReturn

from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_o2o.errors import O2OSpecError

__all__ = ["check_parameters", "check_rows", "describe_mismatch", "raise_mismatch"]


def check_rows(
    key: NestedKey, value: Tensor, action_key: NestedKey, action: Tensor, dims: tuple[int, ...] = (1,)
) -> None:
    """Refuse inputs that are not one for each action; torch would take all pairs of rows, or say something else.

    Args:
        key: the entry of the input.
        value: the input, [*B, ...].
        action_key: the entry of the action.
        action: the recorded actions, [*B, A].
        dims: how many dimensions one input may have. Defaults to (1,): a vector.

    Raises:
        O2OSpecError: if the input has other leading dimensions, or one of it has another number of them.

    Examples:
        >>> import torch
        >>> check_rows("observation", torch.zeros(4, 1, 3), "action", torch.zeros(4, 2))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got 'observation' of shape [4, 1, 3] beside 'action' of shape [4, 2]...
    """
    rows = action.shape[:-1]
    if value.shape[: len(rows)] != rows or value.ndim - len(rows) not in dims:
        kind = "one vector" if dims == (1,) else "one vector or image"
        raise O2OSpecError(
            f"got {key!r} of shape {list(value.shape)} beside {action_key!r} of shape {list(action.shape)}, expected "
            f"{kind} for each action: [*B, n] and [*B, A]; unsqueeze(-1) single numbers, flatten what has more "
            f"dimensions, and build the networks for it"
        )


def check_parameters(network: nn.Module, name: str, taken: Collection[int] = ()) -> None:
    """Refuse parameters without a size, and those of a stack of members that another network trains too.

    Args:
        network: the network.
        name: what it is called.
        taken: ``id`` of each parameter that is another network's. Defaults to none.

    Raises:
        O2OSpecError: if there is such a parameter.

    Examples:
        >>> check_parameters(nn.LazyLinear(1), "critic")
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got a critic whose 'weight' has no size yet, as lazy layers have none before...
    """
    for parameter, value in network.named_parameters():
        if nn.parameter.is_lazy(value):
            raise O2OSpecError(
                f"got a {name} whose {parameter!r} has no size yet, as lazy layers have none before their first call; "
                f"call it on a batch before it is given to a loss, or say its sizes"
            )
        if id(value) in taken:
            raise O2OSpecError(
                f"got a {name} that has {parameter!r} in common with another network of this loss; a stack of members "
                f"keeps a copy, so that the two would part: build each network separately"
            )


def describe_mismatch(name: str, params: Mapping[str, Tensor], inputs: Mapping[NestedKey, Tensor]) -> str | None:
    """Describe how inputs differ from those that the first layer of a network takes.

    Args:
        name: the network's.
        params: its parameters, stacked or not.
        inputs: what it was given.

    Returns:
        A sentence; ``None`` if nothing is found, or the first layer is not a linear one.

    Examples:
        >>> import torch
        >>> layer = nn.Linear(3, 1)
        >>> describe_mismatch("Linear", dict(layer.named_parameters()), {"observation": torch.zeros(4, 5)})[:63]
        "got 'observation' of shape [4, 5] (torch.float32 on cpu), but t"
    """
    first = next((value for value in params.values() if value.ndim > 1), None)
    if first is None or first.ndim > 3 or not inputs or any(value.ndim == 0 for value in inputs.values()):
        return None
    kind = f"{first.dtype} on {first.device}"
    kinds = {f"{value.dtype} on {value.device}" for value in inputs.values()}
    uneven = len({value.ndim for value in inputs.values()}) > 1
    if kinds == {kind} and not uneven and sum(value.shape[-1] for value in inputs.values()) == first.shape[-1]:
        return None
    given = ", ".join(f"{key!r} of shape {list(value.shape)}" for key, value in inputs.items())
    return (
        f"got {given} ({', '.join(sorted(kinds))}), but the first layer of this {name} takes rows of "
        f"{first.shape[-1]} numbers in all, {kind}; build the networks for these data, or convert one of them"
    )


def raise_mismatch(network: nn.Module, inputs: Mapping[NestedKey, Tensor], error: Exception) -> NoReturn:
    """Say why an actor could not be evaluated, if it is its inputs.

    Args:
        network: the actor.
        inputs: what there was for it, perhaps more than it reads.
        error: what it raised.

    Raises:
        O2OSpecError: if the inputs do not fit.
        Exception: else, what it raised.
    """
    keys = getattr(network, "in_keys", list(inputs))
    if missing := [key for key in keys if key not in inputs]:
        there = sorted(map(str, inputs))
        reason = f"got {there}, but this {type(network).__name__} reads {missing[0]!r}; build it to read what there is"
    else:
        read = {key: inputs[key] for key in keys}
        reason = describe_mismatch(type(network).__name__, dict(network.named_parameters()), read)
    written = list(getattr(network, "out_keys", ["action"]))
    if reason is None and "action" not in written:
        reason = (
            f"this {type(network).__name__} writes {written}, expected 'action' among them; build it "
            f"with action_key='action'"
        )
    if reason is None:
        raise error
    raise O2OSpecError(reason) from error
