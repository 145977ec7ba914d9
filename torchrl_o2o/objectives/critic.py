# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The base class of losses whose critics regress on one target, with a temperature (SAC, CQL) or without (IQL, TD3)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor

from torchrl_o2o.errors import check_option
from torchrl_o2o.objectives.actor_critic import ActorCriticLoss
from torchrl_o2o.objectives.base import Reduction

__all__ = ["CriticLoss"]


class CriticLoss(ActorCriticLoss):
    """Abstract base: an actor, E critics with target networks, and their squared error against one target.

    Subclasses implement :meth:`target_value`, ``actor_loss`` and ``forward``, and end their ``__init__`` with
    :meth:`make_value_estimator`.

    Args:
        actor_network: the actor, stochastic or deterministic.
        qvalue_network: E critics.
        target_actor: whether the actor has a target network as well.
        ensemble_reduction: ``"sum"`` or ``"mean"`` over members.
        q_max: upper bound on all Q values, or ``None``.
        reduction: over the batch.

    Raises:
        O2OSpecError: if no critic is given or an option is unknown.
    """

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: list[TensorDictModule],
        *,
        target_actor: bool = False,
        ensemble_reduction: Literal["sum", "mean"] = "sum",
        q_max: float | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(actor_network, qvalue_network, target_actor=target_actor, reduction=reduction)
        check_option("ensemble_reduction", ensemble_reduction, ("sum", "mean"))
        self.ensemble_reduction: Literal["sum", "mean"] = ensemble_reduction
        self.q_max = q_max

    @abstractmethod
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """The Bellman target y of the class docstring.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            y, shape [*B], without gradient.
        """

    def qvalue_loss(
        self, tensordict: TensorDictBase, *, target_value: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic loss of one minibatch.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Keyword Args:
            target_value: y, shape [*B], if it was computed before; ``None`` (default) calls :meth:`target_value`.

        Returns:
            The loss, and ``td_error`` (mean over members of the absolute error, shape [*B]), ``qvalue`` (shape [E, *B])
            and ``target_value`` (shape [*B]), all detached.
        """
        target = self.target_value(tensordict) if target_value is None else target_value  # y
        qvalue = self._qvalues(self._state(tensordict), self._action(tensordict))  # Q_i(s, a)
        error, info = self._bellman_error(qvalue, target, self.ensemble_reduction)
        return self._reduce(error, self._weights(tensordict)), info
