# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Calls of a loss's networks with explicit parameters, which ``torch.compile`` can trace."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeGuard, TypeVar, cast

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torchrl.modules import TanhNormal as UpstreamTanhNormal

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules.distributions import TanhNormal
from torchrl_o2o.modules.input_checks import describe_mismatch
from torchrl_o2o.objectives.feed_forward import Layers, evaluate, has_hooks, layers_of

__all__ = [
    "Inputs",
    "Parameters",
    "Randomness",
    "call_ensemble",
    "call_module",
    "call_network",
    "deterministic_action",
    "flat_parameters",
    "inner_module",
    "inner_parameters",
    "policy_distribution",
    "repeated",
    "sample_policy",
    "single_output",
    "stochastic",
    "take_members",
    "tied",
    "with_parameters",
]

Inputs = Mapping[NestedKey, Tensor]
Parameters = Mapping[str, Tensor]
Randomness = Literal["error", "same", "different"]
C = TypeVar("C", bound=Callable[..., Any])
TM = TypeVar("TM", bound=TensorDictModuleBase)

# Number of rows that a critic processes at a time. At width 256, a layer's output is then 0.75 MB.
_ROWS = 768


def _explained(named: Callable[..., Mapping[NestedKey, Tensor]]) -> Callable[[C], C]:
    """If torch raises in a call, explain which inputs the network got and which it expects. It costs nothing otherwise.

    Args:
        named: a function from the network and its arguments after the parameters to the inputs by name.
    """

    def explaining(call: C) -> C:
        @functools.wraps(call)
        def explained(network: nn.Module, params: Parameters, *given: Any) -> Any:
            if _is_captured():
                return call(network, params, *given)
            try:
                return call(network, params, *given)
            except RuntimeError as error:
                if reason := describe_mismatch(type(network).__name__, params, named(network, *given)):
                    raise O2OSpecError(reason) from error
                raise

        return explained  # type: ignore[return-value]

    return explaining


def _by_key(network: TensorDictModuleBase, inputs: Inputs, *_: Any) -> Inputs:
    return {key: inputs[key] for key in network.in_keys if key in inputs}


def _by_number(_: nn.Module, *arguments: Tensor) -> Inputs:
    return {f"input {number}": value for number, value in enumerate(arguments, 1)}


def flat_parameters(params: TensorDictBase, *, detach: bool = False) -> dict[str, Tensor]:
    """Parameters as a plain dictionary of dotted names, the form :func:`torch.func.functional_call` takes.

    Args:
        params: nested parameters, for example ``loss.qvalue_network_params``.
        detach: whether they are without gradient. Call this again after casts and deep copies. Defaults to ``False``.

    Returns:
        The same tensors under ``"module.0.weight"``-like names; nothing is copied.
    """
    if isinstance(params, TensorDictParams):  # it stores them flat, with those without gradient separately
        flat: dict[str, Tensor] = {**params._parameters, **params._buffers}  # type: ignore[dict-item]
    else:
        flat = dict(params.flatten_keys(".").items())
    return {name: value.detach() for name, value in flat.items()} if detach else flat


def inner_parameters(params: Parameters) -> dict[str, Tensor]:
    """Parameters by their names in the module inside a :class:`~tensordict.nn.TensorDictModule`.

    Args:
        params: result of :func:`flat_parameters`.

    Returns:
        The same tensors.

    Examples:
        >>> inner_parameters({"module.0.weight": torch.zeros(1)})
        {'0.weight': tensor([0.])}
    """
    return {name.removeprefix("module."): value for name, value in params.items()}


def inner_module(network: TensorDictModuleBase) -> nn.Module:
    """The module inside a :class:`~tensordict.nn.TensorDictModule`.

    Args:
        network: for example a critic.

    Returns:
        The module itself.

    Raises:
        O2OSpecError: if the network consists of several modules or of a plain function.

    Examples:
        >>> inner_module(TensorDictModule(nn.Linear(3, 1), in_keys=["observation"], out_keys=["state_value"]))
        Linear(in_features=3, out_features=1, bias=True)
    """
    module = _plain_module(network)
    if module is None:
        raise O2OSpecError(
            f"got a {type(network).__name__} of several modules or of a function, expected a TensorDictModule of one "
            "torch.nn.Module, for example make_qvalue_ensemble(...)"
        )
    return module


def stochastic(actor_network: TensorDictModuleBase) -> ProbabilisticTensorDictSequential:
    """Check that an actor has a distribution, and return it.

    Args:
        actor_network: the actor.

    Returns:
        The same.

    Raises:
        O2OSpecError: if it is deterministic.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> actor = make_actor(3, 2, hidden_sizes=(8,))
        >>> stochastic(actor) is actor
        True
    """
    if not isinstance(actor_network, ProbabilisticTensorDictSequential):
        raise O2OSpecError(
            f"got the deterministic actor {type(actor_network).__name__}, expected a stochastic one, for example "
            f"make_actor(...), make_gaussian_actor(...) or ProbabilisticActor(...)"
        )
    return actor_network


def take_members(params: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """Select ensemble members from stacked parameters.

    Args:
        params: stacked parameters, each of shape [E, ...].
        index: members to take, shape [Z].

    Returns:
        Their parameters, each of shape [Z, ...].
    """
    return {name: value.index_select(0, index) for name, value in params.items()}


def tied(params: Parameters, prefix: str) -> dict[str, Tensor]:
    """Parameters whose members share those below ``prefix``: each copy gets the sum of all members' gradients.

    Copies that start equal then stay equal bit for bit under any optimizer that treats them alike.

    Args:
        params: stacked parameters, each of shape [E, ...].
        prefix: start of the names that are tied, for example ``"module.head."``.

    Returns:
        The same values; the tied ones share their gradient.

    Examples:
        >>> import torch
        >>> weight = torch.ones(2, 3, requires_grad=True)
        >>> (tied({"head": weight}, "head")["head"] * torch.tensor([[1.0], [10.0]])).sum().backward()
        >>> weight.grad[:, 0]
        tensor([11., 11.])
    """
    out = dict(params)
    for name, value in params.items():
        if name.startswith(prefix):
            total = value.sum(0)
            out[name] = value.detach() + (total - total.detach())  # the bracket is zero, but has a gradient
    return out


def repeated(inputs: Inputs, count: int) -> Inputs:
    """The same inputs for several actions per row, without copying.

    Args:
        inputs: entries of shape [*B, ...].
        count: actions per row.

    Returns:
        The entries, each of shape [count, *B, ...].

    Examples:
        >>> import torch
        >>> repeated({"observation": torch.zeros(4, 3)}, 10)["observation"].shape
        torch.Size([10, 4, 3])
    """
    return {key: value.expand(count, *value.shape) for key, value in inputs.items()}


def with_parameters(network: TM, params: TensorDictParams) -> TM:
    """A copy of a loss's network with the loss's parameters; the network itself holds only their shapes.

    Args:
        network: a network of a loss.
        params: the loss's parameters of that network.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> from torchrl_o2o.objectives import BCLoss
        >>> loss = BCLoss(make_actor(3, 2, hidden_sizes=(8,)))
        >>> actor = with_parameters(loss.actor_network, loss.actor_network_params)
        >>> {id(each) for each in actor.parameters()} == {id(each) for each in loss.actor_network_params.parameters()}
        True
    """
    whole = copy.deepcopy(network)
    params.to_module(whole)
    return whole


@_explained(_by_key)
def call_network(network: TensorDictModuleBase, params: Parameters, inputs: Inputs, out_key: NestedKey) -> Tensor:
    """Evaluate a deterministic network, for example a state value or a deterministic actor.

    The plain module inside a :class:`~tensordict.nn.TensorDictModule` is evaluated directly on tensors; any other
    module gets a TensorDict. If a hook is registered, the modules themselves are called, so that it runs.

    Args:
        network: the template.
        params: its parameters with dotted names relative to ``network``.
        inputs: the entries it reads, each of shape [*B, ...].
        out_key: the entry it writes.

    Returns:
        That entry.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_value_network
        >>> value = make_value_network(3, hidden_sizes=(8,))
        >>> params = dict(value.named_parameters())
        >>> call_network(value, params, {"observation": torch.zeros(4, 3)}, "state_value").shape
        torch.Size([4, 1])
    """
    plain = _called_inside(network)
    layers = None if _is_captured() else layers_of(plain)
    if layers is not None:
        return evaluate(layers, params, _joined([inputs[key] for key in network.in_keys]))
    if plain is not None:
        return call_module(plain, params, *(inputs[key] for key in network.in_keys))
    data = TensorDict({key: inputs[key] for key in network.in_keys}, _batch_shape(inputs))
    return functional_call(network, dict(params), (data,)).get(out_key)


@_explained(_by_number)
def call_module(module: nn.Module, params: Parameters, *arguments: Tensor) -> Any:
    """Evaluate the plain module inside a :class:`~tensordict.nn.TensorDictModule` on tensors.

    Args:
        module: for example ``vae_network.module``.
        params: its parameters by the names that the TensorDictModule gives them.
        arguments: the module's tensor arguments.

    Returns:
        The module's result.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_action_vae
        >>> vae = make_action_vae(3, 2, hidden_sizes=(8,))
        >>> inputs = torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(5, 4, 4)
        >>> call_module(vae.module, dict(vae.named_parameters()), *inputs)[0].shape
        torch.Size([5, 4, 2])
    """
    return functional_call(module, inner_parameters(params), arguments)


@_explained(_by_key)
def call_ensemble(
    network: TensorDictModuleBase,
    params: Parameters,
    inputs: Inputs,
    out_key: NestedKey,
    randomness: Randomness | None = None,
    deactivate_vmap: bool = False,
) -> Tensor:
    """Evaluate all members of an ensemble on the same inputs.

    On a CPU, members are evaluated one after the other, which takes two thirds of the time of batched products. All are
    evaluated at once, over the leading dimension of the parameters, on other devices, where starting an operation costs
    more than doing it, and under ``torch.compile``, where both are equally fast and this compiles sooner.

    Args:
        network: one member, the template of all.
        params: stacked parameters with dotted names relative to ``network``, each of shape [E, ...].
        inputs: the entries the network reads, each of shape [*B, ...].
        out_key: the entry the network writes.
        randomness: random numbers that members draw themselves, for example in dropout: ``"different"`` for each, the
            ``"same"``, or an ``"error"``. The last two use :func:`torch.func.vmap` on every device. ``None`` (default)
            is ``"different"``.
        deactivate_vmap: whether one member is evaluated after the other on every device. Defaults to ``False``.

    Returns:
        The outputs without their last (singleton) dimension, shape [E, *B].

    Raises:
        O2OSpecError: if members should draw the same numbers without vmap.
    """
    if deactivate_vmap and randomness == "same":
        raise O2OSpecError(
            "got deactivate_vmap=True and randomness 'same', expected 'different' or 'error': members that are "
            "evaluated one after the other draw different numbers. Set one of the two"
        )

    def evaluated(member: Parameters) -> Tensor:
        return call_network(network, member, inputs, out_key)

    at_once = _is_captured() or next(iter(params.values())).device.type != "cpu" or randomness in ("same", "error")
    if at_once and not deactivate_vmap:
        return vmap(evaluated, randomness=randomness or "different")(dict(params)).squeeze(-1)
    members = [
        dict(zip(params, each, strict=True)) for each in zip(*(v.unbind() for v in params.values()), strict=True)
    ]
    layers = None if _is_captured() else layers_of(_called_inside(network))
    if layers is None:
        return torch.stack([evaluated(member) for member in members]).squeeze(-1)
    features = _joined([inputs[key] for key in network.in_keys])  # computed once for all members
    return torch.stack([_evaluate_by_rows(layers, member, features) for member in members]).squeeze(-1)


def single_output(values: Tensor, key: NestedKey) -> Tensor:
    """The output of a network with one output, without the column dimension.

    Args:
        values: [*B, 1].
        key: their name in messages.

    Returns:
        Shape [*B].

    Raises:
        O2OSpecError: if there are several outputs per row.

    Examples:
        >>> single_output(torch.zeros(4, 1), "state_value").shape
        torch.Size([4])
        >>> single_output(torch.zeros(4, 2), "state_value")
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: a network gave 'state_value' of shape [4, 2], expected one number per row, ...
    """
    if values.ndim > 1 and values.shape[-1] != 1:
        raise O2OSpecError(
            f"a network gave {key!r} of shape {list(values.shape)}, expected one number per row, [*B, 1]; let its last "
            f"layer have one output"
        )
    return values.squeeze(-1)


def _evaluate_by_rows(layers: Layers, params: Parameters, features: Tensor) -> Tensor:
    """Apply layers to some rows at a time, so that intermediate results fit in the core's cache."""
    if features[..., 0].numel() <= 2 * _ROWS:
        return evaluate(layers, params, features)
    outputs = [evaluate(layers, params, rows) for rows in features.flatten(0, -2).split(_ROWS)]
    return torch.cat(outputs).unflatten(0, features.shape[:-1])


@_explained(_by_key)
def policy_distribution(actor_network: TensorDictModuleBase, params: Parameters, inputs: Inputs) -> Distribution:
    """The actor's distribution under given parameters.

    Args:
        actor_network: a probabilistic actor.
        params: its parameters with dotted names.
        inputs: the entries it reads, each of shape [*B, ...].

    Returns:
        A distribution of batch shape [*B].

    Raises:
        O2OSpecError: if the actor is deterministic, or its distribution has a density per action dimension instead of
            one per action.
    """
    dist = _distribution(stochastic(actor_network), params, inputs)
    if not dist.event_shape:
        raise O2OSpecError(
            f"got {type(dist).__name__}, which has a density for each action dimension, expected one for the whole "
            "action; use torchrl.modules.IndependentNormal or TanhNormal, or torch.distributions.Independent"
        )
    return dist


def _distribution(actor_network: ProbabilisticTensorDictSequential, params: Parameters, inputs: Inputs) -> Distribution:
    body, head = actor_network[0], actor_network[-1]
    plain = _called_inside(body)
    if len(actor_network) == 2 and plain is not None and isinstance(head, ProbabilisticTensorDictModule):
        stripped = {name.removeprefix("module.0.module."): value for name, value in params.items()}
        outputs = functional_call(plain, stripped, tuple(inputs[key] for key in body.in_keys))
        values = dict(zip(body.out_keys, outputs if isinstance(outputs, tuple) else (outputs,), strict=True))
        names = cast(list[str], head.dist_keys)  # arguments of the class
        arguments = {name: values[key] for name, key in zip(names, head.in_keys, strict=True)}
        return head.distribution_class(**arguments, **head.distribution_kwargs)
    data = TensorDict({key: inputs[key] for key in actor_network.in_keys}, _batch_shape(inputs))
    with TensorDict(dict(params)).unflatten_keys(".").to_module(actor_network):
        return actor_network.get_dist(data)


class _TakesNoise(Protocol):
    """The protocol of this package's distributions, see TanhNormal."""

    def rsample_and_log_prob(
        self, sample_shape: tuple[int, ...] = (), *, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...


def _takes_noise(dist: Distribution) -> TypeGuard[_TakesNoise]:
    return getattr(dist, "takes_noise", False)


def sample_policy(
    dist: Distribution, noise: Tensor | None, sample_shape: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Reparametrized actions and their log-densities, computed at the pre-tanh value if the distribution keeps it.

    Args:
        dist: a policy distribution of batch shape [*B].
        noise: standard-normal numbers, shape [*sample_shape, *B, A]; distributions without ``takes_noise`` draw their
            own.
        sample_shape: leading sample dimensions. Defaults to none.

    Returns:
        Actions, shape [*sample_shape, *B, A], and log-densities, shape [*sample_shape, *B].

    Raises:
        O2OSpecError: if the distribution cannot be sampled with a gradient, for example a discrete one.
    """
    if isinstance(
        dist, UpstreamTanhNormal
    ):  # the same density, but with our noise and without clamping saturated actions
        dist = TanhNormal(dist.loc, dist.scale, low=dist.low, high=dist.high)
    if _takes_noise(dist):
        return dist.rsample_and_log_prob(sample_shape, noise=noise)
    if not dist.has_rsample:
        raise O2OSpecError(
            f"got {type(dist).__name__}, which cannot be sampled with a gradient, expected a distribution with "
            "rsample; use continuous actions, for example TanhNormal"
        )
    action = dist.rsample(torch.Size(sample_shape))
    return action, dist.log_prob(action)


def deterministic_action(dist: Distribution) -> Tensor:
    """The action that a policy takes without randomness, as in TorchRL's actors.

    Args:
        dist: a policy distribution of batch shape [*B].

    Returns:
        Its ``deterministic_sample``, or the mean for torch's own distributions, which have none. Shape [*B, A].

    Examples:
        >>> deterministic_action(torch.distributions.Normal(torch.zeros(2), 1.0))
        tensor([0., 0.])
    """
    return dist.mean if (action := getattr(dist, "deterministic_sample", None)) is None else action


def _joined(inputs: list[Tensor]) -> Tensor:
    return inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1)


def _is_captured() -> bool:
    """Whether ``make_fx`` or ``torch.compile`` is recording operations."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None


def _plain_module(network: nn.Module) -> nn.Module | None:
    """The tensor-to-tensor module of a TensorDictModule that only wraps it."""
    if not isinstance(network, TensorDictModule) or isinstance(network, TensorDictSequential):
        return None
    module = network.module
    return module if isinstance(module, nn.Module) and not isinstance(module, TensorDictModuleBase) else None


def _called_inside(network: nn.Module) -> nn.Module | None:
    """The same, if the network has no hooks, so that calling the module is equivalent to calling the network."""
    return None if has_hooks(network) else _plain_module(network)


def _batch_shape(inputs: Inputs) -> torch.Size:
    return next(iter(inputs.values())).shape[:-1]
