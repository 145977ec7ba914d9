# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Natural-gradient steps with a bounded divergence (NPG, DAPG)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from torchrl_o2o.errors import O2OSpecError, check_count, check_number
from torchrl_o2o.functional.episodes import conjugate_gradient, normalized_step

__all__ = ["NaturalGradient"]


class NaturalGradient(torch.optim.Optimizer):
    r"""Step along the natural gradient, with a bound on the policy's divergence.

    .. math:: (F+cI)x=g,\qquad\theta\leftarrow\theta+\sqrt{2\delta/(g^\top x)}\;x

    g is the negative gradient of a loss, F the Fisher matrix, the second derivative of the policy's divergence from its
    current distribution. F is never formed, because conjugate gradients only need products with F, which take two
    backward passes each.

    Source: Rajeswaran et al. 2017, arXiv:1703.02660, Algorithm 1; defaults of the code of Rajeswaran et al. 2018,
    arXiv:1709.10087 (DAPG).

    Args:
        params: the policy's parameters, which are stepped together.

    Keyword Args:
        step_size: :math:`2\delta`, twice the largest divergence of a step. Defaults to 0.05.
        damping: c. Defaults to 1e-4.
        cg_iterations: largest number of iterations of conjugate gradients. Defaults to 10.

    Raises:
        O2OSpecError: if a setting is out of range, or parameters come in several groups; in a step, if a parameter has
            no gradient, or :math:`g^\top x` is not positive.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> mean = nn.Parameter(torch.zeros(2))
        >>> optim = NaturalGradient([mean], step_size=0.02, damping=0.0)
        >>> (mean - torch.tensor([3.0, 4.0])).square().sum().backward()
        >>> _ = optim.step(lambda: 0.5 * (mean - mean.detach()).square().sum())  # of a Gaussian of width 1
        >>> mean
        Parameter containing:
        tensor([0.0849, 0.1131], requires_grad=True)
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        step_size: float = 0.05,
        damping: float = 1e-4,
        cg_iterations: int = 10,
    ) -> None:
        check_number("step_size", step_size, above=0)
        check_number("damping", damping, least=0)
        check_count("cg_iterations", cg_iterations, least=1)
        super().__init__(params, {"step_size": step_size, "damping": damping, "cg_iterations": cg_iterations})
        if len(self.param_groups) != 1:
            raise O2OSpecError(
                f"got {len(self.param_groups)} groups of parameters, expected one, because a step uses all parameters "
                "together; pass one list of parameters"
            )

    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make a step from the parameters' gradients.

        Args:
            closure: computes the divergence of the policy from its current distribution, a scalar with gradient, such
                as ``lambda: loss.divergence(rows)``; called once.

        Returns:
            x, shape [P], all parameters in one vector.

        Raises:
            O2OSpecError: if a parameter has no gradient.
        """
        group: dict[str, Any] = self.param_groups[0]
        params: list[nn.Parameter] = group["params"]
        missing = sum(param.grad is None for param in params)
        if missing:
            raise O2OSpecError(
                f"{missing} of {len(params)} parameters have no gradient; call loss.backward() before step, and leave "
                "out parameters that the loss does not use"
            )
        gradient = -_as_vector(cast(Tensor, param.grad) for param in params)
        with torch.enable_grad():
            slope = _as_vector(torch.autograd.grad(closure(), params, create_graph=True))

        def product(vector: Tensor) -> Tensor:
            second = torch.autograd.grad(slope @ vector, params, retain_graph=True)
            return _as_vector(second) + group["damping"] * vector

        direction = conjugate_gradient(product, gradient, group["cg_iterations"])
        step = normalized_step(gradient, direction, group["step_size"]) * direction
        with torch.no_grad():
            for param, part in zip(params, step.split([param.numel() for param in params]), strict=True):
                param.add_(part.view_as(param))
        return direction


def _as_vector(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
