# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Optimiser settings of the references that torch's optimisers do not have by themselves."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase

__all__ = ["weight_decay_groups"]


def weight_decay_groups(params: TensorDictBase, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in which biases are exempt from weight decay, LayerNorm's scales are not.

    Source: RLPD's code masks decoupled weight decay (AdamW) by the parameter's name, leaving out what is called a bias.

    Args:
        params: parameters of a loss, for example ``loss.qvalue_network_params``.
        weight_decay: AdamW's coefficient for all other parameters.

    Returns:
        Two groups for the optimiser's constructor.

    Examples:
        >>> from tensordict import TensorDict
        >>> from torch import nn
        >>> groups = weight_decay_groups(TensorDict.from_module(nn.Linear(3, 2)), 0.01)
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(1, 0.01), (1, 0.0)]
    """
    decayed, exempt = [], []
    for name, value in params.flatten_keys(".").items():
        (exempt if name.split(".")[-1].endswith("bias") else decayed).append(value)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]
