# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A3RL's priority, which is high for on-policy rows with better actions than the policy's."""

from __future__ import annotations

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import check_number
from torchrl_o2o.priorities.base import LogPriority, Sum
from torchrl_o2o.priorities.density_ratio import DensityRatioScore

__all__ = ["AdvantageAligned"]


class AdvantageAligned(Sum):
    r"""A3RL's priority, Eq. 5: :math:`\log p = 1_\mathrm{off}\log\hat w(s,a) + \lambda A(s,a)`.

    The paper's ablations are ``advantage`` alone, ``density`` alone, and :class:`~torchrl_o2o.priorities.TDError`
    (``form="signed"`` for the authors' code) instead of the advantage.

    Args:
        advantage: A, an :class:`~torchrl_o2o.priorities.Advantage` or another score that replaces it.
        density: the first term, a :class:`~torchrl_o2o.priorities.DensityRatioScore`.

    Keyword Args:
        adv_temp: lambda. Defaults to 1; an attribute that may be changed at any time.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import DensityRatio, make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> from torchrl_o2o.priorities import Advantage, DensityRatioScore
        >>> from torchrl_o2o.testing import random_transitions
        >>> critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,))
        >>> loss, ratio = EnsembleSACLoss(make_actor(3, 2), critics), DensityRatio(3, 2, hidden_sizes=(8,))
        >>> score = AdvantageAligned(Advantage(loss), DensityRatioScore(ratio), adv_temp=0.5)
        >>> score(random_transitions(6, 3, 2).set("is_offline", torch.arange(6) % 2 == 0)).shape
        torch.Size([6])
    """

    @checked_arguments
    def __init__(self, advantage: LogPriority, density: DensityRatioScore, *, adv_temp: float = 1.0) -> None:
        check_number("adv_temp", adv_temp)
        super().__init__(density, advantage, factors=(1.0, adv_temp))

    @property
    def adv_temp(self) -> float:
        """The advantage's factor, lambda."""
        return self.factors[1]

    @adv_temp.setter
    def adv_temp(self, value: float) -> None:
        self.factors = (1.0, float(value))
