# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Align a critic with an offline policy: its clipped log-density, plus a residual that starts from a baseline.

Shapes: E ensemble members, B any batch shape, A action dimensions, o observation dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torch.distributions import Distribution
from torchrl.data import TensorSpec
from torchrl.modules import TanhNormal as UpstreamTanhNormal
from torchrl.modules import ValueOperator

from torchrl_o2o._moved import renamed_arguments
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_count
from torchrl_o2o.functional.alignment import beta_clip, clip_level
from torchrl_o2o.modules.distributions import TanhNormal
from torchrl_o2o.modules.gaussian_policies import BoxNormal
from torchrl_o2o.modules.initialization import Initialization
from torchrl_o2o.modules.values import make_value_network

__all__ = [
    "check_alignable",
    "clipped_log_density",
    "density_floor",
    "make_baselines",
    "own_distribution",
    "residual_parameters",
]


def own_distribution(dist: Distribution) -> TanhNormal | BoxNormal:
    """Convert a distribution to this package's, which takes noise as an argument and has a density outside the box.

    Args:
        dist: a policy distribution.

    Returns:
        A distribution with the same density.

    Raises:
        O2OSpecError: if it is not a diagonal Gaussian, squashed or not.

    Examples:
        >>> import torch
        >>> own_distribution(TanhNormal(torch.zeros(2), torch.ones(2))).batch_shape
        torch.Size([])
    """
    if isinstance(dist, TanhNormal | BoxNormal):
        return dist
    if isinstance(dist, UpstreamTanhNormal):
        return TanhNormal(dist.loc, dist.scale, low=dist.low, high=dist.high)
    raise O2OSpecError(_refusal(type(dist).__name__))


def check_alignable(actor: nn.Module) -> None:
    """Raise if no critic can be aligned with a policy.

    Args:
        actor: the offline policy.

    Raises:
        O2OSpecError: if it is deterministic or its distribution has no usable log-density.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> check_alignable(make_actor(3, 2, hidden_sizes=(8,)))
    """
    kind = actor[-1].distribution_class if isinstance(actor, ProbabilisticTensorDictSequential) else None
    if isinstance(kind, type) and issubclass(kind, TanhNormal | BoxNormal | UpstreamTanhNormal):
        return
    raise O2OSpecError(_refusal("deterministic" if kind is None else getattr(kind, "__name__", str(kind))))


def _refusal(kind: str) -> str:
    return (
        f"the offline policy is {kind}, expected one with a Gaussian log-density, with which a critic can be aligned; "
        "pre-train a stochastic policy (SACMLLoss, CQLLoss, AWACLoss, IQLLoss with a Gaussian actor), or carry the "
        "critic over instead of aligning it"
    )


def density_floor(reference: TanhNormal | BoxNormal, beta: float) -> Tensor:
    r"""The level :math:`C_\beta(s)` of the offline policy's log-density, beta standard deviations from its mean.

    For a squashed policy, the two points are before tanh; see :func:`~torchrl_o2o.functional.clip_level`.

    Args:
        reference: the offline policy's distribution, batch shape [*B].
        beta: number of standard deviations.

    Returns:
        The level, shape [*B], without gradient.

    Examples:
        >>> import torch
        >>> density_floor(BoxNormal(torch.zeros(1), torch.ones(1)), 3.0)  # log N(3; 0, 1)
        tensor(-5.4189)
    """
    loc, scale = reference.loc.detach(), reference.scale.detach()
    score = reference.log_prob_at if isinstance(reference, TanhNormal) else reference.log_prob
    return clip_level(score(loc - beta * scale), score(loc + beta * scale))


def clipped_log_density(
    reference: TanhNormal | BoxNormal, action: Tensor, beta: float, policy: Distribution | None = None
) -> tuple[Tensor, Tensor]:
    r"""The offline policy's log-density of actions, clipped at its floor, :math:`\mathrm{CLIP}_\beta(\log\pi_0(a|s))`.

    For fresh samples of a squashed policy, the density is computed at their own pre-tanh value. (The authors' code
    recovers this value by atanh of the clipped action, which has no gradient where tanh saturates.)

    Source: Yu & Zhang 2023 (ACA).

    Args:
        reference: the offline policy's distribution, batch shape [*B].
        action: shape [*B, A].
        beta: number of standard deviations within which nothing is clipped.
        policy: the distribution that just drew ``action``; ``None`` (default) for recorded actions.

    Returns:
        The clipped and the plain log-density, both of shape [*B].

    Examples:
        >>> import torch
        >>> clipped, plain = clipped_log_density(BoxNormal(torch.zeros(1), torch.full((1,), 0.01)), torch.ones(1), 3.0)
        >>> round(clipped.item(), 2), round(plain.item(), 1)
        (-0.81, -4996.3)
    """
    floor = density_floor(reference, beta)
    pre_tanh = policy.pre_tanh if isinstance(policy, TanhNormal) else None
    if isinstance(reference, TanhNormal) and pre_tanh is not None:
        plain = reference.log_prob_at(pre_tanh)
    else:
        plain = reference.log_prob(action)
    return beta_clip(plain, floor), plain


@renamed_arguments(initialisation="initialization")
@checked_arguments
def make_baselines(
    observation: TensorSpec | int,
    *,
    num_baselines: int = 2,
    hidden_sizes: Sequence[int] = (256, 256),
    initialization: Initialization = "torch",
    observation_key: NestedKey = "observation",
) -> list[TensorDictModule]:
    """Baselines Z_i(s), one for each critic of the online phase.

    Source: Yu & Zhang 2023 (ACA), Eq. 8: two of them, 256 x 256, torch's initialization.

    Args:
        observation: spec of the observation, shape [o], or o.
        num_baselines: number of members E. Defaults to 2.
        hidden_sizes: widths of the hidden layers; the residual critics must have the same. Defaults to (256, 256).
        initialization: a recipe of :func:`~torchrl_o2o.modules.initialization.initialize_`. Defaults to ``"torch"``.
        observation_key: entry of the observation. Defaults to ``"observation"``.

    Returns:
        E value operators writing ``"state_value"`` of shape [*B, 1].

    Raises:
        O2OSpecError: if ``num_baselines`` is below 1.

    Examples:
        >>> len(make_baselines(17, hidden_sizes=(8,)))
        2
    """

    def member() -> ValueOperator:
        settings = {"hidden_sizes": hidden_sizes, "observation_key": observation_key}
        return make_value_network(observation, initialization=initialization, **settings)

    return [member() for _ in range(check_count("num_baselines", num_baselines, least=1))]


def residual_parameters(baseline: Mapping[str, Tensor], residual: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""Parameters that make a residual critic equal to a baseline, :math:`R_i(s,a)=Z_i(s)` for every action.

    All layers are copied, including the state columns of the first one, whose action columns become zero.

    Source: Yu & Zhang 2023 (ACA), as in the authors' code.

    Args:
        baseline: Z's parameters in order from input to output, stacked ([E, ...]) or of one network.
        residual: R's parameters in the same order; its input is the state followed by the action.

    Returns:
        New values under R's names.

    Raises:
        O2OSpecError: if the two networks differ in anything but the width of the input.

    Examples:
        >>> import torch
        >>> baseline = {"weight": torch.ones(1, 2), "bias": torch.ones(1)}
        >>> residual = {"weight": torch.randn(1, 5), "bias": torch.randn(1)}
        >>> residual_parameters(baseline, residual)["weight"]
        tensor([[1., 1., 0., 0., 0.]])
    """
    extra = _extra_columns(list(baseline.values()), list(residual.values()))
    copied = [value.detach().clone() for value in baseline.values()]
    copied[0] = torch.cat([copied[0], copied[0].new_zeros(*copied[0].shape[:-1], extra)], -1)
    return dict(zip(residual, copied, strict=True))


def _extra_columns(baseline: list[Tensor], residual: list[Tensor]) -> int:
    same = len(baseline) == len(residual) and all(
        source.shape == target.shape for source, target in zip(baseline[1:], residual[1:], strict=True)
    )
    extra = residual[0].shape[-1] - baseline[0].shape[-1] if same else 0
    if not same or extra < 1 or residual[0].shape[:-1] != baseline[0].shape[:-1]:
        shapes = [[tuple(value.shape) for value in params] for params in (baseline, residual)]
        raise O2OSpecError(
            f"got a baseline with layers {shapes[0]} and a critic with {shapes[1]}, expected the same number of "
            "members and the same layers, except that the critic's first layer also reads the action; build both with "
            "the same hidden_sizes, and the critic with layer_norm=False"
        )
    return extra
