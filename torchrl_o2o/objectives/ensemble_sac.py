# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Ensemble soft actor-critic: the learner of RLPD, REDQ, SACfD, SAC and A3RL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives.common import LossModule
from torchrl.objectives.utils import ValueEstimators, dispatch_value_estimator
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional import ensemble_squared_error, sac_actor_objective, soft_value
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.networks import (
    Inputs,
    Parameters,
    call_ensemble,
    flat_parameters,
    policy_distribution,
    sample_policy,
    take_members,
)
from torchrl_o2o.objectives.noise import GeneratorNoise, NoiseSource

__all__ = ["EnsembleSACLoss"]


class _Networks(NamedTuple):
    """The two templates a pure core evaluates under explicit parameters."""

    actor: ProbabilisticTensorDictSequential
    qvalue: TensorDictModule
    action_key: NestedKey
    out_key: NestedKey

    def qvalues(self, params: Parameters, inputs: Inputs, action: Tensor) -> Tensor:
        """Q_i(s, a) of all given members, shape [E, *B]."""
        return call_ensemble(self.qvalue, params, {**inputs, self.action_key: action}, self.out_key)

    def sample(self, params: Parameters, inputs: Inputs, noise: Tensor) -> tuple[Tensor, Tensor]:
        """a ~ pi(.|s), shape [*B, A], and log pi(a|s), shape [*B]."""
        return sample_policy(policy_distribution(self.actor, params, inputs), noise)


def _next_value(
    networks: _Networks, actor: Parameters, target: Parameters, inputs: Inputs, noise: Tensor, members: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """a', log pi(a'|s') and the minimum of Q'_i(s', a') over the given members, or over ``members`` row by row."""
    action, log_prob = networks.sample(actor, inputs, noise)
    qvalue = networks.qvalues(target, inputs, action)
    return action, log_prob, (qvalue if members is None else qvalue.gather(0, members)).amin(0)


def _regress(
    networks: _Networks, qvalue: Parameters, inputs: Inputs, action: Tensor, target: Tensor, reduction: str
) -> tuple[Tensor, Tensor]:
    """Squared error per row, shape [*B], and Q_i(s, a), shape [E, *B]."""
    values = networks.qvalues(qvalue, inputs, action)
    return ensemble_squared_error(values, target, reduction), values


def _climb(
    networks: _Networks, actor: Parameters, qvalue: Parameters, inputs: Inputs, noise: Tensor, alpha: Tensor, over: str
) -> tuple[Tensor, Tensor]:
    """Actor objective per row and log pi(a|s), both of shape [*B]."""
    action, log_prob = networks.sample(actor, inputs, noise)
    values = networks.qvalues(qvalue, inputs, action)
    return sac_actor_objective(log_prob, values.mean(0) if over == "mean" else values.amin(0), alpha), log_prob


class EnsembleSACLoss(LossModule):
    r"""Soft actor-critic with E critics, as RLPD, A3RL, REDQ, SACfD and SAC use it by their arguments.

    Critic (Ball et al. 2023, Algorithm 1, lines 15-19), with :math:`a'\sim\pi(\cdot|s')` and Z members drawn without
    replacement, once per minibatch:

    .. math::
        y = r + \gamma(1-d)\left[\min_{i\in Z} Q'_i(s',a') - \alpha\log\pi(a'|s')\right],\qquad
        L_Q = \frac1B\sum_b\sum_i (Q_i(s,a)-y)^2

    Actor (line 23), on the mean of *all* members, and temperature:

    .. math::
        L_\pi = \frac1B\sum_b \alpha\log\pi(a|s) - \frac1E\sum_i Q_i(s,a),\qquad L_\alpha = \alpha\,(H-\bar H)

    ====================  ===  ===  ===========  =======  =========================================
    algorithm             E    Z    actor_q      LN       temperature
    ====================  ===  ===  ===========  =======  =========================================
    RLPD, A3RL            10   2    ``"mean"``   yes      ``Temperature(-A / 2)``
    REDQ                  10   2    ``"mean"``   no       ``Temperature(table, form="log_alpha")``
    SAC, SACfD            2    2    ``"min"``    no       ``Temperature(-A, form="log_alpha")``
    ====================  ===  ===  ===========  =======  =========================================

    The three losses are separate because the algorithms step them separately: ``utd_ratio`` critic steps, then one actor and
    one temperature step. :meth:`forward` returns all of them from one set of parameters.

    Differences from the paper's text, following the authors' code: the entropy term of the target is subtracted (line 17
    prints a plus) and the target networks average as :math:`\theta'\leftarrow(1-\tau)\theta'+\tau\theta` (line 21 prints the
    inverse). The authors average the loss over members as well (``ensemble_reduction="mean"``).

    Differences from :class:`torchrl.objectives.REDQLoss`: a ``sub_sample_len`` that does not fit raises instead of being
    clamped, only the drawn members are evaluated, the temperature is not clamped, importance weights are used, and a critic
    step does not compute the actor's loss.

    Importance weights under ``tensor_keys.priority_weight`` multiply the squared errors and are *not* renormalised
    (:math:`\frac1B\sum_b w_b\ell_b`): the sampler decides their scale. TorchRL's own losses divide by their sum.

    Args:
        actor_network: a probabilistic actor, for example :func:`~torchrl_o2o.modules.make_actor`.
        qvalue_network: E critics, for example :func:`~torchrl_o2o.modules.make_qvalue_ensemble`.

    Keyword Args:
        temperature: the entropy temperature. Defaults to ``Temperature(-A / 2)``, RLPD's.
        sub_sample_len: members Z in the target's minimum; ``None`` (default) takes all.
        subset_per: draw the members once per ``"batch"`` (default, RLPD and REDQ) or per ``"sample"``.
        entropy_backup: subtract the entropy term from the target. Defaults to ``True``; RLPD turns it off on AntMaze and Adroit.
        actor_q: the actor climbs the ``"mean"`` (default) or the ``"min"`` of the members.
        ensemble_reduction: ``"sum"`` (default) or ``"mean"`` over members in the critic loss.
        weight_actor: importance weights multiply the actor's and the temperature's loss too (A3RL's code). Defaults to ``False``.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if ``sub_sample_len`` is not in 1..E, an option is unknown, or the action dimension is needed but unknown.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> actor = make_actor(17, 6, hidden_sizes=(32, 32))
        >>> critics = make_qvalue_ensemble(17, 6, num_qvalue_nets=4, hidden_sizes=(32, 32))
        >>> loss = EnsembleSACLoss(actor, critics, sub_sample_len=2)
        >>> batch = TensorDict(
        ...     {
        ...         "observation": torch.randn(8, 17),
        ...         "action": torch.rand(8, 6) * 2 - 1,
        ...         "next": {
        ...             "observation": torch.randn(8, 17),
        ...             "reward": torch.randn(8, 1),
        ...             "done": torch.zeros(8, 1, dtype=torch.bool),
        ...             "terminated": torch.zeros(8, 1, dtype=torch.bool),
        ...         },
        ...     },
        ...     [8],
        ... )
        >>> loss_qvalue, info = loss.qvalue_loss(batch)
        >>> loss_actor, actor_info = loss.actor_loss(batch)
        >>> loss_alpha, _ = loss.alpha_loss(actor_info["log_prob"])
        >>> sorted(key for key in loss(batch).keys() if key.startswith("loss_"))
        ['loss_actor', 'loss_alpha', 'loss_qvalue']
    """

    @dataclass
    class _AcceptedKeys:
        """Tensordict keys that can be renamed with ``set_keys``.

        Attributes:
            action: the action taken. Defaults to ``"action"``.
            value: where the next state's value is put for the value estimator. Defaults to ``"state_value"``.
            state_action_value: what the critics write. Defaults to ``"state_action_value"``.
            log_prob: where the next action's log-density is put for the value estimator. Defaults to ``"_log_prob"``.
            priority: where the absolute TD error is written. Defaults to ``"td_error"``.
            priority_weight: importance weights, if present. Defaults to ``"priority_weight"``.
            reward: Defaults to ``"reward"``.
            done: Defaults to ``"done"``.
            terminated: Defaults to ``"terminated"``.
        """

        action: NestedKey = "action"
        value: NestedKey = "state_value"
        state_action_value: NestedKey = "state_action_value"
        log_prob: NestedKey = "_log_prob"
        priority: NestedKey = "td_error"
        priority_weight: NestedKey = "priority_weight"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    default_value_estimator = ValueEstimators.TD0
    SUPPORTED_VALUE_ESTIMATORS = (ValueEstimators.TD0,)
    out_keys = ["loss_actor", "loss_qvalue", "loss_alpha", "alpha", "entropy", "qvalue", "target_value"]

    actor_network: ProbabilisticTensorDictSequential
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    qvalue_network: TensorDictModule
    qvalue_network_params: TensorDictParams
    target_qvalue_network_params: TensorDictParams

    _next_value = staticmethod(_next_value)
    _regress = staticmethod(_regress)
    _climb = staticmethod(_climb)

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        *,
        temperature: Temperature | None = None,
        sub_sample_len: int | None = None,
        subset_per: Literal["batch", "sample"] = "batch",
        entropy_backup: bool = True,
        actor_q: Literal["mean", "min"] = "mean",
        ensemble_reduction: Literal["sum", "mean"] = "sum",
        weight_actor: bool = False,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        self._in_keys: list[NestedKey] | None = None
        super().__init__()
        members = list(qvalue_network)
        size = len(members) if sub_sample_len is None else sub_sample_len
        if not 1 <= size <= len(members):
            raise O2OSpecError(f"got sub_sample_len={size}, expected 1..{len(members)}, the number of critics given")
        _check_option("subset_per", subset_per, ("batch", "sample"))
        _check_option("actor_q", actor_q, ("mean", "min"))
        _check_option("ensemble_reduction", ensemble_reduction, ("sum", "mean"))
        _check_option("reduction", reduction, ("mean", "sum", "none"))
        self.convert_to_functional(actor_network, "actor_network", create_target_params=False)
        self.convert_to_functional(members, "qvalue_network", len(members), create_target_params=True)
        self.temperature = temperature or Temperature(-0.5 * _action_dim(actor_network, self.tensor_keys.action))
        self.num_qvalue_nets = len(members)
        self.sub_sample_len = size
        self.subset_per: Literal["batch", "sample"] = subset_per
        self.entropy_backup = entropy_backup
        self.actor_q: Literal["mean", "min"] = actor_q
        self.ensemble_reduction: Literal["sum", "mean"] = ensemble_reduction
        self.weight_actor = weight_actor
        self.reduction = reduction
        self.noise: NoiseSource = GeneratorNoise()
        # Built now, not at first use: its buffer gamma is part of the state that strict loading compares.
        self.make_value_estimator()

    def make_value_estimator(
        self, value_type: ValueEstimators | ValueEstimatorBase | None = None, **hyperparams: float
    ) -> None:
        """Choose how the target is formed from reward and next value.

        Args:
            value_type: ``ValueEstimators.TD0`` (default), or an estimator of your own such as SAMG's.
            hyperparams: ``gamma`` (defaults to 0.99) for TD0.
        """
        if value_type is None:
            value_type = self.default_value_estimator
        if isinstance(value_type, ValueEstimatorBase):
            LossModule.make_value_estimator(self, value_type)
            return
        keys = self.tensor_keys
        dispatch_value_estimator(
            self,
            value_type,
            supported=self.SUPPORTED_VALUE_ESTIMATORS,
            tensor_keys={"value": keys.value, "reward": keys.reward, "done": keys.done, "terminated": keys.terminated},
            **hyperparams,
        )

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic loss of one minibatch.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            The loss, and ``td_error`` (mean over members of the absolute error, shape [*B]), ``qvalue`` (shape [E, *B]) and
            ``target_value`` (shape [*B]), all detached.
        """
        target = self.target_value(tensordict)
        params = flat_parameters(self.qvalue_network_params)
        action = tensordict.get(self.tensor_keys.action)
        inputs = self._inputs(tensordict)
        error, qvalue = self._regress(self._networks, params, inputs, action, target, self.ensemble_reduction)
        qvalue = qvalue.detach()
        info = {"td_error": (qvalue - target).abs().mean(0), "qvalue": qvalue, "target_value": target}
        return self._reduce(error, self._weights(tensordict)), info

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches the critics or the temperature.

        Args:
            tensordict: transitions, shape [*B]; not modified. Of the recorded action only the shape is used.

        Returns:
            The loss, and ``log_prob`` of the sampled actions, shape [*B], detached, for :meth:`alpha_loss`.
        """
        noise = self.noise.normal("action", tensordict.get(self.tensor_keys.action))
        actor, critics = flat_parameters(self.actor_network_params), flat_parameters(self.qvalue_network_params.data)
        alpha, inputs = self.temperature.alpha, self._inputs(tensordict)
        objective, log_prob = self._climb(self._networks, actor, critics, inputs, noise, alpha, self.actor_q)
        weights = self._weights(tensordict) if self.weight_actor else None
        return self._reduce(objective, weights), {"log_prob": log_prob.detach()}

    def alpha_loss(self, log_prob: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Temperature loss from the actor pass's log-densities.

        Args:
            log_prob: what :meth:`actor_loss` returned, shape [*B].
            weights: importance weights, shape [*B]; used if ``weight_actor``. Defaults to ``None``.

        Returns:
            The loss, and the scalars ``alpha`` and ``entropy``.
        """
        weights = weights if self.weight_actor else None
        if weights is None:
            objective, entropy = self.temperature.objective(log_prob), -log_prob.mean()
        else:
            # A3RL's code puts the weighted sum of -log pi in the entropy's place, so the target itself is not weighted.
            entropy = -(weights * log_prob).mean()
            objective = self.temperature.objective(-entropy)
        info = {"alpha": self.temperature.alpha, "entropy": entropy.detach()}
        return (objective if objective.ndim == 0 else self._reduce(objective, None)), info

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All three losses from one set of parameters; writes the absolute TD error under ``tensor_keys.priority``.

        Args:
            tensordict: transitions, shape [*B].

        Returns:
            ``loss_qvalue``, ``loss_actor``, ``loss_alpha`` and, unless ``reduction="none"``, the scalars ``alpha``,
            ``entropy``, ``qvalue`` and ``target_value``.
        """
        loss_qvalue, info = self.qvalue_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict)
        weights = self._weights(tensordict) if self.weight_actor else None
        loss_alpha, alpha_info = self.alpha_loss(actor_info["log_prob"], weights)
        tensordict.set(self.tensor_keys.priority, info["td_error"])
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, "loss_alpha": loss_alpha}
        if self.reduction == "none":
            return TensorDict(losses, tensordict.batch_size)
        means = {"qvalue": info["qvalue"].mean(), "target_value": info["target_value"].mean()}
        return TensorDict({**losses, **alpha_info, **means}, [])

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        r"""The Bellman target y of the class docstring.

        The value estimator is handed, under ``"next"``, the sampled action, its log-density, the minimum over the drawn target
        members and the soft value, so that estimators which mix in other critics need no second pass.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            y, shape [*B], without gradient.
        """
        keys, following = self.tensor_keys, tensordict.get("next")
        noise = self.noise.normal("next_action", tensordict.get(keys.action))
        target, rows = self._target_members(noise[..., 0])
        actor, inputs = flat_parameters(self.actor_network_params.data), self._inputs(following)
        action, log_prob, qvalue = self._next_value(self._networks, actor, target, inputs, noise, rows)
        value = soft_value(qvalue, log_prob, self.temperature.alpha) if self.entropy_backup else qvalue
        columns = {keys.log_prob: log_prob, keys.state_action_value: qvalue, keys.value: value}
        following = following.copy().set(keys.action, action)
        for key, column in columns.items():
            following.set(key, column.unsqueeze(-1))
        return self.value_estimator.value_estimate(tensordict.copy().set("next", following)).squeeze(-1)

    def _target_members(self, like: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Target parameters to evaluate, and per row the members to keep, shape [Z, *B], or ``None`` for all evaluated."""
        params = flat_parameters(self.target_qvalue_network_params.data)
        if self.sub_sample_len == self.num_qvalue_nets:
            return params, None
        per_row = self.subset_per == "sample"
        index = self.noise.subset("target", self.num_qvalue_nets, self.sub_sample_len, like, per_row=per_row)
        return (params, index) if per_row else (take_members(params, index), None)

    @property
    def _networks(self) -> _Networks:
        keys = self.tensor_keys
        return _Networks(self.actor_network, self.qvalue_network, keys.action, keys.state_action_value)

    def _inputs(self, observation: TensorDictBase) -> dict[NestedKey, Tensor]:
        keys = dict.fromkeys((*self.actor_network.in_keys, *self.qvalue_network.in_keys))
        return {key: observation.get(key) for key in keys if key != self.tensor_keys.action}

    def compile(self, *, mode: str | None = None) -> None:
        """Compile the three pure cores of this loss in place; everything around them stays plain.

        The cores are the target's next value, the critics' regression and the actor's objective: functions of tensors and
        dictionaries of tensors, without random draws, so that compiled and eager losses agree to rounding. Batches of one
        shape compile once.

        Args:
            mode: ``torch.compile``'s mode. Defaults to its own default.
        """
        for name in ("_next_value", "_regress", "_climb"):
            self.__dict__[name] = torch.compile(getattr(type(self), name), mode=mode, dynamic=False, fullgraph=True)

    def _weights(self, tensordict: TensorDictBase) -> Tensor | None:
        weights = tensordict.get(self.tensor_keys.priority_weight, None)
        return None if weights is None else weights.reshape(tensordict.batch_size)

    def _reduce(self, loss: Tensor, weights: Tensor | None) -> Tensor:
        loss = loss if weights is None else loss * weights
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that :meth:`forward` reads, in the order of its positional arguments."""
        if self._in_keys is None:
            keys = self.tensor_keys
            following = (*self.actor_network.in_keys, keys.reward, keys.done, keys.terminated)
            names = [keys.action, *(("next", key) for key in following)]
            names += [*self.actor_network.in_keys, *self.qvalue_network.in_keys]
            self._in_keys = list(dict.fromkeys(names))
        return self._in_keys

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        if self._value_estimator is not None:
            keys = self.tensor_keys
            self._value_estimator.set_keys(
                value=keys.value, reward=keys.reward, done=keys.done, terminated=keys.terminated
            )
        self._in_keys = None


def _check_option(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise O2OSpecError(f"got {name}={value!r}, expected one of {', '.join(map(repr, known))}")


def _action_dim(actor: ProbabilisticTensorDictSequential, key: NestedKey) -> int:
    spec = getattr(actor, "spec", None)
    if spec is None or spec.get(key, None) is None:
        raise O2OSpecError(
            "the actor has no action spec, so the default target entropy -A/2 is unknown; pass "
            "temperature=Temperature(target_entropy=...) or build the actor with a spec"
        )
    return int(spec[key].shape[-1])
