# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Checks that inputs and parameters fit a network, with messages if they do not."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_o2o.errors import O2OSpecError

__all__ = [
    "altered_layer",
    "check_noise",
    "check_parameters",
    "check_rows",
    "describe_mismatch",
    "described_layers",
    "differing_layer",
    "entries_of",
    "raise_mismatch",
]


def check_rows(
    key: NestedKey, value: Tensor, action_key: NestedKey, action: Tensor, dims: tuple[int, ...] = (1,)
) -> None:
    """Raise unless there is one input for each action; torch would broadcast, or raise a message about something else.

    Args:
        key: the entry of the input.
        value: the input, [*B, ...].
        action_key: the entry of the action.
        action: the recorded actions, [*B, A].
        dims: allowed numbers of dimensions of one input. Defaults to (1,), a vector.

    Raises:
        O2OSpecError: if the input has other leading dimensions than the action, or a single input has another number of
            dimensions.

    Examples:
        >>> import torch
        >>> check_rows("observation", torch.zeros(4, 1, 3), "action", torch.zeros(4, 2))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got 'observation' of shape [4, 1, 3] with 'action' of shape [4, 2]...
    """
    rows = action.shape[:-1]
    if value.shape[: len(rows)] != rows or value.ndim - len(rows) not in dims:
        kind = "one vector" if dims == (1,) else "one vector or image"
        raise O2OSpecError(
            f"got {key!r} of shape {list(value.shape)} with {action_key!r} of shape {list(action.shape)}, expected "
            f"{kind} for each action: [*B, n] and [*B, A]; unsqueeze(-1) single numbers, flatten further dimensions, "
            "and build the networks for the result"
        )


def entries_of(tensordict: TensorDictBase, keys: Sequence[NestedKey], reader: str) -> list[Tensor]:
    """The entries that something reads.

    Args:
        tensordict: rows.
        keys: of the entries.
        reader: its name in messages.

    Raises:
        O2OSpecError: if one is missing.

    Examples:
        >>> from tensordict import TensorDict
        >>> entries_of(TensorDict({"observation": [0.0]}), ["action"], "FrozenCritic")
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got rows with ['observation'], expected 'action', which FrozenCritic reads...
    """
    found = [tensordict.get(key, None) for key in keys]
    for key, value in zip(keys, found, strict=True):
        if value is None:
            there = sorted(map(str, tensordict.keys(include_nested=True, leaves_only=True)))
            raise O2OSpecError(
                f"got rows with {there}, expected {key!r}, which {reader} reads; pass whole transitions, or name its "
                "inputs like these entries"
            )
    return found


def check_noise(given: Sequence[int], expected: Sequence[int]) -> None:
    """Raise unless there is one number of noise for each entry of the actions; it would be broadcast.

    Args:
        given: shape of the noise.
        expected: shape of the actions.

    Raises:
        O2OSpecError: if they differ.

    Examples:
        >>> check_noise((5, 1), (5, 2))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got noise of shape [5, 1], expected [5, 2], one number for each entry of ...
    """
    if tuple(given) != tuple(expected):
        raise O2OSpecError(
            f"got noise of shape {list(given)}, expected {list(expected)}, one number for each entry of the actions; "
            "draw it in that shape"
        )


def check_parameters(network: nn.Module, name: str, taken: Collection[int] = ()) -> None:
    """Raise for parameters without a size, and for those of stacked members that another network trains, too.

    Args:
        network: the network.
        name: its name in messages. to none.

    Raises:
        O2OSpecError: if there is such a parameter.

    Examples:
        >>> check_parameters(nn.LazyLinear(1), "critic")
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got a critic whose 'weight' has no size yet, expected initialized parameters...
    """
    for parameter, value in network.named_parameters():
        if nn.parameter.is_lazy(value):
            raise O2OSpecError(
                f"got a {name} whose {parameter!r} has no size yet, expected initialized parameters; call lazy layers "
                "on a batch before you pass them to a loss, or set their sizes"
            )
        if id(value) in taken:
            raise O2OSpecError(
                f"got a {name} that shares {parameter!r} with another network of this loss, expected separate "
                "parameters, because stacked members are copies and the two would diverge; build each network "
                "separately"
            )


def describe_mismatch(name: str, params: Mapping[str, Tensor], inputs: Mapping[NestedKey, Tensor]) -> str | None:
    """Describe how inputs differ from those that the first layer of a network accepts.

    Args:
        name: the network's.
        params: its parameters, stacked or not.
        inputs: the network's inputs.

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
        f"got {given} ({', '.join(sorted(kinds))}), but the first layer of this {name} takes rows of {first.shape[-1]} "
        f"numbers in all, {kind}; build the networks for these data, or convert one of them"
    )


def raise_mismatch(network: nn.Module, inputs: Mapping[NestedKey, Tensor], error: Exception) -> NoReturn:
    """Raise an error that explains which inputs an actor cannot read, if this was the cause of another error.

    Args:
        network: the actor.
        inputs: the available inputs, perhaps more than it reads.
        error: the error that it raised.

    Raises:
        O2OSpecError: if the inputs do not fit.
        Exception: the given error otherwise.
    """
    keys = getattr(network, "in_keys", list(inputs))
    if missing := [key for key in keys if key not in inputs]:
        there = sorted(map(str, inputs))
        reason = f"got {there}, but this {type(network).__name__} reads {missing[0]!r}; build it for the entries above"
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


def altered_layer(network: nn.Module) -> str | None:
    """Find a layer that does not compute what its class does, because of hooks or a ``forward`` of its own.

    Args:
        network: for example an actor's network.

    Returns:
        A description of the first one; ``None`` if there is none.

    Examples:
        >>> layer = nn.Linear(3, 1)
        >>> handle = layer.register_forward_hook(lambda layer, seen, out: 2 * out)
        >>> altered_layer(nn.Sequential(layer))
        "hooks on the Linear '0'"
    """
    for name, layer in network.named_modules():
        what = f"the {type(layer).__name__} {name!r}"
        if layer._forward_hooks or layer._forward_pre_hooks:
            return f"hooks on {what}"
        if "forward" in vars(layer):
            return f"another forward in {what}"
    return None


def described_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """A network's layers: for each its class, its keys, and the plain settings by which it computes.

    Texts count only in torch's own layers, such as a convolution's ``padding_mode``; others may be names.

    Args:
        network: for example a critic.

    Yields:
        The name of the layer, and its description, which is equal for layers that compute the same function of their
        parameters and inputs.

    Examples:
        >>> dict(described_layers(nn.Sequential(nn.Dropout(0.5))))["0"]
        'Dropout(p=0.5, inplace=False)'
    """
    for name, layer in network.named_modules():
        own = type(layer)
        kinds = (bool, int, float, str) if own.__module__.startswith("torch.nn.") else (bool, int, float)
        settings = {key: value for key, value in vars(layer).items() if key[0] != "_" and key != "training"}
        plain = [f"{key}={_plain(value, kinds)}" for key, value in settings.items() if _plain(value, kinds) is not None]
        keys = [f"{key}={getattr(layer, key)}" for key in ("in_keys", "out_keys") if hasattr(layer, key)]
        yield name, f"{own.__name__}({', '.join([*keys, *plain])})"


def differing_layer(networks: Sequence[nn.Module]) -> tuple[int, str, str, str] | None:
    """Find a layer by which a network differs from the first one in more than its parameters.

    Args:
        networks: at least one.

    Returns:
        The position of the network, the layer's name, and the descriptions of its layer and of the first network's, see
        :func:`described_layers`; ``None`` if all are alike.

    Examples:
        >>> differing_layer([nn.Sequential(nn.Dropout(0.5)), nn.Sequential(nn.Dropout(0.1))])
        (1, '0', 'Dropout(p=0.1, inplace=False)', 'Dropout(p=0.5, inplace=False)')
    """
    first = dict(described_layers(networks[0]))
    for number, network in enumerate(networks[1:], 1):
        own = dict(described_layers(network))
        for name in [*first, *own]:
            if first.get(name) != own.get(name):
                return number, name, own.get(name, "absent"), first.get(name, "absent")
    return None


def _plain(value: Any, kinds: tuple[type, ...]) -> Any:
    """A setting as it is shown; ``None`` if it is none. Functions, such as an activation, go by their names."""
    if inspect.isroutine(value):
        return value.__qualname__
    several = value if isinstance(value, tuple | list) else (value,)
    return value if several and all(isinstance(each, kinds) for each in several) else None
