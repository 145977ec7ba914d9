# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Turn the arrays of a source into rows: find each row's next observation and the ends of episodes.

Shapes: N transitions, E episodes, o observation and a action dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tensordict import TensorDictBase

from torchrl_o2o.data.datasets.casting import cast_column, cast_episode, cast_flags
from torchrl_o2o.data.datasets.columns import Columns, find_columns, unread_notes
from torchrl_o2o.data.datasets.names import likely_role
from torchrl_o2o.data.findings import Finding
from torchrl_o2o.errors import O2ODataError

__all__ = ["RawRows", "rows_from_episodes", "rows_from_flat"]

#: An episode is spread over the file if its runs of consecutive rows are shorter than this on average.
_SHORT_RUN = 4
#: The order is only examined from ``_MANY`` rows and ``_FEW`` time limits on; at most ``_MOST_COMPARED`` numbers are
#: compared.
_MANY, _FEW, _MOST_COMPARED = 100, 3, 1_000_000
#: Rows have no order if the ratio of squared steps to squared distances of arbitrary rows is at least this; from
#: ``_ENOUGH`` rows on, each entry is examined by itself.
_UNORDERED, _ENOUGH = 0.8, 1_000
#: Roles that mark terminal rows.
_TERMINALS = {"terminals", "masks", "dones"}


@dataclass(frozen=True)
class RawRows:
    """The rows of a source in order, each episode's together, as numpy arrays.

    Args:
        observation: [N, o] or [N, ...] for images.
        action: [N, a].
        next_observation: like ``observation``.
        reward: [N].
        terminated: [N] bool, true terminals.
        truncated: [N] bool, time limits.
        lengths: [E] int64, transitions per episode; they sum to N.
        returns: [E] float64, sums of all rewards in the source, including those of dropped rows.
        notes: the reader's changes.
    """

    observation: np.ndarray
    action: np.ndarray
    next_observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    lengths: np.ndarray
    returns: np.ndarray
    notes: tuple[Finding, ...] = ()

    def kept_returns(self, min_episode_length: int) -> tuple[float, ...]:
        """Returns of the episodes that are long enough to be kept."""
        return tuple(self.returns[self.lengths >= min_episode_length].tolist())


def rows_from_episodes(
    episodes: Iterable[Mapping[str, Any]],
    *,
    origin: str,
    max_episode_steps: int | None = None,
    names: Mapping[str, str] | None = None,
    obs_keys: Sequence[str] | None = None,
) -> RawRows:
    """Join episodes with T+1 observations for T actions, or with T observations and ``next_observations``.

    If an episode has as many observations as actions and no next observations, its last transition has no successor. If
    it is terminal, it stays with its own observation as successor, because nothing bootstraps from it. Otherwise, it is
    dropped and counted, and the transition before it ends the episode, truncated unless terminal.

    Args:
        episodes: dictionaries with ``observations``, ``actions``, ``rewards`` and, if known, ``terminals`` and
            ``timeouts``, or any of their names in :data:`~torchrl_o2o.data.datasets.columns.NAMES`. A flag may be one
            value for the whole episode.
        origin: what to call the source in an error.
        max_episode_steps: the time limit, for an array with the role ``"dones"``.
        names: see :func:`~torchrl_o2o.data.datasets.columns.find_columns`.
        obs_keys: entries of dictionary observations to join.

    Raises:
        O2ODataError: if an episode's arrays do not fit together; the message names the episode.
    """
    parts: list[dict[str, np.ndarray]] = []
    returns: list[float] = []
    cut, notes, found, told = 0, (), Columns({}), []
    for number, episode in enumerate(episodes):
        where = f"{origin}, episode {number}"
        if not isinstance(episode, Mapping) or isinstance(episode, TensorDictBase):
            remedy = "; join them to one by torch.cat" if isinstance(episode, TensorDictBase) else ""
            raise O2ODataError(f"{where} is a {type(episode).__name__}; expected a dictionary of arrays{remedy}.")
        found = find_columns(episode, names=names, obs_keys=obs_keys, single=True, origin=where)
        told.append(bool(_TERMINALS & set(found.arrays)))
        part, total, unread = _episode_columns(found, max_episode_steps, where)
        notes = notes or (*_whole_note(found.arrays["actions"], origin), *unread)
        cut += len(found.arrays["actions"]) - len(part["reward"])
        parts.append(part)
        returns.append(total)
    if not parts:
        raise O2ODataError(f"{origin} holds no episodes; expected at least one.")
    _same_shapes(parts, origin)
    lengths = np.array([len(part["reward"]) for part in parts], dtype=np.int64)
    # Popped, so that at most one column is in memory twice.
    columns = {key: np.concatenate([part.pop(key) for part in parts]) for key in tuple(parts[0])}
    silent = () if len(set(told)) == 1 else (_silent_note(told),)
    notes = (*notes, *silent, *_terminal_note(found, lengths), *((_no_successor_note(cut),) if cut else ()))
    return RawRows(**columns, lengths=lengths, returns=np.array(returns), notes=notes)


def _episode_columns(
    found: Columns, limit: int | None, origin: str
) -> tuple[dict[str, np.ndarray], float, tuple[Finding, ...]]:
    """The rows of one episode, its return, and the names of unread arrays."""
    arrays = found.arrays
    observation = _vectors(arrays["observations"], f"observations of {origin}")
    steps = len(arrays["actions"])
    following = arrays.get("next_observations")
    arrays = {role: _per_step(values, role, steps) for role, values in arrays.items()}
    terminated, truncated = _flags(replace(found, arrays=arrays), steps, limit, origin)
    if len(observation) == steps + 1 and following is None:
        kept, observation, successor = steps, observation[:-1], observation[1:]
    elif len(observation) == steps and following is not None:
        kept, successor = steps, _vectors(following, f"next_observations of {origin}")
    elif len(observation) == steps and terminated[-1:].any():
        kept, successor = steps, np.concatenate([observation[1:], observation[-1:]])
    elif len(observation) == steps:
        kept, successor = max(steps - 1, 0), observation[1:]
    else:
        raise O2ODataError(
            f"{origin} has {len(observation)} observations for {steps} actions; expected {steps + 1} (or {steps} "
            "with next_observations)."
        )
    reward = cast_column(arrays["rewards"], f"rewards of {origin}").reshape(-1)
    columns = {
        "observation": observation[:kept],
        "action": _actions(arrays["actions"], origin)[:kept],
        "next_observation": successor,
        "reward": reward[:kept],
        "terminated": terminated[:kept],
        "truncated": truncated[:kept],
    }
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1 or len(reward) != steps or len(terminated) != steps:
        raise O2ODataError(f"the arrays of {origin} differ in length: {lengths}; expected one row per step in each.")
    last = np.arange(steps) == steps - 1
    return columns, float(reward.sum(dtype=np.float64)), unread_notes(found, terminated, last, origin)


def _per_step(values: np.ndarray, role: str, steps: int) -> np.ndarray:
    """Expand a flag with a single value, which belongs to the episode's last step; other arrays have a row per step."""
    if values.size != 1 or role not in ("terminals", "timeouts", "dones", "ends", "masks"):
        return values
    spread = np.full(steps, role == "masks", dtype=values.dtype)
    spread[-1:] = values.reshape(-1)
    return spread


def rows_from_flat(
    arrays: Mapping[str, Any],
    *,
    max_episode_steps: int | None,
    origin: str,
    names: Mapping[str, str] | None = None,
    obs_keys: Sequence[str] | None = None,
) -> RawRows:
    """Split flat arrays, as in D4RL, into episodes.

    With ``next_observations`` every row is kept. Without them, the successor of a row is the next row. A row at a time
    limit (or at the end of the file) then has no successor, so it is dropped and the row before it ends the episode,
    truncated. A terminal row stays with its own observation as successor, because nothing bootstraps from it.

    A row at a time limit ends an episode even if the ``episode`` number continues, as with a worker's number.

    If the rows of an episode are spread over the file, because several environments recorded at once, they are brought
    together.

    Args:
        arrays: ``observations`` [N, o], ``actions`` [N, a], ``rewards`` [N] or [N, 1], ``terminals`` [N], and if known
            ``timeouts`` [N], ``next_observations`` [N, o], ``episode`` [N], or any of their names in
            :data:`~torchrl_o2o.data.datasets.columns.NAMES`.
        max_episode_steps: the length at which episodes are cut if no array marks their ends.
        origin: what to call the source in an error.
        names: see :func:`~torchrl_o2o.data.datasets.columns.find_columns`.
        obs_keys: entries of a dictionary observation to join.

    Raises:
        O2ODataError: if arrays are missing or differ in length, or if nothing says where episodes end.
    """
    found = find_columns(arrays, names=names, obs_keys=obs_keys, origin=origin)
    steps = len(found.arrays["actions"])
    terminated, truncated = _flags(found, steps, max_episode_steps, origin)
    truncated, notes = _time_limits(found, terminated, truncated, max_episode_steps, origin)
    notes += _whole_note(found.arrays["actions"], origin)
    columns = {  # popped here and below, so that at most one column is in memory twice
        "observation": _vectors(found.arrays.pop("observations"), f"observations of {origin}"),
        "action": _actions(found.arrays.pop("actions"), origin),
        "reward": cast_column(found.arrays.pop("rewards"), f"rewards of {origin}").reshape(-1),
        "terminated": terminated,
        "truncated": truncated,
    }
    if "next_observations" in found.arrays:
        columns["next_observation"] = _vectors(found.arrays.pop("next_observations"), f"next_observations of {origin}")
    done = terminated | truncated
    episode = None
    if "episode" in found.arrays:
        episode = cast_episode(found.arrays["episode"], f"episode of {origin}")
        order = _spread_rows(episode, columns, origin)
        if order is not None:
            columns = {key: columns.pop(key)[order] for key in tuple(columns)}
            found = replace(found, doubtful={name: marks[order] for name, marks in found.doubtful.items()})
            done, episode = _numbered(done, episode, order)
            message = f"{len(order)} rows were spread over the file and were brought together by their episode."
            notes += (Finding("grouped", "note", message, count=len(order)),)
            if "next_observation" not in columns:
                _refuse_shuffled(columns["observation"], episode, order, origin)
    last = _ends(done, episode, "next_observation" in columns)
    ends = np.flatnonzero(last)
    notes += (
        *unread_notes(found, columns["terminated"], last, origin),
        *_terminal_note(found, np.diff(ends, prepend=-1)),
    )
    firsts = np.append(0, ends[:-1] + 1) if steps else ends
    with np.errstate(invalid="ignore"):  # inf - inf: the audit reports rewards that are not finite
        returns = np.add.reduceat(columns["reward"], firsts, dtype=np.float64)
    if "next_observation" not in columns:
        notes += _order_notes(columns["observation"], last, columns["truncated"])
    if "next_observation" in columns:
        rows = RawRows(**columns, lengths=np.diff(ends, prepend=-1).astype(np.int64), returns=returns)
    else:
        rows = _with_next_rows(columns, ends, returns)
    return replace(rows, notes=(*notes, *rows.notes))


def _spread_rows(episode: np.ndarray, columns: Mapping[str, np.ndarray], origin: str) -> np.ndarray | None:
    """The order that brings the rows of each episode together, or None if they already are together.

    If an episode's number appears again after the row that ended the episode, it is a different episode.
    """
    if not len(episode):
        return None
    firsts = np.flatnonzero(np.append(True, episode[1:] != episode[:-1]))
    lasts = np.append(firsts[1:], len(episode)) - 1
    ids, of_run = np.unique(episode[firsts], return_inverse=True)
    by_id = np.argsort(of_run, kind="stable")
    again = by_id[1:][of_run[by_id][1:] == of_run[by_id][:-1]]
    before = by_id[:-1][of_run[by_id][1:] == of_run[by_id][:-1]]
    done = columns["terminated"] | columns["truncated"]
    ended = done[lasts[before]]
    if ended.all():
        return None
    flagged = np.flatnonzero(done)
    of_row, last = np.repeat(of_run, lasts - firsts + 1), np.zeros(len(ids), dtype=int)
    np.maximum.at(last, of_run, lasts)
    early = flagged[flagged != last[of_row[flagged]]]
    if len(early) and np.bincount(of_row[flagged]).max() == 1:
        raise O2ODataError(
            f"{origin}: row {early[0]} ends episode {episode[early[0]]}, which has rows after it: the rows are "
            "shuffled. Put them in the order in which they were recorded."
        )
    here, there = lasts[before[~ended]], firsts[again[~ended]]
    if "next_observation" in columns:
        goes_on = (columns["next_observation"][here] == columns["observation"][there]).reshape(len(here), -1).all(1)
    else:
        goes_on = np.full(len(here), bool(ended.any()) or len(episode) < _SHORT_RUN * len(firsts))
    if not goes_on.all():
        row = int(there[~goes_on][0])
        raise O2ODataError(
            f"{origin}: episode {episode[row]} appears again in row {row}, and nothing shows that it continues there; "
            "expected one number for each episode, and its rows together."
        )
    first_run = np.full(len(ids), len(firsts))
    np.minimum.at(first_run, of_run, np.arange(len(firsts)))
    return np.argsort(first_run[of_row], kind="stable")


def _numbered(done: np.ndarray, episode: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flags and new episode numbers of sorted rows: a flag before a gap in the file ends an episode."""
    done, episode, gap = done[order], episode[order], np.append(True, np.diff(order) != 1)
    begins = np.append(True, episode[1:] != episode[:-1]) | (gap & np.append(False, done[:-1]))
    return done, np.cumsum(begins)


def _ends(done: np.ndarray, episode: np.ndarray | None, linked: bool) -> np.ndarray:
    """The mask of rows that are the last of their episode; the last row of the file always is.

    Unless next observations ``link`` the rows, the row after a flag begins a new episode, whatever its number.
    """
    inner = done[:-1] if episode is None else episode[1:] != episode[:-1]
    if not linked:
        inner = inner | done[:-1]
    return np.append(inner, True)[: len(done)]


def _time_limits(
    found: Columns, terminated: np.ndarray, truncated: np.ndarray, limit: int | None, origin: str
) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """The time limits, computed from ``limit`` if the source does not state them."""
    told = {"timeouts", "episode", "starts", "ends", "dones"} & set(found.arrays)
    if told - {"timeouts"} or truncated.any():
        return truncated, ()
    if limit is not None:
        return truncated | (_index_in_run(terminated) % limit == limit - 1), ()
    if not told:
        said = {name: likely_role(name) for name in found.doubtful}
        perhaps = ", ".join(map(repr, said))
        remedy = f" {perhaps} could say it: pass names={said}, if that is what they mean." if said else ""
        if any("done" in name.lower() for name in said):
            remedy += " 'ends' is the last row of each episode; if dones are terminal states alone, say 'terminals'."
        raise O2ODataError(
            f"{origin} has no timeouts, so nothing says where an episode ended by its time limit; expected a "
            f"'timeouts' or an 'episode' array.{remedy} Pass max_episode_steps to cut episodes at that length."
        )
    if "next_observations" in found.arrays:
        message = "no row is at a time limit: timeouts are all False."
        return truncated, (Finding("no_timeouts", "note", message),)
    message = (
        "no row is at a time limit: timeouts are all False. If the environment has one, transitions lead over resets; "
        "pass max_episode_steps."
    )
    return truncated, (Finding("no_timeouts", "warning", message),)


def _index_in_run(ends: np.ndarray) -> np.ndarray:
    """Each row's position within its episode."""
    starts = np.flatnonzero(np.append(True, ends[:-1])) if len(ends) else np.zeros(0, dtype=int)
    return np.arange(len(ends)) - np.repeat(starts, np.diff(starts, append=len(ends)))


def _order_notes(observation: np.ndarray, last: np.ndarray, truncated: np.ndarray) -> tuple[Finding, ...]:
    """Notes if rows without next observations look shuffled: if consecutive ones are as far apart as any two."""
    inside = np.flatnonzero(~last[:-1])
    inside = inside[:: max(1, len(inside) * observation[:1].size // _MOST_COMPARED)]
    if len(inside) < _MANY:
        return ()
    here, there = (observation[rows].reshape(len(inside), -1).astype(np.float32) for rows in (inside, inside + 1))
    spread = here.std(0)
    scale = np.where(spread > 0, spread, 1)
    step, any_two = (np.median(np.square((here - other) / scale).mean(1)) for other in (there, here[::-1]))
    if not step > _UNORDERED * any_two:
        return ()
    message = "the rows look shuffled: consecutive observations are as far apart as any two"
    lengths = np.diff(np.flatnonzero(last), prepend=-1)[truncated[last]]
    if len(lengths) >= _FEW and 2 * len(np.unique(lengths)) > len(lengths):
        first, second = np.flatnonzero(last & truncated)[:2]
        message += (
            f", and time limits come after {', '.join(map(str, lengths[:3]))}, ... rows (in rows {first}, {second}, "
            "...). Put the rows in the order in which they were recorded, or record next observations with them."
        )
        return (Finding("shuffled", "error", message, count=len(last), key="observation"),)
    message += "; without next observations of their own, transitions are only sound in the order of recording."
    steps, any_twos = (np.square(here - other).mean(0)[spread > 0] for other in (there, here[::-1]))
    # In a dynamic environment at least one entry changes continuously, such as a position or an angle.
    none = len(inside) >= _ENOUGH and len(steps) > 0 and bool((steps > _UNORDERED * any_twos).all())
    return (
        Finding("no_entry_goes_on" if none else "unordered", "warning", message, count=len(last), key="observation"),
    )


def _refuse_shuffled(observation: np.ndarray, episode: np.ndarray, order: np.ndarray, origin: str) -> None:
    """Raise if the sorted rows of episodes do not follow each other.

    They do if they were at even distances in the file, as several environments record them, or if they are closer to
    the next row than to the row in the mirrored position of their episode.
    """
    same = episode[1:] == episode[:-1]
    gaps = np.diff(order)[same]
    if len(gaps) < _MANY or 2 * np.bincount(gaps).max() > len(gaps):
        return
    begins = np.flatnonzero(np.append(True, ~same))
    mirror = np.repeat(begins + np.append(begins[1:], len(episode)) - 1, np.diff(begins, append=len(episode)))
    rows = np.flatnonzero(same)
    rows = rows[np.abs(mirror[rows] - 2 * rows) > 1]
    rows = rows[:: max(1, len(rows) * observation[:1].size // _MOST_COMPARED)]
    flat = observation.reshape(len(observation), -1)
    here, after, any_other = (flat[at].astype(np.float32) for at in (rows, rows + 1, mirror[rows] - rows))
    steps, any_two = (np.square(here - other).mean(0) for other in (after, any_other))
    moving = any_two > 0
    if len(rows) >= _MANY and moving.any() and (steps > _UNORDERED * any_two)[moving].all():
        raise O2ODataError(
            f"{origin}: the rows are shuffled: those of an episode are spread over the file at uneven distances, from "
            f"row {order[0]} on, and no entry of the observation continues from one to the next. Put them in the order "
            "in which they were recorded, or record next observations with them."
        )


def _with_next_rows(columns: dict[str, np.ndarray], ends: np.ndarray, returns: np.ndarray) -> RawRows:
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
    del observation
    columns["next_observation"] = successor
    del successor
    kept = {key: columns.pop(key)[keep] for key in tuple(columns)}
    notes = () if not len(lost) else (_no_successor_note(len(lost)),)
    return RawRows(**kept, lengths=lengths, returns=returns, notes=notes)


def _flags(found: Columns, steps: int, limit: int | None, origin: str) -> tuple[np.ndarray, np.ndarray]:
    """The masks of terminal rows and of rows at a time limit."""
    flags = {
        role: cast_flags(found.arrays[role], f"{role} of {origin}")
        for role in ("terminals", "timeouts", "masks", "starts", "ends", "dones")
        if role in found.arrays
    }
    nothing = np.zeros(steps, dtype=bool)
    terminated = flags.get("terminals", ~flags["masks"] if "masks" in flags else nothing)
    truncated = flags.get("timeouts", nothing)
    if "dones" in flags:
        if limit is None and "timeouts" not in flags:
            raise O2ODataError(
                f"{origin}: names declares an array as 'dones', which mixes terminal states and time limits; pass "
                "max_episode_steps, at which a row counts as a time limit, or an array of timeouts."
            )
        at_limit = truncated
        if limit is not None:
            at_limit = truncated | (_index_in_run(flags["dones"] | truncated) % limit == limit - 1)
        terminated, truncated = terminated | (flags["dones"] & ~at_limit), truncated | (flags["dones"] & at_limit)
    if "starts" in flags:
        flags["ends"] = flags.get("ends", nothing) | np.append(flags["starts"][1:], False)[:steps]
    if "ends" in flags:
        truncated = truncated | (flags["ends"] & ~terminated)
    return terminated, truncated


def _vectors(values: np.ndarray, name: str) -> np.ndarray:
    """Cast observations or actions; scalars become vectors of one entry."""
    values = cast_column(values, name)
    if values.ndim > 1 and not values[:1].size and len(values):
        raise O2ODataError(f"{name} have the shape {list(values.shape)}; expected at least one number per row.")
    return values[:, None] if values.ndim == 1 else values


def _actions(values: np.ndarray, origin: str) -> np.ndarray:
    """Cast actions, which are vectors."""
    values = _vectors(values, f"actions of {origin}")
    if values.ndim > 2:
        raise O2ODataError(f"actions of {origin} have the shape {list(values.shape)}; expected one vector per row.")
    return values


def _whole_note(values: np.ndarray, origin: str) -> tuple[Finding, ...]:
    """A note that actions are integers, which are discrete choices unless they subdivide a box."""
    dtype = np.asarray(values).dtype
    if dtype.kind not in "biu":
        return ()
    message = (
        f"the actions of {origin} are whole numbers ({dtype}), a discrete choice; the methods of this package are for "
        "continuous actions only. If they are steps of a real number, pass its box, action_bounds=(low, high)."
    )
    return (Finding("whole_actions", "note", message, key="action"),)


def _terminal_note(found: Columns, lengths: np.ndarray) -> tuple[Finding, ...]:
    """A note that nothing marks terminal rows although episodes have different lengths."""
    if _TERMINALS & set(found.arrays) or len(np.unique(lengths[:-1])) < 2:
        return ()
    message = (
        f"no array marks terminal rows: all {len(lengths)} episodes count as cut by a time limit, though they have "
        f"{lengths.min()} to {lengths.max()} rows. Name such an array with names={{...: 'terminals'}}."
    )
    return (Finding("no_terminals", "warning", message, count=len(lengths), key="next.terminated"),)


def _silent_note(told: list[bool]) -> Finding:
    """A note that some episodes mark terminal rows and others do not."""
    count = told.count(False)
    message = (
        f"{count} of {len(told)} episodes, first episode {told.index(False)}, do not mark terminal rows, unlike the "
        "others; they count as cut by a time limit."
    )
    return Finding("silent_episodes", "warning", message, count=count, key="next.terminated")


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
