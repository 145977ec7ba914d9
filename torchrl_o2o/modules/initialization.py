# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Initialization recipes of the reference implementations, which matter at a high update-to-data ratio."""

from __future__ import annotations

import math
from typing import Literal, TypeVar, get_args

from torch import nn

from torchrl_o2o.errors import O2OSpecError

__all__ = ["Initialization", "initialize_"]

_Module = TypeVar("_Module", bound=nn.Module)
Initialization = Literal[
    "xavier_uniform",
    "torch",
    "orthogonal",
    "orthogonal_unit",
    "orthogonal_small_last",
    "orthogonal_small_hidden",
    "fanin",
    "fanin_raised_bias",
    "uniform_small_last",
    "lecun_normal",
]

_CUT_STD = 0.87962566103423978  # standard deviation of a standard normal that is cut off at -2 and 2


def initialize_(
    module: _Module, recipe: Initialization, *, has_output: bool = True, last_bound: float = 3e-3
) -> _Module:
    r"""Re-draw every linear layer of ``module`` in place by a named recipe.

    =============================  ==========================================  ========================================
    recipe                         hidden layers                               output layer
    =============================  ==========================================  ========================================
    ``"xavier_uniform"``           xavier uniform, bias 0                      same (RLPD, A3RL, REDQ, jaxrl)
    ``"torch"``                    left as torch drew it                       same (d3rlpy, ACA, CORL's AWAC, TD3+BC)
    ``"orthogonal"``               orthogonal, gain sqrt(2), bias 0            same (IQL official, CORL's finetune CQL)
    ``"orthogonal_unit"``          orthogonal, gain 1, bias 0                  same (DrQ-v2)
    ``"orthogonal_small_last"``    orthogonal, gain sqrt(2), bias 0            orthogonal, gain 1e-2 (CQL and Cal-QL)
    ``"orthogonal_small_hidden"``  same, the last of them gain 1e-2            xavier uniform, bias 0 (WSRL)
    ``"fanin"``                    U(+-1/sqrt(out_features)), bias 0           U(+-last_bound) (rlkit; its fan-in is the
                                                                               number of outputs)
    ``"fanin_raised_bias"``        same, bias 0.1                              same (Off2On's rlkit)
    ``"uniform_small_last"``       left as torch drew it, bias 0.1             U(+-last_bound) (SPOT, ReBRAC)
    ``"lecun_normal"``             normal of variance 1/in_features, cut off   xavier uniform, bias 0 (RLPD's residual
                                   at 2 of its scale, bias 0                   critics)
    =============================  ==========================================  ========================================

    Args:
        module: any module that contains :class:`torch.nn.Linear` layers, in order from input to output.
        recipe: name of the recipe.
        has_output: whether the last linear layer is an output layer. Defaults to ``True``.
        last_bound: half-width of the output layer's uniform draw, if the recipe has one. Defaults to 3e-3 (critics; the
            references use 1e-3 for policies).

    Returns:
        The module.

    Raises:
        O2OSpecError: if the recipe is unknown.

    Examples:
        >>> from torch import nn
        >>> net = initialize_(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), "xavier_uniform")
        >>> bool((net[0].bias == 0).all())
        True
    """
    if recipe not in get_args(Initialization):
        raise O2OSpecError(f"got initialization={recipe!r}, expected one of {', '.join(get_args(Initialization))}")
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    hidden, output = (layers[:-1], layers[-1:]) if has_output else (layers, [])
    for layer in hidden:
        _initialize_hidden_(layer, recipe)
    if recipe == "orthogonal_small_hidden" and hidden:
        nn.init.orthogonal_(hidden[-1].weight, 1e-2)
    for layer in output:
        _initialize_last_(layer, recipe, last_bound)
    return module


def _initialize_hidden_(layer: nn.Linear, recipe: Initialization) -> None:
    if recipe == "torch":
        return
    if recipe == "xavier_uniform":
        nn.init.xavier_uniform_(layer.weight)
    elif recipe.startswith("orthogonal"):
        nn.init.orthogonal_(layer.weight, 1.0 if recipe == "orthogonal_unit" else math.sqrt(2.0))
    elif recipe == "lecun_normal":
        scale = 1.0 / math.sqrt(layer.in_features) / _CUT_STD
        nn.init.trunc_normal_(layer.weight, std=scale, a=-2.0 * scale, b=2.0 * scale)
    elif recipe.startswith("fanin"):
        bound = 1.0 / math.sqrt(layer.out_features)
        nn.init.uniform_(layer.weight, -bound, bound)
    raised = recipe in ("fanin_raised_bias", "uniform_small_last")
    nn.init.constant_(layer.bias, 0.1 if raised else 0.0)


def _initialize_last_(layer: nn.Linear, recipe: Initialization, bound: float) -> None:
    if recipe in ("fanin", "fanin_raised_bias", "uniform_small_last"):
        nn.init.uniform_(layer.weight, -bound, bound)
        nn.init.uniform_(layer.bias, -bound, bound)
    elif recipe == "orthogonal_small_last":
        nn.init.orthogonal_(layer.weight, 1e-2)
        nn.init.zeros_(layer.bias)
    elif recipe in ("orthogonal_small_hidden", "lecun_normal"):
        _initialize_hidden_(layer, "xavier_uniform")
    else:
        _initialize_hidden_(layer, recipe)
