# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The imitation error of an actor on recorded actions: a negative log-likelihood, or a squared distance."""

from __future__ import annotations

from typing import Literal

from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives.networks import Inputs, Parameters, call_network, policy_distribution

__all__ = ["imitation_error"]


def imitation_error(
    actor_network: TensorDictModuleBase,
    params: Parameters,
    inputs: Inputs,
    action: Tensor,
    action_key: NestedKey,
    *,
    over_dimensions: Literal["sum", "mean"] = "sum",
) -> Tensor:
    r"""Per row :math:`-\log\pi(a|s)` of a stochastic actor, :math:`\lVert\pi(s)-a\rVert^2` of a deterministic one.

    Args:
        actor_network: a probabilistic actor, or a module that writes the action.
        params: its parameters with dotted names.
        inputs: the entries it reads, each of shape [*B, ...].
        action: recorded actions, shape [*B, A].
        action_key: the entry a deterministic actor writes.
        over_dimensions: whether the squared distance is the ``"sum"`` (default, IQL) or the ``"mean"`` (BC, TD3+BC)
            over action dimensions. A log-density is always their sum.

    Returns:
        The error, shape [*B].

    Raises:
        O2OSpecError: if a deterministic actor's actions have another shape.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_deterministic_actor
        >>> actor = make_deterministic_actor(3, 2, hidden_sizes=(8,))
        >>> inputs = {"observation": torch.zeros(4, 3)}
        >>> imitation_error(actor, dict(actor.named_parameters()), inputs, torch.zeros(4, 2), "action").shape
        torch.Size([4])
    """
    if isinstance(actor_network, ProbabilisticTensorDictSequential):
        return -policy_distribution(actor_network, params, inputs).log_prob(action)
    imitated = call_network(actor_network, params, inputs, action_key)
    if imitated.shape != action.shape:
        raise O2OSpecError(
            f"got recorded actions of shape {list(action.shape)}, expected {list(imitated.shape)}, the shape of the "
            "actor's actions; build the actor for these actions"
        )
    squares = (imitated - action).square()
    return squares.sum(-1) if over_dimensions == "sum" else squares.mean(-1)
