# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Human interventions: store the executed action both as demonstration and as experience.

As in HIL-SERL (Luo et al. 2024, Section III-C), a transition in which a human intervened goes into both the
demonstrations and the replay buffer, with the human's action. All others go only into the replay buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import ReplayBuffer

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.keys import TRANSITION, check_flat, with_steps
from torchrl_o2o.data.writers import OnlineWriter
from torchrl_o2o.errors import O2ODataError, O2OSpecError, check_count

__all__ = ["INTERVENED", "insert_intervened", "reserve_slots"]

#: The action that was executed instead of the policy's, float, shape [*B, A]; NaN without an intervention.
INTERVENED: NestedKey = ("next", "intervened")


@checked_arguments
def reserve_slots(offline: TensorDictBase, num_slots: int) -> TensorDictBase:
    """Reserve slots in a data set for transitions that are written later.

    Until they are written, the slots hold copies of the data set's first rows, so that no slot is empty. If many slots
    are reserved compared with the data, these rows are drawn more often until then.

    Args:
        offline: transitions [N].
        num_slots: R, number of reserved slots.

    Returns:
        Transitions [N + R].

    Raises:
        O2ODataError: if the data are empty, or not flat.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> len(reserve_slots(random_transitions(4, 3, 1), 10))
        14
    """
    check_flat(offline)
    if len(offline) == 0:
        raise O2ODataError(
            "got no transitions, expected at least one, whose copies fill the slots; load a data set first"
        )
    added = torch.arange(check_count("num_slots", num_slots)) % len(offline)
    return offline[torch.cat([torch.arange(len(offline)), added])]


@checked_arguments
def insert_intervened(buffer: ReplayBuffer, data: TensorDictBase, *, keys: Sequence[NestedKey] = TRANSITION) -> Tensor:
    """Store online transitions with the executed actions, and copy interventions to the offline rows.

    Args:
        buffer: a buffer whose writer is an :class:`~torchrl_o2o.data.OnlineWriter` with ``num_reserved``.
        data: transitions [n], with :data:`INTERVENED` if someone could intervene.

    Keyword Args:
        keys: entries to store, besides the steps of rows over several steps. Defaults to
            :data:`~torchrl_o2o.data.TRANSITION`.

    Returns:
        The online slots, [n].

    Raises:
        O2OSpecError: if an action is given in part or infinite, does not fit or is a flag, or no slot is reserved, as
            in a :class:`~torchrl_o2o.data.FrameStorage`, whose offline frames stay.

    Examples:
        >>> from torchrl.data import TensorDictReplayBuffer
        >>> from torchrl_o2o.data import OnlineWriter, offline_online_storage
        >>> from torchrl_o2o.testing import random_transitions
        >>> offline = reserve_slots(random_transitions(4, 3, 1), 2)
        >>> storage = offline_online_storage(offline, 10)
        >>> buffer = TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(6, num_reserved=2), batch_size=2)
        >>> data = random_transitions(3, 3, 1)
        >>> data[INTERVENED] = torch.tensor([[float("nan")], [0.5], [float("nan")]])
        >>> insert_intervened(buffer, data)
        tensor([6, 7, 8])
        >>> storage[7]["action"], storage[4]["action"]  # the first reserved slot
        (tensor([0.5000]), tensor([0.5000]))
    """
    given = data.get(INTERVENED, None)
    if given is None:
        return buffer.extend(data.select(*with_steps(keys, data)))
    if given.shape != data["action"].shape:
        raise O2OSpecError(
            f"got {INTERVENED} of shape {list(given.shape)}, expected that of the actions, "
            f"{list(data['action'].shape)}; write one whole action per row"
        )
    if not given.is_floating_point():
        raise O2OSpecError(
            f"{INTERVENED} is {given.dtype}, expected the executed action in floating point, and NaN where nobody "
            "intervened; convert a flag by torch.where(flag, executed, nan)"
        )
    if (infinite := given.isinf().flatten(1).any(-1)).any():
        raise O2OSpecError(
            f"{INTERVENED} is infinite in row {int(infinite.nonzero()[0])}, expected the action that was "
            f"executed, or NaN where nobody intervened; look at what reports it"
        )
    entries = given.isfinite().flatten(1)
    taken = entries.all(-1)
    if bool((entries.any(-1) != taken).any()):
        raise O2OSpecError(
            f"got {INTERVENED} with NaN in a part of an action, expected all or none; write the whole executed action, "
            "or NaN"
        )
    executed = data.select(*with_steps(keys, data))
    executed["action"] = torch.where(taken.unsqueeze(-1), given, data["action"]).to(data["action"].dtype)
    writer = buffer.writer
    if not isinstance(writer, OnlineWriter):
        raise O2OSpecError(
            f"got a buffer with a {type(writer).__name__}, expected an OnlineWriter with reserved slots, num_reserved=R"
        )
    with buffer._replay_lock:  # both writes or none, even if other threads write
        if taken.any():
            writer.write_offline(executed[taken])
        return buffer.extend(executed)
