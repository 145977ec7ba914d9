# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Ensemble soft actor-critic: the learner of RLPD, REDQ, SACfD, SAC and A3RL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor
from torch.distributions import Distribution

from torchrl_o2o.errors import check_count, check_number, check_option
from torchrl_o2o.functional.conservative import best_of
from torchrl_o2o.functional.soft import sac_actor_objective, soft_value
from torchrl_o2o.modules.boxes import action_spec
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.networks import repeated, sample_policy
from torchrl_o2o.objectives.soft import SoftLoss

__all__ = ["EnsembleSACLoss"]

_INSIDE = 1.0 - 1e-5  # recorded actions are clipped to this share of the box before their density is computed


class EnsembleSACLoss(SoftLoss):
    r"""Soft actor-critic with E critics. Its arguments select RLPD, A3RL, REDQ, SACfD, SAC or WSRL.

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
    SAC, SACfD            2    2    ``"min"``    no       ``Temperature(-A / 2)`` (RLPD's baselines)
    WSRL                  10   2    ``"min"``    yes      ``Temperature(-A, form="softplus")``
    ====================  ===  ===  ===========  =======  =========================================

    WSRL also draws the Z members with replacement, averages over members, and measures the temperature's entropy at s'.
    Its target has no entropy term and, except on AntMaze, one action. Its critics share one output layer
    (:func:`~torchrl_o2o.modules.make_qvalue_ensemble`). With n = ``num_target_actions`` the bracket of the target is
    the largest of n actions': :math:`\max_{m\le n}[\min_{i\in Z} Q'_i(s',a'_m) - \alpha\log\pi(a'_m|s')]`.

    The three losses are separate because the algorithms step them separately: ``utd_ratio`` critic steps, then one
    actor and one temperature step. :meth:`forward` returns all of them from one set of parameters.

    Differences from the paper's text, following the authors' code: the entropy term of the target is subtracted (line
    17 prints a plus) and the target networks average as :math:`\theta'\leftarrow(1-\tau)\theta'+\tau\theta` (line 21
    prints the inverse). The authors average the loss over members as well (``ensemble_reduction="mean"``).

    Differences from :class:`torchrl.objectives.REDQLoss`: a ``sub_sample_len`` out of range raises instead of being
    clamped, only the drawn members are evaluated, the temperature is not clamped, importance weights are used, and a
    critic step does not compute the actor's loss.

    Importance weights multiply the rows of :math:`L_Q`, as in :class:`~torchrl_o2o.objectives.base.TransitionLoss`, and
    those of actor and temperature only with ``weight_actor``.

    Args:
        actor_network: a probabilistic actor, for example :func:`~torchrl_o2o.modules.make_actor`.
        qvalue_network: E critics, for example :func:`~torchrl_o2o.modules.make_qvalue_ensemble`.

    Keyword Args:
        temperature: the entropy temperature. Defaults to ``Temperature(-A / 2)``, RLPD's.
        sub_sample_len: number Z of members in the target's minimum; ``None`` (default) takes all.
        subset_per: whether the members are drawn once per ``"batch"`` (default, RLPD and REDQ) or per ``"sample"``.
        subset_replacement: whether they are drawn with replacement, so that a member may appear several times (WSRL).
            Defaults to ``False``.
        num_target_actions: number of actions a' per next state; the target takes the best (10 in WSRL on AntMaze).
            Defaults to 1.
        entropy_at: the temperature's loss uses the entropy of the actor step's actions at the ``"state"`` (default), or
            of fresh actions at the ``"next_state"`` (WSRL).
        entropy_backup: whether the entropy term is subtracted from the target. Defaults to ``True``; RLPD turns it off
            on AntMaze and Adroit.
        target_q: the target takes the ``"min"`` (default) of the members drawn, or their ``"mean"`` (RLPD on chunks).
        actor_q: the actor maximizes the ``"mean"`` (default) or the ``"min"`` of the members.
        bc_alpha: weight of :math:`-\log\pi(a|s)` of the recorded action in the actor's loss (0.01 in QC-RLPD). The
            action is clipped to :math:`1-10^{-5}` of its box. Defaults to 0.
        ensemble_reduction: ``"sum"`` (default) or ``"mean"`` over members in the critic loss.
        weight_actor: whether importance weights also multiply the losses of actor and temperature (A3RL's code).
            Defaults to ``False``.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if ``sub_sample_len`` is not in 1..E, ``num_target_actions`` is below 1, an option is unknown, or
            the action dimension is needed but unknown.

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

    action_low: Tensor
    action_high: Tensor

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        *,
        temperature: Temperature | None = None,
        sub_sample_len: int | None = None,
        subset_per: Literal["batch", "sample"] = "batch",
        subset_replacement: bool = False,
        num_target_actions: int = 1,
        entropy_at: Literal["state", "next_state"] = "state",
        entropy_backup: bool = True,
        target_q: Literal["mean", "min"] = "min",
        actor_q: Literal["mean", "min"] = "mean",
        bc_alpha: float = 0.0,
        ensemble_reduction: Literal["sum", "mean"] = "sum",
        weight_actor: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        temperature = temperature or Temperature(-0.5 * action_spec(actor_network).shape[-1])
        super().__init__(
            actor_network,
            qvalue_network,
            temperature=temperature,
            ensemble_reduction=ensemble_reduction,
            reduction=reduction,
        )
        self._set_subset(sub_sample_len, subset_per, subset_replacement)
        self._set_entropy(entropy_at)
        self._set_cloning(actor_network, bc_alpha)
        check_option("target_q", target_q, ("mean", "min"))
        self.target_q = target_q
        self.num_target_actions = check_count("num_target_actions", num_target_actions, least=1)
        check_option("actor_q", actor_q, ("mean", "min"))
        self.entropy_backup = entropy_backup
        self.actor_q: Literal["mean", "min"] = actor_q
        self.weight_actor = weight_actor
        self.make_value_estimator()

    def _keys_read(self) -> list[NestedKey]:
        keys = super()._keys_read()
        return [*keys, self.tensor_keys.priority_weight] if self.weight_actor else keys

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        r"""The Bellman target y of the class docstring.

        The value estimator gets, under ``"next"``, the sampled action, its log-density, the minimum over the drawn
        target members and the soft value. An estimator that mixes in other critics then needs no second pass.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            y, shape [*B], without gradient.
        """
        following, n = self._next_state(tensordict), self.num_target_actions
        count = (n,) if n > 1 else ()
        noise = self.noise.normal("next_action", self._action(tensordict), count)
        action, log_prob = sample_policy(self._policy(following), noise, count)  # a' ~ pi(.|s')
        qvalue = self._subset_minimum(repeated(following, n) if n > 1 else following, action)
        if n > 1:
            value = soft_value(qvalue, log_prob, self.temperature.alpha) if self.entropy_backup else qvalue
            qvalue, log_prob, action = best_of(value, qvalue, log_prob, action)
        return self._soft_target(tensordict, action, log_prob, qvalue, entropy=self.entropy_backup)

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches the critics or the temperature.

        Args:
            tensordict: transitions, shape [*B]; not modified. Of the recorded action only the shape is used.

        Returns:
            The loss, and detached: ``log_prob`` of the sampled actions, shape [*B], for :meth:`alpha_loss`; and, if
            ``bc_alpha`` is positive, ``cloning``, -log pi of the recorded actions, shape [*B].
        """
        noise = self.noise.normal("action", self._action(tensordict))
        state = self._state(tensordict)
        dist = self._policy(state)
        action, log_prob = sample_policy(dist, noise)  # a ~ pi(.|s)
        qvalues = self._qvalues(state, action, self._frozen_critics)
        qvalue = qvalues.mean(0) if self.actor_q == "mean" else qvalues.amin(0)
        objective = sac_actor_objective(log_prob, qvalue, self.temperature.alpha)  # alpha log pi - Q
        info = {"log_prob": log_prob.detach()}
        if self.bc_alpha:
            cloning = self._cloning(dist, self._action(tensordict))
            objective, info["cloning"] = objective + self.bc_alpha * cloning, cloning.detach()
        weights = self._required_weights(tensordict) if self.weight_actor else None
        return self._reduce(objective, weights), info

    def alpha_loss(
        self, tensordict: TensorDictBase, *, log_prob: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Temperature loss from the actor pass's log-densities.

        Args:
            tensordict: transitions, shape [*B]; not modified. Its importance weights are read only with
                ``weight_actor``.

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
        log_prob = self._temperature_log_prob(tensordict, log_prob)
        # A3RL's code weights only the entropy, -log pi, and not the target entropy.
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
            ``entropy``, ``qvalue`` and ``target_value``, and ``cloning`` if ``bc_alpha`` is positive.
        """
        return self._collect(tensordict, *self._soft_losses(tensordict))

    def _set_cloning(self, actor_network: ProbabilisticTensorDictSequential, bc_alpha: float) -> None:
        check_number("bc_alpha", bc_alpha, least=0)
        self.bc_alpha = bc_alpha
        if bc_alpha:  # otherwise no bounded spec is needed
            self._name_outputs("cloning")
            self._hold_box(actor_network)

    def _cloning(self, dist: Distribution, action: Tensor) -> Tensor:
        """-log pi(a|s) of recorded actions, shape [*B], clipped to just inside the box, where tanh has an inverse."""
        dtype = action.dtype  # the box may have a coarser dtype, in which the small distance to the edge is lost
        low, high = self.action_low.to(dtype), self.action_high.to(dtype)
        middle, half_width = 0.5 * (high + low), 0.5 * (high - low) * _INSIDE
        return -dist.log_prob(torch.minimum(torch.maximum(action, middle - half_width), middle + half_width))

    def _current_state(self, state_dict: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
        """Earlier states store the middle and half the width of the action box."""
        names = f"{prefix}cloning_middle", f"{prefix}cloning_half_width"
        if any(name not in state_dict for name in names):
            return state_dict
        middle, half_width = (state_dict[name] for name in names)
        rest = {name: value for name, value in state_dict.items() if name not in names}
        return {**rest, f"{prefix}action_low": middle - half_width, f"{prefix}action_high": middle + half_width}
