# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""CQL's conservative penalty and its Lagrange multiplier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import check_count, check_number, check_order
from torchrl_o2o.functional.conservative import lagrange_coefficient, lagrange_objective

__all__ = ["ConservativePenalty"]

_NO_BOUNDS = (-float("inf"), float("inf"))


class ConservativePenalty(nn.Module):
    r"""Settings of CQL's penalty :math:`w\,\mathrm{clip}(LSE - Q(s,a))`, with or without a Lagrange multiplier.

    With ``target_gap`` the penalty becomes :math:`\alpha' w(\mathrm{gap}-\tau)` and :math:`\alpha'` is trained.

    ==================  ==============  ==================  ======================
    setting             AntMaze         Adroit binary       locomotion (CORL)
    ==================  ==============  ==================  ======================
    ``weight``          5               1                   10
    ``target_gap``      0.8             ``None``            ``None``
    ``gap_bounds``      (-200, inf)     none                none
    ==================  ==============  ==================  ======================

    Source: Kumar et al. 2020 (CQL), Eq. 4 and appendix F; settings of Nakamoto et al. 2023 (Cal-QL) and of CORL.

    Args:
        weight: w, ``cql_alpha`` in the references. Defaults to 5.

    Keyword Args:
        num_actions: number of actions per state from each of the three proposals. Defaults to 10.
        importance_sampling: whether each proposal's log-density is subtracted (CQL(H) with importance weights).
            Otherwise, the sum includes the recorded action's value. Defaults to ``True``, as in all references.
        softmax_temperature: T of the soft maximum. Defaults to 1.
        gap_bounds: clip of the gap. Defaults to none.
        target_gap: allowed gap tau in units of Q; ``None`` (default) trains no multiplier.
        init_log_multiplier: initial log alpha'. Defaults to 1.

    Raises:
        O2OSpecError: if a number is out of range.

    Examples:
        >>> penalty = ConservativePenalty(5.0, target_gap=0.8)
        >>> penalty.multiplier
        tensor(2.7183)
        >>> ConservativePenalty(5.0).multiplier
        tensor(1.)
    """

    log_multiplier: Tensor

    @checked_arguments
    def __init__(
        self,
        weight: float = 5.0,
        *,
        num_actions: int = 10,
        importance_sampling: bool = True,
        softmax_temperature: float = 1.0,
        gap_bounds: tuple[float, float] = _NO_BOUNDS,
        target_gap: float | None = None,
        init_log_multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        check_number("weight", weight, least=0)
        check_count("num_actions", num_actions, least=1)
        check_number("softmax_temperature", softmax_temperature, above=0)
        check_order("gap_bounds", gap_bounds)
        if target_gap is not None:
            check_number("target_gap", target_gap)
        self.weight = weight
        self.num_actions = num_actions
        self.importance_sampling = importance_sampling
        self.softmax_temperature = softmax_temperature
        self.gap_bounds = (float(gap_bounds[0]), float(gap_bounds[1]))
        self.target_gap = target_gap
        if target_gap is None:
            self.register_buffer("log_multiplier", torch.zeros((), dtype=torch.get_default_dtype()))
        else:
            init = torch.tensor(init_log_multiplier, dtype=torch.get_default_dtype())
            self.log_multiplier = nn.Parameter(init)

    @property
    def multiplier(self) -> Tensor:
        """The Lagrange multiplier, a detached scalar; one if none is trained."""
        return lagrange_coefficient(self.log_multiplier.detach())

    def apply_to(self, gap: Tensor) -> Tensor:
        """Penalty per row, summed over members.

        Args:
            gap: conservative gap, shape [E, *B].

        Returns:
            Penalty, shape [*B].
        """
        if self.target_gap is None:
            return self.weight * gap.sum(0)
        return self.multiplier * self.weight * (gap - self.target_gap).sum(0)

    def objective(self, gap: Tensor) -> Tensor:
        """Objective of the multiplier per row; zero if none is trained.

        Args:
            gap: conservative gap, shape [E, *B].

        Returns:
            Objective to minimize, shape [*B].
        """
        if self.target_gap is None:
            return torch.zeros_like(gap[0])
        return lagrange_objective(lagrange_coefficient(self.log_multiplier), gap, self.target_gap, self.weight)

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"weight={self.weight}, num_actions={self.num_actions}, target_gap={self.target_gap}"
