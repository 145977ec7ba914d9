# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The base class of the soft actor-critic family (SAC and RLPD, CQL, Cal-QL, SAC+ML, ACA): networks and temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.functional.soft import soft_value
from torchrl_o2o.modules.boxes import action_spec
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.base import Reduction
from torchrl_o2o.objectives.critic import CriticLoss
from torchrl_o2o.objectives.networks import Inputs, Parameters, sample_policy, take_members

__all__ = ["SoftLoss"]


class SoftLoss(CriticLoss):
    """Abstract base: an actor with a density, E critics that regress on one target, and a temperature.

    Subclasses implement :meth:`target_value`, ``actor_loss`` and ``forward``, and end their ``__init__`` with
    :meth:`make_value_estimator`.

    Args:
        actor_network: a probabilistic actor.
        qvalue_network: E critics.
        temperature: the entropy temperature; ``None`` takes ``Temperature(-A, form="log_alpha")``.
        ensemble_reduction: ``"sum"`` or ``"mean"`` over members in the critic loss.
        reduction: over the batch.

    Raises:
        O2OSpecError: if fewer than one critic is given or the action dimension is needed but unknown.
    """

    sub_sample_len: int
    subset_per: Literal["batch", "sample"] = "batch"
    subset_replacement: bool = False
    #: How the target reduces the drawn members.
    target_q: Literal["mean", "min"] = "min"
    #: Where the temperature's entropy is measured: always there with ``"next_state"``; with ``"state"``, only if no
    #: log-densities are passed.
    entropy_at: Literal["state", "next_state"] = "state"
    #: Number of actions per next state; the target takes the best of them.
    num_target_actions: int = 1

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        *,
        temperature: Temperature | None,
        ensemble_reduction: Literal["sum", "mean"] = "sum",
        reduction: Reduction,
    ) -> None:
        super().__init__(actor_network, qvalue_network, ensemble_reduction=ensemble_reduction, reduction=reduction)
        if temperature is None:
            temperature = Temperature(-float(action_spec(actor_network).shape[-1]), form="log_alpha")
        self.temperature = temperature
        self.sub_sample_len = self.num_qvalue_nets

    def _set_subset(
        self, sub_sample_len: int | None, subset_per: Literal["batch", "sample"], subset_replacement: bool
    ) -> None:
        """Set which target members the minimum is taken over."""
        size = self.num_qvalue_nets if sub_sample_len is None else sub_sample_len
        if not 1 <= size <= self.num_qvalue_nets:
            raise O2OSpecError(f"got sub_sample_len={size}, expected 1..{self.num_qvalue_nets}, the number of critics")
        check_option("subset_per", subset_per, ("batch", "sample"))
        self.sub_sample_len, self.subset_per, self.subset_replacement = size, subset_per, subset_replacement

    def _set_entropy(self, entropy_at: Literal["state", "next_state"]) -> None:
        check_option("entropy_at", entropy_at, ("state", "next_state"))
        self.entropy_at = entropy_at

    def _subset_minimum(self, state: Inputs, action: Tensor, params: Parameters | None = None) -> Tensor:
        """The minimum of Q'_i(s, a) over a subset of Z members, drawn once or per row, shape of ``action[..., 0]``.

        With ``target_q="mean"``, their mean.
        """
        size, drawn = self.num_qvalue_nets, self.sub_sample_len
        targets = self._target_critics if params is None else params
        if drawn == size and not self.subset_replacement:
            return self._reduced(self._qvalues(state, action, targets))
        per_row = self.subset_per == "sample"
        options = {"replacement": True} if self.subset_replacement else {}
        members = self.noise.subset("target", size, drawn, action[..., 0], per_row=per_row, **options)
        if per_row:
            return self._reduced(self._qvalues(state, action, targets).gather(0, members))
        return self._reduced(self._qvalues(state, action, take_members(targets, members)))

    def _reduced(self, qvalues: Tensor) -> Tensor:
        return qvalues.amin(0) if self.target_q == "min" else qvalues.mean(0)

    @torch.no_grad()
    def sample_log_prob(self, tensordict: TensorDictBase) -> Tensor:
        r"""log pi(a|s) of fresh actions, for a temperature step before the actor's (SAC+ML, ACA).

        With ``entropy_at="next_state"`` it is log pi(a'|s'), a mean over ``num_target_actions`` (WSRL).

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            Log-densities, shape [*B], without gradient.
        """
        if self.entropy_at == "state":
            noise = self.noise.normal("temperature_action", self._action(tensordict))
            return sample_policy(self._policy(self._state(tensordict)), noise)[1]
        count = (self.num_target_actions,)
        noise = self.noise.normal("temperature_next_action", self._action(tensordict), count)
        return sample_policy(self._policy(self._next_state(tensordict)), noise, count)[1].mean(0)

    def _soft_target(
        self, tensordict: TensorDictBase, action: Tensor, log_prob: Tensor, qvalue: Tensor, *, entropy: bool = True
    ) -> Tensor:
        """y = r + gamma (1 - d) [Q'(s', a') - alpha log pi(a'|s')], shape [*B]; ``entropy`` includes the last term."""
        value = soft_value(qvalue, log_prob, self.temperature.alpha) if entropy else qvalue
        return self._estimate(tensordict, value, qvalue=qvalue, log_prob=log_prob, action=action)

    if TYPE_CHECKING:  # defined by each loss

        def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]: ...  # noqa: D102

    def _soft_losses(self, tensordict: TensorDictBase) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses of critics, actor and temperature at one set of parameters, and their metrics."""
        loss_qvalue, info = self.qvalue_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict)
        loss_alpha, alpha_info = self.alpha_loss(tensordict, log_prob=actor_info.pop("log_prob"))
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, "loss_alpha": loss_alpha}
        return losses, {**info, **actor_info, **alpha_info}

    def _temperature_log_prob(self, tensordict: TensorDictBase, log_prob: Tensor | None) -> Tensor:
        """The log-densities that the temperature's loss uses, shape [*B]."""
        if log_prob is None or self.entropy_at == "next_state":
            return self.sample_log_prob(tensordict)
        return log_prob

    def alpha_loss(
        self, tensordict: TensorDictBase, *, log_prob: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Temperature loss from log-densities of sampled actions.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Keyword Args:
            log_prob: what :meth:`actor_loss` returned, shape [*B]; ``None`` (default) draws fresh actions by
                :meth:`sample_log_prob`, for a temperature step before the actor's. With ``entropy_at="next_state"``
                fresh actions are always drawn, because the actor's are at another state.

        Returns:
            The loss, and the scalars ``alpha`` and ``entropy``.
        """
        self._check_batch(tensordict, "alpha_loss(batch, log_prob=log_prob)")
        drawn = self._temperature_log_prob(tensordict, log_prob)
        info = {"alpha": self.temperature.alpha, "entropy": -drawn.detach().mean()}
        return self._reduce(self.temperature.objective(drawn)), info
