# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A learned weight of a penalty: BRAC's alpha and BEAR's eta."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_number, check_option, check_order

__all__ = ["Multiplier"]


class Multiplier(nn.Module):
    r"""Weight :math:`\alpha` of a penalty D, either fixed or adapted so that D approaches a target.

    A gradient step on :meth:`objective`, :math:`-\alpha(D-\bar D)`, is dual ascent on :math:`D\le\bar D`. It rises
    while D is above the target and falls while D is below. The gradient is zero where a step would leave the bounds.

    Args:
        init: the initial weight.

    Keyword Args:
        target: :math:`\bar D`; ``None`` (default) keeps the weight fixed.
        form: ``"value"`` (default) trains the weight itself (BRAC), ``"log"`` its logarithm (BEAR).
        bounds: (lo, hi) of the trained quantity, the weight or its logarithm. Defaults to (0, 500), BRAC's; BEAR's are
            (-5, 10).

    Raises:
        O2OSpecError: if ``init`` is outside the bounds, or an option is unknown.

    Examples:
        >>> import torch
        >>> multiplier = Multiplier(1.0, target=0.05, form="log", bounds=(-5.0, 10.0))
        >>> multiplier.objective(torch.tensor([0.25, 0.05])).sum().item()
        -0.20...
        >>> multiplier.value
        tensor(1.)
    """

    raw: Tensor

    @checked_arguments
    def __init__(
        self,
        init: float,
        *,
        target: float | None = None,
        form: Literal["value", "log"] = "value",
        bounds: tuple[float, float] = (0.0, 500.0),
    ) -> None:
        super().__init__()
        check_option("form", form, ("value", "log"))
        check_order("bounds", bounds)
        if target is not None:
            check_number("target", target)
        raw = init if form == "value" else math.log(init) if init > 0.0 else -math.inf
        if not bounds[0] <= raw <= bounds[1]:
            raise O2OSpecError(f"got init={init}, expected a weight within bounds={tuple(bounds)} of its {form}")
        self.form, self.target, self.bounds = form, target, tuple(bounds)
        tensor = torch.tensor(raw, dtype=torch.get_default_dtype())
        if target is None:
            self.register_buffer("raw", tensor)
        else:
            self.raw = nn.Parameter(tensor)

    @property
    def value(self) -> Tensor:
        """The weight, a detached scalar."""
        return self._weight(self.raw.detach())

    def objective(self, penalty: Tensor) -> Tensor:
        """The loss of the weight for dual ascent; zero if the weight is fixed.

        Args:
            penalty: D, shape [*B]; no gradient flows into it.

        Returns:
            Objective to minimize, shape [*B].
        """
        if self.target is None:
            return torch.zeros_like(penalty)
        gap, (low, high) = penalty.detach() - self.target, self.bounds
        outward = ((self.raw >= high) & (gap.mean() > 0)) | ((self.raw <= low) & (gap.mean() < 0))
        raw = torch.where(outward, self.raw.detach(), self.raw)
        return -self._weight(raw) * gap

    def _weight(self, raw: Tensor) -> Tensor:
        """The clipped weight. The gradient passes through the clip, so that a weight beyond a bound can return."""
        clipped = raw + (raw.clamp(*self.bounds) - raw).detach()
        return clipped.exp() if self.form == "log" else clipped

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"target={self.target}, form={self.form!r}, bounds={self.bounds}"
