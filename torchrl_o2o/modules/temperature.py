# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The entropy temperature shared by the soft actor-critic family."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_number, check_option
from torchrl_o2o.functional.soft import temperature_objective

__all__ = ["Temperature"]


class Temperature(nn.Module):
    r"""Entropy temperature :math:`\alpha=e^{\log\alpha}` with a loss that moves the policy's entropy toward a target.

    It is one object instead of four arguments in every loss, for RLPD, SAC+ML, ACA, CQL and Off2On.

    Args:
        target_entropy: :math:`\bar H` in nats; ``None`` keeps :math:`\alpha` fixed. Loading a state sets a fixed
            :math:`\alpha`, too, and warns if this changes it.

    Keyword Args:
        init: initial :math:`\alpha`, positive; may be 0 if it is fixed. Defaults to 1.
        form: ``"alpha"`` (RLPD, A3RL, jaxrl) or ``"log_alpha"`` (rlkit, CORL, d3rlpy, REDQ, TorchRL); see
            :func:`~torchrl_o2o.functional.temperature_objective`. ``"softplus"`` (WSRL) trains p of
            :math:`\alpha=\mathrm{softplus}(p)` as ``raw_alpha`` instead of ``log_alpha``. Defaults to ``"alpha"``.

    Raises:
        O2OSpecError: if ``init`` is negative, or 0 and trained, or the form is unknown.

    Examples:
        >>> import torch
        >>> temperature = Temperature(target_entropy=-3.0)
        >>> temperature.alpha
        tensor(1.)
        >>> temperature.objective(torch.tensor([1.0])).item()
        2.0
    """

    log_alpha: Tensor
    raw_alpha: Tensor

    @checked_arguments
    def __init__(
        self,
        target_entropy: float | None,
        *,
        init: float = 1.0,
        form: Literal["alpha", "log_alpha", "softplus"] = "alpha",
    ) -> None:
        super().__init__()
        if target_entropy is not None:
            check_number("target_entropy", target_entropy)
        check_option("form", form, ("alpha", "log_alpha", "softplus"))
        self.form: Literal["alpha", "log_alpha", "softplus"] = form
        self.target_entropy = target_entropy
        self._check("init", init)
        start = torch.tensor(self._inverse(init), dtype=torch.get_default_dtype())
        if target_entropy is None:
            self.register_buffer(self._name, start)
        else:
            self.register_parameter(self._name, nn.Parameter(start))

    def _check(self, name: str, alpha: float) -> None:
        if not 0.0 < alpha < math.inf and not (alpha == 0.0 and self.target_entropy is None):
            least = "positive and finite, or 0" if self.target_entropy is None else "positive and finite"
            raise O2OSpecError(f"got {name}={float(alpha)}, expected a temperature that is {least}")

    @property
    def _name(self) -> str:
        return "raw_alpha" if self.form == "softplus" else "log_alpha"

    def _inverse(self, alpha: float) -> float:
        """The parameter's value for a given alpha: log alpha, or log(exp(alpha) - 1)."""
        if alpha == 0.0:
            return -math.inf
        return alpha + math.log(-math.expm1(-alpha)) if self.form == "softplus" else math.log(alpha)

    @property
    def alpha(self) -> Tensor:
        """The temperature, a detached scalar."""
        value: Tensor = getattr(self, self._name).detach()
        return softplus(value) if self.form == "softplus" else value.exp()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load, and warn if this changes the value of a fixed temperature."""
        before = float(self.alpha)
        super()._load_from_state_dict(*args, **kwargs)
        after = float(self.alpha)
        if self.target_entropy is None and not math.isclose(before, after, rel_tol=1e-6):
            warnings.warn(
                f"loading a state changed a fixed temperature from {before:g} to {after:g}; restore it with "
                f"fill_({before:g}) if the state is from another run",
                stacklevel=2,
            )

    def fill_(self, alpha: float) -> None:
        """Set the temperature, for example at the start of online training.

        Args:
            alpha: positive; may be 0 if the temperature is fixed.

        Raises:
            O2OSpecError: if it is negative, not finite, or 0 and trained.
        """
        self._check("alpha", alpha)
        getattr(self, self._name).data.fill_(self._inverse(alpha))

    def objective(self, log_prob: Tensor) -> Tensor:
        """Temperature objective per row; zero if the temperature is fixed.

        Args:
            log_prob: log pi(a|s) of an actor pass, shape [*B].

        Returns:
            Objective to minimize, shape [*B].
        """
        if self.target_entropy is None:
            return torch.zeros_like(log_prob)
        return temperature_objective(getattr(self, self._name), log_prob, self.target_entropy, self.form)

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"target_entropy={self.target_entropy}, form={self.form!r}"
