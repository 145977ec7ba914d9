# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Arrays of a source brought into rows: which observation follows which, and where an episode ends.

Shapes: N transitions, E episodes, o observation and a action dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from torchrl_o2o.data.findings import Finding
from torchrl_o2o.errors import O2ODataError

__all__ = ["Rows", "cast_column", "rows_from_episodes", "rows_from_flat"]

_ALIASES = {
    "observations": ("observations", "observation", "obs"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "next_observations": ("next_observations", "next_observation", "next_obs"),
    "terminals": ("terminals", "terminations", "terminated"),
    "timeouts": ("timeouts", "truncations", "truncated"),
    "episode": ("episode", "episodes", "episode_ids"),
}


@dataclass(frozen=True)
class Rows:
    """The rows of a source in order, each episode's together, as numpy arrays.

    Args:
        observation: [N, o] or [N, ...] for images.
        action: [N, a].
        next_observation: like ``observation``.
        reward: [N].
        terminated: [N] bool, true terminals.
        truncated: [N] bool, time limits.
        lengths: [E] int64, transitions per episode; they sum to N.
        notes: what the reader had to change.
    """

    observation: np.ndarray
    action: np.ndarray
    next_observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    lengths: np.ndarray
    notes: tuple[Finding, ...] = ()


def cast_column(values: np.ndarray, name: str) -> np.ndarray:
    """Cast one array to what batches are made of: float32, or uint8 where the rows are images.

    Args:
        values: [N, ...] numbers of any kind.
        name: what to call it in an error.

    Raises:
        O2ODataError: if the values are not real numbers.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.data.datasets.rows import cast_column
        >>> cast_column(np.zeros((3, 2)), "observations").dtype
        dtype('float32')
        >>> cast_column(np.zeros((3, 8, 8, 3), np.uint8), "observations").dtype
        dtype('uint8')
    """
    values = np.asarray(values)
    if values.dtype.kind not in "fiub":
        raise O2ODataError(f"{name} holds {values.dtype}; expected real numbers in one array.")
    if values.dtype == np.uint8 and values.ndim >= 3:
        return values
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which the audit reports with its place
        return values.astype(np.float32, copy=False)


def rows_from_episodes(episodes: Iterable[Mapping[str, np.ndarray]], *, origin: str) -> Rows:
    """Join episodes that hold T+1 observations for T actions, or T and their ``next_observations``.

    Where an episode has as many observations as actions and no next observations, its last transition has no
    successor: it is dropped and counted, and the transition before it ends the episode, truncated unless terminal.

    Args:
        episodes: dictionaries with ``observations``, ``actions``, ``rewards`` and, if known, ``terminals`` and
            ``timeouts`` (or Minari's and gymnasium's names for them).
        origin: what to call the source in an error.

    Raises:
        O2ODataError: if an episode's arrays do not fit together; the message names the episode.
    """
    parts: list[dict[str, np.ndarray]] = []
    cut, whole = 0, ()
    for number, episode in enumerate(episodes):
        part, was_cut = _episode_columns(episode, f"{origin}, episode {number}")
        parts.append(part)
        cut += was_cut
        whole = whole or _whole_note(_canonical(episode, origin)["actions"], origin)
    if not parts:
        raise O2ODataError(f"{origin} holds no episodes; expected at least one.")
    _same_shapes(parts, origin)
    lengths = np.array([len(part["reward"]) for part in parts], dtype=np.int64)
    # Popped, so that no more than one column is held twice.
    columns = {key: np.concatenate([part.pop(key) for part in parts]) for key in tuple(parts[0])}
    notes = whole if not cut else (*whole, _no_successor_note(cut))
    return Rows(**columns, lengths=lengths, notes=notes)


def _episode_columns(arrays: Mapping[str, np.ndarray], origin: str) -> tuple[dict[str, np.ndarray], bool]:
    if not isinstance(arrays, Mapping):
        raise O2ODataError(f"{origin} is a {type(arrays).__name__}; expected a dictionary of arrays.")
    arrays = _canonical(arrays, origin)
    observation = _vectors(arrays["observations"], f"observations of {origin}")
    steps = len(arrays["actions"])
    following = arrays.get("next_observations")
    if len(observation) == steps + 1 and following is None:
        kept, observation, successor = steps, observation[:-1], observation[1:]
    elif len(observation) == steps and following is not None:
        kept, successor = steps, _vectors(following, f"next_observations of {origin}")
    elif len(observation) == steps:
        kept, successor = max(steps - 1, 0), observation[1:]
    else:
        raise O2ODataError(
            f"{origin} has {len(observation)} observations for {steps} actions; expected {steps + 1} (or {steps} "
            "with next_observations)."
        )
    columns = {
        "observation": observation[:kept],
        "action": _vectors(arrays["actions"], f"actions of {origin}")[:kept],
        "next_observation": successor,
        "reward": cast_column(arrays["rewards"], f"rewards of {origin}").reshape(-1)[:kept],
        "terminated": _flags(arrays, "terminals", steps)[:kept],
        "truncated": _flags(arrays, "timeouts", steps)[:kept],
    }
    _same_length(columns, origin)
    return columns, kept < steps


def rows_from_flat(arrays: Mapping[str, np.ndarray], *, max_episode_steps: int | None, origin: str) -> Rows:
    """Split flat arrays in the manner of D4RL into episodes.

    With ``next_observations`` every row is kept. Without them the successor of a row is the next row; that of a row
    which ends an episode by a time limit (or by the end of the file) is not in the data, so the row is dropped and the
    one before it ends the episode, truncated. A terminal row stays: nothing bootstraps from its successor, for which
    its own observation stands in.

    Args:
        arrays: ``observations`` [N, o], ``actions`` [N, a], ``rewards`` [N] or [N, 1], ``terminals`` [N], and where
            known ``timeouts`` [N], ``next_observations`` [N, o], ``episode`` [N].
        max_episode_steps: cuts episodes where neither ``timeouts`` nor ``episode`` says where they end.
        origin: what to call the source in an error.

    Raises:
        O2ODataError: if arrays are missing or differ in length, or if nothing says where episodes end.
    """
    arrays = _canonical(arrays, origin)
    steps = len(arrays["actions"])
    columns = {
        "observation": _vectors(arrays["observations"], f"observations of {origin}"),
        "action": _vectors(arrays["actions"], f"actions of {origin}"),
        "reward": cast_column(arrays["rewards"], f"rewards of {origin}").reshape(-1),
        "terminated": _flags(arrays, "terminals", steps),
        "truncated": _time_limits(arrays, steps, max_episode_steps, origin),
    }
    if "next_observations" in arrays:
        columns["next_observation"] = _vectors(arrays["next_observations"], f"next_observations of {origin}")
    _same_length(columns, origin)
    ends = _ends(columns, arrays.get("episode"))
    if "next_observation" in columns:
        rows = Rows(**columns, lengths=np.diff(ends, prepend=-1).astype(np.int64))
    else:
        rows = _with_next_rows(columns, ends)
    return replace(rows, notes=(*rows.notes, *_whole_note(arrays["actions"], origin)))


def _ends(columns: Mapping[str, np.ndarray], episode: np.ndarray | None) -> np.ndarray:
    done = columns["terminated"] | columns["truncated"]
    if episode is not None:
        episode = np.asarray(episode).reshape(-1)
        done = np.append(episode[1:] != episode[:-1], True) if len(episode) else done
    elif len(done):
        done = np.append(done[:-1], True)
    return np.flatnonzero(done)


def _with_next_rows(columns: dict[str, np.ndarray], ends: np.ndarray) -> Rows:
    observation = columns["observation"]
    successor = np.concatenate([observation[1:], observation[-1:]])
    successor[ends] = observation[ends]
    lost = ends[~columns["terminated"][ends]]
    lengths = np.diff(ends, prepend=-1).astype(np.int64)
    before = lost[lengths[np.searchsorted(ends, lost)] > 1] - 1
    columns["truncated"] = columns["truncated"].copy()
    columns["truncated"][before] = True
    keep = np.ones(len(observation), dtype=bool)
    keep[lost] = False
    lengths[np.searchsorted(ends, lost)] -= 1
    kept = {key: values[keep] for key, values in columns.items()}
    notes = () if not len(lost) else (_no_successor_note(len(lost)),)
    return Rows(**kept, next_observation=successor[keep], lengths=lengths, notes=notes)


def _time_limits(arrays: Mapping[str, np.ndarray], steps: int, limit: int | None, origin: str) -> np.ndarray:
    if "timeouts" in arrays or "episode" in arrays:
        return _flags(arrays, "timeouts", steps)
    if limit is None:
        raise O2ODataError(
            f"{origin} has no timeouts, so nothing says where an episode ended by its time limit; expected a "
            "'timeouts' or an 'episode' array. Pass max_episode_steps to cut episodes at that length."
        )
    # The row's index within its run of rows between two terminals; the limit falls on every multiple of it.
    starts = np.flatnonzero(np.append(True, _flags(arrays, "terminals", steps)[:-1])) if steps else np.zeros(0, int)
    index = np.arange(steps) - np.repeat(starts, np.diff(starts, append=steps))
    return index % limit == limit - 1


def _canonical(arrays: Mapping[str, np.ndarray], origin: str) -> dict[str, np.ndarray]:
    known = {name: next((alias for alias in aliases if alias in arrays), None) for name, aliases in _ALIASES.items()}
    missing = [name for name in ("observations", "actions", "rewards") if known[name] is None]
    if missing:
        raise O2ODataError(f"{origin} has no {', '.join(missing)}; it holds {sorted(arrays)}.")
    found = {name: np.asarray(arrays[alias]) for name, alias in known.items() if alias is not None}
    single = [name for name, values in found.items() if values.ndim == 0]
    if single:
        raise O2ODataError(
            f"{', '.join(single)} of {origin}: one value instead of one row per step; record them again."
        )
    return found


def _flags(arrays: Mapping[str, np.ndarray], name: str, steps: int) -> np.ndarray:
    values = arrays.get(name)
    return np.zeros(steps, dtype=bool) if values is None else np.array(values, dtype=bool).reshape(-1)


def _vectors(values: np.ndarray, name: str) -> np.ndarray:
    """Cast observations or actions; single numbers become vectors of one entry."""
    values = cast_column(values, name)
    return values[:, None] if values.ndim == 1 else values


def _whole_note(values: np.ndarray, origin: str) -> tuple[Finding, ...]:
    """Tell that actions are whole numbers: without a box that they are steps of, they are a discrete choice."""
    dtype = np.asarray(values).dtype
    if dtype.kind not in "biu":
        return ()
    message = (
        f"the actions of {origin} are whole numbers ({dtype}), a discrete choice; the methods of this package are for "
        "continuous actions only. If they are steps of a real number, say in which box: action_bounds=(low, high)."
    )
    return (Finding("whole_actions", "note", message, key="action"),)


def _same_length(columns: Mapping[str, np.ndarray], origin: str) -> None:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise O2ODataError(f"the arrays of {origin} differ in length: {lengths}; expected one row per step in each.")


def _same_shapes(parts: list[dict[str, np.ndarray]], origin: str) -> None:
    for key in parts[0]:
        shapes = [part[key].shape[1:] for part in parts]
        odd = next((number for number, shape in enumerate(shapes) if shape != shapes[0]), None)
        if odd is not None:
            raise O2ODataError(
                f"{origin}: one {key} has the shape {list(shapes[odd])} in episode {odd} and {list(shapes[0])} in "
                "episode 0; expected one shape."
            )


def _no_successor_note(count: int) -> Finding:
    message = f"{count} transitions have no next observation in the data (the last of an episode) and were dropped."
    return Finding("no_next_observation", "warning", message, count=count)
