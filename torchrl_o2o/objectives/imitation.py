# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""How far an actor is from recorded actions, whether it has a density or not."""

from __future__ import annotations

from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_o2o.objectives.networks import Inputs, Parameters, call_network, policy_distribution

__all__ = ["imitation_error"]


def imitation_error(
    actor_network: TensorDictModuleBase, params: Parameters, inputs: Inputs, action: Tensor, action_key: NestedKey
) -> Tensor:
    r"""Per row :math:`-\log\pi(a|s)` of a stochastic actor, :math:`\lVert\pi(s)-a\rVert^2` of a deterministic one.

    Args:
        actor_network: a probabilistic actor, or a module that writes the action.
        params: its parameters with dotted names.
        inputs: the entries it reads, each of shape [*B, ...].
        action: recorded actions, shape [*B, A].
        action_key: the entry a deterministic actor writes.

    Returns:
        The error, shape [*B].
    """
    if isinstance(actor_network, ProbabilisticTensorDictSequential):
        return -policy_distribution(actor_network, params, inputs).log_prob(action)
    return (call_network(actor_network, params, inputs, action_key) - action).square().sum(-1)
