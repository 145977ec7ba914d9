# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Convert raw rows to TED, with the rules for flags and for unfinished and short episodes.

Shapes: N transitions, E episodes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from tensordict import TensorDict

from torchrl_o2o.data.datasets.rows import RawRows
from torchrl_o2o.data.findings import Finding
from torchrl_o2o.errors import O2ODataError

__all__ = ["to_transitions"]

#: Skipping episodes shorter than this default is reported as a repair; a larger minimum is the caller's choice.
_DEFAULT_SHORTEST = 2


def to_transitions(rows: RawRows, *, min_episode_length: int, origin: str) -> tuple[TensorDict, tuple[Finding, ...]]:
    """Apply the rules of TED and pack the rows.

    Episodes shorter than ``min_episode_length`` are skipped. A row that is both terminated and truncated counts as
    terminated; a warning is given if this holds for most time limits. The last row of an episode that ends without a
    flag is truncated.

    Args:
        rows: the raw rows.
        min_episode_length: the shortest episode kept, in transitions.
        origin: what to call the source in an error.

    Returns:
        The transitions [N] and the changes.

    Raises:
        O2ODataError: if nothing is left.
    """
    notes = list(rows.notes)
    before = len(rows.reward)
    rows, skipped = _skip_short(rows, min_episode_length)
    if skipped:
        way = "; pass min_episode_length=1 to keep every episode that has one" if min_episode_length > 1 else ""
        text = f"{skipped} episodes have fewer than {min_episode_length} transitions and were skipped{way}."
        notes.append(Finding("short_episodes", "warning", text, count=skipped))
    notes += _loss(notes, before - len(rows.reward) if min_episode_length <= _DEFAULT_SHORTEST else 0, len(rows.reward))
    if not len(rows.reward):
        if skipped:
            way = "pass min_episode_length=1 to keep single steps" if min_episode_length > 1 else "check those"
            raise O2ODataError(
                f"{origin} has {skipped} episodes, all shorter than min_episode_length={min_episode_length}; expected "
                f"a longer one. Episodes end where the flags or the 'episode' numbers say so; {way}."
            )
        raise O2ODataError(f"{origin} is empty: no transitions; expected at least one.")
    truncated, flag_notes = _episode_flags(rows)
    return _pack(replace(rows, truncated=truncated)), (*notes, *flag_notes)


def _loss(notes: list[Finding], skipped: int, kept: int) -> list[Finding]:
    """A finding if most of the rows are lost: then the source was misread or is broken."""
    lost = skipped + sum(note.count for note in notes if note.code == "no_next_observation")
    if lost <= kept or not kept:
        return []
    message = (
        f"{lost} of {lost + kept} rows are lost, because their episodes are too short or end without a next "
        "observation. Check the array that marks the ends of episodes. Pass min_episode_length=1 to keep single steps."
    )
    return [Finding("rows_lost", "error", message, count=lost)]


def _skip_short(rows: RawRows, min_episode_length: int) -> tuple[RawRows, int]:
    good = rows.lengths >= min_episode_length
    skipped = int((~good).sum())
    if not skipped:
        return rows, 0
    keep = np.repeat(good, rows.lengths)
    names = ("observation", "action", "next_observation", "reward", "terminated", "truncated")
    return replace(rows, lengths=rows.lengths[good], **{name: getattr(rows, name)[keep] for name in names}), skipped


def _episode_flags(rows: RawRows) -> tuple[np.ndarray, list[Finding]]:
    notes = []
    both = rows.terminated & rows.truncated
    truncated = rows.truncated & ~both
    if both.any():
        message = f"{both.sum()} transitions are terminal and at their time limit; they count as terminated."
        most = both.sum() > truncated.sum()
        if most:
            message += (
                " Most time limits are terminal here: if the array of terminals marks every end of an episode, pass "
                "names={...: 'dones'} and max_episode_steps."
            )
        notes.append(Finding("both_flags", "warning" if most else "note", message, count=int(both.sum())))
    last = np.cumsum(rows.lengths) - 1
    open_ends = last[~(rows.terminated | truncated)[last]]
    if len(open_ends):
        truncated[open_ends] = True
        message = f"{len(open_ends)} episodes end without a flag; their last transition is marked truncated."
        notes.append(Finding("unfinished", "note", message, count=len(open_ends)))
    return truncated, notes


def _pack(rows: RawRows) -> TensorDict:
    size = len(rows.reward)
    terminated = torch.from_numpy(rows.terminated).unsqueeze(-1)
    truncated = torch.from_numpy(rows.truncated).unsqueeze(-1)
    following = {
        "observation": torch.from_numpy(np.ascontiguousarray(rows.next_observation)),
        "reward": torch.from_numpy(rows.reward).unsqueeze(-1),
        "terminated": terminated,
        "truncated": truncated,
        "done": terminated | truncated,
    }
    return TensorDict(
        {
            "observation": torch.from_numpy(np.ascontiguousarray(rows.observation)),
            "action": torch.from_numpy(np.ascontiguousarray(rows.action)),
            "next": TensorDict(following, [size]),
            "episode": torch.from_numpy(np.repeat(np.arange(len(rows.lengths)), rows.lengths)),
        },
        [size],
    )
