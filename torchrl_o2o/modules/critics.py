# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""State-action values as lists of TorchRL value operators, one per ensemble member."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules import ValueOperator

from torchrl_o2o._moved import renamed_arguments
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_count
from torchrl_o2o.modules.initialization import Initialization, initialize_
from torchrl_o2o.modules.trunk import (
    FLAX_LAYER_NORM_EPS,
    Activation,
    LayerNorm,
    feature_dim,
    make_residual_trunk,
    make_trunk,
)

__all__ = ["QValueNet", "make_qvalue_ensemble"]


class QValueNet(nn.Module):
    """Q(s, a): the concatenated inputs through a trunk and one linear output.

    Args:
        trunk: maps [*B, o + A] to [*B, F].
        features: F.
        shared_head: whether all members of an ensemble share one output layer. Losses keep a copy for each member and
            give every copy the sum of all members' gradients, so the copies stay equal. Defaults to ``False``.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_trunk
        >>> QValueNet(make_trunk(5, (8,)), 8)(torch.zeros(4, 3), torch.zeros(4, 2)).shape
        torch.Size([4, 1])
    """

    @checked_arguments
    def __init__(self, trunk: nn.Module, features: int, shared_head: bool = False) -> None:
        super().__init__()
        self.trunk, self.shared_head = trunk, shared_head
        self.head = nn.Linear(features, 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Map observation [*B, o] and action [*B, A] to values [*B, 1]."""
        return self.head(self.trunk(torch.cat([observation, action], -1)))


@renamed_arguments(initialisation="initialization")
@checked_arguments
def make_qvalue_ensemble(
    observation: TensorSpec | int,
    action: TensorSpec | int,
    *,
    num_qvalue_nets: int = 10,
    hidden_sizes: Sequence[int] = (256, 256),
    layer_norm: LayerNorm = True,
    layer_norm_eps: float = FLAX_LAYER_NORM_EPS,
    initialization: Initialization = "xavier_uniform",
    dropout: float | None = None,
    unit_norm: bool = False,
    shared_head: bool = False,
    activation: Activation = "relu",
    residual_blocks: int = 0,
    in_keys: tuple[NestedKey, NestedKey] = ("observation", "action"),
) -> list[TensorDictModule]:
    """Independently initialized critics with LayerNorm in every hidden layer.

    Pass the *list* to a loss, which stacks the parameters. If a single module is expanded N times, TorchRL draws the
    copies uniformly between each parameter's extremes, and the initialization is lost.

    Source: Ball et al. 2023 (RLPD), section 4.2 and Table 1: E = 10, LayerNorm, xavier uniform.

    Args:
        observation: spec of the observation, shape [o], or o.
        action: spec of the action, shape [A], or A.
        num_qvalue_nets: number of members E. Defaults to 10.
        hidden_sizes: widths of the hidden layers. Defaults to (256, 256); RLPD uses (256, 256, 256) on AntMaze and
            Adroit.
        layer_norm: Linear -> LayerNorm -> ReLU in hidden layers; ``"after_activation"``: Linear -> ReLU -> LayerNorm
            (ReBRAC). Defaults to ``True``.
        layer_norm_eps: LayerNorm's epsilon. Defaults to 1e-6, flax's (torch's own is 1e-5).
        initialization: a recipe of :func:`~torchrl_o2o.modules.initialization.initialize_`.
        dropout: drop probability before LayerNorm, or ``None`` (default).
        unit_norm: whether the last features are scaled to length one (RLPD's ``use_pnorm``). Defaults to ``False``.
        shared_head: one output layer for all members (WSRL), see :class:`QValueNet`. Defaults to ``False``.
        activation: ``"relu"`` (default), or ``"gelu"``, approximated by tanh (FQL and QC).
        residual_blocks: with 1 or more, the hidden layers are those of
            :func:`~torchrl_o2o.modules.make_residual_trunk`, all of the one width in ``hidden_sizes``, however often
            that stands there (RLPD's ``use_critic_resnet``: 1). Defaults to 0: none.
        in_keys: entries of observation and action. Defaults to ``("observation", "action")``.

    Returns:
        E value operators writing ``"state_action_value"`` of shape [*B, 1].

    Raises:
        O2OSpecError: if a spec is not a flat vector, ``num_qvalue_nets`` is below 1, or ``residual_blocks`` come with
            several widths, with dropout or a unit norm, or without ``layer_norm=True``.

    Examples:
        >>> import torch
        >>> critics = make_qvalue_ensemble(17, 6, num_qvalue_nets=3, hidden_sizes=(32, 32))
        >>> critics[0](torch.zeros(4, 17), torch.zeros(4, 6)).shape
        torch.Size([4, 1])
    """
    if num_qvalue_nets < 1:
        raise O2OSpecError(f"got num_qvalue_nets={num_qvalue_nets}, expected at least 1")
    width = feature_dim(observation, "observation") + feature_dim(action, "action")
    if check_count("residual_blocks", residual_blocks, least=0):
        _check_residual(hidden_sizes, layer_norm, dropout, unit_norm)

    def hidden_layers() -> nn.Sequential:
        if residual_blocks:
            options = {"layer_norm_eps": layer_norm_eps, "activation": activation}
            return make_residual_trunk(width, hidden_sizes[0], residual_blocks, **options)
        return make_trunk(
            width,
            hidden_sizes,
            layer_norm=layer_norm,
            layer_norm_eps=layer_norm_eps,
            dropout=dropout,
            unit_norm=unit_norm,
            activation=activation,
        )

    def member() -> QValueNet:
        return initialize_(QValueNet(hidden_layers(), hidden_sizes[-1], shared_head), initialization)

    members = [member() for _ in range(num_qvalue_nets)]
    if shared_head:
        for other in members[1:]:
            other.head.load_state_dict(members[0].head.state_dict())
    return [ValueOperator(net, in_keys=list(in_keys)) for net in members]


def _check_residual(hidden_sizes: Sequence[int], layer_norm: LayerNorm, dropout: float | None, unit_norm: bool) -> None:
    """Raise for settings that residual critics do not have."""
    if len(set(hidden_sizes)) != 1:
        raise O2OSpecError(
            f"got residual_blocks with hidden_sizes={tuple(hidden_sizes)}, expected one width, for example (256,): a "
            f"block adds its output to its input"
        )
    if layer_norm is not True or dropout is not None or unit_norm:
        raise O2OSpecError(
            f"got residual_blocks with layer_norm={layer_norm!r}, dropout={dropout}, unit_norm={unit_norm}; expected "
            f"layer_norm=True and neither of the others, as the blocks of RLPD's code are"
        )
