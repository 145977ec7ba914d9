# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Load parameters from other code into the networks and targets of a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from tensordict import TensorDictParams
from torch import Tensor, nn
from torchrl.objectives.common import LossModule

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives.networks import flat_parameters

__all__ = ["load_parameters"]

ParametersLike = nn.Module | Mapping[str, Tensor]


def load_parameters(loss: LossModule, networks: Mapping[str, ParametersLike | Sequence[ParametersLike]]) -> None:
    """Copy parameters of another run or another code into a loss's networks, targets included.

    Build the target updater before this call, because ``SoftUpdate(loss, ...)`` copies the online parameters into the
    targets. Parameters are overwritten in place, so optimizers, updaters and actors that hold them see the new values.

    Args:
        loss: a loss of this package, or one of torchrl's.
        networks: name of a network (``"qvalue_network"``, ``"target_qvalue_network"``, ``"actor_network"``, ...) -> a
            module built like the loss's, or its ``state_dict()``. For an ensemble, pass a list with one for each
            member, or one ``state_dict`` of stacked tensors. Other modules of the loss, such as ``"temperature"``, are
            given in the same way.

    Raises:
        O2OSpecError: if the loss has no such network, or names or shapes do not fit. Then nothing has been changed.

    Examples:
        >>> import torch
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> critics = make_qvalue_ensemble(5, 2, num_qvalue_nets=2, hidden_sizes=(16,))
        >>> loss = EnsembleSACLoss(make_actor(5, 2, hidden_sizes=(16,)), critics)
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> theirs = make_qvalue_ensemble(5, 2, num_qvalue_nets=2, hidden_sizes=(16,))
        >>> load_parameters(loss, {"target_qvalue_network": theirs, "temperature": {"log_alpha": torch.tensor(-1.0)}})
        >>> torch.equal(loss.target_qvalue_network_params["module", "head", "bias"][1], theirs[1].module.head.bias)
        True
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, given in networks.items():
        pairs += _pairs(name, _tensors_of(loss, name), _stacked(given))
    with torch.no_grad():
        for own, value in pairs:
            own.copy_(value)


def _tensors_of(loss: LossModule, name: str) -> dict[str, Tensor]:
    """The loss's own tensors of a network, by dotted names."""
    held = {key.removesuffix("_params"): child for key, child in loss.named_children() if not key.startswith("_")}
    if name not in held:
        raise O2OSpecError(
            f"got {name!r}, expected one of {sorted(held)}, the networks of {type(loss).__name__} with their own "
            "parameters; correct the name"
        )
    module = held[name]
    return flat_parameters(module, detach=True) if isinstance(module, TensorDictParams) else dict(module.state_dict())


def _stacked(given: ParametersLike | Sequence[ParametersLike]) -> dict[str, Tensor]:
    """Tensors by name; the tensors of several members are stacked."""
    if isinstance(given, Mapping):
        return {name: torch.as_tensor(value) for name, value in given.items()}
    if isinstance(given, nn.Module):
        return dict(cast(nn.Module, given).state_dict())
    members = [_stacked(member) for member in cast(Sequence[ParametersLike], given)]
    if len({tuple(sorted(member)) for member in members}) != 1:
        raise O2OSpecError(
            "got members whose parameters have different names, expected networks of the same structure; build them "
            "alike"
        )
    return {name: torch.stack([member[name] for member in members]) for name in members[0]}


def _pairs(network: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    if set(own) != set(given):
        raise O2OSpecError(
            f"got unknown parameters {sorted(set(given) - set(own))} for {network!r} and none for "
            f"{sorted(set(own) - set(given))}, expected the names of its parameters; build the network like the loss's"
        )
    for name, value in given.items():
        if value.shape != own[name].shape:
            raise O2OSpecError(
                f"got {name!r} of shape {list(value.shape)} for {network!r}, expected {list(own[name].shape)}; stack "
                "the tensors of an ensemble's members along the first dimension"
            )
    return [(own[name], value) for name, value in given.items()]
