# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Hidden layers shared by actors and critics: Linear -> (dropout) -> (LayerNorm) -> ReLU, then maybe a unit norm.

Residual ones, of RLPD's critics, are LayerNorm -> ReLU -> Linear twice, added to what goes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchrl.modules import MLP

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_count, check_number, check_option

__all__ = [
    "FLAX_LAYER_NORM_EPS",
    "Activation",
    "LayerNorm",
    "ReLU",
    "ResidualBlock",
    "UnitNorm",
    "feature_dim",
    "make_residual_trunk",
    "make_trunk",
]

FLAX_LAYER_NORM_EPS = 1e-6  # torch's own default is 1e-5; the papers' numbers come from flax
#: Whether hidden layers are normalized, and whether before or after the activation.
LayerNorm = bool | Literal["after_activation"]
#: The activation of the hidden layers; GELU uses the tanh approximation, flax's default.
Activation = Literal["relu", "gelu"]


class ReLU(nn.Module):
    """max(x, 0), in the form that is faster, eager or compiled; the values are the same.

    ``torch.relu`` saves a boolean mask for its backward pass, which inductor's CPU kernels read and write element by
    element. Compiled code uses ``torch.where`` instead and stays vectorized.

    Examples:
        >>> import torch
        >>> ReLU()(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    def forward(self, features: Tensor) -> Tensor:
        """Apply elementwise; the shape is unchanged."""
        if torch.compiler.is_compiling():
            return torch.where(features > 0, features, 0.0)
        return torch.relu(features)


class UnitNorm(nn.Module):
    """Divide each feature vector by its Euclidean length (RLPD's ``use_pnorm``).

    Args:
        eps: lower bound of the length in the division. Defaults to 1e-10.

    Examples:
        >>> import torch
        >>> UnitNorm()(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    def __init__(self, eps: float = 1e-10) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """Normalize along the last dimension; the shape is unchanged."""
        return features / torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp_min(self.eps)


class ResidualBlock(nn.Module):
    r"""Two layers whose output is added to their input, normalized and activated before each layer.

    :math:`x+W_2\,\sigma(\mathrm{LN}(W_1\,\sigma(\mathrm{LN}(x))))`, with biases.

    Source: the code of Ball et al. 2023 (RLPD), ``MLPResNetV2Block``, after He et al. 2016, arXiv:1603.05027.

    Args:
        width: of input and output.
        layer_norm_eps: LayerNorm's epsilon. Defaults to 1e-6, flax's.
        activation: ``"relu"`` (default), or ``"gelu"``, approximated by tanh.

    Examples:
        >>> import torch
        >>> block = ResidualBlock(8)
        >>> block(torch.zeros(4, 8)).shape
        torch.Size([4, 8])
    """

    @checked_arguments
    def __init__(
        self, width: int, layer_norm_eps: float = FLAX_LAYER_NORM_EPS, activation: Activation = "relu"
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [*_normalized_before(width, layer_norm_eps, activation), nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Map [*B, width] to [*B, width]."""
        return features + self.layers(features)


@checked_arguments
def make_trunk(
    in_features: int,
    hidden_sizes: Sequence[int],
    *,
    layer_norm: LayerNorm = False,
    layer_norm_eps: float = FLAX_LAYER_NORM_EPS,
    dropout: float | None = None,
    unit_norm: bool = False,
    activation: Activation = "relu",
) -> nn.Sequential:
    """Build the hidden layers in RLPD's order: Linear, dropout, LayerNorm, ReLU per layer.

    Source: Ball et al. 2023 (RLPD), section 4.2, order as in the authors' code.

    Args:
        in_features: width of the input; several inputs are concatenated along their last dimension.
        hidden_sizes: widths of the hidden layers, at least one.
        layer_norm: whether each hidden layer is normalized; ``"after_activation"`` normalizes after its ReLU instead of
            before it (ReBRAC). Defaults to ``False``.
        layer_norm_eps: LayerNorm's epsilon. Defaults to 1e-6, flax's.
        dropout: drop probability, or ``None`` for no dropout (default).
        unit_norm: whether the last features are scaled to length one. Defaults to ``False``.
        activation: ``"relu"`` (default), or ``"gelu"``, approximated by tanh (FQL).

    Returns:
        A module mapping [*B, in_features] to [*B, hidden_sizes[-1]].

    Raises:
        O2OSpecError: if there is no hidden layer, a width is not an integer of at least 1, or ``layer_norm`` or
            ``activation`` is unknown.

    Examples:
        >>> import torch
        >>> trunk = make_trunk(3, (8, 8), layer_norm=True)
        >>> trunk(torch.zeros(5, 3)).shape
        torch.Size([5, 8])
    """
    if not hidden_sizes:
        raise O2OSpecError(f"got hidden_sizes={hidden_sizes!r}, expected at least one width, e.g. (256, 256)")
    hidden_sizes = [check_count("a width in hidden_sizes", width, least=1) for width in hidden_sizes]
    check_count("in_features", in_features, least=1)
    check_number("layer_norm_eps", layer_norm_eps, least=0)
    if dropout is not None and not 0.0 <= dropout < 1.0:
        raise O2OSpecError(f"got dropout={dropout}, expected a probability below 1, or None")
    if layer_norm not in (True, False, "after_activation"):
        raise O2OSpecError(f"got layer_norm={layer_norm!r}, expected True, False or 'after_activation'")
    check_option("activation", activation, ("relu", "gelu"))
    if layer_norm == "after_activation":
        trunk = _normalized_after(in_features, hidden_sizes, layer_norm_eps, dropout, activation)
        return nn.Sequential(trunk, UnitNorm()) if unit_norm else trunk
    norms = [{"normalized_shape": width, "eps": layer_norm_eps} for width in hidden_sizes] if layer_norm else None
    trunk = MLP(
        in_features=in_features,
        out_features=hidden_sizes[-1],
        num_cells=list(hidden_sizes[:-1]),
        activation_class=ReLU if activation == "relu" else nn.GELU,
        activation_kwargs={} if activation == "relu" else {"approximate": "tanh"},
        norm_class=nn.LayerNorm if layer_norm else None,
        norm_kwargs=norms,
        dropout=dropout,
        activate_last_layer=True,
    )
    return nn.Sequential(trunk, UnitNorm()) if unit_norm else nn.Sequential(trunk)


@checked_arguments
def make_residual_trunk(
    in_features: int,
    width: int,
    num_blocks: int = 1,
    *,
    layer_norm_eps: float = FLAX_LAYER_NORM_EPS,
    activation: Activation = "relu",
) -> nn.Sequential:
    """Build the hidden layers of RLPD's residual critic: Linear, residual blocks, LayerNorm, ReLU.

    Source: the code of Ball et al. 2023 (RLPD), ``MLPResNetV2`` with one block of width 256.

    Args:
        in_features: width of the input; several inputs are concatenated along their last dimension.
        width: of all hidden layers.
        num_blocks: number of residual blocks, of two layers each. Defaults to 1.
        layer_norm_eps: LayerNorm's epsilon. Defaults to 1e-6, flax's.
        activation: ``"relu"`` (default), or ``"gelu"``, approximated by tanh.

    Returns:
        A module mapping [*B, in_features] to [*B, width].

    Raises:
        O2OSpecError: if a width or the number of blocks is no whole number of at least 1, or the activation is unknown.

    Examples:
        >>> import torch
        >>> make_residual_trunk(3, 8)(torch.zeros(5, 3)).shape
        torch.Size([5, 8])
    """
    for name, value in {"in_features": in_features, "width": width, "num_blocks": num_blocks}.items():
        check_count(name, value, least=1)
    check_number("layer_norm_eps", layer_norm_eps, least=0)
    check_option("activation", activation, ("relu", "gelu"))
    blocks = [ResidualBlock(width, layer_norm_eps, activation) for _ in range(num_blocks)]
    last = _normalized_before(width, layer_norm_eps, activation)
    return nn.Sequential(nn.Linear(in_features, width), *blocks, *last)


def _activation(activation: Activation) -> nn.Module:
    return ReLU() if activation == "relu" else nn.GELU(approximate="tanh")


def _normalized_before(width: int, eps: float, activation: Activation) -> list[nn.Module]:
    """LayerNorm, then ReLU or GELU."""
    return [nn.LayerNorm(width, eps=eps), _activation(activation)]


def _normalized_after(
    in_features: int, hidden_sizes: Sequence[int], eps: float, dropout: float | None, activation: Activation
) -> nn.Sequential:
    """Linear, dropout, ReLU or GELU, LayerNorm per layer."""
    layers: list[nn.Module] = []
    for before, width in zip((in_features, *hidden_sizes), hidden_sizes):
        dropped = [] if dropout is None else [nn.Dropout(dropout)]
        layers += [nn.Linear(before, width), *dropped, _activation(activation), nn.LayerNorm(width, eps=eps)]
    return nn.Sequential(*layers)


def feature_dim(spec: object, role: str) -> int:
    """Width of a flat observation or action, from a TorchRL spec or a plain number.

    Args:
        spec: a spec of shape [n], or n itself.
        role: what it describes, for the error message.

    Returns:
        n.

    Raises:
        O2OSpecError: if the spec is not one flat vector of at least one entry.

    Examples:
        >>> feature_dim(17, "observation")
        17
    """
    shape = (spec,) if isinstance(spec, int) else tuple(getattr(spec, "shape", ()))
    if len(shape) != 1 or shape[0] < 1:
        raise O2OSpecError(
            f"got {role} of shape {list(shape)}, expected one flat vector [n]; flatten or concatenate it first "
            f"(torchrl_o2o.envs.make_env does so for dictionary observations)"
        )
    return int(shape[0])
