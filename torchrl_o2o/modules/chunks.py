# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Mark policies that choose h actions at once. The collector keeps the queue of actions."""

from __future__ import annotations

from typing import TypeVar

from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.data import Bounded

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_count
from torchrl_o2o.modules.boxes import action_box, action_spec, box_edges, finite_edges

__all__ = ["act_in_chunks", "chunk_box", "chunk_length"]

_Actor = TypeVar("_Actor", bound=TensorDictModuleBase)
_MARK = "chunk_length"


@checked_arguments
def chunk_box(action: Bounded | int, horizon: int) -> Bounded:
    """The box of h actions in a row, for the networks of a policy and of critics on chunks.

    Args:
        action: bounded spec of one action, shape [A], or A for [-1, 1]^A.
        horizon: h.

    Returns:
        A spec of shape [h A].

    Raises:
        O2OSpecError: if ``horizon`` is below 1, or the spec is not the box of one action.

    Examples:
        >>> chunk_box(2, 5).shape
        torch.Size([10])
    """
    box, count = action_box(action), check_count("horizon", horizon, least=1)
    low, high = (edge.repeat(count) for edge in box_edges(box))
    return Bounded(low, high, shape=low.shape, dtype=low.dtype)


@checked_arguments
def act_in_chunks(actor: _Actor, horizon: int) -> _Actor:
    """Mark an actor whose action is a chunk: h actions that are taken before the actor is called again.

    The collectors, :func:`~torchrl_o2o.trainers.evaluate` and :class:`~torchrl_o2o.collectors.FastActor` then take all
    actions of a chunk without using new observations (open loop). They drop the remaining actions when an episode ends.

    Source: Li, Zhou & Levine 2025 (QC), arXiv:2507.07969, section 4.

    Args:
        actor: an actor with actions of shape [h A]; marked in place.
        horizon: h; 1 marks an actor of single actions.

    Returns:
        The actor.

    Raises:
        O2OSpecError: if its action is not h actions of the same box.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> chunk_length(act_in_chunks(make_actor(3, chunk_box(2, 5)), 5))
        5
    """
    low, high = finite_edges(action_spec(actor))
    count = check_count("horizon", horizon, least=1)
    size = len(low) // count
    whole = size * count == len(low)
    if not whole or any((edge != edge[:size].repeat(count)).any() for edge in (low, high)):
        raise O2OSpecError(
            f"got horizon={horizon} for an actor of {len(low)} action dimensions, expected a multiple of it, with the "
            "same bounds for each action of the chunk; build the actor for chunk_box(action, horizon)"
        )
    setattr(actor, _MARK, count)
    return actor


def chunk_length(actor: nn.Module) -> int:
    """The number of actions that an actor chooses at once.

    Args:
        actor: any actor.

    Returns:
        The ``horizon`` of :func:`act_in_chunks`; 1 for unmarked actors.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> chunk_length(make_actor(3, 2))
        1
    """
    return getattr(actor, _MARK, 1)
