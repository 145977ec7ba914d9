# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""How good a row looks to a loss's critics: its advantage over the policy, or its TD error.

Shapes: ``N`` rows, ``n`` rows of one chunk, ``M`` sampled actions, ``E`` ensemble members, ``Z`` members of a subset,
``A`` action dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, ParamSpec

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import REDQLoss, SACLoss

from torchrl_o2o._moved import renamed_arguments
from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.functional.noise import GeneratorNoise, NoiseSource
from torchrl_o2o.functional.replay import centered_rank, finite_scores, standardized
from torchrl_o2o.functional.soft import td_target
from torchrl_o2o.objectives.aca import ACALoss
from torchrl_o2o.objectives.actor_critic import ActorCriticLoss
from torchrl_o2o.objectives.networks import (
    Inputs,
    Parameters,
    call_ensemble,
    call_network,
    flat_parameters,
    policy_distribution,
    sample_policy,
    take_members,
)
from torchrl_o2o.priorities.base import LogPriority

__all__ = ["Advantage", "TDError"]

ScoredLoss = ActorCriticLoss | SACLoss | REDQLoss
P = ParamSpec("P")

_MAX_SHAPES = 256  # sizes of chunks that one compiled score may meet; torch's limit is 8, for all scores together


class _Networks(NamedTuple):
    """A policy and the members of an ensemble that score it: templates, parameters, and the entropy's weight."""

    actor: TensorDictModuleBase
    actor_params: Parameters
    qvalue: TensorDictModuleBase
    critic_params: Parameters
    action_key: NestedKey
    out_key: NestedKey
    alpha: Tensor | None
    q_max: float | None

    def sample(self, inputs: Inputs, noise: Tensor) -> tuple[Tensor, Tensor]:
        """M actions a ~ pi(.|s), shape [M, n, A], and log pi(a|s), shape [M, n]."""
        if not isinstance(self.actor, ProbabilisticTensorDictSequential):
            action = call_network(self.actor, self.actor_params, inputs, self.action_key).unsqueeze(0)
            return action, action.new_zeros(action.shape[:-1])
        dist = policy_distribution(self.actor, self.actor_params, inputs)
        return sample_policy(dist, noise, noise.shape[:1])

    def qvalues(self, inputs: Inputs, action: Tensor) -> Tensor:
        """Q_i(s, a) of all members given, shape [Z, n]. On a CPU one after the other, which takes two thirds of the
        time of one batched product; compiled code is as fast batched, and a GPU faster."""
        inputs, params = {**inputs, self.action_key: action}, self.critic_params
        if action.is_cuda or torch.compiler.is_compiling():
            values = call_ensemble(self.qvalue, params, inputs, self.out_key)
        else:
            members = zip(*(value.unbind() for value in params.values()), strict=True)
            each = [
                call_network(self.qvalue, dict(zip(params, member, strict=True)), inputs, self.out_key)
                for member in members
            ]
            values = torch.stack(each).squeeze(-1)
        return values if self.q_max is None else values.clamp(max=self.q_max)

    def min_qvalue(self, inputs: Inputs, action: Tensor) -> Tensor:
        """Minimum over the members for actions [K, n, A], shape [K, n]; two dimensions are the fastest products."""
        samples, rows = action.shape[:2]
        repeated = {
            key: value.expand(samples, *value.shape).reshape(samples * rows, *value.shape[1:])
            for key, value in inputs.items()
        }
        return self.qvalues(repeated, action.flatten(0, 1)).amin(0).reshape(samples, rows)


class _CriticScore(LogPriority):
    """What scores by critics share: the loss they look at, its noise and subsets, and chunks that fit the cache."""

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
        #: Source of the random numbers; give it a generator of its own, or recorded numbers.
        self.noise: NoiseSource = GeneratorNoise()

    def _networks(self, critics: Literal["target", "online"], members: Tensor | None) -> _Networks:
        """The loss's networks as they are now, with the given members of the critics, or with all."""
        loss, keys = self.loss, self.loss.tensor_keys
        params = loss.target_qvalue_network_params if critics == "target" else loss.qvalue_network_params
        critic_params = flat_parameters(params, detach=True)
        return _Networks(
            loss.actor_network,
            flat_parameters(loss.actor_network_params, detach=True),
            loss.qvalue_network,
            critic_params if members is None else take_members(critic_params, members),
            keys.action,
            keys.state_action_value,
            _alpha(loss) if self.entropy else None,
            getattr(loss, "q_max", None),
        )

    def _device(self) -> torch.device:
        return next(iter(flat_parameters(self.loss.qvalue_network_params).values())).device

    def _inputs(self, tensordict: TensorDictBase) -> dict[NestedKey, Tensor]:
        """What actor and critics read besides the action."""
        keys = dict.fromkeys([*self.loss.actor_network.in_keys, *self.loss.qvalue_network.in_keys])
        device = self._device()
        return {key: tensordict.get(key).to(device) for key in keys if key != self.loss.tensor_keys.action}

    def _members(self, like: Tensor) -> Tensor:
        """One subset Z for all rows, shape [Z]."""
        return self.noise.subset(self._draw, _num_members(self.loss), self.sub_sample_len, like)

    def _normal(self, action: Tensor) -> Tensor:
        """Standard-normal numbers, shape [M, N, A], or [M, 1, A] if all rows share them."""
        if not isinstance(self.loss.actor_network, ProbabilisticTensorDictSequential):
            return action.new_zeros(1, len(action), action.shape[-1])  # a deterministic actor draws nothing
        like, name = (action[:1] if self.shared_noise else action), f"{self._draw}_action"
        if not self.antithetic:
            return self.noise.normal(name, like, (self.num_samples,))
        half = self.noise.normal(name, like, (-(-self.num_samples // 2),))
        return torch.cat([half, -half])[: self.num_samples]

    def _chunks(self, rows: int, noise: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Equal slices of the rows with their noise, each of about ``chunk_size`` critic inputs a member."""
        count = -(-rows * (len(noise) + 1) // self.chunk_size)
        size = -(-rows // count)
        for start in range(0, rows, size):
            part = slice(start, start + size)
            yield part, noise if noise.shape[1] == 1 else noise[:, part]


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
        loss: its actor, critics, subset size and temperature are used, whatever its own equations are. Any loss of this
            package with an actor and critics but ACA's, torchrl's ``SACLoss`` without a ``value_network``, or its
            ``REDQLoss``. A deterministic actor has one action, whatever ``num_samples``.

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
        loss: ScoredLoss,
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

    def compile(self) -> None:
        """Compile the equation; pools of one size compile once."""
        self._advantage = _compiled(self._advantage)

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
        inputs, action = self._inputs(tensordict), tensordict.get(self.loss.tensor_keys.action).to(self._device())
        networks = self._networks(self.critics, self._members(action))
        noise = self._normal(action)
        parts = [
            self._advantage(networks, _slice(inputs, rows), action[rows], part)
            for rows, part in self._chunks(len(action), noise)
        ]
        return torch.cat(parts)

    def _advantage(self, networks: _Networks, inputs: Inputs, action: Tensor, noise: Tensor) -> Tensor:
        """A(s, a) of one chunk, shape [n]; the recorded action goes along with the M sampled ones."""
        sampled, log_prob = networks.sample(inputs, noise)
        qvalue = networks.min_qvalue(inputs, torch.cat([action.unsqueeze(0), sampled]))
        value = qvalue[1:].mean(0)
        if networks.alpha is not None:
            value = value - networks.alpha * log_prob.mean(0)
        return qvalue[0] - value


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
        loss: as in :class:`Advantage`; its discount and keys are used as well. Rows with
            ``"steps_to_next_obs"`` (n-step returns) are discounted by :math:`\gamma^n`.

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
        loss: ScoredLoss,
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

    def compile(self) -> None:
        """Compile the next states' value; pools of one size compile once."""
        self._mean_value = _compiled(self._mean_value)

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
        keys, device, following = self.loss.tensor_keys, self._device(), tensordict.get("next")
        inputs, action = self._inputs(following), tensordict.get(keys.action).to(device)
        target = self._networks("target", self._members(action))
        noise = self._normal(action)
        value = torch.cat(
            [self._mean_value(target, _slice(inputs, rows), part) for rows, part in self._chunks(len(action), noise)]
        )
        reward, terminated = (following.get(key).squeeze(-1).to(device) for key in (keys.reward, keys.terminated))
        expected = td_target(reward, terminated, value, self._discount(tensordict))
        qvalue = self._networks("online", None).qvalues(self._inputs(tensordict), action)
        return expected - qvalue.mean(0)

    def _mean_value(self, networks: _Networks, inputs: Inputs, noise: Tensor) -> Tensor:
        """Mean over M actions of the members' minimum, minus the entropy term if there is a temperature, shape [n]."""
        action, log_prob = networks.sample(inputs, noise)
        value = networks.min_qvalue(inputs, action).mean(0)
        return value if networks.alpha is None else value - networks.alpha * log_prob.mean(0)

    def _discount(self, tensordict: TensorDictBase) -> Tensor:
        """gamma, a scalar, or gamma^n of rows that are n steps from their next observation, shape [N]."""
        estimator = self.loss.value_estimator
        gamma = estimator.gamma.to(self._device())
        steps = tensordict.get(estimator.tensor_keys.steps_to_next_obs, None)
        return gamma if steps is None else gamma ** steps.reshape(tensordict.batch_size).to(gamma.device)


def _check_loss(loss: ScoredLoss, entropy: bool) -> None:
    """Refuse losses whose values are not those of an actor and its critics."""
    kind = type(loss).__name__
    if isinstance(loss, ACALoss):
        raise O2OSpecError(f"got {kind}, whose value is R + k log pi_0 and not its critics' alone; write a LogPriority")
    if isinstance(loss, SACLoss) and getattr(loss, "value_network", None) is not None:
        raise O2OSpecError(f"got {kind} with a value_network (the first SAC), expected it without; build it with None")
    if not isinstance(loss, ActorCriticLoss | SACLoss | REDQLoss):
        raise O2OSpecError(
            f"got {kind}, expected a loss of this package with an actor and critics, such as EnsembleSACLoss, or "
            f"torchrl's SACLoss or REDQLoss; write a LogPriority for others"
        )
    if entropy and _alpha(loss) is None:
        raise O2OSpecError(f"got entropy=True with {kind}, which has no temperature; leave entropy out")


def _alpha(loss: ScoredLoss) -> Tensor | None:
    """The temperature, a detached scalar, if the loss has one."""
    if isinstance(loss, REDQLoss):
        return loss.alpha
    if isinstance(loss, SACLoss):
        return loss.log_alpha.detach().exp()
    temperature = getattr(loss, "temperature", None)
    return None if temperature is None else temperature.alpha


def _num_members(loss: ScoredLoss) -> int:
    return len(next(iter(flat_parameters(loss.qvalue_network_params).values())))


def _compiled(equation: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """An equation compiled once for every size of its chunks, apart from other scores."""
    return torch.compile(equation, dynamic=False, fullgraph=True, recompile_limit=_MAX_SHAPES, isolate_recompiles=True)


def _slice(inputs: Inputs, rows: slice) -> Inputs:
    return {key: value[rows] for key, value in inputs.items()}
