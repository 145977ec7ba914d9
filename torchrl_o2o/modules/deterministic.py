# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Deterministic policies: TD3+BC, SPOT, behavior cloning, IQL's deterministic variant."""

from __future__ import annotations

from collections.abc import Sequence

from tensordict.utils import NestedKey
from torch import nn
from torchrl.data import Composite, TensorSpec
from torchrl.modules import Actor

from torchrl_o2o._moved import renamed_arguments
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.modules.boxes import action_box, make_squash
from torchrl_o2o.modules.initialization import Initialization, initialize_
from torchrl_o2o.modules.trunk import FLAX_LAYER_NORM_EPS, LayerNorm, feature_dim, make_trunk

__all__ = ["make_deterministic_actor"]


@renamed_arguments(initialisation="initialization")
@checked_arguments
def make_deterministic_actor(
    observation: TensorSpec | int,
    action: TensorSpec | int,
    *,
    hidden_sizes: Sequence[int] = (256, 256),
    initialization: Initialization = "torch",
    layer_norm: LayerNorm = False,
    layer_norm_eps: float = FLAX_LAYER_NORM_EPS,
    dropout: float | None = None,
    observation_key: NestedKey = "observation",
    action_key: NestedKey = "action",
) -> Actor:
    r"""Policy :math:`\pi(s)=\tanh f(s)`, stretched to the action box.

    It has no density, so it does not work with log-likelihood losses or ACA's alignment. To explore, add TorchRL's
    ``AdditiveGaussianModule`` after it.

    Source: Fujimoto & Gu 2021 (TD3+BC); SPOT uses ``initialization="uniform_small_last"``.

    Args:
        observation: spec of the observation, shape [o], or o.
        action: bounded spec of the action, shape [A], or A for the box [-1, 1]^A.
        hidden_sizes: widths of the hidden layers. Defaults to (256, 256).
        initialization: a recipe of :func:`~torchrl_o2o.modules.initialization.initialize_`. Defaults to ``"torch"``.
        layer_norm: as in :func:`~torchrl_o2o.modules.make_trunk`. Defaults to ``False``.
        layer_norm_eps: LayerNorm's epsilon. Defaults to 1e-6, flax's.
        dropout: drop probability in hidden layers, or ``None`` (default).
        observation_key: entry read. Defaults to ``"observation"``.
        action_key: entry written. Defaults to ``"action"``.

    Returns:
        An actor that reads the observation and writes the action.

    Raises:
        O2OSpecError: if a spec is not a flat vector or the action has no finite box.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> actor = make_deterministic_actor(17, 6, hidden_sizes=(32, 32))
        >>> actor(TensorDict({"observation": torch.zeros(4, 17)}, [4]))["action"].shape
        torch.Size([4, 6])
    """
    spec = action_box(action)
    squash = make_squash(spec)
    norm = {"layer_norm": layer_norm, "layer_norm_eps": layer_norm_eps}
    trunk = make_trunk(feature_dim(observation, "observation"), hidden_sizes, dropout=dropout, **norm)
    output = nn.Linear(hidden_sizes[-1], feature_dim(spec, "action"))
    net = initialize_(nn.Sequential(trunk, output), initialization, last_bound=1e-3)
    return Actor(
        nn.Sequential(net, squash),
        in_keys=[observation_key],
        out_keys=[action_key],
        spec=Composite({action_key: spec}),
    )
