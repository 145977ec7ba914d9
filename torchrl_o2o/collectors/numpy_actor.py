# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Act without a TensorDict: numpy observation in, numpy action out, for deployment and fast collection.

A TorchRL actor spends most of a call on one observation on keys, exploration types, a TensorDict, and a dozen torch
calls that compute for a microsecond each. Three matrix-vector products in numpy give the same action in a fraction of
the time.

Shapes: ``B`` batch, ``o`` observation entries, ``A`` action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np
import torch
from tensordict.nn import ProbabilisticTensorDictModule, TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn
from torchrl.modules import Actor, ProbabilisticActor, SafeModule

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.collectors.numpy_layers import Operation, first_linear, flat_layers, operations, policy_moments
from torchrl_o2o.data.transforms import ObservationStats
from torchrl_o2o.envs.outputs import all_finite
from torchrl_o2o.errors import O2OSpecError, check_unmasked
from torchrl_o2o.modules.best_of import BestOfN, BestOfSamples
from torchrl_o2o.modules.chunks import chunk_length
from torchrl_o2o.modules.distributions import TanhNormal
from torchrl_o2o.modules.flow import AppendNoise
from torchrl_o2o.modules.gaussian_policies import BoxNormal
from torchrl_o2o.modules.input_checks import check_noise
from torchrl_o2o.modules.units import refuse_standardized_again

__all__ = ["FastActor", "PolicyParts", "find_parts", "flags_of_rows", "policy_parts"]

_FACTORIES = "make_actor, make_gaussian_actor, make_deterministic_actor, make_one_step_actor or average_actors"


@dataclass(frozen=True)
class PolicyParts:
    """The parts of an actor, without its TensorDict wrappers.

    Args:
        net: maps observations [*B, o] to mean and standard deviation, or to actions.
        distribution: the policy's distribution; ``None`` for a deterministic actor.
        settings: the distribution's other arguments, including the action box.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_actor
        >>> parts = policy_parts(make_actor(3, 1, hidden_sizes=(8,)))
        >>> parts.act(torch.zeros(5, 3), deterministic=True).shape
        torch.Size([5, 1])
    """

    net: nn.Module
    distribution: type[TanhNormal] | type[BoxNormal] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def act(self, observation: Tensor, *, deterministic: bool = False, noise: Tensor | None = None) -> Tensor:
        """Compute the actor's action, bit for bit, with the same torch calls and draws in the same order.

        Args:
            observation: [*B, o].
            deterministic: whether to take the mode instead of a sample. Defaults to ``False``.
            noise: standard-normal numbers to use instead of fresh ones, [*B, A].

        Returns:
            Actions, [*B, A].
        """
        out: Any = observation
        for layer in self._layers:
            out = layer(out)
        if self.distribution is None:
            return out
        if deterministic or not self._tanh_of_unit_box:
            distribution = self.distribution(*out, **self.settings)
            return distribution.mode if deterministic else distribution.rsample(noise=noise)
        loc, scale = out  # TanhNormal.rsample without building the distribution
        if noise is None:
            noise = torch.randn(loc.shape, dtype=loc.dtype, device=loc.device)
        else:
            check_noise(noise.shape, loc.shape)
        return (loc + scale * noise).tanh()

    @cached_property
    def _layers(self) -> tuple[Callable[..., Any], ...]:
        """The layers' forward methods: on one row, calling a module costs as much as its computation."""
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in self.net.modules())
        return (self.net,) if hooked else tuple(layer.forward for layer in flat_layers(self.net))

    @cached_property
    def _tanh_of_unit_box(self) -> bool:
        low, high = self.settings.get("low", -1.0), self.settings.get("high", 1.0)
        floats = isinstance(low, float) and isinstance(high, float)
        return self.distribution is TanhNormal and floats and low == -1.0 and high == 1.0


def find_parts(actor: TensorDictModuleBase) -> PolicyParts | None:
    """Take an actor apart.

    Args:
        actor: any actor.

    Returns:
        Its parts, or ``None`` if the actor does more: other keys or distributions, added noise, a projection onto its
        spec.

    Examples:
        >>> from torchrl.modules import ValueOperator
        >>> find_parts(ValueOperator(nn.Linear(3, 1), in_keys=["observation"])) is None
        True
    """
    if type(actor) is Actor:
        net = actor.module if _plain(actor, ["observation"], ["action"]) else None
        return PolicyParts(net) if isinstance(net, nn.Module) else None  # a plain function has none
    if type(actor) is not ProbabilisticActor or len(actor) != 2:
        return None
    body, head = actor[0], actor[1]
    if not _plain(body, ["observation"], ["loc", "scale"]) or not _draws_only(head):
        return None
    net, kind = body.module, head.distribution_class
    if not isinstance(net, nn.Module) or not issubclass(kind, TanhNormal | BoxNormal):
        return None
    return PolicyParts(net, kind, dict(head.distribution_kwargs))


def policy_parts(actor: TensorDictModuleBase) -> PolicyParts:
    """Split an actor into its parts; raise if it is not supported.

    Args:
        actor: an actor from this package's factories with the keys ``"observation"`` and ``"action"``.

    Returns:
        Its parts.

    Raises:
        O2OSpecError: if the actor is not one of those.

    Examples:
        >>> from torchrl_o2o.modules import make_deterministic_actor
        >>> policy_parts(make_deterministic_actor(3, 1)).distribution is None
        True
    """
    parts = find_parts(actor)
    if parts is None:
        raise O2OSpecError(
            f"got {type(actor).__name__} with keys {actor.in_keys} -> {actor.out_keys}, expected an actor from "
            f"{_FACTORIES} with 'observation' -> 'action'; call other actors on a TensorDict"
        )
    return parts


def _plain(module: object, in_keys: list[str], out_keys: list[str]) -> TypeGuard[TensorDictModule]:
    safe = isinstance(module, SafeModule) and module.safe
    if safe or not isinstance(module, TensorDictModule) or module._forward_hooks or module._forward_pre_hooks:
        return False
    return module.in_keys == in_keys and module.out_keys == out_keys


def _draws_only(head: object) -> TypeGuard[ProbabilisticTensorDictModule]:
    return (
        isinstance(head, ProbabilisticTensorDictModule)
        and head.in_keys == ["loc", "scale"]
        and head.out_keys == ["action"]
        and head.distribution_class in (TanhNormal, BoxNormal)
        and not head.return_log_prob
        and not getattr(head, "safe", False)
    )


class FastActor:
    r"""A policy as a function of numpy arrays, equal to its TorchRL actor up to float rounding.

    On the CPU it reads the actor's own parameters, so it always uses the current ones, whether they are written in
    place, as torch's optimizers do, or replaced (``load_state_dict(..., assign=True)``, ``vector_to_parameters``).
    Parameters on another device are copied. Call :meth:`refresh` after an update for them, and after layers were
    replaced.

    It acts as in evaluation: dropout is off in every training mode of the actor. One call with the standard actor takes
    about 10 us on one CPU core (``benchmarks/collect.py``).

    An actor that chooses several actions at once (:func:`~torchrl_o2o.modules.act_in_chunks`) is called again after the
    last action of a chunk. Call :meth:`reset` at the end of an episode, to drop the remaining actions of a chunk.

    It acts in the actor's own units. An actor from :func:`~torchrl_o2o.deploy.load_policy` uses the environment's own
    observations and actions. An actor trained on :func:`~torchrl_o2o.envs.make_gym_env` gives actions in [-1, 1], which
    must be rescaled for other environments.

    Args:
        actor: of :func:`~torchrl_o2o.deploy.load_policy`, :func:`~torchrl_o2o.modules.make_actor`,
            :func:`~torchrl_o2o.modules.make_gaussian_actor`, :func:`~torchrl_o2o.modules.make_deterministic_actor`,
            :func:`~torchrl_o2o.modules.make_one_step_actor`, :func:`~torchrl_o2o.modules.average_actors`,
            :meth:`~torchrl_o2o.objectives.BestOfNLoss.make_actor`, :meth:`~torchrl_o2o.objectives.PEXLoss.make_actor`
            or :meth:`~torchrl_o2o.objectives.BestAction.make_actor`, in float32 or float64, with or without chunks.

    Keyword Args:
        deterministic: whether to act as under ``ExplorationType.DETERMINISTIC``; ``False`` samples. Defaults to
            ``True``.
        stats: the training data's statistics, by which observations are standardized. Defaults to ``None``, no
            standardization.
        generator: torch generator of the samples' noise; ``None`` (default) is the global one, which the actor uses.

    Raises:
        O2OSpecError: if the actor is not one of those, its parameters are of another type, the statistics are not of
            its observations, or it standardizes them itself.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.modules import make_actor
        >>> act = FastActor(make_actor(17, 6))
        >>> act(np.zeros(17)).shape, act(np.zeros((5, 17))).shape
        ((6,), (5, 6))
    """

    @checked_arguments
    def __init__(
        self,
        actor: TensorDictModuleBase,
        *,
        deterministic: bool = True,
        stats: ObservationStats | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        refuse_standardized_again(actor, stats, "leave stats out")
        self.actor, self.deterministic, self.generator = actor, deterministic, generator
        self._left: np.ndarray | None = None  # remaining actions of each row's chunk
        self._stats = None if stats is None else (stats.mean.cpu().numpy(), stats.scale.cpu().numpy())
        self.refresh()
        if stats is not None and not stats.mean.shape == stats.scale.shape == (self._width,):
            raise O2OSpecError(
                f"got statistics of {list(stats.mean.shape)} and {list(stats.scale.shape)}, expected {self._width} "
                "entries, those that the actor reads; use the statistics of its own data set"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without the views of the parameters, which a copy takes of its own actor."""
        views = ("_before", "_moments", "_finish", "_viewed")
        return {name: value for name, value in vars(self).items() if name not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.refresh()

    def refresh(self) -> None:
        """Read the actor's parameters again, and copy those that are not on the CPU."""
        parts = policy_parts(self.actor)
        layers = flat_layers(parts.net)
        first = first_linear(parts.net, layers)
        self._width, self._dtype = first.in_features, first.weight.detach().cpu().numpy().dtype
        self._before: list[Operation] = []
        self._noise_size = 0
        drawing = next(
            (i for i, layer in enumerate(layers) if isinstance(layer, AppendNoise | BestOfN | BestOfSamples)), None
        )
        if drawing is not None:
            layer, self._before = layers[drawing], operations(layers[:drawing])
            if isinstance(layer, BestOfN):
                self._noise_size = layer.num_samples * len(layer.low)
                self._width -= len(layer.low) + 1  # the flow also reads a point and a time
                layers = layers[drawing:]
            elif isinstance(layer, BestOfSamples):
                self._noise_size = layer.num_samples * layer.action_dim
                layers = layers[drawing:]
            else:
                assert isinstance(layer, AppendNoise)
                self._noise_size = layer.size
                self._width -= layer.size
                layers = layers[drawing + 1 :]
        self._moments = policy_moments(layers)
        self._finish = _finish(parts, self._dtype, self.deterministic)
        #: Where the values of each parameter and buffer are, by the dictionary of its layer and its name.
        self._viewed = [
            (owned, name, value.data_ptr())
            for layer in parts.net.modules()
            for owned in (layer._parameters, layer._buffers)
            for name, value in owned.items()
            if value is not None
        ]

    def __call__(self, observation: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """Act.

        Args:
            observation: [o] or [B, o].
            noise: standard-normal numbers to use instead of fresh ones, [A] or [B, A]; only used when sampling. For an
                actor that chooses h actions at once, [h A] or [B, h A].

        Returns:
            Actions, [A] or [B, A].

        Raises:
            O2OSpecError: if the observation or the noise is of another shape, or the action is not finite.
        """
        horizon = chunk_length(self.actor)
        return self.decide(observation, noise) if horizon == 1 else self._next(horizon, np.asarray(observation), noise)

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Drop the remaining actions of chunks whose episodes have ended.

        Args:
            mask: the rows to reset, bool [B]; ``None`` (default) resets all.

        Raises:
            O2OSpecError: if the mask has no flag for each row of the last call.
        """
        if mask is None or self._left is None:
            self._left = None
            return
        self._left[flags_of_rows(mask, len(self._left))] = 0

    def _next(self, horizon: int, observation: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """The next action of each row's chunk; rows whose chunk is empty get a new one first."""
        rows = np.atleast_2d(observation)
        if self._left is None or len(self._left) != len(rows):
            self._left, self._chunks = np.zeros(len(rows), np.int64), np.zeros((len(rows), horizon, 0))
        if (empty := self._left == 0).any():
            fresh = self.decide(rows[empty], None if noise is None else np.atleast_2d(noise)[empty])
            fresh = fresh.reshape(len(fresh), horizon, -1)
            if not self._chunks.shape[-1]:
                self._chunks = np.zeros((len(rows), *fresh.shape[1:]), fresh.dtype)
            self._chunks[empty], self._left[empty] = fresh, horizon
        action = self._chunks[np.arange(len(rows)), horizon - self._left]
        self._left -= 1
        return action[0] if observation.ndim == 1 else action

    def decide(self, observation: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """The actor's output for an observation: an action, or a whole chunk.

        Args:
            observation: [o] or [B, o].
            noise: as in :meth:`__call__`.

        Returns:
            [A] or [B, A]; for an actor of chunks, [h A] or [B, h A].

        Raises:
            O2OSpecError: if the observation or the noise is of another shape, or the action is not finite.
        """
        # A comprehension, because a generator takes twice as long. A layer that is pruned loses its parameter.
        if [1 for own, name, place in self._viewed if (value := own.get(name)) is None or value.data_ptr() != place]:
            self.refresh()
        check_unmasked("numbers of an observation", observation)
        try:
            features = np.asarray(observation, dtype=self._dtype)
        except (TypeError, ValueError) as error:
            raise O2OSpecError(
                f"got an observation that is no array of numbers ({type(observation).__name__}: {error}), expected "
                f"[{self._width}] or [B, {self._width}]; join the entries of a dictionary in the order of the training"
            ) from error
        if features.ndim not in (1, 2) or features.shape[-1] != self._width:
            raise O2OSpecError(
                f"got observations of shape {features.shape}, expected [{self._width}] or [B, {self._width}]"
            )
        if self._stats is not None:
            features = (features - self._stats[0]) / self._stats[1]
        if self._noise_size:
            for operation in self._before:
                features = operation(features)
            start = self._noise((*features.shape[:-1], self._noise_size), noise)
            features = np.concatenate([features, start], -1)
        action, scale = self._moments(features, not self.deterministic)
        if scale is not None:
            action = action + scale * self._noise(action.shape, noise)
        action = self._finish(action)
        if not all_finite(action):
            raise O2OSpecError(
                f"the policy gave the action {action.tolist()} for the observation {np.asarray(observation).tolist()}, "
                "expected finite numbers; check the sensor, or load a policy with finite parameters"
            )
        return action

    def _noise(self, shape: tuple[int, ...], given: np.ndarray | None) -> np.ndarray:
        if given is None:
            return self._draw(shape)
        own = np.asarray(given, self._dtype)
        check_noise(own.shape, shape)
        return own

    def _draw(self, shape: tuple[int, ...]) -> np.ndarray:
        dtype = torch.float32 if self._dtype == np.float32 else torch.float64
        return torch.randn(shape, generator=self.generator, dtype=dtype).numpy()


def flags_of_rows(mask: np.ndarray, rows: int) -> np.ndarray:
    """Check a mask of rows: numbers of rows would be read as flags.

    Args:
        mask: bool [rows].
        rows: of the last call.

    Returns:
        The mask as an array.

    Raises:
        O2OSpecError: if it has no flag for each row.

    Examples:
        >>> flags_of_rows(np.array([0, 2]), 3)
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got a mask of int64 and shape [2], expected bool [3], one flag for each row...
    """
    flags = np.asarray(mask)
    if flags.dtype != bool or flags.shape != (rows,):
        raise O2OSpecError(
            f"got a mask of {flags.dtype} and shape {list(flags.shape)}, expected bool [{rows}], one flag for each row "
            "of the last call, such as terminated | truncated"
        )
    return flags


def _finish(parts: PolicyParts, dtype: np.dtype, deterministic: bool) -> Operation:
    """Map the (possibly noisy) mean to the action, as the distribution does."""
    if parts.distribution is None or not (deterministic or parts.settings.get("clip_samples", True)):
        return lambda action: action
    edges = (parts.settings.get("low", -1.0), parts.settings.get("high", 1.0))
    low, high = (np.asarray(torch.as_tensor(edge).cpu(), dtype) for edge in edges)
    if parts.distribution is BoxNormal:
        return lambda action: np.minimum(np.maximum(action, low), high)
    if (low == -1.0).all() and (high == 1.0).all():
        return np.tanh
    half_width = dtype.type(0.5) * (high - low)
    return lambda action: np.minimum(low + half_width * (np.tanh(action) + 1.0), high)
