# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The layers of this package's actors as numpy functions on views of their parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torchrl.modules import MLP

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules.actors import GaussianHead
from torchrl_o2o.modules.best_of import BestOfN, BestOfPolicies, BestOfSamples, MeanOnly
from torchrl_o2o.modules.boxes import BoxTanh
from torchrl_o2o.modules.critics import QValueNet
from torchrl_o2o.modules.flow import AppendNoise, ClipToBox, Joined
from torchrl_o2o.modules.gaussian_policies import GaussianVectorHead
from torchrl_o2o.modules.input_checks import altered_layer
from torchrl_o2o.modules.policy_ensemble import PolicyEnsemble
from torchrl_o2o.modules.trunk import ReLU, UnitNorm
from torchrl_o2o.modules.units import Standardize, ToBox

__all__ = ["Operation", "PolicyMoments", "first_linear", "flat_layers", "operations", "policy_moments"]

#: A function from features to features, each [*B, n].
Operation = Callable[[np.ndarray], np.ndarray]
#: A function from a tensor to the array that an operation uses; for stacked members, to the array of one of them.
Read = Callable[[Tensor], np.ndarray]
#: A function from features to an action or a mean, and to a standard deviation if the second argument asks for it.
PolicyMoments = Callable[[np.ndarray, bool], tuple[np.ndarray, np.ndarray | None]]

_LAYERS = (
    *(nn.Linear, nn.LayerNorm, nn.Dropout, nn.Identity, nn.ReLU, nn.Tanh, nn.GELU, AppendNoise, ClipToBox),
    *(BestOfN, BestOfPolicies, BestOfSamples, MeanOnly, ReLU, UnitNorm, BoxTanh, GaussianHead, GaussianVectorHead),
    *(PolicyEnsemble, Standardize, ToBox),
)
_DTYPES = frozenset({torch.float32, torch.float64})


def first_linear(net: nn.Module, layers: list[nn.Module]) -> nn.Linear:
    """Raise for unknown layers.

    Args:
        net: the actor's network.
        layers: its layers, from :func:`flat_layers`.

    Returns:
        The first linear layer, which gives width and dtype of the observations.

    Raises:
        O2OSpecError: if there is an unknown layer or one with hooks, the first one is not linear, or parameters are not
            all float32 or float64.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
        >>> first_linear(net, flat_layers(net)).in_features
        3
    """
    leaves = [leaf for layer in layers for leaf in (layer, *_members(layer))]
    heads = [leaf for leaf in leaves if isinstance(leaf, GaussianHead | GaussianVectorHead)]
    inner = [leaf for head in heads for part in head.children() for leaf in flat_layers(part)]
    # Not isinstance, because a subclass may compute something else, as the Linear of weight_norm does.
    unknown = sorted({type(leaf).__name__ for leaf in [*leaves, *inner] if type(leaf) not in _LAYERS})
    if changed := next(filter(None, map(altered_layer, [net, *_judges(layers)])), None):
        raise O2OSpecError(
            f"got an actor with {changed}, expected layers without, because FastActor computes them in numpy; remove "
            "them, or call the actor on a TensorDict"
        )
    dtypes = {parameter.dtype for parameter in net.parameters()}
    leading = Standardize | PolicyEnsemble | AppendNoise | BestOfN | BestOfPolicies | BestOfSamples
    first = next((leaf for leaf in leaves if not isinstance(leaf, leading)), None)
    if unknown or not isinstance(first, nn.Linear) or len(dtypes) != 1 or not dtypes <= _DTYPES:
        raise O2OSpecError(
            f"got an actor of {', '.join(unknown) or ', '.join(map(str, dtypes))}, expected an actor from make_actor, "
            "make_gaussian_actor, make_deterministic_actor, make_one_step_actor or average_actors in float32 or "
            "float64, because torchrl_o2o.collectors only knows their layers; use FrameActor for actors from pixels, "
            "and call other actors on a TensorDict"
        )
    return first


def _judges(layers: list[nn.Module]) -> list[nn.Module]:
    """The critics that choose among actions, which are no submodules of the policy."""
    return [layer.critic for layer in layers if isinstance(layer, BestOfN | BestOfPolicies | BestOfSamples)]


def _members(layer: nn.Module) -> list[nn.Module]:
    if isinstance(layer, BestOfN):
        return [*flat_layers(layer.flow), *flat_layers(layer.critic)]
    if isinstance(layer, BestOfPolicies):
        return [leaf for net in (*layer.policies, layer.critic) for leaf in flat_layers(net)]
    if isinstance(layer, BestOfSamples):
        return [leaf for net in (layer.policy, layer.place, layer.critic) for leaf in flat_layers(net)]
    return flat_layers(layer.members) if isinstance(layer, PolicyEnsemble) else []


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def flat_layers(module: nn.Module) -> list[nn.Module]:
    """A network's layers in the order in which they are applied.

    Args:
        module: nested sequences of layers.

    Examples:
        >>> flat_layers(nn.Sequential(nn.Sequential(nn.Linear(3, 2)), nn.Tanh()))
        [Linear(in_features=3, out_features=2, bias=True), Tanh()]
    """
    if type(module) in (nn.Sequential, MLP, Joined, QValueNet):
        return [leaf for child in module.children() for leaf in flat_layers(child)]
    return [module]


def policy_moments(layers: list[nn.Module], read: Read = _array) -> PolicyMoments:
    """Layers as a function from observations to the action or its mean, and to the standard deviation if asked for.

    Args:
        layers: from :func:`flat_layers`, accepted by :func:`first_linear`.
        read: a function from a parameter to the array to compute with. Defaults to a view of the parameter.

    Examples:
        >>> policy_moments([nn.Linear(3, 2), nn.Tanh()])(np.zeros((5, 3), np.float32), False)[0].shape
        (5, 2)
    """
    *body, last = layers
    to_box = last if isinstance(last, ToBox) else None
    if to_box is not None:
        last = body.pop()
    before, head = operations(body, read), _head(last, read)

    def moments(features: np.ndarray, sampling: bool) -> tuple[np.ndarray, np.ndarray | None]:
        for operation in before:
            features = operation(features)
        return head(features, sampling)

    if to_box is None:
        return moments
    middle, half_width = _array(to_box.middle), _array(to_box.half_width)

    def stretched(features: np.ndarray, sampling: bool) -> tuple[np.ndarray, np.ndarray | None]:
        mean, scale = moments(features, sampling)
        return middle + half_width * mean, None if scale is None else half_width * scale

    return stretched


def _head(last: nn.Module, read: Read) -> PolicyMoments:
    """The last layer, which returns an action, or a mean and a standard deviation."""
    if isinstance(last, PolicyEnsemble):
        return _merged(last)
    if isinstance(last, BestOfN):
        return _chosen(last)
    if isinstance(last, BestOfPolicies):
        return _better(last)
    if isinstance(last, BestOfSamples):
        return _best_sample(last)
    if isinstance(last, GaussianHead):
        return _gaussian([last.mean], _gaussian_scale(last, read), read)
    if isinstance(last, GaussianVectorHead):
        return _gaussian([last.mean, *flat_layers(last.squash)], _vector_scale(last, read), read)
    (operation,) = operations([last], read)
    return lambda features, sampling: (operation(features), None)


def _gaussian(mean: list[nn.Module], scale: Operation, read: Read) -> PolicyMoments:
    before = operations(mean, read)

    def moments(features: np.ndarray, sampling: bool) -> tuple[np.ndarray, np.ndarray | None]:
        value = features
        for operation in before:
            value = operation(value)
        return value, scale(features) if sampling else None

    return moments


def _merged(ensemble: PolicyEnsemble) -> PolicyMoments:
    """The same as :func:`~torchrl_o2o.functional.merge_gaussians`, on views of the members' stacked parameters."""
    members = [
        policy_moments(flat_layers(ensemble.members), lambda tensor, k=k: _array(tensor)[k])
        for k in range(ensemble.num_members)
    ]
    low, high = (float(np.exp(2.0 * bound)) for bound in ensemble.log_std_bounds)

    def moments(features: np.ndarray, sampling: bool) -> tuple[np.ndarray, np.ndarray | None]:
        parts = [member(features, sampling) for member in members]
        loc = np.stack([part[0] for part in parts])
        mean = loc.mean(0)
        if not sampling:
            return mean, None
        variance = np.square(np.stack([part[1] for part in parts])) + np.square(loc - mean)  # type: ignore[misc]
        return mean, np.sqrt(np.minimum(np.maximum(variance.mean(0), low), high))

    return moments


def _judge(policy: BestOfN | BestOfPolicies | BestOfSamples) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The ensemble's value of each row's action, [B]."""
    names = {id(value): name for name, value in policy.critic.named_parameters()}
    stacked = policy.judges
    critics = [
        operations(flat_layers(policy.critic), lambda tensor, k=k: _array(stacked[names[id(tensor)]])[k])
        for k in range(len(next(iter(stacked.values()))))
    ]

    def value(observation: np.ndarray, action: np.ndarray) -> np.ndarray:
        judged = np.concatenate([observation, action], -1)
        values = np.stack([_applied(critic, judged)[..., 0] for critic in critics])
        return values.min(0) if policy.aggregation == "min" else values.mean(0)

    return value


def _better(policy: BestOfPolicies) -> PolicyMoments:
    """The same as :class:`~torchrl_o2o.modules.BestOfPolicies`."""
    value_of, modes = _judge(policy), [_mode(flat_layers(net)) for net in policy.policies]

    def moments(features: np.ndarray, sampling: bool) -> tuple[np.ndarray, np.ndarray | None]:
        rows = features.reshape(-1, features.shape[-1])
        actions = np.stack([mode(rows) for mode in modes])
        best = np.stack([value_of(rows, action) for action in actions]).argmax(0)
        return actions[best, np.arange(len(rows))].reshape(*features.shape[:-1], -1), None

    return moments


def _mode(layers: list[nn.Module]) -> Operation:
    """A policy's layers up to its mean, and the operation that maps the mean into the action box."""
    end = next(i for i, layer in enumerate(layers) if isinstance(layer, MeanOnly))
    moments, place = policy_moments(layers[:end]), operations(layers[end + 1 :])
    return lambda features: _applied(place, moments(features, False)[0])


def _chosen(policy: BestOfN) -> PolicyMoments:
    """The same as :class:`~torchrl_o2o.modules.BestOfN`; the noise of its N actions follows the observation."""
    flow, count, size = operations(flat_layers(policy.flow)), policy.num_samples, len(policy.low)
    value_of = _judge(policy)
    low, high = _array(policy.low), _array(policy.high)

    def moments(features: np.ndarray, sampling: bool) -> tuple[np.ndarray, np.ndarray | None]:
        rows = features.reshape(-1, features.shape[-1])
        point = rows[:, -count * size :].reshape(-1, size)
        observation = np.repeat(rows[:, : -count * size], count, 0)
        for step in range(policy.flow_steps):
            time = np.full_like(point[:, :1], step / policy.flow_steps)
            point = point + _applied(flow, np.concatenate([observation, point, time], -1)) / policy.flow_steps
        action = np.minimum(np.maximum(point, low), high)
        value = value_of(observation, action).reshape(-1, count)
        best = action.reshape(-1, count, size)[np.arange(len(rows)), value.argmax(-1)]
        return best.reshape(*features.shape[:-1], size), None

    return moments


def _best_sample(policy: BestOfSamples) -> PolicyMoments:
    """The same as :class:`~torchrl_o2o.modules.BestOfSamples`; the noise of its N actions follows the observation."""
    count, size, value_of = policy.num_samples, policy.action_dim, _judge(policy)
    sample_moments, place = policy_moments(flat_layers(policy.policy)), operations(flat_layers(policy.place))

    def moments(features: np.ndarray, sampling: bool) -> tuple[np.ndarray, np.ndarray | None]:
        rows = features.reshape(-1, features.shape[-1])
        observation, noise = rows[:, : -count * size], rows[:, -count * size :].reshape(-1, count, size)
        loc, scale = sample_moments(observation, True)
        assert scale is not None
        action = _applied(place, (loc[:, None] + np.broadcast_to(scale, loc.shape)[:, None] * noise).reshape(-1, size))
        value = value_of(np.repeat(observation, count, 0), action).reshape(-1, count)
        best = action.reshape(-1, count, size)[np.arange(len(rows)), value.argmax(-1)]
        return best.reshape(*features.shape[:-1], size), None

    return moments


def _applied(operations: list[Operation], features: np.ndarray) -> np.ndarray:
    for operation in operations:
        features = operation(features)
    return features


def operations(modules: list[nn.Module], read: Read = _array) -> list[Operation]:
    """Layers as functions of numpy arrays, without layers that do nothing in evaluation.

    Args:
        modules: from :func:`flat_layers`, without heads.
        read: as in :func:`policy_moments`.

    Examples:
        >>> (relu,) = operations([nn.Dropout(0.5), nn.ReLU()])
        >>> relu(np.array([-1.0, 2.0]))
        array([0., 2.])
    """
    return [_operation(module, read) for module in modules if not isinstance(module, nn.Dropout | nn.Identity)]


def _operation(module: nn.Module, read: Read) -> Operation:
    if isinstance(module, nn.Linear):
        return _linear(module, read)
    if isinstance(module, ReLU | nn.ReLU):
        return lambda features: np.maximum(features, 0.0)
    if isinstance(module, nn.Tanh):
        return np.tanh
    if isinstance(module, nn.LayerNorm):
        return _layer_norm(module, read)
    if isinstance(module, nn.GELU):
        return _gelu(module)
    if isinstance(module, ClipToBox):
        low, high = read(module.low), read(module.high)
        return lambda features: np.minimum(np.maximum(features, low), high)
    if isinstance(module, UnitNorm):
        return lambda features: features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), module.eps)
    if isinstance(module, Standardize):
        offset, divisor = read(module.mean), read(module.scale)
        return lambda features: (features - offset) / divisor
    assert isinstance(module, BoxTanh)  # the last of _LAYERS
    middle, half_width = read(module.middle), read(module.half_width)
    return lambda features: middle + half_width * np.tanh(features)


def _linear(module: nn.Linear, read: Read) -> Operation:
    # Views of the parameter, so that updates in place take effect at once.
    weight = read(module.weight)
    transposed = weight.T
    bias = None if module.bias is None else read(module.bias)

    def apply(features: np.ndarray) -> np.ndarray:
        # For a batch, BLAS is several times faster with the weight on the left.
        product = features.dot(transposed) if features.ndim == 1 else weight.dot(features.T).T
        if bias is not None:
            product += bias
        return product

    return apply


def _gelu(module: nn.GELU) -> Operation:
    if module.approximate != "tanh":
        raise O2OSpecError(
            "got an actor with an exact GELU, expected the tanh approximation, nn.GELU(approximate='tanh'); build the "
            "network with it"
        )
    factor = math.sqrt(2.0 / math.pi)
    return lambda x: 0.5 * x * (1.0 + np.tanh(factor * (x + 0.044715 * (x * x * x))))


def _layer_norm(module: nn.LayerNorm, read: Read) -> Operation:
    weight = 1.0 if module.weight is None else read(module.weight)
    bias = 0.0 if module.bias is None else read(module.bias)

    def apply(features: np.ndarray) -> np.ndarray:
        centered = features - features.mean(-1, keepdims=True)
        variance = np.square(centered).mean(-1, keepdims=True)
        return centered / np.sqrt(variance + module.eps) * weight + bias

    return apply


def _gaussian_scale(head: GaussianHead, read: Read) -> Operation:
    linear, (low, high) = _linear(head.log_std, read), head.log_std_bounds
    affine = head.log_std_multiplier is not None and head.log_std_offset is not None
    factor = read(head.log_std_multiplier) if affine else None  # type: ignore[arg-type]
    offset = read(head.log_std_offset) if affine else None  # type: ignore[arg-type]

    def apply(features: np.ndarray) -> np.ndarray:
        log_std = linear(features)
        if factor is not None and offset is not None:
            log_std = factor * log_std + offset
        return np.exp(np.minimum(np.maximum(log_std, low), high))

    return apply


def _vector_scale(head: GaussianVectorHead, read: Read) -> Operation:
    parameter, (low, high) = read(head.log_std), head.log_std_bounds

    def apply(features: np.ndarray) -> np.ndarray:
        if head.std == "clip":
            return np.exp(np.minimum(np.maximum(parameter, low), high))
        return np.exp(low + (high - low) / (1.0 + np.exp(-parameter)))

    return apply
