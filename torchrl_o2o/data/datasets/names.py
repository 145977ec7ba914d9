# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What projects call the arrays of their data sets: one table for all readers, and what other names suggest."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

__all__ = [
    "NAMES",
    "NEEDED",
    "OBSERVATIONS",
    "RLDS",
    "SAID",
    "STAND_INS",
    "likely_role",
    "says_something_new",
    "speaks_of_ends",
]

#: Role of an array -> names that projects give it. The first name that is present is read.
NAMES: Mapping[str, tuple[str, ...]] = {
    "observations": ("observations", "observation", "obs"),
    "actions": ("actions", "action", "acts", "act"),
    "rewards": ("rewards", "reward", "rews", "rew"),
    # obs_next as in Tianshou, new_obs and eps_id as in RLlib
    "next_observations": ("next_observations", "next_observation", "next_obs", "obs_next", "new_obs"),
    "terminals": ("terminals", "terminations", "terminated", "terminateds", "terminal", "is_terminal"),
    "timeouts": ("timeouts", "truncations", "truncated", "truncateds", "timeout"),
    "episode": ("episode", "episodes", "episode_ids", "episode_id", "eps_id", "traj_ids", "traj_id"),
    "masks": ("masks",),  # 1 - terminal, as in jaxrl
    "starts": ("episode_starts", "is_first"),  # the first row of each episode, as in Stable-Baselines and RLDS
    "ends": ("dones_float",),  # the last row of each episode, whatever the reason, as in jaxrl
}
#: Further roles that ``names`` may assign to an array.
SAID = ("dones", "ignore")
#: These are read if none of the listed roles is present; otherwise they are compared with those roles.
STAND_INS = {
    "masks": ("terminals",),
    "starts": ("timeouts", "episode"),
    "ends": ("timeouts", "episode", "starts"),
}
#: If all of these are present, the last row of an episode holds only an observation, as in RLDS.
RLDS = ("is_first", "is_last", "is_terminal")
NEEDED = ("observations", "actions", "rewards")
OBSERVATIONS = ("observations", "next_observations")
_COULD_BE_ENDS = re.compile(
    r"done|termin|trunc|time_?limit|timeout|mask|discount|reset|episode|traj|rollout|step_?type"
    r"|(^|[_/.])(is_)?(first|last|starts?|ends?|final|ep|(eps?|demo)_?(id|idx|index|num|number))($|_)",
    re.IGNORECASE,
)
_COULD_BE_TERMINALS = re.compile(r"done|termin|mask|discount", re.IGNORECASE)
#: Names of arrays that are 0 where an episode ends.
_COULD_BE_INVERSE = re.compile(r"mask|discount|continu|alive|valid|not|non", re.IGNORECASE)
#: The most likely roles of arrays by parts of their names; the first match counts. d3rlpy's episode_terminals are the
#: ends of episodes.
_LIKELY = tuple(
    (re.compile(pattern, re.IGNORECASE), role)
    for pattern, role in (
        (r"mask|discount", "masks"),
        (r"episode.*termin", "ends"),
        (r"termin", "terminals"),
        (r"trunc|time_?limit|timeout", "timeouts"),
        (r"first|start|reset", "starts"),
        (r"last|end|final|done", "ends"),
        (r"episode|traj|rollout|(^|[_/.])(ep|(eps?|demo)_?(id|idx|index|num|number))($|_)", "episode"),
        (r"", "ends"),
    )
)


def speaks_of_ends(name: str) -> bool:
    """Whether an array's name suggests that it marks the ends of episodes.

    Args:
        name: of the array.

    Examples:
        >>> speaks_of_ends("is_last"), speaks_of_ends("velocity")
        (True, False)
    """
    return _COULD_BE_ENDS.search(name) is not None


def likely_role(name: str) -> str:
    """The most likely role, by its name, of an array that marks ends, for suggestions in errors.

    Args:
        name: of the array.

    Examples:
        >>> [likely_role(name) for name in ("terminateds", "truncateds", "discount", "episode_terminals", "dones")]
        ['terminals', 'timeouts', 'masks', 'ends', 'ends']
    """
    return next(role for pattern, role in _LIKELY if pattern.search(name))


def says_something_new(
    values: np.ndarray, name: str, terminals: np.ndarray, ends: np.ndarray, known: bool
) -> int | None:
    """The first row in which an array differs from the known flags, or ``None`` if it agrees with one of them.

    Args:
        values: the array, [N].
        name: its name.
        terminals: the terminal states, [N].
        ends: the last row of each episode, [N].
        known: whether ``terminals`` were read; otherwise the array may say what they are.
    """
    if values.dtype.kind not in "fiub" or not len(values):
        return None
    starts = np.append(True, ends[:-1])
    inner = slice(None, -1)  # the last row need not be marked as an end
    if values.dtype.kind == "f" and len(levels := np.unique(values[values != 0])) == 1 and levels[0] > 0:
        if levels[0] != 1 and (values != 0).all():
            return None  # the same number in every row, such as a discount of 0.99, marks nothing
        values = (values != 0).astype(np.float32)  # a discount of 0.99, and 0 in terminal rows
    if np.isin(values, (0, 1)).all():
        marks = [(terminals, slice(None))]
        if known or not _COULD_BE_TERMINALS.search(name):
            marks += [(ends, inner), (ends & ~terminals, inner), (starts, slice(None))]
        claims = [(values != mark)[part] for mark, part in marks]
        if _COULD_BE_INVERSE.search(name):
            claims += [(values == mark)[part] for mark, part in marks]
    elif np.isin(values, (0, 1, 2)).all():  # dm_env's step types: first, mid, last
        claims = [(values[:-1] == 2) != ends[:-1]]
    else:
        claims = [after != ends[:-1] for after in (values[1:] != values[:-1], values[1:] <= values[:-1])]
    if any(not claim.any() for claim in claims):
        return None
    return int(claims[0].argmax())
