# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Ensemble soft actor-critic: the learner of RLPD, REDQ, SACfD, SAC and A3RL."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule, dispatch
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.soft import ensemble_squared_error, soft_value
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.actor_critic import climb
from torchrl_o2o.objectives.base import Reduction, check_option
from torchrl_o2o.objectives.networks import ActorCritic, Inputs, Parameters, flat_parameters, take_members
from torchrl_o2o.objectives.soft import SoftLoss

__all__ = ["EnsembleSACLoss"]

_BOTH = ("actor_network", "qvalue_network")
_Ensemble = Literal["sum", "mean"]


def _next_value(
    networks: ActorCritic, actor: Parameters, target: Parameters, inputs: Inputs, noise: Tensor, members: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """a', log pi(a'|s') and the minimum of Q'_i(s', a') over the given members, or over ``members`` row by row."""
    action, log_prob = networks.sample(actor, inputs, noise)
    qvalue = networks.qvalues(target, inputs, action)
    return action, log_prob, (qvalue if members is None else qvalue.gather(0, members)).amin(0)


def _regress(
    networks: ActorCritic, qvalue: Parameters, inputs: Inputs, action: Tensor, target: Tensor, reduction: _Ensemble
) -> tuple[Tensor, Tensor]:
    """Squared error per row, shape [*B], and Q_i(s, a), shape [E, *B]."""
    values = networks.qvalues(qvalue, inputs, action)
    return ensemble_squared_error(values, target, reduction), values


class EnsembleSACLoss(SoftLoss):
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

    The three losses are separate because the algorithms step them separately: ``utd_ratio`` critic steps, then one
    actor and one temperature step. :meth:`forward` returns all of them from one set of parameters.

    Differences from the paper's text, following the authors' code: the entropy term of the target is subtracted (line
    17 prints a plus) and the target networks average as :math:`\theta'\leftarrow(1-\tau)\theta'+\tau\theta` (line 21
    prints the inverse). The authors average the loss over members as well (``ensemble_reduction="mean"``).

    Differences from :class:`torchrl.objectives.REDQLoss`: a ``sub_sample_len`` that does not fit raises instead of
    being clamped, only the drawn members are evaluated, the temperature is not clamped, importance weights are used,
    and a critic step does not compute the actor's loss.

    Importance weights multiply the squared errors as :class:`~torchrl_o2o.objectives.base.TransitionLoss` says.

    Args:
        actor_network: a probabilistic actor, for example :func:`~torchrl_o2o.modules.make_actor`.
        qvalue_network: E critics, for example :func:`~torchrl_o2o.modules.make_qvalue_ensemble`.

    Keyword Args:
        temperature: the entropy temperature. Defaults to ``Temperature(-A / 2)``, RLPD's.
        sub_sample_len: members Z in the target's minimum; ``None`` (default) takes all.
        subset_per: draw the members once per ``"batch"`` (default, RLPD and REDQ) or per ``"sample"``.
        entropy_backup: subtract the entropy term from the target. Defaults to ``True``; RLPD turns it off on AntMaze
            and Adroit.
        actor_q: the actor climbs the ``"mean"`` (default) or the ``"min"`` of the members.
        ensemble_reduction: ``"sum"`` (default) or ``"mean"`` over members in the critic loss.
        weight_actor: importance weights multiply the actor's and the temperature's loss too (A3RL's code). Defaults to
            ``False``.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if ``sub_sample_len`` is not in 1..E, an option is unknown, or the action dimension is needed but
            unknown.

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
        >>> loss_alpha, _ = loss.alpha_loss(batch, log_prob=actor_info["log_prob"])
        >>> sorted(key for key in loss(batch).keys() if key.startswith("loss_"))
        ['loss_actor', 'loss_alpha', 'loss_qvalue']
    """

    out_keys = ["loss_actor", "loss_qvalue", "loss_alpha", "alpha", "entropy", "qvalue", "target_value"]

    _next_value = staticmethod(_next_value)
    _regress = staticmethod(_regress)
    _climb = staticmethod(climb)

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
        ensemble_reduction: _Ensemble = "sum",
        weight_actor: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        temperature = temperature or Temperature(-0.5 * _action_dim(actor_network))
        super().__init__(actor_network, qvalue_network, temperature=temperature, reduction=reduction)
        size = self.num_qvalue_nets if sub_sample_len is None else sub_sample_len
        if not 1 <= size <= self.num_qvalue_nets:
            raise O2OSpecError(f"got sub_sample_len={size}, expected 1..{self.num_qvalue_nets}, the number of critics")
        check_option("subset_per", subset_per, ("batch", "sample"))
        check_option("actor_q", actor_q, ("mean", "min"))
        check_option("ensemble_reduction", ensemble_reduction, ("sum", "mean"))
        self.sub_sample_len = size
        self.subset_per: Literal["batch", "sample"] = subset_per
        self.entropy_backup = entropy_backup
        self.actor_q: Literal["mean", "min"] = actor_q
        self.ensemble_reduction: _Ensemble = ensemble_reduction
        self.weight_actor = weight_actor
        self.make_value_estimator()

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic loss of one minibatch.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            The loss, and ``td_error`` (mean over members of the absolute error, shape [*B]), ``qvalue`` (shape [E, *B])
            and ``target_value`` (shape [*B]), all detached.
        """
        target = self.target_value(tensordict)
        params = flat_parameters(self.qvalue_network_params)
        action = self._action(tensordict)
        inputs = self._inputs(tensordict, *_BOTH)
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
        noise = self.noise.normal("action", self._action(tensordict))
        actor = flat_parameters(self.actor_network_params)
        critics = flat_parameters(self.qvalue_network_params, detach=True)
        alpha, inputs = self.temperature.alpha, self._inputs(tensordict, *_BOTH)
        objective, log_prob = self._climb(self._networks, actor, critics, inputs, noise, alpha, self.actor_q)
        weights = self._required_weights(tensordict) if self.weight_actor else None
        return self._reduce(objective, weights), {"log_prob": log_prob.detach()}

    def alpha_loss(
        self, tensordict: TensorDictBase, *, log_prob: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Temperature loss from the actor pass's log-densities.

        Args:
            tensordict: transitions, shape [*B]; not modified. With ``weight_actor`` its importance weights are read.

        Keyword Args:
            log_prob: what :meth:`actor_loss` returned, shape [*B]; ``None`` (default) draws fresh actions.

        Returns:
            The loss, and the scalars ``alpha`` and ``entropy``.

        Raises:
            O2OSpecError: if ``weight_actor`` is on and the batch has no importance weights.
        """
        if not self.weight_actor:
            return super().alpha_loss(tensordict, log_prob=log_prob)
        self._check_batch(tensordict, "alpha_loss(batch, log_prob=log_prob)")
        log_prob = self.sample_log_prob(tensordict) if log_prob is None else log_prob
        # A3RL's code puts the weighted sum of -log pi in the entropy's place, so the target itself is not weighted.
        entropy = -(self._required_weights(tensordict) * log_prob).mean()
        objective = self.temperature.objective(-entropy).expand_as(log_prob)
        return self._reduce(objective), {"alpha": self.temperature.alpha, "entropy": entropy.detach()}

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
        loss_alpha, alpha_info = self.alpha_loss(tensordict, log_prob=actor_info["log_prob"])
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, "loss_alpha": loss_alpha}
        return self._collect(tensordict, losses, {**info, **alpha_info})

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        r"""The Bellman target y of the class docstring.

        The value estimator is handed, under ``"next"``, the sampled action, its log-density, the minimum over the drawn
        target members and the soft value, so that estimators which mix in other critics need no second pass.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            y, shape [*B], without gradient.
        """
        keys = self.tensor_keys
        noise = self.noise.normal("next_action", self._action(tensordict))
        target, rows = self._target_members(noise[..., 0])
        actor, inputs = (
            flat_parameters(self.actor_network_params, detach=True),
            self._inputs(self._following(tensordict), *_BOTH),
        )
        action, log_prob, qvalue = self._next_value(self._networks, actor, target, inputs, noise, rows)
        value = soft_value(qvalue, log_prob, self.temperature.alpha) if self.entropy_backup else qvalue
        columns = {keys.log_prob: log_prob, keys.state_action_value: qvalue, keys.value: value}
        return self._estimate(tensordict, columns, action)

    def _target_members(self, like: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Target parameters to evaluate, and per row the members to keep, shape [Z, *B], or ``None`` for all
        evaluated."""
        params = flat_parameters(self.target_qvalue_network_params, detach=True)
        if self.sub_sample_len == self.num_qvalue_nets:
            return params, None
        per_row = self.subset_per == "sample"
        index = self.noise.subset("target", self.num_qvalue_nets, self.sub_sample_len, like, per_row=per_row)
        return (params, index) if per_row else (take_members(params, index), None)


def _action_dim(actor: ProbabilisticTensorDictSequential) -> int:
    spec = getattr(actor, "spec", None)
    leaves = [] if spec is None else [leaf for leaf in spec.values(True, True) if leaf is not None]
    if len(leaves) != 1:
        raise O2OSpecError(
            "the actor has no action spec, so the default target entropy -A/2 is unknown; pass "
            "temperature=Temperature(target_entropy=...) or build the actor with a spec"
        )
    return int(leaves[0].shape[-1])
