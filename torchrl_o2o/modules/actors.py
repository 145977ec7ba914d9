# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Stochastic policies as TorchRL actors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules import ProbabilisticActor

from torchrl_o2o._moved import renamed_arguments
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_number, check_option, check_order
from torchrl_o2o.modules.boxes import action_box, distribution_box
from torchrl_o2o.modules.distributions import TanhNormal
from torchrl_o2o.modules.gaussian_policies import GaussianVectorHead
from torchrl_o2o.modules.initialization import Initialization, initialize_
from torchrl_o2o.modules.trunk import FLAX_LAYER_NORM_EPS, LayerNorm, feature_dim, make_trunk

__all__ = ["GaussianHead", "make_actor"]


class GaussianHead(nn.Module):
    r"""Two linear heads on features: mean and clipped log standard deviation.

    :math:`\mu = W_\mu h + b_\mu`, :math:`\log\sigma = \mathrm{clip}(c_1(W_\sigma h + b_\sigma) + c_0, lo, hi)`.

    The scalars :math:`c_1, c_0` are 1 and 0, or trained from 1 and -1 (CQL and Cal-QL).

    Args:
        in_features: width of the features.
        action_dim: number of action dimensions A.
        log_std_bounds: (lo, hi) of the clip. Defaults to (-20, 2).
        affine_log_std: whether :math:`c_1, c_0` are trained. Defaults to ``False``.

    Examples:
        >>> import torch
        >>> loc, scale = GaussianHead(8, 2)(torch.zeros(5, 8))
        >>> loc.shape, scale.shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
    """

    @checked_arguments
    def __init__(
        self,
        in_features: int,
        action_dim: int,
        log_std_bounds: tuple[float, float] = (-20.0, 2.0),
        affine_log_std: bool = False,
    ) -> None:
        super().__init__()
        self.mean = nn.Linear(in_features, action_dim)
        self.log_std = nn.Linear(in_features, action_dim)
        check_order("log_std_bounds", log_std_bounds)
        self.log_std_bounds = log_std_bounds
        self.log_std_multiplier = nn.Parameter(torch.tensor(1.0)) if affine_log_std else None
        self.log_std_offset = nn.Parameter(torch.tensor(-1.0)) if affine_log_std else None

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features [*B, F] to mean and standard deviation, each [*B, A]."""
        log_std = self.log_std(features)
        if self.log_std_multiplier is not None and self.log_std_offset is not None:
            log_std = self.log_std_multiplier * log_std + self.log_std_offset
        return self.mean(features), log_std.clamp(*self.log_std_bounds).exp()


@renamed_arguments(initialisation="initialization")
@checked_arguments
def make_actor(
    observation: TensorSpec | int,
    action: TensorSpec | int,
    *,
    hidden_sizes: Sequence[int] = (256, 256),
    initialization: Initialization = "xavier_uniform",
    log_std_bounds: tuple[float, float] = (-20.0, 2.0),
    affine_log_std: bool = False,
    std: Literal["head", "vector"] = "head",
    layer_norm: LayerNorm = False,
    layer_norm_eps: float = FLAX_LAYER_NORM_EPS,
    unit_norm: bool = False,
    log_prob_edge: float | None = None,
    observation_key: NestedKey = "observation",
    action_key: NestedKey = "action",
) -> ProbabilisticActor:
    r"""Tanh-Gaussian policy with hard-clipped log-std, as in SAC, REDQ, RLPD, A3RL, ACA and WSRL.

    Source: RLPD's code (state tasks): ReLU trunk without LayerNorm, two linear heads, xavier uniform, biases 0. WSRL
    clips the standard deviation to [1e-5, 10], which is ``log_std_bounds=(-11.513, 2.303)``.

    Args:
        observation: spec of the observation, shape [o], or o.
        action: bounded spec of the action, shape [A], or A for the box [-1, 1]^A.
        hidden_sizes: widths of the hidden layers. Defaults to (256, 256).
        initialization: a recipe of :func:`~torchrl_o2o.modules.initialization.initialize_`.
        log_std_bounds: clip of the log standard deviation. Defaults to (-20, 2).
        affine_log_std: whether a common factor and offset of the log standard deviation are trained, as in CQL and
            Cal-QL. Defaults to ``False``.
        std: ``"head"`` (default) computes the standard deviation from the features; ``"vector"`` has one parameter per
            action dimension, initially 1 (WSRL on AntMaze).
        layer_norm: as in :func:`~torchrl_o2o.modules.make_trunk` (WSRL, SOPE). Defaults to ``False``.
        layer_norm_eps: LayerNorm's epsilon. Defaults to 1e-6, flax's.
        unit_norm: whether the last features are scaled to length one (RLPD's ``use_pnorm``). Defaults to ``False``.
        log_prob_edge: ``edge`` of :class:`~torchrl_o2o.modules.TanhNormal`; 1e-6 in the code of SPEQ and SOPE. Defaults
            to ``None``, the exact density.
        observation_key: entry read. Defaults to ``"observation"``.
        action_key: entry written. Defaults to ``"action"``.

    Returns:
        An actor that reads the observation and writes ``loc``, ``scale`` and the action; random under
        ``ExplorationType.RANDOM``, the squashed mean under ``DETERMINISTIC``.

    Raises:
        O2OSpecError: if a spec is not a flat vector, the action has no finite box, or options exclude each other.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> actor = make_actor(17, 6, hidden_sizes=(32, 32))
        >>> data = actor(TensorDict({"observation": torch.zeros(4, 17)}, [4]))
        >>> data["action"].shape
        torch.Size([4, 6])
    """
    action_spec = action_box(action)
    action_dim = feature_dim(action_spec, "action")
    norm = {"layer_norm": layer_norm, "layer_norm_eps": layer_norm_eps}
    trunk = make_trunk(feature_dim(observation, "observation"), hidden_sizes, unit_norm=unit_norm, **norm)
    head = _head(std, hidden_sizes[-1], action_dim, log_std_bounds, affine_log_std)
    initialize_(trunk, initialization, has_output=False)
    for layer in (head.mean, head.log_std):
        if isinstance(layer, nn.Linear):
            initialize_(layer, initialization, last_bound=1e-3)
    module = TensorDictModule(nn.Sequential(trunk, head), in_keys=[observation_key], out_keys=["loc", "scale"])
    if log_prob_edge is not None:
        check_number("log_prob_edge", log_prob_edge, least=0)
    edge = {} if log_prob_edge is None else {"edge": log_prob_edge}
    return ProbabilisticActor(
        module,
        in_keys=["loc", "scale"],
        out_keys=[action_key],
        spec=action_spec,
        distribution_class=TanhNormal,
        distribution_kwargs=distribution_box(action_spec) | edge,
    )


def _head(
    std: str, features: int, action_dim: int, log_std_bounds: tuple[float, float], affine_log_std: bool
) -> GaussianHead | GaussianVectorHead:
    check_option("std", std, ("head", "vector"))
    if std == "head":
        return GaussianHead(features, action_dim, log_std_bounds, affine_log_std)
    if affine_log_std:
        raise O2OSpecError(
            "got affine_log_std=True with std='vector', expected only one of them, because a vector is trained "
            "anyway; leave one out"
        )
    return GaussianVectorHead(features, action_dim, nn.Identity(), "clip", log_std_bounds)
