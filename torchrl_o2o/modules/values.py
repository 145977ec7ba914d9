# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""State values as TorchRL value operators."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict.utils import NestedKey
from torch import nn
from torchrl.data import TensorSpec
from torchrl.modules import ValueOperator

from torchrl_o2o._moved import renamed_arguments
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.modules.initialization import Initialization, initialize_
from torchrl_o2o.modules.trunk import FLAX_LAYER_NORM_EPS, feature_dim, make_trunk

__all__ = ["make_value_network"]


@renamed_arguments(initialisation="initialization")
@checked_arguments
def make_value_network(
    observation: TensorSpec | int,
    *,
    hidden_sizes: Sequence[int] = (256, 256),
    layer_norm: bool = False,
    layer_norm_eps: float = FLAX_LAYER_NORM_EPS,
    initialization: Initialization = "torch",
    observation_key: NestedKey = "observation",
) -> ValueOperator:
    """State value V(s), as in IQL.

    Args:
        observation: spec of the observation, shape [o], or o.
        hidden_sizes: widths of the hidden layers. Defaults to (256, 256).
        layer_norm: Linear -> LayerNorm -> ReLU in hidden layers. Defaults to ``False``.
        layer_norm_eps: LayerNorm's epsilon. Defaults to 1e-6, flax's.
        initialization: a recipe of :func:`~torchrl_o2o.modules.initialization.initialize_`. Defaults to ``"torch"``;
            IQL's authors use ``"orthogonal"``.
        observation_key: entry of the observation. Defaults to ``"observation"``.

    Returns:
        A value operator writing ``"state_value"`` of shape [*B, 1].

    Raises:
        O2OSpecError: if the spec is not a flat vector.

    Examples:
        >>> import torch
        >>> make_value_network(17, hidden_sizes=(32, 32))(torch.zeros(4, 17)).shape
        torch.Size([4, 1])
    """
    width = feature_dim(observation, "observation")
    trunk = make_trunk(width, hidden_sizes, layer_norm=layer_norm, layer_norm_eps=layer_norm_eps)
    net = initialize_(nn.Sequential(trunk, nn.Linear(hidden_sizes[-1], 1)), initialization)
    return ValueOperator(net, in_keys=[observation_key])
