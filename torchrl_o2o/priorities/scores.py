# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What is worth replaying: callables that map transitions to log-priorities, to hand to a sampler.

All have one signature, ``priority(tensordict) -> Tensor``: transitions of shape [N] in, log-priorities of shape [N]
out, finite whatever the inputs. They live in the log domain, so they add up: ``density + 0.5 * advantage``. They hold
references to a loss or a network and score with its parameters as they are at the moment of the call.

Shapes: ``N`` rows, ``M`` sampled actions, ``E`` ensemble members, ``Z`` members of a subset.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_o2o._moved import renamed_arguments
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.replay import (
    advantage_aligned_log_priority,
    centered_rank,
    finite_scores,
    mean_one_log_ratio,
    standardized,
)
from torchrl_o2o.functional.soft import td_target
from torchrl_o2o.objectives.base import check_option
from torchrl_o2o.objectives.ensemble_sac import EnsembleSACLoss
from torchrl_o2o.objectives.networks import (
    ActorCritic,
    Inputs,
    Parameters,
    call_network,
    flat_parameters,
    take_members,
)
from torchrl_o2o.objectives.noise import GeneratorNoise, NoiseSource

__all__ = ["Advantage", "AdvantageAligned", "DensityRatioScore", "LogPriority", "Sum", "TDError"]

_QUANTILES = (0.05, 0.5, 0.95)


class LogPriority(ABC):
    """Abstract base: what a sampler calls, and how priorities add up and are watched.

    A subclass implements :meth:`score`, which may return anything; :meth:`__call__` makes it finite as
    :func:`~torchrl_o2o.functional.finite_scores` does and counts in :attr:`num_clamped` what it had to change.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> class Reward(LogPriority):
        ...     name = "reward"
        ...
        ...     def score(self, tensordict):
        ...         return tensordict["next", "reward"].squeeze(-1)
        >>> data = TensorDict({"next": {"reward": torch.tensor([[1.0], [torch.nan]])}}, [2])
        >>> priority = 2.0 * Reward()
        >>> priority(data)
        tensor([2., 2.])
        >>> priority.metrics()["reward_clamped"], priority.metrics()["log_priority_q50"]
        (tensor(0.5000), tensor(2.))
    """

    #: Prefix of the metrics.
    name: str = "priority"

    _observed: Tensor | None = None
    _changed: Tensor | None = None
    _num_clamped: Tensor | int = 0

    @abstractmethod
    def score(self, tensordict: TensorDictBase) -> Tensor:
        """Log-priority per row, possibly not finite.

        Args:
            tensordict: transitions, shape [N], on any device; not modified.

        Returns:
            Shape [N].
        """

    @torch.no_grad()
    def __call__(self, tensordict: TensorDictBase) -> Tensor:
        """Finite log-priority per row, without gradient, shape [N]."""
        self._observed = None
        score, changed = finite_scores(self.score(tensordict))
        self._observed = score if self._observed is None else self._observed
        self._changed = changed
        self._num_clamped = self._num_clamped + changed.sum()
        return score

    def __add__(self, other: LogPriority) -> Sum:
        """The sum of two log-priorities, that is the product of the priorities."""
        return Sum(self, other)

    def __rmul__(self, factor: float) -> Sum:
        """A multiple of the log-priority, that is a power of the priority."""
        return Sum(self, factors=(factor,))

    @property
    def num_clamped(self) -> int:
        """Rows so far whose score was not finite."""
        return int(self._num_clamped)

    def metrics(self) -> dict[str, Tensor]:
        """Quantiles of the last call's scores and the fraction of its rows that were not finite; empty before it."""
        if self._changed is None or self._observed is None:
            return {}
        levels = torch.tensor(_QUANTILES, dtype=torch.float32, device=self._observed.device)
        values = self._observed.float().nanquantile(levels)
        quantiles = {
            f"{self.name}_q{level * 100:02.0f}": value for level, value in zip(_QUANTILES, values, strict=True)
        }
        return {f"{self.name}_clamped": self._changed.float().mean(), **quantiles}

    def _watch(self, values: Tensor) -> Tensor:
        """Keep values for :meth:`metrics`."""
        self._observed = values
        return values


class Sum(LogPriority):
    r"""Weighted sum of log-priorities, :math:`\sum_k c_k\log p_k`; what ``+`` and ``*`` build.

    Args:
        terms: the log-priorities.

    Keyword Args:
        factors: :math:`c_k`, one per term. Defaults to 1 each.

    Raises:
        O2OSpecError: if there is no term or the numbers differ.

    Examples:
        >>> from torchrl_o2o.modules import DensityRatio
        >>> term = DensityRatioScore(DensityRatio(3, 2, hidden_sizes=(8,)))
        >>> (0.5 * term + term).factors
        (1.0, 1.0)
    """

    name = "log_priority"

    def __init__(self, *terms: LogPriority, factors: tuple[float, ...] | None = None) -> None:
        self.terms = terms
        self.factors = (1.0,) * len(terms) if factors is None else tuple(factors)
        if not terms or len(self.factors) != len(terms):
            raise O2OSpecError(f"got {len(terms)} terms and {len(self.factors)} factors, expected as many, at least 1")

    def score(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`LogPriority.score`."""
        scores = [factor * term(tensordict) for factor, term in zip(self.factors, self.terms, strict=True)]
        return torch.stack(scores).sum(0)

    def metrics(self) -> dict[str, Tensor]:
        """The metrics of all terms and of the sum."""
        merged: dict[str, Tensor] = {}
        for term in self.terms:
            merged |= term.metrics()
        return merged | super().metrics()


class DensityRatioScore(LogPriority):
    r"""How on-policy an offline row looks: :math:`1_\mathrm{off}\log\hat w`, so 0 for online rows.

    Source: A3RL Eq. 5, first term.

    Args:
        density_ratio: writes log w, see :class:`~torchrl_o2o.modules.DensityRatio`.

    Keyword Args:
        temperature: T in :math:`w^{1/T}`. Defaults to 1; Off2On and A3RL's newer code use 5.
        normalize: scale :math:`w^{1/T}` to mean 1 over the offline rows scored together. Defaults to ``True``; A3RL's
            older code does not.
        is_offline_key: bool entry, shape [N], that a sampler adds. Defaults to ``"is_offline"``.

    Raises:
        O2OSpecError: if the temperature is not positive.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.modules import DensityRatio
        >>> score = DensityRatioScore(DensityRatio(3, 2, hidden_sizes=(8,)))
        >>> offline = torch.tensor([True, False])
        >>> data = {"observation": torch.ones(2, 3), "action": torch.ones(2, 2), "is_offline": offline}
        >>> score(TensorDict(data, [2])).abs()  # one offline row alone has the mean ratio
        tensor([0., 0.])
    """

    name = "log_density_ratio"

    @renamed_arguments(normalise="normalize")
    def __init__(
        self,
        density_ratio: TensorDictModuleBase,
        *,
        temperature: float = 1.0,
        normalize: bool = True,
        is_offline_key: NestedKey = "is_offline",
    ) -> None:
        if not temperature > 0.0:
            raise O2OSpecError(f"got temperature={temperature}, expected a positive number, 1 or the references' 5")
        self.density_ratio = density_ratio
        self.temperature = temperature
        self.normalize = normalize
        self.is_offline_key = is_offline_key

    def score(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`LogPriority.score`."""
        rows = tensordict.select(*self.density_ratio.in_keys).to(next(self.density_ratio.parameters()).device)
        log_ratio = self.density_ratio(rows).get(self.density_ratio.out_keys[0]).squeeze(-1)
        offline = self._is_offline(tensordict).to(log_ratio.device)
        self._watch(log_ratio.masked_fill(~offline, torch.nan))  # quantiles leave NaN out
        if self.normalize:  # what is not finite must not take the mean with it
            usable = offline & log_ratio.isfinite()
            log_ratio = mean_one_log_ratio(log_ratio, usable, self.temperature)
        else:
            log_ratio = log_ratio / self.temperature
        return advantage_aligned_log_priority(log_ratio, torch.zeros_like(log_ratio), offline)

    def _is_offline(self, tensordict: TensorDictBase) -> Tensor:
        flag = tensordict.get(self.is_offline_key, None)
        if flag is None:
            raise O2OSpecError(
                f"the rows have no entry {self.is_offline_key!r}, so which of them are offline is unknown; PoolSampler "
                "adds it, elsewhere set it to index < num_offline"
            )
        return flag.reshape(tensordict.batch_size)


def _mean_value(
    networks: ActorCritic, actor: Parameters, critics: Parameters, inputs: Inputs, noise: Tensor, alpha: Tensor | None
) -> Tensor:
    """Mean over M actions of the members' minimum, minus the entropy term if there is a temperature, shape [n]."""
    action, log_prob = networks.sample(actor, inputs, noise, noise.shape[:1])
    value = _min_qvalue(networks, critics, inputs, action).mean(0)
    return value if alpha is None else value - alpha * log_prob.mean(0)


def _advantage(
    networks: ActorCritic,
    actor: Parameters,
    critics: Parameters,
    inputs: Inputs,
    action: Tensor,
    noise: Tensor,
    alpha: Tensor | None,
) -> Tensor:
    """Q(s, a) - V(s), shape [n]; the recorded action goes along with the M sampled ones, in one evaluation."""
    sampled, log_prob = networks.sample(actor, inputs, noise, noise.shape[:1])
    qvalue = _min_qvalue(networks, critics, inputs, torch.cat([action.unsqueeze(0), sampled]))
    value = qvalue[1:].mean(0)
    return qvalue[0] - (value if alpha is None else value - alpha * log_prob.mean(0))


def _min_qvalue(networks: ActorCritic, critics: Parameters, inputs: Inputs, action: Tensor) -> Tensor:
    """Minimum over members, shape [K, n], for actions [K, n, A]; in two dimensions, where the products are fastest."""
    samples, rows = action.shape[:2]
    repeated = {
        key: value.expand(samples, *value.shape).reshape(samples * rows, *value.shape[1:])
        for key, value in inputs.items()
    }
    return _few_qvalues(networks, critics, repeated, action.flatten(0, 1)).amin(0).reshape(samples, rows)


def _few_qvalues(networks: ActorCritic, critics: Parameters, inputs: Inputs, action: Tensor) -> Tensor:
    """Q_i(s, a) of a few members, shape [Z, n]. On a CPU one after the other, which takes two thirds of the time of one
    batched product; compiled code is as fast batched, and a GPU faster."""
    if action.is_cuda or torch.compiler.is_compiling():
        return networks.qvalues(critics, inputs, action)
    inputs = {**inputs, networks.action_key: action}
    members = zip(*(value.unbind() for value in critics.values()), strict=True)
    each = [call_network(networks.qvalue, dict(zip(critics, member)), inputs, networks.out_key) for member in members]
    return torch.stack(each).squeeze(-1)


class _CriticScore(LogPriority):
    """What scores by critics share: the loss's networks, noise, subsets, and chunks that stay in the cache."""

    _draw = "advantage"

    def __init__(
        self,
        loss: EnsembleSACLoss,
        num_samples: int,
        sub_sample_len: int | None,
        entropy: bool,
        shared_noise: bool,
        antithetic: bool,
        chunk_size: int,
    ) -> None:
        if not isinstance(loss, EnsembleSACLoss):
            raise O2OSpecError(f"got {type(loss).__name__}, expected EnsembleSACLoss; write a LogPriority for others")
        members = loss.num_qvalue_nets
        self.sub_sample_len = loss.sub_sample_len if sub_sample_len is None else sub_sample_len
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
        #: Source of the random numbers; give it a generator of its own, or recorded numbers.
        self.noise: NoiseSource = GeneratorNoise()

    @property
    def _networks(self) -> ActorCritic:
        keys = self.loss.tensor_keys
        return ActorCritic(self.loss.actor_network, self.loss.qvalue_network, keys.action, keys.state_action_value)

    @property
    def _alpha(self) -> Tensor | None:
        return self.loss.temperature.alpha if self.entropy else None

    def _inputs(self, tensordict: TensorDictBase) -> dict[NestedKey, Tensor]:
        keys = dict.fromkeys([*self.loss.actor_network.in_keys, *self.loss.qvalue_network.in_keys])
        return {key: tensordict.get(key) for key in keys if key != self.loss.tensor_keys.action}

    def _subset(self, critics: Literal["target", "online"], like: Tensor) -> dict[str, Tensor]:
        loss = self.loss
        params = loss.target_qvalue_network_params if critics == "target" else loss.qvalue_network_params
        index = self.noise.subset(self._draw, loss.num_qvalue_nets, self.sub_sample_len, like)
        return take_members(flat_parameters(params.data), index)

    def _normal(self, action: Tensor) -> Tensor:
        """Standard-normal numbers, shape [M, N, A], or [M, 1, A] if all rows share them."""
        like, name = (action[:1] if self.shared_noise else action), f"{self._draw}_action"
        if not self.antithetic:
            return self.noise.normal(name, like, (self.num_samples,))
        half = self.noise.normal(name, like, (-(-self.num_samples // 2),))
        return torch.cat([half, -half])[: self.num_samples]

    def _chunks(self, rows: int, noise: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Equal slices of the rows with their noise, each of about ``chunk_size`` critic inputs a member."""
        count = -(-rows * (self.num_samples + 1) // self.chunk_size)
        size = -(-rows // count)
        for start in range(0, rows, size):
            part = slice(start, start + size)
            yield part, noise if self.shared_noise else noise[:, part]


class Advantage(_CriticScore):
    r"""How much better the recorded action is than the policy's, by the critics.

    .. math::
        A(s,a) = \min_{i\in Z} Q_i(s,a) - \frac1M\sum_{j\le M}\left[\min_{i\in Z} Q_i(s,\tilde a_j)
                 - \alpha\log\pi(\tilde a_j|s)\right], \qquad \tilde a_j\sim\pi(\cdot|s)

    with one subset Z for all rows; the entropy term is off by default, as in the authors' code. A constant added to all
    critics cancels.

    Difference from the authors' code: M = 10 instead of 100, in antithetic pairs, and the same noise for all rows. What
    the noise does to all rows alike cancels in the resampling probabilities, and only their order matters; see
    ``docs/algorithms/a3rl.md`` for the rank correlations. ``num_samples=100, shared_noise=False, antithetic=False`` is
    theirs.

    Source: A3RL section 4.2 and Eq. 5; ``SACLearnerPriority.get_advantage``.

    Args:
        loss: its actor, critics, subset size and temperature are used.

    Keyword Args:
        num_samples: M. Defaults to 10; the authors use 100.
        critics: the ``"target"`` (default, as the authors) or the ``"online"`` networks.
        sub_sample_len: Z; ``None`` (default) takes the loss's.
        entropy: subtract the entropy term. Defaults to ``False``.
        normalize: over the rows scored together: ``"none"`` (default), ``"std"``
            (:func:`~torchrl_o2o.functional.standardized`) or ``"rank"``
            (:func:`~torchrl_o2o.functional.centered_rank`). Without it, how sharp the priorities are depends on
            the reward's scale.
        shared_noise: the same M noise vectors for all rows. Defaults to ``True``.
        antithetic: noise in pairs of opposite sign. Defaults to ``True``.
        chunk_size: critic inputs evaluated at once. Defaults to 4096.

    Raises:
        O2OSpecError: if a number or an option is out of range.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,))
        >>> advantage = Advantage(EnsembleSACLoss(make_actor(3, 2), critics), num_samples=4)
        >>> advantage(random_transitions(6, 3, 2)).shape
        torch.Size([6])
    """

    name = "advantage"

    @renamed_arguments(normalise="normalize")
    def __init__(
        self,
        loss: EnsembleSACLoss,
        *,
        num_samples: int = 10,
        critics: Literal["target", "online"] = "target",
        sub_sample_len: int | None = None,
        entropy: bool = False,
        normalize: Literal["none", "std", "rank"] = "none",
        shared_noise: bool = True,
        antithetic: bool = True,
        chunk_size: int = 4096,
    ) -> None:
        super().__init__(loss, num_samples, sub_sample_len, entropy, shared_noise, antithetic, chunk_size)
        check_option("critics", critics, ("target", "online"))
        check_option("normalize", normalize, ("none", "std", "rank"))
        self.critics: Literal["target", "online"] = critics
        self.normalize = normalize
        self._advantage = _advantage

    def compile(self) -> None:
        """Compile the pure core; pools of one size compile once."""
        self._advantage = torch.compile(_advantage, dynamic=False, fullgraph=True)

    def score(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`LogPriority.score`."""
        advantage = self._watch(self.advantage(tensordict))
        if self.normalize == "none":
            return advantage
        finite, changed = finite_scores(advantage)
        shaped = standardized(finite) if self.normalize == "std" else centered_rank(finite)
        return torch.where(changed, advantage, shaped)

    @torch.no_grad()
    def advantage(self, tensordict: TensorDictBase) -> Tensor:
        """A(s, a) as it is, neither normalized nor made finite.

        Args:
            tensordict: transitions, shape [N]; not modified.

        Returns:
            Shape [N], on the loss's device.
        """
        actor = flat_parameters(self.loss.actor_network_params.data)
        device = next(iter(actor.values())).device
        inputs = {key: value.to(device) for key, value in self._inputs(tensordict).items()}
        action = tensordict.get(self.loss.tensor_keys.action).to(device)
        critics, noise = self._subset(self.critics, action), self._normal(action)
        parts = [
            self._advantage(self._networks, actor, critics, _slice(inputs, rows), action[rows], part, self._alpha)
            for rows, part in self._chunks(len(action), noise)
        ]
        return torch.cat(parts)


class TDError(_CriticScore):
    r"""How surprising a transition is to the critics: prioritized replay by the TD error, scored when drawn.

    .. math::
        \delta = r + \gamma(1-d)\frac1M\sum_{j\le M}\left[\min_{i\in Z}Q'_i(s',\tilde a'_j)
                 - \alpha\log\pi(\tilde a'_j|s')\right] - \frac1E\sum_i Q_i(s,a)

    ``"absolute"``: :math:`\log p=\log(|\delta|+\epsilon)`, so that :math:`P\propto(|\delta|+\epsilon)^\alpha` as in
    prioritized experience replay. ``"signed"``: :math:`\log p=\delta`, as A3RL's authors use it in the advantage's
    place: exponential, and large only for rows that turned out *better* than expected.

    Source: Schaul et al. 2016 (PER) section 3.3; A3RL's code ``SACLearnerPriority.get_td``, there with M = 100.

    Args:
        loss: its actor, critics, subset size, temperature, discount and keys are used.

    Keyword Args:
        form: ``"absolute"`` (default) or ``"signed"``.
        num_samples: M. Defaults to 10.
        sub_sample_len: Z; ``None`` (default) takes the loss's.
        entropy: subtract the entropy term. Defaults to ``False``, as the authors' code.
        eps: epsilon of ``"absolute"``, in units of return. Defaults to 1e-6.
        shared_noise: the same M noise vectors for all rows. Defaults to ``True``.
        antithetic: noise in pairs of opposite sign. Defaults to ``True``.
        chunk_size: critic inputs evaluated at once. Defaults to 4096.

    Raises:
        O2OSpecError: if a number or an option is out of range.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,))
        >>> error = TDError(EnsembleSACLoss(make_actor(3, 2), critics), num_samples=1)
        >>> error(random_transitions(6, 3, 2)).shape
        torch.Size([6])
    """

    name = "td_error"
    _draw = "td"

    def __init__(
        self,
        loss: EnsembleSACLoss,
        *,
        form: Literal["absolute", "signed"] = "absolute",
        num_samples: int = 10,
        sub_sample_len: int | None = None,
        entropy: bool = False,
        eps: float = 1e-6,
        shared_noise: bool = True,
        antithetic: bool = True,
        chunk_size: int = 4096,
    ) -> None:
        super().__init__(loss, num_samples, sub_sample_len, entropy, shared_noise, antithetic, chunk_size)
        check_option("form", form, ("absolute", "signed"))
        self.form = form
        self.eps = eps
        self._mean_value = _mean_value

    def compile(self) -> None:
        """Compile the pure core; pools of one size compile once."""
        self._mean_value = torch.compile(_mean_value, dynamic=False, fullgraph=True)

    def score(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`LogPriority.score`."""
        error = self._watch(self.td_error(tensordict))
        return error if self.form == "signed" else (error.abs() + self.eps).log()

    @torch.no_grad()
    def td_error(self, tensordict: TensorDictBase) -> Tensor:
        """The signed TD error, not made finite.

        Args:
            tensordict: transitions, shape [N]; not modified.

        Returns:
            Shape [N], on the loss's device.
        """
        keys, actor = self.loss.tensor_keys, flat_parameters(self.loss.actor_network_params.data)
        device = next(iter(actor.values())).device
        following = tensordict.get("next")
        inputs = {key: value.to(device) for key, value in self._inputs(following).items()}
        action = tensordict.get(keys.action).to(device)
        critics, noise = self._subset("target", action), self._normal(action)
        value = torch.cat(
            [
                self._mean_value(self._networks, actor, critics, _slice(inputs, rows), part, self._alpha)
                for rows, part in self._chunks(len(action), noise)
            ]
        )
        reward, terminated = (following.get(key).squeeze(-1).to(device) for key in (keys.reward, keys.terminated))
        target = td_target(reward, terminated, value, self.loss.value_estimator.gamma)
        current = {key: value.to(device) for key, value in self._inputs(tensordict).items()}
        params = flat_parameters(self.loss.qvalue_network_params.data)
        return target - self._networks.qvalues(params, current, action).mean(0)


class AdvantageAligned(Sum):
    r"""A3RL's priority, Eq. 5: :math:`\log p = 1_\mathrm{off}\log\hat w(s,a) + \lambda A(s,a)`.

    The paper's ablations are its parts: ``advantage`` alone, ``density`` alone, and :class:`TDError` (``form="signed"``
    for the authors' code) in the advantage's place.

    Args:
        advantage: A, an :class:`Advantage` or what stands in its place.
        density: the first term, a :class:`DensityRatioScore`.

    Keyword Args:
        adv_temp: lambda. Defaults to 1; an attribute that may be changed at any time.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import DensityRatio, make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,))
        >>> loss, ratio = EnsembleSACLoss(make_actor(3, 2), critics), DensityRatio(3, 2, hidden_sizes=(8,))
        >>> score = AdvantageAligned(Advantage(loss), DensityRatioScore(ratio), adv_temp=0.5)
        >>> score(random_transitions(6, 3, 2).set("is_offline", torch.arange(6) % 2 == 0)).shape
        torch.Size([6])
    """

    def __init__(self, advantage: LogPriority, density: DensityRatioScore, *, adv_temp: float = 1.0) -> None:
        super().__init__(density, advantage, factors=(1.0, adv_temp))

    @property
    def adv_temp(self) -> float:
        """The advantage's factor, lambda."""
        return self.factors[1]

    @adv_temp.setter
    def adv_temp(self, value: float) -> None:
        self.factors = (1.0, float(value))


def _slice(inputs: Inputs, rows: slice) -> Inputs:
    return {key: value[rows] for key, value in inputs.items()}
