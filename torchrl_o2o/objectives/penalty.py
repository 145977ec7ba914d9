# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The base class of BRAC and BEAR, losses with a penalty on the divergence from the data."""

from __future__ import annotations

from abc import abstractmethod

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_o2o.modules.multiplier import Multiplier
from torchrl_o2o.objectives.base import TransitionLoss

__all__ = ["DivergenceLoss"]


class DivergenceLoss(TransitionLoss):
    """Abstract base with the penalty's weight, its loss, and the buffer ``q_weight``, 0 to ignore the critics."""

    multiplier: Multiplier
    q_weight: Tensor

    def _hold_weights(self, multiplier: Multiplier) -> None:
        self.register_buffer("q_weight", torch.ones((), dtype=torch.get_default_dtype()))
        self.multiplier = multiplier

    @abstractmethod
    def estimate_divergence(self, tensordict: TensorDictBase) -> Tensor:
        """D(s), the divergence of the policy from the behavior policy of the data.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            Divergence, shape [*B], without gradient.
        """

    def multiplier_loss(
        self, tensordict: TensorDictBase, *, divergence: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        r"""Loss of the penalty's weight, :math:`-\alpha(D-\bar D)`; 0 if it is fixed.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Keyword Args:
            divergence: what ``actor_loss`` measured, shape [*B]; ``None`` (default) estimates it again.

        Returns:
            The loss, and the scalar ``multiplier``.
        """
        drawn = self.estimate_divergence(tensordict) if divergence is None else divergence
        return self._reduce(self.multiplier.objective(drawn)), {"multiplier": self.multiplier.value}
