# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Describe an actor's structure in plain values, and rebuild it from a list of known layers.

Other layers raise an error, so that building a network from a file runs only this package's code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Bounded, Composite
from torchrl.modules import MLP, Actor, ProbabilisticActor

from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.modules.actors import GaussianHead
from torchrl_o2o.modules.best_of import BestOfN, BestOfPolicies, BestOfSamples, MeanOnly
from torchrl_o2o.modules.boxes import BoxTanh, finite_edges
from torchrl_o2o.modules.chunks import act_in_chunks, chunk_length
from torchrl_o2o.modules.critics import QValueNet
from torchrl_o2o.modules.distributions import TanhNormal
from torchrl_o2o.modules.flow import AppendNoise, ClipToBox, Joined
from torchrl_o2o.modules.gaussian_policies import BoxNormal, GaussianVectorHead
from torchrl_o2o.modules.input_checks import altered_layer
from torchrl_o2o.modules.pixels import Bottleneck, ConvStack, LatentPolicy, PixelEncoder, PixelPolicy
from torchrl_o2o.modules.policy_ensemble import PolicyEnsemble
from torchrl_o2o.modules.trunk import ReLU, UnitNorm
from torchrl_o2o.modules.units import Standardize, ToBox

__all__ = ["ActorParts", "build_network", "describe_network", "observation_shape", "observation_shapes", "take_apart"]

_DISTRIBUTIONS = {"TanhNormal": TanhNormal, "BoxNormal": BoxNormal}
_SETTINGS = {"TanhNormal": {"low", "high", "margin", "edge"}, "BoxNormal": {"low", "high", "clip_samples"}}
_MAX_MEMBERS = 1000


def _nothing(layer: Any) -> dict[str, Any]:
    return {}


def _none(layer: Any) -> tuple[nn.Module, ...]:
    return ()


@dataclass(frozen=True)
class _Layer:
    """How to describe and build one kind of layer: its constructor's arguments, and its inner layers."""

    build: Callable[..., nn.Module]
    settings: Callable[[Any], dict[str, Any]] = _nothing
    inner: Callable[[Any], Sequence[nn.Module]] = _none


def _linear(layer: nn.Linear) -> dict[str, Any]:
    return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}


def _layer_norm(layer: nn.LayerNorm) -> dict[str, Any]:
    shape, affine = list(layer.normalized_shape), layer.elementwise_affine
    return {"normalized_shape": shape, "eps": layer.eps, "elementwise_affine": affine, "bias": layer.bias is not None}


def _gaussian_head(layer: GaussianHead) -> dict[str, Any]:
    return {
        "in_features": layer.mean.in_features,
        "action_dim": layer.mean.out_features,
        "log_std_bounds": list(layer.log_std_bounds),
        "affine_log_std": layer.log_std_multiplier is not None,
    }


def _vector_head(layer: GaussianVectorHead) -> dict[str, Any]:
    return {
        "in_features": layer.mean.in_features,
        "action_dim": layer.mean.out_features,
        "std": layer.std,
        "log_std_bounds": list(layer.log_std_bounds),
    }


def _ensemble(member: nn.Module, num_members: int, log_std_bounds: Sequence[float]) -> nn.Module:
    if not 1 <= num_members <= _MAX_MEMBERS:
        raise O2OSpecError(f"got {num_members} members, expected 1 to {_MAX_MEMBERS}")
    low, high = log_std_bounds
    return PolicyEnsemble([member] * num_members, log_std_bounds=(low, high))


def _members(layer: PolicyEnsemble) -> dict[str, Any]:
    return {"num_members": layer.num_members, "log_std_bounds": list(layer.log_std_bounds)}


def _repeated(critic: nn.Module, num_members: int) -> dict[str, Tensor]:
    if not 1 <= num_members <= _MAX_MEMBERS:
        raise O2OSpecError(f"got {num_members} critics, expected 1 to {_MAX_MEMBERS}")
    return {name: value.expand(num_members, *value.shape) for name, value in critic.named_parameters()}


def _best_of_n(flow: nn.Module, critic: nn.Module, num_members: int, size: int, **settings: Any) -> nn.Module:
    params = _repeated(critic, num_members)
    return BestOfN(flow, critic, params, torch.zeros(size), torch.zeros(size), **settings)


def _best_of_policies(*inner: nn.Module, num_members: int, aggregation: str) -> nn.Module:
    *policies, critic = inner
    return BestOfPolicies(policies, critic, _repeated(critic, num_members), aggregation=aggregation)


def _best_of_samples(policy: nn.Module, place: nn.Module, critic: nn.Module, **settings: Any) -> nn.Module:
    params = _repeated(critic, settings.pop("num_members"))
    return BestOfSamples(policy, place, critic, params, **settings)


def _sampled(layer: BestOfSamples) -> dict[str, Any]:
    return {
        "num_members": len(next(iter(layer.critics.values()))),
        "num_samples": layer.num_samples,
        "action_dim": layer.action_dim,
        "aggregation": layer.aggregation,
    }


def _judging(layer: BestOfPolicies) -> dict[str, Any]:
    return {"num_members": len(next(iter(layer.critics.values()))), "aggregation": layer.aggregation}


def _chosen(layer: BestOfN) -> dict[str, Any]:
    return {
        "num_members": len(next(iter(layer.critics.values()))),
        "size": len(layer.low),
        "num_samples": layer.num_samples,
        "flow_steps": layer.flow_steps,
        "aggregation": layer.aggregation,
    }


def _conv_stack(layer: ConvStack) -> dict[str, Any]:
    return {
        "shape": list(layer.shape),
        "features": [conv.out_channels for conv in layer.convs],
        "strides": [conv.stride[0] for conv in layer.convs],
        "kernel_size": [conv.kernel_size[0] for conv in layer.convs],
        "offset": layer.offset,
    }


def _bottleneck(layer: Bottleneck) -> dict[str, Any]:
    return {"in_features": layer.in_features, "latent_dim": layer.out_features, "layer_norm_eps": layer[1].eps}


def _pixel_encoder(*inner: Any, num_images: int, vector_sizes: Sequence[int], detach_conv: bool) -> nn.Module:
    return PixelEncoder(inner[:num_images], inner[num_images:] or None, vector_sizes, detach_conv=detach_conv)


def _encoder(layer: PixelEncoder) -> dict[str, Any]:
    number = len(layer.conv)
    return {"num_images": number, "vector_sizes": list(layer.sizes[number:]), "detach_conv": layer.detach_conv}


def observation_shape(net: nn.Module) -> tuple[int, ...] | None:
    """The shape of the observations that a policy's network reads, without the noise that it adds.

    Args:
        net: a network of the layers that this package's actors consist of.

    Returns:
        The shape [o], or [C, H, W] of stacked frames; ``None`` if the network has neither linear layers nor
        convolutions.

    Examples:
        >>> observation_shape(nn.Sequential(AppendNoise(2), nn.Linear(5, 1)))
        (3,)
    """
    added = 0
    for layer in net.modules():
        if isinstance(layer, AppendNoise):
            added = layer.size
        if isinstance(layer, BestOfN):
            added = len(layer.low) + 1  # the flow's point and time
        if isinstance(layer, ConvStack):
            return layer.shape
        if isinstance(layer, nn.Linear):
            return (layer.in_features - added,)
    return None


def observation_shapes(net: nn.Module) -> tuple[tuple[int, ...], ...]:
    """The shapes of all that a policy's network reads: images first, then vectors.

    Args:
        net: a network of the layers that this package's actors consist of.

    Examples:
        >>> conv = ConvStack((9, 32, 32), features=(8,), strides=(2,))
        >>> observation_shapes(PixelEncoder([conv], None, (5,)))
        ((9, 32, 32), (5,))
    """
    for layer in net.modules():
        if isinstance(layer, PixelEncoder):
            images = [conv.shape for conv in layer.stacks]
            return (*images, *((size,) for size in layer.sizes[len(images) :]))
    return (observation_shape(net) or (0,),)


def _two_edges(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    return lambda size: kind(torch.zeros(size), torch.zeros(size))


_LAYERS = {
    "Sequential": _Layer(nn.Sequential, inner=lambda layer: tuple(layer)),
    "Linear": _Layer(nn.Linear, _linear),
    "LayerNorm": _Layer(nn.LayerNorm, _layer_norm),
    "Dropout": _Layer(nn.Dropout, lambda layer: {"p": layer.p}),
    "Identity": _Layer(nn.Identity),
    "ReLU": _Layer(ReLU),
    "Tanh": _Layer(nn.Tanh),
    "GELU": _Layer(nn.GELU, lambda layer: {"approximate": layer.approximate}),
    "Joined": _Layer(Joined, inner=lambda layer: tuple(layer)),
    "AppendNoise": _Layer(AppendNoise, lambda layer: {"size": layer.size}),
    "ClipToBox": _Layer(_two_edges(ClipToBox), lambda layer: {"size": len(layer.low)}),
    "QValueNet": _Layer(QValueNet, lambda layer: {"features": layer.head.in_features}, lambda layer: (layer.trunk,)),
    "BestOfN": _Layer(_best_of_n, _chosen, lambda layer: (layer.flow, layer.critic)),
    "BestOfPolicies": _Layer(_best_of_policies, _judging, lambda layer: (*layer.policies, layer.critic)),
    "BestOfSamples": _Layer(_best_of_samples, _sampled, lambda layer: (layer.policy, layer.place, layer.critic)),
    "MeanOnly": _Layer(MeanOnly),
    "UnitNorm": _Layer(UnitNorm, lambda layer: {"eps": layer.eps}),
    "BoxTanh": _Layer(_two_edges(BoxTanh), lambda layer: {"size": len(layer.middle)}),
    "GaussianHead": _Layer(GaussianHead, _gaussian_head),
    "GaussianVectorHead": _Layer(
        lambda squash, **settings: GaussianVectorHead(squash=squash, **settings),
        _vector_head,
        lambda layer: (layer.squash,),
    ),
    "ConvStack": _Layer(ConvStack, _conv_stack),
    "Bottleneck": _Layer(Bottleneck, _bottleneck),
    "PixelEncoder": _Layer(_pixel_encoder, _encoder, lambda layer: (*layer.conv, *layer.latent)),
    "LatentPolicy": _Layer(LatentPolicy, inner=lambda layer: tuple(layer)),
    "PixelPolicy": _Layer(PixelPolicy, inner=lambda layer: (layer.encoder, layer.trunk, layer.head)),
    "PolicyEnsemble": _Layer(_ensemble, _members, lambda layer: (layer.members,)),
    "Standardize": _Layer(_two_edges(Standardize), lambda layer: {"size": len(layer.mean)}),
    "ToBox": _Layer(_two_edges(ToBox), lambda layer: {"size": len(layer.middle)}),
}
_KINDS: tuple[type[nn.Module], ...] = (
    *(nn.Sequential, nn.Linear, nn.LayerNorm, nn.Dropout, nn.Identity, ReLU, nn.Tanh, UnitNorm, BoxTanh),
    *(GaussianHead, GaussianVectorHead, PolicyEnsemble, Standardize, ToBox),
    *(nn.GELU, Joined, AppendNoise, ClipToBox, QValueNet, BestOfN, BestOfPolicies, BestOfSamples, MeanOnly),
    *(ConvStack, Bottleneck, PixelEncoder, LatentPolicy, PixelPolicy),
)
_NAMES: dict[type[nn.Module], str] = {
    MLP: "Sequential",
    nn.ReLU: "ReLU",
    **{kind: kind.__name__ for kind in _KINDS},
}


_INSTEAD = "build the actor with this package's factories, or keep it in a file of your own"


def describe_network(net: nn.Module) -> dict[str, Any]:
    """A network's structure as plain values.

    Args:
        net: a network of the layers that this package's actors consist of.

    Raises:
        O2OSpecError: if it has another layer, named in the message.

    Examples:
        >>> describe_network(nn.Sequential(nn.Linear(3, 1), nn.Tanh()))["inner"][0]["settings"]
        {'in_features': 3, 'out_features': 1, 'bias': True}
    """
    name = _NAMES.get(type(net))
    if name is None:
        raise O2OSpecError(
            f"got a network with a {type(net).__name__}, expected layers among {', '.join(_LAYERS)}; build the actor "
            "with make_actor, make_gaussian_actor, make_deterministic_actor, make_one_step_actor or average_actors, or "
            "keep it in a file of your own"
        )
    layer = _LAYERS[name]
    try:
        settings = layer.settings(net)
    except AttributeError as error:
        raise O2OSpecError(f"got a {name} with other layers inside than its own ({error}); {_INSTEAD}") from error
    description = {
        "layer": name,
        "settings": settings,
        "inner": [describe_network(child) for child in layer.inner(net)],
    }
    _check_described(net, description)
    return description


def _check_described(net: nn.Module, description: Mapping[str, Any]) -> None:
    """Raise if a network computes something else than what its description builds."""
    if changed := altered_layer(net):
        raise O2OSpecError(
            f"got a network with {changed}, expected layers without, because a policy file cannot hold them; remove "
            "them, or keep the actor in a file of your own"
        )
    with torch.device("meta"):
        twin = dict(_build(description).named_modules())
    for place, part in net.named_modules():
        built = twin.get(place)
        own, expected = _a_name(part), "no layer" if built is None else _a_name(built)
        if own != expected:
            raise O2OSpecError(
                f"got a network with {own} at {place!r} of its {type(net).__name__}, expected {expected}, which a "
                f"policy file holds there; {_INSTEAD}"
            )


def _a_name(layer: nn.Module) -> str:
    return f"a {_NAMES.get(type(layer), type(layer).__name__)}"


def build_network(description: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> nn.Module:
    """Build the network of a description, with its parameters.

    Args:
        description: the result of :func:`describe_network`.
        parameters: the network's ``state_dict()``; the network uses these tensors without copying them.

    Raises:
        O2OCheckpointError: if the description names an unknown layer, or the parameters do not belong to that network.

    Examples:
        >>> net = nn.Sequential(nn.Linear(3, 1), nn.Tanh())
        >>> twin = build_network(describe_network(net), net.state_dict())
        >>> torch.equal(twin(torch.ones(3)), net(torch.ones(3)))
        True
    """
    try:
        with torch.device("meta"):  # allocate no memory for sizes that a damaged file may claim
            net = _build(description)
        net.load_state_dict(parameters, assign=True)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, RecursionError) as error:
        reason = str(error).replace("\n", " ")
        raise O2OCheckpointError(f"its network cannot be built ({type(error).__name__}: {reason})") from error
    return net


def _build(description: Mapping[str, Any]) -> nn.Module:
    name = description["layer"]
    if name not in _LAYERS:
        raise O2OSpecError(f"got the unknown layer {name!r}, expected one of {', '.join(_LAYERS)}")
    settings = description["settings"]
    if {"device", "dtype"} & settings.keys():  # torch's layers accept such sizes, and would allocate memory for them
        raise O2OSpecError(f"got {name} with the settings {sorted(settings)}, expected neither device nor dtype")
    return _LAYERS[name].build(*map(_build, description["inner"]), **settings)


@dataclass(frozen=True)
class ActorParts:
    """The parts of an actor: network, distribution, keys and action box.

    Args:
        net: maps observations [*B, o] to actions, or to mean and standard deviation.
        distribution: ``"TanhNormal"``, ``"BoxNormal"``, or ``None`` for a deterministic actor.
        settings: the distribution's other arguments.
        observation_key: entry read, or a list of them: images, then vectors.
        action_key: entry written.
        low: lower edge of the actions, shape [A].
        high: upper edge, shape [A].
        horizon: number of actions per decision; A counts the entries of all of them. Defaults to 1.
    """

    net: nn.Module
    distribution: str | None
    settings: Mapping[str, Any]
    observation_key: NestedKey | list[NestedKey]
    action_key: NestedKey
    low: Tensor
    high: Tensor
    horizon: int = 1

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries read."""
        return self.observation_key if isinstance(self.observation_key, list) else [self.observation_key]

    def assemble(self) -> Actor | ProbabilisticActor:
        """Build the actor.

        Raises:
            O2OCheckpointError: if the distribution or one of its arguments is unknown.

        Examples:
            >>> from torchrl_o2o.modules import make_actor
            >>> take_apart(make_actor(3, 1)).assemble().out_keys
            ['loc', 'scale', 'action']
        """
        return act_in_chunks(self._assemble(), self.horizon)

    def _assemble(self) -> Actor | ProbabilisticActor:
        spec = Bounded(self.low, self.high, shape=self.low.shape, dtype=self.low.dtype)
        if self.distribution is None:
            action = Composite({self.action_key: spec})
            return Actor(self.net, in_keys=self.in_keys, out_keys=[self.action_key], spec=action)
        if not set(self.settings) <= _SETTINGS.get(self.distribution, set()):
            raise O2OCheckpointError(
                f"got the distribution {self.distribution!r} with the arguments {sorted(self.settings)}, expected "
                "known ones"
            )
        return ProbabilisticActor(
            TensorDictModule(self.net, in_keys=self.in_keys, out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"],
            out_keys=[self.action_key],
            spec=spec,
            distribution_class=_DISTRIBUTIONS[self.distribution],
            distribution_kwargs=dict(self.settings),
        )


def take_apart(actor: TensorDictModuleBase) -> ActorParts:
    """Take an actor apart.

    Args:
        actor: an actor of this package's factories or of :func:`~torchrl_o2o.deploy.load_policy`.

    Raises:
        O2OSpecError: if it is another actor, or adds exploration noise.

    Examples:
        >>> from torchrl_o2o.modules import make_deterministic_actor
        >>> take_apart(make_deterministic_actor(3, 1)).distribution is None
        True
    """
    if type(actor) is Actor and len(actor.in_keys) == len(actor.out_keys) == 1:
        net = actor.module
        if isinstance(net, nn.Module):  # and not a plain function
            box = _box(actor, actor.out_keys[0])
            return ActorParts(net, None, {}, actor.in_keys[0], actor.out_keys[0], *box, chunk_length(actor))
    if type(actor) is TensorDictSequential and len(actor) == 2:
        first, last = actor[0], actor[1]
        if type(last) is Actor and type(first) is TensorDictModule and isinstance(first.module, nn.Module):
            then = take_apart(last)  # on an encoder's features
            if first.out_keys == [then.observation_key]:
                net = LatentPolicy(first.module, then.net)
                return replace(then, net=net, observation_key=_read(first))
    if type(actor) is ProbabilisticActor and len(actor) == 2:
        body, head = actor[0], actor[1]
        if isinstance(body, TensorDictModule) and isinstance(head, ProbabilisticTensorDictModule):
            net = body.module
            if isinstance(net, nn.Module) and _is_gaussian(body, head):
                kind, settings = head.distribution_class.__name__, dict(head.distribution_kwargs)
                box = _box(actor, head.out_keys[0])
                return ActorParts(net, kind, settings, _read(body), head.out_keys[0], *box, chunk_length(actor))
    raise O2OSpecError(
        f"got {type(actor).__name__} with keys {actor.in_keys} -> {actor.out_keys}, expected an actor that reads "
        "observations alone and adds no exploration noise, from make_actor, make_gaussian_actor, "
        "make_deterministic_actor, make_one_step_actor, average_actors, BestOfNLoss.make_actor, PEXLoss.make_actor, "
        "BestAction.make_actor or make_pixel_actor, or an encoder followed by make_latent_actor"
    )


def _read(module: TensorDictModule) -> NestedKey | list[NestedKey]:
    """The key that a module reads, or a list if there are several."""
    return module.in_keys[0] if len(module.in_keys) == 1 else list(module.in_keys)


def _is_gaussian(body: TensorDictModule, head: ProbabilisticTensorDictModule) -> bool:
    return (
        (len(body.in_keys) == 1 or isinstance(body.module, PixelPolicy))
        and len(head.out_keys) == 1
        and body.out_keys == head.in_keys == ["loc", "scale"]
        and head.distribution_class in _DISTRIBUTIONS.values()
    )


def _box(actor: TensorDictModuleBase, key: NestedKey) -> tuple[Tensor, Tensor]:
    spec = getattr(actor, "spec", None)
    action = None if spec is None or key not in spec.keys(True) else spec[key]
    if not isinstance(action, Bounded):
        raise O2OSpecError(
            f"got an actor without a bounded spec for {key!r}, expected one with the bounds of its actions"
        )
    low, high = finite_edges(action)
    return low.cpu(), high.cpu()
