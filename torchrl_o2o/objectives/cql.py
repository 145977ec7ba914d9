# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Conservative Q-learning and its calibrated form.

Shapes: E critics, B any batch shape, n actions per proposal, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_o2o.errors import check_option
from torchrl_o2o.functional.conservative import calibrated, conservative_gap, max_backup, scaled_logsumexp
from torchrl_o2o.functional.soft import sac_actor_objective
from torchrl_o2o.modules.conservative import ConservativePenalty
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.base import Reduction, TransitionLoss, dispatch
from torchrl_o2o.objectives.networks import repeated, sample_policy
from torchrl_o2o.objectives.soft import SoftLoss

__all__ = ["CQLLoss", "CalQLLoss"]


class CQLLoss(SoftLoss):
    r"""Conservative Q-learning, CQL(H), as its authors' code computes it.

    Critics, with :math:`\mu` the uniform density and :math:`\pi` at s and at s' (n actions each, all evaluated at s):

    .. math::
        L_Q = \frac1B\sum_b\sum_i (Q_i(s,a)-y)^2
              + w\,\mathrm{clip}\Big(T\log\sum_{m=1}^{3n} e^{(Q_i(s,a_m)-\log\mu_m(a_m))/T} - Q_i(s,a)\Big)

    Target, without entropy unless ``entropy_backup``; with ``max_target_backup`` the best of n next actions:

    .. math:: y = r + \gamma(1-d)\max_{a'_1..a'_n\sim\pi(s')}\min_i Q'_i(s',a')

    Actor and temperature are SAC's on the minimum of the critics. With ``ConservativePenalty(target_gap=tau)`` the
    penalty is :math:`\alpha'w(\mathrm{gap}-\tau)` and ``loss_alpha_prime`` trains :math:`\alpha'`.

    Source: Kumar et al. 2020 (CQL), Eq. 4 and appendix F; the authors' code, as continued by Nakamoto et al. 2023 and
    CORL. They compute all four losses from the same parameters, then step all optimizers, then the targets.

    Differences from :class:`torchrl.objectives.CQLLoss`: the soft maximum runs over all 3n actions and not over 3
    means, the actions drawn at s' are evaluated at s, and the Lagrange multiplier scales the penalty. All actions of
    all critics are evaluated in one batched call.

    The references' ``alpha_multiplier`` c is not an argument. :math:`c\,e^{\log\alpha}` with the same optimizer steps
    equals ``Temperature(init=c * alpha)``.

    Importance weights multiply the rows of :math:`L_Q`, including the penalty, not those of actor, temperature and
    multiplier.

    Args:
        actor_network: a probabilistic actor whose spec is bounded; CQL's is
            ``make_actor(..., affine_log_std=True, initialization="orthogonal_small_last")``.
        qvalue_network: E critics, 2 in the paper.

    Keyword Args:
        temperature: the entropy temperature. Defaults to ``Temperature(-A, form="log_alpha")``.
        penalty: weight, proposals and Lagrange multiplier. Defaults to ``ConservativePenalty()``.
        max_target_backup: whether the target takes the best of ``penalty.num_actions`` next actions. Defaults to
            ``False``; ``True`` on AntMaze and Adroit.
        entropy_backup: subtract the entropy term from the target. Defaults to ``False``.
        actor_q: the actor maximizes the ``"min"`` (default) or the ``"mean"`` of the critics.
        sub_sample_len: number of critics in the target's minimum, drawn once per minibatch; ``None`` (default) takes
            all. Offline training before WSRL uses 2 of 10.
        subset_replacement: draw them with replacement, as WSRL does. Defaults to ``False``.
        entropy_at: see :class:`~torchrl_o2o.objectives.EnsembleSACLoss`. Defaults to ``"state"``.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if an option is unknown or the actor has no bounded action spec.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import ConservativePenalty, make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import CQLLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> actor = make_actor(5, 2, hidden_sizes=(16,), affine_log_std=True)
        >>> critics = make_qvalue_ensemble(5, 2, num_qvalue_nets=2, hidden_sizes=(16,), layer_norm=False)
        >>> loss = CQLLoss(actor, critics, penalty=ConservativePenalty(5.0, num_actions=4))
        >>> loss_qvalue, info = loss.qvalue_loss(random_transitions(8, 5, 2))
        >>> info["gap"].shape
        torch.Size([2, 8])
    """

    @dataclass
    class _AcceptedKeys(TransitionLoss._AcceptedKeys):
        """Keys of all losses and one more.

        Attributes:
            penalty_weight: factor of each row's penalty, if present, shape [*B, 1]; SAMG's is 1 - p. Defaults to
                ``"penalty_weight"``.
        """

        penalty_weight: NestedKey = "penalty_weight"

    tensor_keys: _AcceptedKeys  # pyright: ignore[reportIncompatibleVariableOverride]
    default_keys = _AcceptedKeys
    out_keys = ["loss_actor", "loss_qvalue", "loss_alpha", "loss_alpha_prime"]
    out_keys += ["alpha", "entropy", "qvalue", "target_value", "gap", "alpha_prime", "bound_rate"]

    action_low: Tensor
    action_high: Tensor

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        *,
        temperature: Temperature | None = None,
        penalty: ConservativePenalty | None = None,
        max_target_backup: bool = False,
        entropy_backup: bool = False,
        actor_q: Literal["min", "mean"] = "min",
        sub_sample_len: int | None = None,
        subset_replacement: bool = False,
        entropy_at: Literal["state", "next_state"] = "state",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(actor_network, qvalue_network, temperature=temperature, reduction=reduction)
        self._set_subset(sub_sample_len, "batch", subset_replacement)
        self._set_entropy(entropy_at)
        check_option("actor_q", actor_q, ("min", "mean"))
        self.penalty = penalty or ConservativePenalty()
        self.max_target_backup = max_target_backup
        self.num_target_actions = self.penalty.num_actions if max_target_backup else 1
        self.entropy_backup = entropy_backup
        self.actor_q: Literal["min", "mean"] = actor_q
        self._hold_box(actor_network)
        self.make_value_estimator()

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        r"""The Bellman target y of the class docstring.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            y, shape [*B], without gradient.
        """
        count = (self.num_target_actions,)
        noise, following = (
            self.noise.normal("next_action", self._action(tensordict), count),
            self._next_state(tensordict),
        )
        actions, log_probs = sample_policy(self._policy(following), noise, count)  # a'_1 .. a'_n ~ pi(.|s')
        values = self._subset_minimum(repeated(following, *count), actions)  # min_i Q'_i
        qvalue, log_prob, action = max_backup(values, log_probs, actions)
        return self._soft_target(tensordict, action, log_prob, qvalue, entropy=self.entropy_backup)

    def qvalue_loss(
        self, tensordict: TensorDictBase, *, target_value: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Bellman error plus conservative penalty of one minibatch.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Keyword Args:
            target_value: y, shape [*B], if it was computed before; ``None`` (default) calls :meth:`target_value`.

        Returns:
            The loss, and, all detached, ``td_error`` (shape [*B]), ``qvalue`` and ``gap`` (shape [E, *B]),
            ``target_value`` (shape [*B]) and the scalars ``alpha_prime`` and ``bound_rate`` (share of policy-action
            values under Cal-QL's bound).
        """
        target = self.target_value(tensordict) if target_value is None else target_value  # y
        state, action = self._state(tensordict), self._action(tensordict)
        proposals, log_density = self._proposals(tensordict)  # a_m, log mu_m(a_m)
        actions = torch.cat([proposals, action.unsqueeze(0)])
        values = self._qvalues(repeated(state, len(actions)), actions)
        others, qvalue = values[:, :-1], values[:, -1]  # Q_i(s, a_m), Q_i(s, a)
        error, info = self._bellman_error(qvalue, target)
        others, bound_rate = self._calibrate(others, tensordict)
        if self.penalty.importance_sampling:
            candidates = others - log_density
        else:
            candidates = torch.cat([others, qvalue.unsqueeze(1)], 1)
        soft_maximum = scaled_logsumexp(candidates.transpose(0, 1), self.penalty.softmax_temperature)
        gap = conservative_gap(soft_maximum, qvalue, self.penalty.gap_bounds)
        info |= {"gap": gap.detach(), "alpha_prime": self.penalty.multiplier, "bound_rate": bound_rate}
        penalty, factor = self.penalty.apply_to(gap), self._one_each(tensordict, self.tensor_keys.penalty_weight)
        if factor is not None:
            penalty = penalty * factor
        return self._reduce(error + penalty, self._weights(tensordict)), info

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches the critics or the temperature.

        Args:
            tensordict: transitions, shape [*B]; not modified. Of the recorded action only the shape is used.

        Returns:
            The loss, and ``log_prob`` of the sampled actions, shape [*B], detached, for :meth:`alpha_loss`.
        """
        noise, state = self.noise.normal("action", self._action(tensordict)), self._state(tensordict)
        action, log_prob = sample_policy(self._policy(state), noise)  # a ~ pi(.|s)
        qvalues = self._qvalues(state, action, self._frozen_critics)
        qvalue = qvalues.mean(0) if self.actor_q == "mean" else qvalues.amin(0)
        objective = sac_actor_objective(log_prob, qvalue, self.temperature.alpha)  # alpha log pi - Q
        return self._reduce(objective), {"log_prob": log_prob.detach()}

    def alpha_prime_loss(
        self, tensordict: TensorDictBase, *, gap: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the Lagrange multiplier; zero if none is trained.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Keyword Args:
            gap: what :meth:`qvalue_loss` returned, shape [E, *B]; ``None`` (default) calls it.

        Returns:
            The loss, and an empty dictionary.
        """
        self._check_batch(tensordict, "alpha_prime_loss(batch, gap=gap)")
        gap = self.qvalue_loss(tensordict)[1]["gap"] if gap is None else gap
        return self._reduce(self.penalty.objective(gap)), {}

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All losses from one set of parameters; writes the absolute TD error under ``tensor_keys.priority``.

        Args:
            tensordict: transitions, shape [*B].

        Returns:
            ``loss_qvalue``, ``loss_actor``, ``loss_alpha``, ``loss_alpha_prime`` and, unless ``reduction="none"``, the
            scalars of :attr:`out_keys`.
        """
        losses, info = self._soft_losses(tensordict)
        losses["loss_alpha_prime"], _ = self.alpha_prime_loss(tensordict, gap=info["gap"])
        return self._collect(tensordict, losses, info)

    def _current_state(self, state_dict: Mapping[str, Any], prefix: str) -> Mapping[str, Any]:
        """Earlier states do not contain the action box."""
        box = {f"{prefix}{name}": getattr(self, name) for name in ("action_low", "action_high")}
        return {**box, **state_dict}

    @torch.no_grad()
    def _proposals(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Actions a_m and log mu_m(a_m), [3n, *B, A] and [3n, *B]: uniform, then of the policy at s', then at s."""
        like, count = self._action(tensordict), (self.penalty.num_actions,)
        width = self.action_high - self.action_low
        uniform = self.action_low + 0.5 * width * (self.noise.uniform("uniform_action", like, count) + 1.0)
        noise = [self.noise.normal(name, like, count) for name in ("penalty_action", "penalty_next_action")]
        states = self._state(tensordict), self._next_state(tensordict)
        both = {key: torch.stack([state[key] for state in states]) for key in self.actor_network.in_keys}
        action, log_prob = sample_policy(self._policy(both), torch.stack(noise, 1), count)  # [n, 2, *B, A], of one pass
        density = -width.log().sum().expand_as(log_prob[:, 0])
        actions = torch.cat([uniform, action[:, 1], action[:, 0]])
        return actions, torch.cat([density, log_prob[:, 1], log_prob[:, 0]])

    def _calibrate(self, qvalue: Tensor, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Calibrated Q_i(s, a_m), shape [E, 3n, *B], and the share of policy actions whose value calibration raises."""
        bound = self._lower_bound(tensordict)
        if bound is None:
            return qvalue, qvalue.new_zeros(())
        uniform, policy = qvalue.tensor_split([self.penalty.num_actions], 1)
        raised = (policy.detach() < bound).to(bound.dtype).mean()
        return torch.cat([uniform, calibrated(policy, bound)], 1), raised

    def _lower_bound(self, tensordict: TensorDictBase) -> Tensor | None:
        """The lower bound G of the policy actions' values, shape [*B]; ``None`` in CQL."""
        return None


class CalQLLoss(CQLLoss):
    r"""Calibrated Q-learning: CQL that does not push the value of an action below the behavior policy's return.

    Like :class:`CQLLoss`, but before the soft maximum the values of *policy* actions (at s and s', not the uniform
    ones) are replaced by :math:`\max(Q_i(s,a_m), G)`, with G the Monte-Carlo return of the row under the transformed
    reward, read from ``tensor_keys.mc_return`` (see :func:`torchrl_o2o.data.transforms.add_mc_return`).

    Source: Nakamoto et al. 2023 (Cal-QL), Eq. 5.1 and the authors' code, which keeps the calibration on during online
    fine-tuning with the true returns of the collected trajectories. CORL's variant turns it off when online training
    begins: set ``loss.calibrate = False`` then, and call ``update.recompile()`` if the update is compiled. Without
    calibration (returns are then not read), or with returns of minus infinity, this is CQL.

    Importance weights: see :class:`CQLLoss`.

    Args:
        actor_network: see :class:`CQLLoss`.
        qvalue_network: see :class:`CQLLoss`.

    Keyword Args:
        calibrate: whether the bound is applied; may be changed at any time. Defaults to ``True``.
        temperature: see :class:`CQLLoss`.
        penalty: see :class:`CQLLoss`.
        max_target_backup: see :class:`CQLLoss`.
        entropy_backup: see :class:`CQLLoss`.
        actor_q: see :class:`CQLLoss`.
        sub_sample_len: see :class:`CQLLoss`.
        subset_replacement: see :class:`CQLLoss`.
        entropy_at: see :class:`CQLLoss`.
        reduction: see :class:`CQLLoss`.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import CalQLLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> loss = CalQLLoss(
        ...     make_actor(5, 2, hidden_sizes=(16,)), make_qvalue_ensemble(5, 2, num_qvalue_nets=2, hidden_sizes=(16,))
        ... )
        >>> batch = random_transitions(8, 5, 2)
        >>> loss(batch.set("mc_return", batch["next", "reward"] + 100.0))["bound_rate"]
        tensor(1.)
    """

    @dataclass
    class _AcceptedKeys(CQLLoss._AcceptedKeys):
        """Keys of :class:`CQLLoss` and one more.

        Attributes:
            mc_return: discounted sum of rewards from the row on, shape [*B, 1]. Defaults to ``"mc_return"``.
        """

        mc_return: NestedKey = "mc_return"

    tensor_keys: _AcceptedKeys  # pyright: ignore[reportIncompatibleVariableOverride]
    default_keys = _AcceptedKeys

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        *,
        calibrate: bool = True,
        temperature: Temperature | None = None,
        penalty: ConservativePenalty | None = None,
        max_target_backup: bool = False,
        entropy_backup: bool = False,
        actor_q: Literal["min", "mean"] = "min",
        sub_sample_len: int | None = None,
        subset_replacement: bool = False,
        entropy_at: Literal["state", "next_state"] = "state",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            actor_network,
            qvalue_network,
            temperature=temperature,
            penalty=penalty,
            max_target_backup=max_target_backup,
            entropy_backup=entropy_backup,
            actor_q=actor_q,
            sub_sample_len=sub_sample_len,
            subset_replacement=subset_replacement,
            entropy_at=entropy_at,
            reduction=reduction,
        )
        self.calibrate = calibrate

    def _keys_read(self) -> list[NestedKey]:
        keys = super()._keys_read()
        return [*keys, self.tensor_keys.mc_return] if self.calibrate else keys

    def _lower_bound(self, tensordict: TensorDictBase) -> Tensor | None:
        if not self.calibrate:
            return None
        return self._calibrating_return(tensordict, self.tensor_keys.mc_return)
