# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Steps as `RLDS <https://github.com/google-research/rlds#dataset-format>`_ writes them, made into transitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from torchrl_o2o.data.datasets.casting import cast_episode
from torchrl_o2o.data.datasets.names import NEEDED, RLDS
from torchrl_o2o.errors import O2ODataError

__all__ = ["rlds_transitions"]


def rlds_transitions(
    arrays: Mapping[str, np.ndarray], flags: Sequence[np.ndarray], others: Sequence[str], origin: str
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Make transitions from RLDS steps. An episode's last step gives only its observation and whether it is terminal.

    Args:
        arrays: role -> array, one row per step.
        flags: ``is_first``, ``is_last`` and ``is_terminal``, each [N].
        others: names of further arrays that say where episodes end, of which there may be none.
        origin: what to call the source in an error.

    Returns:
        Role -> array, one row per transition, and the rows that they were taken from.

    Raises:
        O2ODataError: if the steps are not laid out as RLDS lays them out.
    """
    arrays = dict(arrays)
    lengths = {len(flag) for flag in flags} | {len(arrays[role]) for role in NEEDED}
    if others or len(lengths) > 1:
        wrong = f"also {', '.join(others)}" if others else f"arrays of the lengths {sorted(lengths)}"
        raise O2ODataError(
            f"{origin} has {', '.join(RLDS)}, RLDS's flags of each step, and {wrong}; expected one row per step and "
            "nothing else that says where episodes end. Say what each is by names, such as names={...: 'ignore'}."
        )
    first, last, terminal = flags
    ends = last | np.append(first[1:], True)[: len(last)]
    _check_rlds(arrays, ends, last, terminal, origin)
    rows = np.flatnonzero(~ends)
    arrays["next_observations"] = arrays["observations"][rows + 1]
    arrays |= {role: arrays[role][rows] for role in (*NEEDED, "episode") if role in arrays}
    arrays |= {"terminals": terminal[rows + 1], "ends": ends[rows + 1]}
    arrays.pop("starts", None)
    return arrays, rows


def _check_rlds(
    arrays: Mapping[str, np.ndarray], ends: np.ndarray, last: np.ndarray, terminal: np.ndarray, origin: str
) -> None:
    """Raise if steps have RLDS's flag names, but not its layout."""
    said = "names={'is_first': 'starts', 'is_last': 'ends', 'is_terminal': 'terminals'}"
    about = f"{origin} has {', '.join(RLDS)}, as RLDS, whose last step of an episode holds only an observation"
    inside = np.flatnonzero(terminal & ~ends)
    if len(inside):
        raise O2ODataError(
            f"{about}, but row {inside[0]} is terminal but not the last row of its episode. If each row is a "
            f"transition, pass {said}."
        )
    rewards = arrays["rewards"].reshape(len(last), -1)
    paid = np.flatnonzero(last & (rewards != 0).any(1))
    if len(paid):
        raise O2ODataError(
            f"{about}, but {len(paid)} such steps have a reward, first row {paid[0]} with {rewards[paid[0]].max():g}. "
            f"If each row is a transition, also the last one, pass {said}. If each reward is stored with the "
            "observation after it, move rewards one row up. If it means nothing, set it to 0."
        )
    if "episode" in arrays:
        episode = cast_episode(arrays["episode"], f"episode of {origin}")
        spread = np.flatnonzero((episode[1:] != episode[:-1]) & ~ends[:-1])
        if len(spread):
            raise O2ODataError(
                f"{about}, but row {spread[0]} of episode {episode[spread[0]]} is not its last, but a row of another "
                "episode follows it. Put the rows of each episode together."
            )
