# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Advantage-weighted regression (AWR)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import cast

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor
from torch.distributions import Distribution
from torchrl.modules import TanhNormal as SquashedNormal

from torchrl_o2o.errors import O2OSpecError, check_number
from torchrl_o2o.functional.episodes import lambda_return, normalized_advantage
from torchrl_o2o.functional.offline import advantage_weight
from torchrl_o2o.objectives.base import Reduction, TransitionLoss, dispatch
from torchrl_o2o.objectives.networks import (
    Inputs,
    call_network,
    flat_parameters,
    policy_distribution,
    single_output,
    stochastic,
)

__all__ = ["AWRLoss"]


class AWRLoss(TransitionLoss):
    r"""Regression of a value on returns, and of a policy on the recorded actions, weighted by their advantages.

    .. math::
        G_t=r_t+\gamma(1-d_t)[(1-\lambda)V(s_{t+1})+\lambda G_{t+1}],\qquad
        L_V=\frac1{2B}\sum_b(V(s)-G)^2

        w=\min\big(e^{\hat A/T},20\big),\quad \hat A=\frac{A-\bar A}{s_A+10^{-5}},\ A=G-V(s),\qquad
        L_\pi=\frac1B\sum_b-w\log\pi(a|s)+10\lVert\mu(s)-\mathrm{clip}(\mu(s),lo,hi)\rVert^2

    Returns need whole episodes, and weights are normalized over the whole buffer. :meth:`label` computes both and
    writes them into the rows. Call it before the steps of V and again before those of the policy. On a data set, the
    buffer is the data set.

    Source: Peng et al. 2019, arXiv:1910.00177, Algorithm 1, and the authors' code. One iteration there: 2 048
    environment steps, 200 steps of V (SGD with momentum 0.9, 1e-2), 1 000 of the policy (5e-5; Hopper 1e-4), batches of
    256 from the newest 50 000 rows; policy of fixed width.

    Differences from the paper: as in the code, advantages are normalized and a penalty on the mean is added. The code
    halves the squared distance, which is ``bound_weight=5`` here. The code also standardizes values; scale the rewards
    instead.

    Importance weights multiply the rows of both losses.

    Args:
        actor_network: :func:`~torchrl_o2o.modules.make_gaussian_actor`, with a linear mean.
        value_network: V(s), :func:`~torchrl_o2o.modules.make_value_network`.

    Keyword Args:
        temperature: T. Defaults to 1.
        lmbda: :math:`\lambda`. Defaults to 0.95.
        weight_clip: bound of the weights. Defaults to 20.
        bound_weight: weight of the penalty on means outside the action box. Defaults to 10.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the actor is deterministic, its distribution has no mean (``make_actor``'s squashed one), or a
            setting is out of range.

    Examples:
        >>> from torchrl_o2o.modules import make_gaussian_actor, make_value_network
        >>> from torchrl_o2o.objectives import AWRLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> actor = make_gaussian_actor(17, 6, mean="linear", hidden_sizes=(32, 32))
        >>> loss = AWRLoss(actor, make_value_network(17, hidden_sizes=(32, 32)))
        >>> rows = loss.label(random_transitions(64, 17, 6))  # all rows, in their order
        >>> loss_value, _ = loss.value_loss(rows[:8])
        >>> loss_actor, info = loss.actor_loss(rows[:8])
        >>> sorted(info)
        ['bound_error', 'log_prob', 'weight']
    """

    @dataclass
    class _AcceptedKeys(TransitionLoss._AcceptedKeys):
        """Tensordict keys that can be renamed with ``set_keys``.

        Attributes:
            value_target: G. Defaults to ``"value_target"``.
            advantage_weight: w. Defaults to ``"advantage_weight"``.
        """

        value_target: NestedKey = "value_target"
        advantage_weight: NestedKey = "advantage_weight"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys  # pyright: ignore[reportIncompatibleVariableOverride]
    out_keys = ["loss_actor", "loss_value", "weight", "log_prob", "bound_error", "value"]

    actor_network: ProbabilisticTensorDictSequential
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    value_network: TensorDictModule
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams
    action_low: Tensor
    action_high: Tensor

    _networks_read = (("actor_network", "value_network"), ("value_network",))
    _bootstraps = False

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        value_network: TensorDictModule,
        *,
        temperature: float = 1.0,
        lmbda: float = 0.95,
        weight_clip: float = 20.0,
        bound_weight: float = 10.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        stochastic(actor_network)
        kind = getattr(actor_network[-1], "distribution_class", None)
        if isinstance(kind, type) and (getattr(kind, "mean", None) is Distribution.mean or kind is SquashedNormal):
            raise O2OSpecError(
                f"got an actor of {kind.__name__}, which has no mean in closed form; build it with "
                f"make_gaussian_actor(..., mean='linear')"
            )
        check_number("bound_weight", bound_weight, least=0)
        if not temperature > 0.0 or not 0.0 <= lmbda <= 1.0 or not weight_clip > 0.0:
            raise O2OSpecError(
                f"got temperature={temperature}, lmbda={lmbda}, weight_clip={weight_clip}; expected temperature > 0, "
                "lmbda in [0, 1] and weight_clip > 0"
            )
        self.convert_to_functional(actor_network, "actor_network", create_target_params=False)
        self.convert_to_functional(value_network, "value_network", create_target_params=False)
        self._hold_box(actor_network)
        self.temperature, self.lmbda = temperature, lmbda
        self.weight_clip, self.bound_weight = weight_clip, bound_weight
        self.make_value_estimator()

    def _keys_read(self) -> list[NestedKey]:
        keys, (current, _) = self.tensor_keys, self._networks_read
        return [keys.action, keys.value_target, keys.advantage_weight, *self._inputs_of(current)]

    @torch.no_grad()
    def label(self, rows: TensorDictBase) -> TensorDictBase:
        """Write every row's return G and weight w under the current V.

        Args:
            rows: all rows, shape [N], in the order in which they were recorded; changed in place.

        Returns:
            The same.

        Raises:
            O2OSpecError: if the rows have more than one batch dimension, or a row spans several steps.

        Warns:
            UserWarning: if rows inside of episodes do not continue in the next row, as in a batch that was drawn.
        """
        if rows.batch_dims != 1:
            raise O2OSpecError(
                f"got rows of shape {list(rows.batch_size)}, expected [N], in the order in which they were recorded; "
                "reshape(-1) them"
            )
        steps = self.value_estimator.tensor_keys.steps_to_next_obs
        if rows.get(steps, None) is not None:
            raise O2OSpecError(
                f"got rows with {steps!r}, which span several steps, expected rows of one step; returns cannot be "
                "computed from the former. Call label on the rows before n_step"
            )
        keys, following = self.tensor_keys, self._following(rows)
        value, next_value = self._value(self._state(rows)), self._value(self._next_state(rows))
        self._check_outcome(following, rows.batch_size)
        columns = (self._entry(following, key).squeeze(-1) for key in (keys.reward, keys.terminated, keys.done))
        reward, terminated, done = columns
        self._warn_of_gaps(rows, done)
        gamma = float(cast(Tensor, self.value_estimator.gamma))  # a buffer, not annotated
        returns = lambda_return(reward, next_value, terminated, done, gamma, self.lmbda)
        advantage = normalized_advantage(returns - value)
        weight = advantage_weight(advantage, 1.0 / self.temperature, self.weight_clip)
        rows.set(keys.value_target, returns.unsqueeze(-1))
        return rows.set(keys.advantage_weight, weight.unsqueeze(-1))

    def _warn_of_gaps(self, rows: TensorDictBase, done: Tensor) -> None:
        """Warn if returns would lead from a row to one that does not follow it."""
        broken = torch.zeros_like(done[1:])
        state = self._state(rows)
        for key, following in self._next_state(rows).items():  # what V reads; the actor may read more
            broken |= (following[:-1] != state[key][1:]).flatten(1).any(1)
        broken &= ~done[:-1]
        if broken.any():
            warnings.warn(
                f"{int(broken.sum())} of {len(rows)} rows, the first in row {int(broken.nonzero()[0])}, do not "
                "continue in the next row, and no flag ends their episode: returns take the next row that is there. "
                "Label whole episodes in the order in which they were recorded, and draw batches afterwards",
                stacklevel=4,
            )

    def value_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Half the squared distance of V to the returns.

        Args:
            tensordict: labeled rows, shape [*B]; not modified.

        Returns:
            The loss, and ``value`` per row, shape [*B], detached.
        """
        value, target = self._value(self._state(tensordict)), self._label(tensordict, self.tensor_keys.value_target)
        return self._reduce(0.5 * (value - target).square(), self._weights(tensordict)), {"value": value.detach()}

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted negative log-likelihood of the recorded actions, and the penalty on means outside the action box.

        Args:
            tensordict: labeled rows, shape [*B]; not modified.

        Returns:
            The loss, and per row, shape [*B], detached: ``weight``, ``log_prob`` and ``bound_error``.
        """
        state, weight = self._state(tensordict), self._label(tensordict, self.tensor_keys.advantage_weight)
        policy = policy_distribution(self.actor_network, flat_parameters(self.actor_network_params), state)
        log_prob = policy.log_prob(self._action(tensordict))
        mean = policy.mean
        inside = torch.minimum(torch.maximum(mean, self.action_low), self.action_high)
        outside = (mean - inside).square().sum(-1)
        info = {"weight": weight, "log_prob": log_prob.detach(), "bound_error": outside.detach()}
        return self._reduce(self.bound_weight * outside - weight * log_prob, self._weights(tensordict)), info

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Both losses from one set of parameters, and their statistics."""
        loss_value, info = self.value_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict)
        return self._collect(tensordict, {"loss_actor": loss_actor, "loss_value": loss_value}, {**info, **actor_info})

    def _value(self, state: Inputs) -> Tensor:
        """V(s), shape [*B]."""
        params = flat_parameters(self.value_network_params)
        key = self.tensor_keys.value
        return single_output(call_network(self.value_network, params, state, key), key)

    def _label(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        """An entry that :meth:`label` wrote, shape [*B]."""
        remedy = "; pass all rows through loss.label(...) before drawing from them"
        return self._one_each_required(tensordict, key, remedy)
