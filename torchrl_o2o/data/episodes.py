# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Assign rows of transitions to episodes. Everything that sums over episodes uses this rule."""

from __future__ import annotations

import warnings

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_o2o.data.keys import EPISODE, check_padding
from torchrl_o2o.errors import O2ODataError

__all__ = ["column", "ends_of", "flag_column", "number_episodes", "number_runs", "warn_of_gaps"]

_MOST_EXAMINED = 10_000
#: Entries that do not carry over from one row to the next.
_OUTCOME = {"action", "reward", "done", "terminated", "truncated"}


def number_episodes(data: TensorDictBase) -> Tensor:
    """Number episodes in the order of the data, from 0, without gaps.

    An episode ends where ``("next", "done")`` is true and where the number under ``"episode"`` changes. Data sets
    joined by ``torch.cat`` may use a number twice, and numbers may be missing; each episode still gets its own number.

    Args:
        data: transitions [N] with ``episode``; the rows of an episode are together and in order.

    Returns:
        [N] int64.

    Raises:
        O2ODataError: if ``episode`` is missing or is not one integer per row, an episode that has not ended continues
            further down (the rows were shuffled), or some rows are padding
            (:func:`~torchrl_o2o.data.keys.check_padding`).

    Warns:
        UserWarning: if rows were left out inside of episodes, see :func:`warn_of_gaps`.

    Examples:
        >>> from tensordict import TensorDict
        >>> data = TensorDict({"episode": torch.tensor([3, 3, 7])}, [3])
        >>> number_episodes(data)
        tensor([0, 0, 1])
        >>> number_episodes(data[torch.tensor([0, 2, 1])])
        Traceback (most recent call last):
        torchrl_o2o.errors.O2ODataError: episode 3 breaks off after row 0 and continues further down: the rows are...
    """
    check_padding(data)
    episode = data.get(EPISODE, None)
    if episode is None:
        raise O2ODataError(
            f"the transitions have no {EPISODE!r}, expected it for sums over episodes; load whole episodes in order "
            f"with load_offline, or set {EPISODE!r} to their numbers (zeros for a single episode)"
        )
    whole = not episode.is_floating_point() and not episode.is_complex() and episode.dtype != torch.bool
    if episode.shape != (len(data),) or not whole:
        raise O2ODataError(
            f"got {EPISODE!r} of shape {list(episode.shape)} and {episode.dtype} for {len(data)} transitions, expected "
            f"one integer per row, [{len(data)}]; squeeze it, or number the episodes from 0"
        )
    ended = ends_of(data)
    _refuse_shuffled(episode, (episode[1:] != episode[:-1]) & ~ended[:-1])
    number = number_runs(episode, ended)
    warn_of_gaps(data, number)
    return number


def warn_of_gaps(data: TensorDictBase, number: Tensor) -> None:
    """Warn if rows do not continue in the next row of their episode, because sums would lead over the gaps.

    A subset such as ``data[::2]``, or a mask of single rows, has such gaps. At most 10,000 rows, evenly spread, are
    examined.

    Args:
        data: transitions [N].
        number: of each row's episode, [N].

    Examples:
        >>> import warnings
        >>> from torchrl_o2o.testing import ContextualTargetEnv, probe_transitions
        >>> data = probe_transitions(ContextualTargetEnv(), 3)
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_of_gaps(data, torch.tensor([0, 0, 0]))  # episodes of a single step, under one number
        >>> str(caught[0].message)[:65]
        '2 of 2 rows examined, the first in row 0, do not continue in the '
    """
    following = data.get("next", None)
    if not isinstance(following, TensorDictBase):
        return
    present, names = set(data.keys(True, True)), following.keys(True, True)
    keys = [key for key in names if key in present and key not in _OUTCOME]
    rows = (number[1:] == number[:-1]).nonzero().squeeze(-1)
    rows = rows[:: max(1, len(rows) // _MOST_EXAMINED)]
    if not len(rows):
        return
    broken = torch.zeros_like(rows, dtype=torch.bool)
    for key in keys:
        led_to, begins = following.get(key), data.get(key)
        if led_to.shape == begins.shape:
            broken |= (led_to[rows] != begins[rows + 1]).reshape(len(rows), -1).any(-1)
    if broken.any():
        warnings.warn(
            f"{int(broken.sum())} of {len(rows)} rows examined, the first in row {int(rows[broken][0])}, do not "
            "continue in the next row of their episode: sums, stacks and next actions take the next row that is there. "
            "If you have left rows out, compute them before, or select whole episodes",
            stacklevel=4,
        )


def ends_of(data: TensorDictBase) -> Tensor:
    """Which rows end their episode, [N] bool: by ``done``, or by the other flags if there is no ``done``.

    Args:
        data: transitions [N].

    Raises:
        O2ODataError: if a flag does not have one value per row, or another one than 0 and 1.

    Examples:
        >>> from tensordict import TensorDict
        >>> ends_of(TensorDict({"next": {"truncated": torch.tensor([False, True])}}, [2]))
        tensor([False,  True])
    """
    flags = {name: data.get(("next", name), None) for name in ("done", "terminated", "truncated")}
    found = [flag_column(data, flag, name) for name, flag in flags.items() if flag is not None]
    if flags["done"] is not None or len(found) == 1:
        return found[0]
    return found[0] | found[1] if found else torch.zeros(len(data), dtype=torch.bool, device=data.device)


def number_runs(marks: Tensor, ended: Tensor) -> Tensor:
    """Number the runs of rows with the same mark, from 0; a row with an end flag also ends its run.

    Args:
        marks: [N].
        ended: flags, [N].

    Returns:
        [N] int64.

    Examples:
        >>> number_runs(torch.tensor([5, 5, 5, 2]), torch.tensor([False, True, False, False]))
        tensor([0, 0, 1, 2])
    """
    begins = torch.zeros_like(marks, dtype=torch.int64)
    begins[1:] = (marks[1:] != marks[:-1]) | ended[:-1]
    return begins.cumsum(0)


def column(data: TensorDictBase, values: Tensor, name: str) -> Tensor:
    """One value per row, [N], from a column [N, 1].

    Args:
        data: the rows, [N].
        values: [N, 1], or [N].
        name: their name in messages.

    Raises:
        O2ODataError: if there are not as many values as rows.

    Examples:
        >>> from tensordict import TensorDict
        >>> column(TensorDict({}, [2]), torch.zeros(2, 1), "reward").shape
        torch.Size([2])
    """
    if values.shape not in ((len(data), 1), (len(data),)):
        raise O2ODataError(
            f"got {name!r} of shape {list(values.shape)} for {len(data)} transitions, expected [{len(data)}, 1]"
        )
    return values.reshape(len(data))


def flag_column(data: TensorDictBase, values: Tensor, name: str) -> Tensor:
    """One flag per row, [N] bool, from a column [N, 1].

    Args:
        data: the rows, [N].
        values: [N, 1], or [N]; numbers are 0 or 1.
        name: their name in messages.

    Raises:
        O2ODataError: if there are not as many flags as rows, or a number is neither 0 nor 1. As a bool, a reward of -1
            or NaN would be true.

    Examples:
        >>> from tensordict import TensorDict
        >>> flag_column(TensorDict({}, [2]), torch.tensor([[0.0], [1.0]]), "success")
        tensor([False,  True])
    """
    flags = column(data, values, name)
    if flags.dtype == torch.bool:
        return flags
    if (wrong := (flags != 0) & (flags != 1)).any():
        row = int(wrong.nonzero()[0])
        raise O2ODataError(
            f"{name!r} is {flags[row].item()} in row {row}, expected flags, 0 or 1; compare the numbers first, as in "
            f"{name} > 0"
        )
    return flags.bool()


def _refuse_shuffled(episode: Tensor, left: Tensor) -> None:
    """Raise if an episode continues after rows of another; ``left``, [N - 1], marks changes without an end."""
    if not left.any():
        return
    row = torch.arange(len(episode), device=episode.device)
    numbers, index = episode.unique(return_inverse=True)
    last = torch.zeros_like(numbers, dtype=torch.int64).scatter_reduce_(0, index, row, "amax", include_self=False)
    again = (left & (last[index][:-1] > row[:-1])).nonzero()
    if len(again):
        first = int(again[0])
        raise O2ODataError(
            f"episode {int(episode[first])} breaks off after row {first} and continues further down: the rows are "
            "shuffled. Sums over episodes need the rows of each episode together and in the order of recording, as "
            "from load_offline"
        )
