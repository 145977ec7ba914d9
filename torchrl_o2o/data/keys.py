# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The keys of a stored transition, in TorchRL's TED layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_o2o.errors import O2ODataError

__all__ = [
    "CONVENTION_APPLIED",
    "EPISODE",
    "STEPS",
    "TRANSITION",
    "check_entries",
    "check_flat",
    "check_one_step",
    "check_padding",
    "check_steps",
    "cut_off_",
    "has_steps",
    "key_text",
    "stored_keys",
    "transition_keys",
    "with_steps",
]

#: The entries that losses read and replay buffers store. ``done`` is always ``terminated | truncated``.
TRANSITION: tuple[NestedKey, ...] = (
    "observation",
    "action",
    ("next", "observation"),
    ("next", "reward"),
    ("next", "terminated"),
    ("next", "truncated"),
    ("next", "done"),
)

#: The number of a row's episode in an offline data set, int64, contiguous from 0; not part of a replayed transition.
EPISODE: NestedKey = "episode"

#: Marks rows to which a convention was applied, bool, shape [N]; not part of a replayed transition.
CONVENTION_APPLIED: NestedKey = "convention_applied"

#: Number of steps between a row's two observations, int64, shape [N], under TorchRL's name. One if it is absent.
STEPS: NestedKey = "steps_to_next_obs"

#: Names that TorchRL's collectors write for a step and the next one, and that are no observations.
_NOT_OBSERVED = ("action", "reward", "done", "terminated", "truncated", "step_count", "episode_reward")

#: The entry that is False in the rows with which TorchRL's ``split_trajectories`` pads short trajectories.
_MASKS: tuple[NestedKey, ...] = (("collector", "mask"), "mask")


def check_flat(data: TensorDictBase) -> None:
    """Raise unless data are rows [N], because a row would be a whole episode, and statistics one per step.

    Args:
        data: transitions.

    Raises:
        O2ODataError: if they have another number of batch dimensions.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> check_flat(random_transitions(6, 3, 1).reshape(2, 3))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2ODataError: got transitions of batch shape [2, 3], expected [N]; flatten them with...
    """
    if data.batch_dims != 1:
        raise O2ODataError(
            f"got transitions of batch shape {list(data.batch_size)}, expected [N]; flatten them with "
            "data.reshape(-1), so that the rows of an episode are together"
        )


def check_entries(data: TensorDictBase, *needed: NestedKey) -> None:
    """Raise if transitions lack entries.

    Args:
        data: transitions.
        needed: their entries.

    Raises:
        O2ODataError: if one is missing.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> check_entries(random_transitions(2, 3, 1), "action", ("next", "reward"))
        >>> check_entries(random_transitions(2, 3, 1), "mc_return")
        Traceback (most recent call last):
        torchrl_o2o.errors.O2ODataError: the transitions have no 'mc_return', expected it; they have 'action',...
    """
    missing = [key for key in needed if data.get(key, None) is None]
    if missing:
        there = ", ".join(sorted(repr(key) for key in data.keys(True, True)))
        raise O2ODataError(f"the transitions have no {missing[0]!r}, expected it; they have {there}")


def check_padding(data: TensorDictBase) -> None:
    """Raise if rows are padding, which fills trajectories up to a common length.

    TorchRL's ``split_trajectories``, and its collectors with ``split_trajs=True``, add them, and mark the others under
    ``"mask"`` or ``("collector", "mask")``.

    Args:
        data: rows [N].

    Raises:
        O2ODataError: if there are such rows.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.testing import random_transitions
        >>> rows = random_transitions(3, 3, 1).set(("collector", "mask"), torch.tensor([True, True, False]))
        >>> check_padding(rows[rows["collector", "mask"]])
        >>> check_padding(rows)
        Traceback (most recent call last):
        torchrl_o2o.errors.O2ODataError: 1 of 3 rows, the first in row 2, are padding...
    """
    for key in _MASKS:
        mask = data.get(key, None)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.numel() != len(data) or bool(mask.all()):
            continue  # other masks have more numbers in a row
        mask = mask.reshape(-1)
        raise O2ODataError(
            f"{int((~mask).sum())} of {len(mask)} rows, the first in row {int((~mask).nonzero()[0])}, are padding "
            f"({key} is False there), expected only transitions; pass data[data[{key!r}]]"
        )


def transition_keys(*observed: str) -> tuple[NestedKey, ...]:
    """:data:`TRANSITION` for observations with several names, such as images and a state.

    Args:
        observed: names of the observations.

    Returns:
        Entries of a transition, those of the current step first.

    Examples:
        >>> transition_keys("pixels", "state")[:4]
        ('pixels', 'state', 'action', ('next', 'pixels'))
    """
    return *observed, "action", *(("next", key) for key in observed), *TRANSITION[3:]


def key_text(key: NestedKey, between: str = ".") -> str:
    """A key as one word.

    Args:
        key: a name, or nested names.
        between: separator of two names. Defaults to ``"."``.

    Examples:
        >>> key_text(("next", "reward")), key_text(("next", ("agent", "reward")), "_")
        ('next.reward', 'next_agent_reward')
    """
    return key if isinstance(key, str) else between.join(key_text(part, between) for part in key)


def cut_off_(row: TensorDictBase) -> TensorDictBase:
    """Mark a transition in place as its episode's last: truncated, unless it is terminated.

    Args:
        row: a transition with ``terminated`` and ``truncated`` under ``next``.

    Returns:
        The same transition.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> row = random_transitions(1, 3, 2)
        >>> row["next", "terminated"].fill_(False), cut_off_(row)["next", "truncated"]
        (tensor([[False]]), tensor([[True]]))
    """
    ends = row["next", "truncated"] | ~row["next", "terminated"]
    row["next", "truncated"], row["next", "done"] = ends, ends.new_ones(ends.shape)
    return row


def stored_keys(data: TensorDictBase) -> tuple[NestedKey, ...]:
    """The entries of transitions that a replay buffer must store for a loss to be correct.

    Args:
        data: transitions, possibly with :data:`STEPS`.

    Returns:
        :data:`TRANSITION`, or :func:`transition_keys` of the observations if none has the name ``"observation"``, and
        :data:`STEPS` if the data have it, because the loss discounts by it.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.testing import random_transitions
        >>> rows = random_transitions(4, 3, 1)
        >>> stored_keys(rows) == TRANSITION
        True
        >>> rows = rows.rename_key_("observation", "state").rename_key_(("next", "observation"), ("next", "state"))
        >>> stored_keys(rows) == transition_keys("state")
        True
    """
    following = data.get("next", None)
    if "observation" in data or not isinstance(following, TensorDictBase):
        return with_steps(TRANSITION, data)
    observed = [name for name in data.keys() if name in following and name not in _NOT_OBSERVED]  # noqa: SIM118  # not rows
    return with_steps(transition_keys(*observed) if observed else TRANSITION, data)


def with_steps(keys: Sequence[NestedKey], data: TensorDictBase) -> tuple[NestedKey, ...]:
    """Keys of transitions, and :data:`STEPS` if the data have it, without which losses discount by one step.

    Args:
        keys: of transitions.
        data: transitions.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.testing import random_transitions
        >>> with_steps(["action"], random_transitions(2, 3, 1).set(STEPS, torch.tensor([2, 1])))
        ('action', 'steps_to_next_obs')
    """
    return (*keys, STEPS) if has_steps(data) and STEPS not in keys else tuple(keys)


def check_one_step(data: TensorDictBase, what: str) -> None:
    """Raise for rows over several steps, whose rewards are sums and whose next observations are several steps ahead.

    Args:
        data: transitions.
        what: name of the quantity that needs single steps, for the message.

    Raises:
        O2ODataError: if the data have ``"steps_to_next_obs"``.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> check_one_step(random_transitions(4, 3, 2), "a Monte-Carlo return")
    """
    if has_steps(data):
        raise O2ODataError(
            f"the transitions have {STEPS!r}, so their rewards are sums over n steps, from which {what} cannot be "
            "computed; apply n_step last"
        )


def check_steps(data: TensorDictBase) -> None:
    """Raise if rows span less than one step, because losses would discount too little, or by more than one.

    Args:
        data: transitions, possibly with :data:`STEPS`.

    Raises:
        O2ODataError: naming the first such row.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.testing import random_transitions
        >>> check_steps(random_transitions(2, 3, 1).set(STEPS, torch.tensor([1, 0])))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2ODataError: row 1 has 'steps_to_next_obs' 0, expected whole numbers of at least 1...
    """
    steps = data.get(STEPS, None)
    if steps is None:
        return
    counts = steps.reshape(-1)
    wrong = ~(counts >= 1) | (counts != counts.floor() if counts.is_floating_point() else False)
    if counts.dtype == torch.bool or bool(wrong.any()):
        row = 0 if counts.dtype == torch.bool else int(wrong.nonzero()[0])
        raise O2ODataError(
            f"row {row} has {STEPS!r} {counts[row].item()}, expected whole numbers of at least 1, the steps between "
            "the row's two observations, because losses discount by it; make such rows with torchrl_o2o.data.n_step"
        )


def has_steps(data: TensorDictBase) -> bool:
    """Whether transitions span several steps.

    Args:
        data: transitions.

    Returns:
        Whether :data:`STEPS` is among their entries.
    """
    return data.get(STEPS, None) is not None
