# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Run known feed-forward networks as lists of operations on named parameters, without calling modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as torch_module
from torchrl.modules import MLP

from torchrl_o2o.modules.critics import QValueNet
from torchrl_o2o.modules.flow import Joined
from torchrl_o2o.modules.trunk import ReLU, ResidualBlock, UnitNorm

__all__ = ["Layers", "evaluate", "event_dims", "has_hooks", "input_dims", "layers_of"]

_CONTAINERS = (QValueNet, nn.Sequential, MLP, Joined)
#: Layers that process each vector independently of the leading dimensions, and containers of layers.
_ROWWISE = (
    *(nn.Linear, nn.LayerNorm, nn.Dropout, nn.Identity, nn.Sequential, nn.ModuleList),
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Softplus),
)
_HOMES = ("torchrl_o2o", "torchrl", "tensordict")


class _Linear(NamedTuple):
    weight: str
    bias: str

    def __call__(self, params: Mapping[str, Tensor], features: Tensor) -> Tensor:
        return functional.linear(features, params[self.weight], params.get(self.bias))


class _LayerNorm(NamedTuple):
    weight: str
    bias: str
    module: nn.LayerNorm

    def __call__(self, params: Mapping[str, Tensor], features: Tensor) -> Tensor:
        shape, eps = self.module.normalized_shape, self.module.eps
        return functional.layer_norm(features, shape, params.get(self.weight), params.get(self.bias), eps)


class _Plain(NamedTuple):
    """A layer without parameters."""

    module: nn.Module

    def __call__(self, params: Mapping[str, Tensor], features: Tensor) -> Tensor:
        return self.module(features)


def _relu(params: Mapping[str, Tensor], features: Tensor) -> Tensor:
    return torch.relu(features)


class _Residual(NamedTuple):
    """Layers whose output is added to their input."""

    layers: tuple[Callable[[Mapping[str, Tensor], Tensor], Tensor], ...]

    def __call__(self, params: Mapping[str, Tensor], features: Tensor) -> Tensor:
        return features + evaluate(self.layers, params, features)


Layers = tuple[Callable[[Mapping[str, Tensor], Tensor], Tensor], ...]
#: Cached with a network: its layers, and the values that show whether they have changed.
_Found = tuple[Layers | None, list[dict[str, nn.Module | None]], list[dict[str, nn.Module | None]], list[Mapping]]

_EVERYWHERE = (
    torch_module._global_forward_pre_hooks,
    torch_module._global_forward_hooks,
    torch_module._global_backward_pre_hooks,
    torch_module._global_backward_hooks,
)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module would run a hook, registered on this module or globally.

    Args:
        module: any module; hooks of its submodules do not count.

    Returns: Whether there is such a hook.

    Examples:
        >>> layer = nn.Linear(2, 1)
        >>> handle = layer.register_forward_hook(lambda *_: None)
        >>> has_hooks(layer), handle.remove(), has_hooks(layer)
        (True, None, False)
    """
    return any(_hooks_of(module)) or any(_EVERYWHERE)


def _hooks_of(module: nn.Module) -> tuple[Mapping, ...]:
    return module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks


def event_dims(network: nn.Module) -> tuple[int, ...]:
    """The number of dimensions of one input of a network: 1 for vectors, 3 for images.

    Args:
        network: any module.

    Returns:
        (1,) for layers that take vectors, (1, 3) if there are convolutions among them, and () if it is unknown, because
        an unknown module may reshape its input before its first layer.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> event_dims(make_actor(3, 1, hidden_sizes=(8,))), event_dims(nn.LSTM(3, 1))
        ((1,), ())
    """
    modules = list(network.modules())
    known = all(
        isinstance(module, (*_ROWWISE, nn.Conv2d)) or type(module).__module__.partition(".")[0] in _HOMES
        for module in modules
    )
    if not known:
        return ()
    return (1, 3) if any(isinstance(module, nn.Conv2d) for module in modules) else (1,)


def input_dims(networks: Sequence[TensorDictModuleBase], key: NestedKey) -> tuple[int, ...]:
    """The number of dimensions of an entry that several networks read, see :func:`event_dims`.

    Args:
        networks: modules, at least one of which reads the entry.
        key: the entry.

    Returns:
        The numbers that all networks which read it accept; () if one of them is unknown.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> networks = make_actor(3, 1, hidden_sizes=(8,)), *make_qvalue_ensemble(3, 1, hidden_sizes=(8,))
        >>> input_dims(networks, "observation")
        (1,)
    """
    return min(event_dims(network) for network in networks if key in network.in_keys)


def layers_of(network: nn.Module | None) -> Layers | None:
    """The layers of a network, if it is a row of linear ones, LayerNorm, ReLU, GELU, Tanh, unit norm, residual blocks.

    Args:
        network: the module inside a TensorDictModule.

    Returns:
        Its layers, which use the parameter names of that TensorDictModule; ``None`` for any other network, and for one
        with a hook, because only a call of the module runs hooks.

    Examples:
        >>> from torchrl_o2o.modules import make_qvalue_ensemble
        >>> critic = make_qvalue_ensemble(3, 1, num_qvalue_nets=1, hidden_sizes=(8,), layer_norm=False)[0]
        >>> len(layers_of(critic.module))
        3
    """
    if type(network) not in _CONTAINERS:
        return None
    assert network is not None
    found: _Found | None = network.__dict__.get("_layers")
    if found is None or found[1][0] is not network._modules or found[1] != found[2]:  # the layers have changed
        parts = list(network.modules())
        children = [part._modules for part in parts]
        hooks = [each for part in parts for each in _hooks_of(part)]
        found = network.__dict__["_layers"] = _find(network), children, [dict(each) for each in children], hooks
    return None if any(found[3]) or any(_EVERYWHERE) else found[0]


def _find(module: nn.Module, name: str = "module") -> Layers | None:
    """The layers of a module that has this name in its network; ``None`` if one is not known."""
    if type(module) is nn.Linear:
        return (_Linear(f"{name}.weight", f"{name}.bias"),)
    if type(module) is nn.LayerNorm:
        return (_LayerNorm(f"{name}.weight", f"{name}.bias", module),)
    if type(module) in (ReLU, nn.ReLU):
        return (_relu,)
    if type(module) in (nn.Tanh, nn.GELU, UnitNorm):
        return (_Plain(module),)
    if type(module) not in (*_CONTAINERS, ResidualBlock):
        return None
    found: list[Callable[[Mapping[str, Tensor], Tensor], Tensor]] = []
    for key, child in module._modules.items():
        layers = None if child is None else _find(child, f"{name}.{key}")
        if layers is None:
            return None
        found += layers
    return (_Residual(tuple(found)),) if type(module) is ResidualBlock else tuple(found)


def evaluate(layers: Layers, params: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Apply layers one after the other.

    Args:
        layers: from :func:`layers_of`.
        params: the network's parameters by the names the layers use.
        features: all inputs concatenated, shape [*B, n].

    Returns:
        The output, shape [*B, m].

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_qvalue_ensemble
        >>> critic = make_qvalue_ensemble(3, 1, num_qvalue_nets=1, hidden_sizes=(8,))[0]
        >>> evaluate(layers_of(critic.module), critic.state_dict(), torch.zeros(4, 4)).shape
        torch.Size([4, 1])
    """
    for layer in layers:
        features = layer(params, features)
    return features
