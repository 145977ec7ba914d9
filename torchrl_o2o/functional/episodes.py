# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Returns and advantages along recorded episodes (AWR, DAPG), and DAPG's weights and natural-gradient step.

Rows [N] are flat: steps in order, one episode after the other; ``done`` marks the last row of each episode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError

__all__ = [
    "conjugate_gradient",
    "dapg_weights",
    "discounted_sum",
    "generalized_advantage",
    "lambda_return",
    "normalized_advantage",
    "normalized_step",
]


def discounted_sum(increment: Tensor, discount: Tensor) -> Tensor:
    r"""Sum backwards, :math:`G_t=x_t+c_tG_{t+1}`.

    Args:
        increment: x, shape [N].
        discount: c, shape [N]; 0 at an episode's last row.

    Returns:
        G, shape [N], without gradient, in the type of x; whole numbers become floating point.

    Raises:
        O2OSpecError: if the arguments do not have the same shape [N].

    Examples:
        >>> import torch
        >>> discounted_sum(torch.ones(3), torch.tensor([0.5, 0.0, 0.5]))
        tensor([1.5000, 1.0000, 1.0000])
    """
    _check_rows({"increment": increment, "discount": discount}, {})
    out, following = [], 0.0
    for x, c in zip(reversed(increment.tolist()), reversed(discount.tolist()), strict=True):
        following = x + c * following
        out.append(following)
    dtype = increment.dtype if increment.is_floating_point() else torch.get_default_dtype()
    return torch.tensor(out[::-1], dtype=dtype, device=increment.device)


def _check_rows(numbers: Mapping[str, Tensor], flags: Mapping[str, Tensor]) -> None:
    """Raise for arrays, for columns [N, 1], which broadcast against [N], and for flags not bool, as ``~`` needs."""
    columns = {**numbers, **flags}
    if foreign := {name: type(column).__name__ for name, column in columns.items() if not isinstance(column, Tensor)}:
        raise O2OSpecError(f"got the types {foreign}, expected tensors; convert them with torch.as_tensor(...)")
    shapes = {name: list(column.shape) for name, column in columns.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len({tuple(shape) for shape in shapes.values()}) > 1:
        raise O2OSpecError(f"got the shapes {shapes}, expected [N] for each; squeeze columns [N, 1]")
    wrong = {name: flag.dtype for name, flag in flags.items() if flag.dtype != torch.bool}
    if wrong:
        raise O2OSpecError(f"got flags of the types {wrong}, expected bool; convert them with flag.bool()")


def lambda_return(
    reward: Tensor, next_value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lmbda: float
) -> Tensor:
    r"""TD(:math:`\lambda`) return, :math:`G_t=r_t+\gamma(1-d_t)[(1-\lambda)V(s_{t+1})+\lambda G_{t+1}]`.

    At an episode's last row it is :math:`r+\gamma(1-d)V(s')`: only a terminal state has no value after it.

    Source: Peng et al. 2019 (AWR), section 3.3 and the authors' code.

    Args:
        reward: r, shape [N].
        next_value: V(s'), shape [N].
        terminated: d, shape [N].
        done: whether the episode ends here, shape [N]; the last row counts as an end.
        gamma: discount.
        lmbda: :math:`\lambda`.

    Returns:
        G, shape [N], without gradient.

    Raises:
        O2OSpecError: if the arguments do not have the same shape [N], or a flag is not bool.

    Examples:
        >>> import torch
        >>> ends = torch.tensor([False, True])
        >>> lambda_return(torch.ones(2), torch.full((2,), 10.0), ends, ends, 0.5, 0.0)  # one step ahead
        tensor([6., 1.])
        >>> lambda_return(torch.ones(2), torch.full((2,), 10.0), ends, ends, 0.5, 1.0)  # to the end
        tensor([1.5000, 1.0000])
    """
    _check_rows({"reward": reward, "next_value": next_value}, {"terminated": terminated, "done": done})
    goes_on = gamma * (~terminated).to(reward.dtype)
    ends = done.clone()
    ends[-1:] = True
    weight = torch.where(ends, torch.zeros_like(goes_on), lmbda * goes_on)
    return discounted_sum(reward + (goes_on - weight) * next_value, weight)


def normalized_advantage(advantage: Tensor, eps: float = 1e-5) -> Tensor:
    r"""Normalize over all rows, :math:`(A-\bar A)/(s_A+\epsilon)`, with the population's standard deviation.

    Args:
        advantage: A, shape [N].
        eps: Defaults to 1e-5 (AWR); DAPG's is 1e-6.

    Returns:
        Advantages of mean 0 and standard deviation 1, shape [N].

    Examples:
        >>> import torch
        >>> normalized_advantage(torch.tensor([1.0, 3.0]), 0.0)
        tensor([-1.,  1.])
    """
    return (advantage - advantage.mean()) / (advantage.std(correction=0) + eps)


def generalized_advantage(
    reward: Tensor, value: Tensor, terminated: Tensor, done: Tensor, gamma: float, lmbda: float
) -> Tensor:
    r"""GAE, :math:`A_t=\sum_k(\gamma\lambda)^k\delta_{t+k}` with :math:`\delta=r+\gamma V(s_{t+1})-V(s_t)`.

    The value after an episode's last row is that row's own value if the episode did not terminate, and 0 if it did. The
    last of all rows ends its episode, whatever its ``done`` is.

    Source: Schulman et al. 2016; the last value as in the code of Rajeswaran et al. 2018 (DAPG).

    Args:
        reward: r, shape [N].
        value: V(s), shape [N].
        terminated: shape [N]; read at the episodes' last rows.
        done: whether the episode ends here, shape [N].
        gamma: discount; DAPG's is 0.995.
        lmbda: :math:`\lambda`; DAPG's is 0.97.

    Returns:
        A, shape [N], without gradient.

    Raises:
        O2OSpecError: if the arguments do not have the same shape [N], or a flag is not bool.

    Examples:
        >>> import torch
        >>> ends = torch.tensor([False, True])
        >>> generalized_advantage(torch.ones(2), torch.tensor([1.0, 2.0]), ends, ends, 1.0, 1.0)
        tensor([ 1., -1.])
    """
    _check_rows({"reward": reward, "value": value}, {"terminated": terminated, "done": done})
    done = done.clone()
    done[-1:] = True
    last = torch.where(terminated, torch.zeros_like(value), value)
    following = torch.where(done, last, value.roll(-1))
    weight = torch.where(done, torch.zeros_like(value), torch.full_like(value, gamma * lmbda))
    return discounted_sum(reward + gamma * following - value, weight)


def dapg_weights(
    advantage: Tensor, num_demo: int, iteration: int, *, lam_0: float = 0.01, lam_1: float = 0.95
) -> tuple[Tensor, Tensor]:
    r"""Weights of :math:`\nabla\log\pi` in DAPG's gradient, for the policy's rows and for the demonstrations.

    They are :math:`0.01A/(s_A+10^{-8})` of the whitened A, and :math:`0.01\lambda_0\lambda_1^k`. The gradient is the
    weighted sum over all rows, divided by the number of the policy's rows.

    Source: Rajeswaran et al. 2018, arXiv:1709.10087, Eq. 6, as in the authors' code: without the factor
    :math:`\max A`, which they replace by whitening; their paper has :math:`\lambda_0=0.1`.

    Args:
        advantage: A before whitening, shape [N].
        num_demo: number of rows of demonstrations.
        iteration: k, from 0 on.

    Keyword Args:
        lam_0: :math:`\lambda_0`; 0 leaves the natural policy gradient. Defaults to 0.01.
        lam_1: :math:`\lambda_1`. Defaults to 0.95.

    Returns:
        Weights, shape [N] and [num_demo].

    Examples:
        >>> import torch
        >>> policy, demo = dapg_weights(torch.tensor([-1.0, 1.0]), 2, 1, lam_0=0.5, lam_1=0.5)
        >>> policy, demo
        (tensor([-0.0100,  0.0100]), tensor([0.0025, 0.0025]))
    """
    whitened = normalized_advantage(advantage, 1e-6)
    policy = 0.01 * whitened / (whitened.std(correction=0) + 1e-8)
    return policy, advantage.new_full((num_demo,), 0.01 * lam_0 * lam_1**iteration)


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], gradient: Tensor, iterations: int = 10, tolerance: float = 1e-10
) -> Tensor:
    r"""Solve :math:`Fx=g` for a symmetric positive F that is given by its products, starting at x = 0.

    Source: Hestenes & Stiefel 1952; iterations and tolerance of DAPG's code.

    Args:
        product: maps a vector [P] to F times it.
        gradient: g, shape [P].
        iterations: the largest number of iterations. Defaults to 10.
        tolerance: the squared residual below which the iteration stops. Defaults to 1e-10.

    Returns:
        x, shape [P].

    Examples:
        >>> import torch
        >>> conjugate_gradient(lambda x: torch.tensor([2.0, 4.0]) * x, torch.tensor([2.0, 2.0]))
        tensor([1.0000, 0.5000])
    """
    solution, residual = torch.zeros_like(gradient), gradient.clone()
    direction, square = residual.clone(), residual @ residual
    for _ in range(iterations):
        image = product(direction)
        length = square / (direction @ image)
        solution, residual = solution + length * direction, residual - length * image
        before, square = square, residual @ residual
        if square < tolerance:
            break
        direction = residual + square / before * direction
    return solution


def normalized_step(gradient: Tensor, direction: Tensor, size: float = 0.05) -> Tensor:
    r"""Factor of a natural-gradient step, :math:`\sqrt{2\delta/(g^\top x)}`.

    Source: Rajeswaran et al. 2018, appendix; the code's ``normalized_step_size``.

    Args:
        gradient: g, shape [P].
        direction: x of :func:`conjugate_gradient`, shape [P].
        size: :math:`2\delta`, twice the divergence that the step may make. Defaults to 0.05.

    Returns:
        The factor, a scalar.

    Raises:
        O2OSpecError: if the product of g and x is not positive, for instance because F is not positive.

    Examples:
        >>> import torch
        >>> normalized_step(torch.tensor([1.0]), torch.tensor([5.0]), 0.05)
        tensor(0.1000)
    """
    slope = gradient @ direction
    if not slope > 0.0:
        raise O2OSpecError(
            f"got the product {float(slope)} of gradient and direction, expected more than 0; raise the damping of the "
            "products"
        )
    return (size / slope).sqrt()
