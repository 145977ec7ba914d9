# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The tensors of a loss module as one flat dictionary, and a context that replaces them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from tensordict import TensorDict, TensorDictParams
from torch import Tensor, nn

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives.networks import flat_parameters

__all__ = ["copied_pairs", "replaced", "state_of", "target_pairs"]


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers of a module by dotted names, including those of functional networks.

    A tensor that is registered twice (a value estimator has the loss's value network) gets the first of its names.

    Args:
        module: a loss module.

    Returns:
        The tensors themselves; nothing is copied.

    Examples:
        >>> from torchrl_o2o.modules import Temperature
        >>> list(state_of(Temperature(-3.0)))
        ['log_alpha']
    """
    seen: dict[int, str] = {}
    out: dict[str, Tensor] = {}
    for name, value in _entries(module, ""):
        if seen.setdefault(id(value), name) == name:
            out[name] = value
    return out


def _entries(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for own in (module._parameters, module._buffers):
        yield from ((prefix + name, value) for name, value in own.items() if value is not None)
    for name, child in module._modules.items():
        if isinstance(child, TensorDictParams):
            yield from ((f"{prefix}{name}.{key}", value) for key, value in flat_parameters(child).items())
        elif child is not None:
            yield from _entries(child, f"{prefix}{name}.")


@contextmanager
def replaced(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a module compute with other tensors than its own inside a ``with`` block.

    Args:
        module: a loss module.
        values: the tensors to compute with, by the names of :func:`state_of`, all of them.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import Temperature
        >>> temperature = Temperature(-3.0)
        >>> with replaced(temperature, {"log_alpha": torch.zeros(())}):
        ...     temperature.alpha
        tensor(1.)
    """
    substitutes = {id(value): values[name] for name, value in state_of(module).items()}
    with ExitStack() as stack:
        _enter(module, substitutes, stack, set())
        yield


def _enter(module: nn.Module, substitutes: Mapping[int, Tensor], stack: ExitStack, seen: set[int]) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    for own in (module._parameters, module._buffers):
        known = {name: substitutes[id(value)] for name, value in own.items() if id(value) in substitutes}
        stack.enter_context(_overlaid(own, known))
    # Unregistered networks share parameters with registered ones: TorchRL's value estimators hold the loss's value
    # network.
    unregistered = [child for child in module.__dict__.values() if isinstance(child, nn.Module)]
    for name, child in [*module._modules.items(), *((None, child) for child in unregistered)]:
        if name is not None and isinstance(child, TensorDictParams):
            # Instance attributes take precedence over registered modules of the same name.
            flat = {key: substitutes[id(value)] for key, value in flat_parameters(child).items()}
            nested = TensorDict(flat, child.batch_size).unflatten_keys(".")
            stack.enter_context(_overlaid(module.__dict__, {name: nested}))
        elif child is not None:
            _enter(child, substitutes, stack, seen)


@contextmanager
def _overlaid(own: Any, values: Mapping[str, Any]) -> Iterator[None]:
    before = {name: own[name] for name in values if name in own}
    own.update(values)
    try:
        yield
    finally:
        for name in values:
            own.pop(name)
        own.update(before)


def copied_pairs(loss: nn.Module, source: str, target: str) -> dict[str, str]:
    """Target -> source of the tensors that a copy overwrites, by the names of :func:`state_of`.

    Args:
        loss: a loss module.
        source: prefix of the names of the copied tensors, without the last dot.
        target: prefix of the names of the overwritten tensors; the rest of their names is as in the source.

    Returns:
        Name of the target -> name of its source.

    Raises:
        O2OSpecError: if there are no such tensors, or their names or shapes do not fit.

    Examples:
        >>> copied_pairs(nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)}), "a", "b")
        {'b.weight': 'a.weight', 'b.bias': 'a.bias'}
    """
    state = state_of(loss)
    pairs = {target + name.removeprefix(source): name for name in state if name.startswith(f"{source}.")}
    bad = [name for name, other in pairs.items() if name not in state or state[name].shape != state[other].shape]
    if not pairs or bad:
        raise O2OSpecError(
            f"got Copy({source!r}, {target!r}), expected tensors of {type(loss).__name__} with equal names and shapes, "
            f"but it has no such {bad or source!r}; take the names from state_of(loss)"
        )
    return pairs


def target_pairs(loss: nn.Module, names: tuple[str, ...] | None = None) -> dict[str, str]:
    """Target -> source of the target networks' tensors, by the names of :func:`state_of`.

    Args:
        loss: a loss module whose target networks are registered as ``target_<network>_params``.
        names: names of those networks; ``None`` (default) takes all.

    Returns:
        Name of the target -> name of its source.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> critics = make_qvalue_ensemble(3, 1, num_qvalue_nets=2, hidden_sizes=(8,))
        >>> pairs = target_pairs(EnsembleSACLoss(make_actor(3, 1, hidden_sizes=(8,)), critics))
        >>> pairs["target_qvalue_network_params.module.head.bias"]
        'qvalue_network_params.module.head.bias'
    """
    state = state_of(loss)
    sources = {name: name.removeprefix("target_") for name in state if name.startswith("target_")}
    if names is not None:
        groups = tuple(f"{name}_params." for name in names)
        sources = {target: source for target, source in sources.items() if source.startswith(groups)}
    return {
        target: source
        for target, source in sources.items()
        if source in state and state[source].requires_grad and state[source].data_ptr() != state[target].data_ptr()
    }
