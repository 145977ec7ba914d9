# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The base class of scores by a loss's critics, with its networks, noise, and chunks of rows that fit the cache.

Shapes: ``N`` rows, ``n`` rows of one chunk, ``M`` sampled actions, ``E`` ensemble members, ``Z`` members of a subset,
``A`` action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, ParamSpec, cast

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import REDQLoss, SACLoss

from torchrl_o2o.errors import O2OSpecError, check_compiler
from torchrl_o2o.functional.noise import GeneratorNoise, NoiseSource
from torchrl_o2o.modules.input_checks import check_rows
from torchrl_o2o.objectives.aca import ACALoss
from torchrl_o2o.objectives.actor_critic import ActorCriticLoss, inputs_made_inside
from torchrl_o2o.objectives.feed_forward import input_dims
from torchrl_o2o.objectives.networks import (
    Inputs,
    Parameters,
    call_ensemble,
    call_network,
    flat_parameters,
    policy_distribution,
    repeated,
    sample_policy,
    take_members,
)
from torchrl_o2o.priorities.base import LogPriority

__all__ = ["CriticScore", "Networks", "ScoredLoss", "compiled"]

ScoredLoss = ActorCriticLoss | SACLoss | REDQLoss
P = ParamSpec("P")

_MAX_SHAPES = 256  # largest number of compiled chunk sizes; torch's default is 8 for all scores together


def compiled(equation: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Compile an equation once for every size of its chunks, separately from other scores.

    Args:
        equation: a function of tensors and of :class:`Networks`.

    Returns:
        The same function.

    Raises:
        O2OSpecError: if there is no C++ compiler.
    """
    check_compiler()
    options = {"recompile_limit": _MAX_SHAPES, "isolate_recompiles": True}  # options that torch's overloads omit
    return torch.compile(equation, dynamic=False, fullgraph=True, **options)  # pyright: ignore[reportCallIssue]


class Networks(NamedTuple):
    """A policy and the members of an ensemble that score it.

    Args:
        actor: the template of the actor.
        actor_params: its parameters.
        qvalue: the template of a critic.
        critic_params: the members' parameters, stacked to [Z, ...].
        action_key: the entry of the action.
        out_key: the entry that critics write.
        alpha: the entropy term's weight; ``None`` leaves the term out.
        q_max: upper bound on Q, or ``None``.
        deactivate_vmap: the loss's setting.
    """

    actor: TensorDictModuleBase
    actor_params: Parameters
    qvalue: TensorDictModuleBase
    critic_params: Parameters
    action_key: NestedKey
    out_key: NestedKey
    alpha: Tensor | None
    q_max: float | None
    deactivate_vmap: bool

    def sample(self, inputs: Inputs, noise: Tensor) -> tuple[Tensor, Tensor]:
        """M actions a ~ pi(.|s), shape [M, n, A], and log pi(a|s), shape [M, n]."""
        if not isinstance(self.actor, ProbabilisticTensorDictSequential):
            action = call_network(self.actor, self.actor_params, inputs, self.action_key).unsqueeze(0)
            return action, action.new_zeros(action.shape[:-1])
        dist = policy_distribution(self.actor, self.actor_params, inputs)
        noise = noise.expand(len(noise), *dist.batch_shape, *dist.event_shape)  # shared noise has one row
        return sample_policy(dist, noise, noise.shape[:1])

    def qvalues(self, inputs: Inputs, action: Tensor) -> Tensor:
        """Q_i(s, a) of all members given, shape [Z, n]."""
        entries, settings = {**inputs, self.action_key: action}, (None, self.deactivate_vmap)
        values = call_ensemble(self.qvalue, self.critic_params, entries, self.out_key, *settings)
        return values if self.q_max is None else values.clamp(max=self.q_max)

    def min_qvalue(self, inputs: Inputs, action: Tensor) -> Tensor:
        """Minimum over the members for actions [K, n, A], shape [K, n]; two dimensions are the fastest products."""
        samples, rows = action.shape[:2]
        flat = {key: value.flatten(0, 1) for key, value in repeated(inputs, samples).items()}
        return self.qvalues(flat, action.flatten(0, 1)).amin(0).reshape(samples, rows)

    def mean_value(self, qvalue: Tensor, log_prob: Tensor) -> Tensor:
        """Mean over the M actions of Q - alpha log pi, shape [n]; without ``alpha`` of Q alone."""
        value = qvalue.mean(0)
        return value if self.alpha is None else value - self.alpha * log_prob.mean(0)


class CriticScore(LogPriority):
    """Abstract base with the loss, its noise and subsets, and chunks that fit the cache.

    Args:
        loss: the loss whose actor, critics, subset size and temperature are used.
        num_samples: M.
        sub_sample_len: Z; ``None`` takes the loss's.
        entropy: whether the entropy term is subtracted.
        shared_noise: whether all rows share the M noise vectors.
        antithetic: whether noise comes in pairs of opposite sign.
        chunk_size: number of critic inputs evaluated at once.

    Raises:
        O2OSpecError: if a number is out of range, or the loss's values are not those of an actor and its critics on
            observations.
    """

    _draw = "advantage"

    def __init__(
        self,
        loss: ScoredLoss,
        num_samples: int,
        sub_sample_len: int | None,
        entropy: bool,
        shared_noise: bool,
        antithetic: bool,
        chunk_size: int,
    ) -> None:
        _check_loss(loss, entropy)
        members = _num_members(loss)
        own: int = getattr(loss, "sub_sample_len", members)
        self.sub_sample_len = own if sub_sample_len is None else sub_sample_len
        if not 1 <= self.sub_sample_len <= members:
            raise O2OSpecError(f"got sub_sample_len={sub_sample_len}, expected 1..{members}, the loss's critics")
        if num_samples < 1 or chunk_size < 1:
            raise O2OSpecError(f"got num_samples={num_samples}, chunk_size={chunk_size}, expected at least 1 each")
        self.loss = loss
        self.num_samples = num_samples
        self.entropy = entropy
        self.shared_noise = shared_noise
        self.antithetic = antithetic
        self.chunk_size = chunk_size
        #: Source of the random numbers, such as a separate generator or recorded numbers.
        self.noise: NoiseSource = GeneratorNoise()

    def _networks(self, critics: Literal["target", "online"], members: Tensor | None) -> Networks:
        """The loss's networks with their current parameters, with the given members of the critics or all."""
        loss, keys = self.loss, self.loss.tensor_keys
        params = loss.target_qvalue_network_params if critics == "target" else loss.qvalue_network_params
        critic_params = flat_parameters(params, detach=True)
        return Networks(
            loss.actor_network,
            flat_parameters(loss.actor_network_params, detach=True),
            loss.qvalue_network,
            critic_params if members is None else take_members(critic_params, members),
            keys.action,
            keys.state_action_value,
            _alpha(loss) if self.entropy else None,
            getattr(loss, "q_max", None),
            getattr(loss, "deactivate_vmap", False),
        )

    def _device(self) -> torch.device:
        return next(iter(flat_parameters(self.loss.qvalue_network_params).values())).device

    def _inputs(self, tensordict: TensorDictBase, action: Tensor) -> dict[NestedKey, Tensor]:
        """The inputs of actor and critics besides the action, one row per recorded action."""
        networks = self.loss.actor_network, self.loss.qvalue_network
        own, device = self.loss.tensor_keys.action, self._device()
        keys = dict.fromkeys(key for network in networks for key in network.in_keys if key != own)
        inputs = {key: self._entry(tensordict, key).to(device) for key in keys}
        for key, value in inputs.items():
            if dims := input_dims(networks, key):
                check_rows(key, value, own, action, dims)
        return inputs

    def _members(self, like: Tensor) -> Tensor:
        """One subset of Z members for all rows, shape [Z]."""
        return self.noise.subset(self._draw, _num_members(self.loss), self.sub_sample_len, like)

    def _normal(self, action: Tensor) -> Tensor:
        """Standard-normal numbers, shape [M, N, A], or [M, 1, A] if all rows share them."""
        if not isinstance(self.loss.actor_network, ProbabilisticTensorDictSequential):
            return action.new_zeros(1, len(action), action.shape[-1])  # a deterministic actor needs no noise
        like, name = (action[:1] if self.shared_noise else action), f"{self._draw}_action"
        if not self.antithetic:
            return self.noise.normal(name, like, (self.num_samples,))
        half = self.noise.normal(name, like, (-(-self.num_samples // 2),))
        return torch.cat([half, -half])[: self.num_samples]

    def _chunks(self, inputs: Inputs, action: Tensor) -> Iterator[tuple[Inputs, Tensor, Tensor]]:
        """Equal slices of the rows, with about ``chunk_size`` critic inputs per member: inputs, actions, noise."""
        rows, noise = len(action), self._normal(action)
        size = -(-rows // -(-rows * (len(noise) + 1) // self.chunk_size))
        for start in range(0, rows, size):
            part = slice(start, start + size)
            own = noise if noise.shape[1] == 1 else noise[:, part]
            yield {key: value[part] for key, value in inputs.items()}, action[part], own


def _check_loss(loss: ScoredLoss, entropy: bool) -> None:
    """Raise for losses whose values are not those of an actor and its critics."""
    kind = type(loss).__name__
    if isinstance(loss, ACALoss):
        raise O2OSpecError(
            f"got {kind}, expected a loss whose value comes from its critics alone, because ACA's is R + k log pi_0; "
            "write a LogPriority for it"
        )
    if isinstance(loss, SACLoss) and getattr(loss, "value_network", None) is not None:
        raise O2OSpecError(
            f"got {kind} with a value_network (the first SAC), expected none; build it with value_network=None"
        )
    if not isinstance(loss, ActorCriticLoss | SACLoss | REDQLoss):
        raise O2OSpecError(
            f"got {kind}, expected a loss of this package with an actor and critics, such as EnsembleSACLoss, or "
            f"torchrl's SACLoss or REDQLoss; write a LogPriority for others"
        )
    if isinstance(loss, ActorCriticLoss) and (inside := inputs_made_inside(loss, "actor_network", "qvalue_network")):
        raise O2OSpecError(
            f"got {kind}, whose actor and critics read {inside}, which only the loss computes, expected networks on "
            "observations and actions; write a LogPriority for it"
        )
    if entropy and _alpha(loss) is None:
        raise O2OSpecError(f"got entropy=True with {kind}, expected a loss with a temperature; leave entropy out")


def _alpha(loss: ScoredLoss) -> Tensor | None:
    """The temperature, a detached scalar, if the loss has one."""
    if isinstance(loss, REDQLoss):
        return loss.alpha
    if isinstance(loss, SACLoss):
        log_alpha = cast(Tensor, loss.log_alpha)  # a parameter or a buffer, without an annotation
        return log_alpha.detach().exp()
    temperature = getattr(loss, "temperature", None)
    return None if temperature is None else temperature.alpha


def _num_members(loss: ScoredLoss) -> int:
    return len(next(iter(flat_parameters(loss.qvalue_network_params).values())))
