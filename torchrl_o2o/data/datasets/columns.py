# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Determine the role of each array of a source, and read the necessary ones.

An array that could mark the end of an episode is never ignored without a word. Shapes: N rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_o2o.data.datasets.casting import cast_column, cast_flags, joined, own_copy, refuse_keys
from torchrl_o2o.data.datasets.names import (
    NAMES,
    NEEDED,
    OBSERVATIONS,
    RLDS,
    SAID,
    STAND_INS,
    says_something_new,
    speaks_of_ends,
)
from torchrl_o2o.data.datasets.rlds import rlds_transitions
from torchrl_o2o.data.findings import Finding
from torchrl_o2o.errors import O2ODataError, O2OSpecError

__all__ = ["Columns", "ReadOptions", "find_columns", "unread_notes"]


@dataclass(frozen=True)
class ReadOptions:
    """The options for reading a source; :func:`~torchrl_o2o.data.load_offline` explains each."""

    max_episode_steps: int | None = None
    obs_keys: tuple[str, ...] | None = None
    min_episode_length: int = 2
    cache: bool = True
    cache_dir: str | Path | None = None
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Columns:
    """The arrays of a source from which transitions are made.

    Args:
        arrays: arrays by the keys of :data:`NAMES`, and ``"dones"`` if the caller gave an array this role.
        said: the keys whose arrays the caller named.
        unread: names of other arrays with one row per step.
        doubtful: those of them that could mark the ends of episodes, by name, [N].
        notes: how they were read, if not as they are stored.
    """

    arrays: dict[str, np.ndarray]
    said: frozenset[str] = frozenset()
    unread: tuple[str, ...] = ()
    doubtful: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[Finding, ...] = ()


def find_columns(
    source: Mapping[str, Any],
    *,
    names: Mapping[str, str] | None = None,
    obs_keys: Sequence[str] | None = None,
    single: bool = False,
    origin: str,
) -> Columns:
    """Determine the role of each array of a source, and read the necessary ones.

    A source with ``is_first``, ``is_last`` and ``is_terminal``, none of them in ``names``, is read as
    `RLDS <https://github.com/google-research/rlds#dataset-format>`_ writes it: the last row of an episode holds only an
    observation, which is the next observation of the row before, and ``is_terminal`` describes that observation.

    Args:
        source: name -> array, list of numbers, or for observations a dictionary of them.
        names: array -> its role, for arrays that :data:`NAMES` does not list or that mean something else here.
        obs_keys: entries of a dictionary observation to join; see :func:`joined`.
        single: whether the source is one episode. Its flags may then be single values.
        origin: what to call the source in an error.

    Raises:
        O2ODataError: if arrays are missing, are not one row per step, do not fit together, or are of a closed file.
        O2OSpecError: if ``names`` has unknown roles.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.data.datasets.columns import find_columns
        >>> source = {"obs": np.zeros((4, 2)), "acts": np.zeros((4, 1)), "rews": np.zeros(4), "qpos": np.zeros((4, 9))}
        >>> found = find_columns(source, origin="toy")
        >>> sorted(found.arrays), found.unread
        (['actions', 'observations', 'rewards'], ('qpos',))
    """
    _refuse_closed(source)
    names = dict(names or {})
    roles = _roles(source, names, origin)
    nothing = [name for name in roles.values() if source[name] is None]
    if nothing:
        raise O2ODataError(f"{', '.join(nothing)} of {origin} is None; expected an array. Leave missing arrays out.")
    values = {role: source[name] for role, name in roles.items()}
    for role in OBSERVATIONS:
        if hasattr(values.get(role), "keys"):
            values[role] = joined(values[role], obs_keys, f"{origin}, {roles[role]}")
        elif role in values:
            refuse_keys(obs_keys, f"{roles[role]} of {origin}")
    values = {role: _shaped(value, f"{roles[role]} of {origin}") for role, value in values.items()}
    rows = (*NEEDED, *OBSERVATIONS)  # flags may be a single value per episode
    lone = [role for role, value in values.items() if not value.shape and (role in rows or not single)]
    if lone:
        remedy = "stack single transitions to arrays, in one dictionary" if single else "record them again"
        raise O2ODataError(f"{', '.join(lone)} of {origin}: one value instead of one row per step; {remedy}.")
    for role in [role for role in values if role not in rows or role == "rewards"]:
        _check_one_per_step(values[role], f"{roles[role]} of {origin}")
    steps = values["actions"].shape[0]
    if not single:
        _same_length(values, origin)
    taken = {*roles.values(), *names}
    others = [name for name in _others(source) if not taken & {name, name.partition("/")[0]}]
    lengths = {name: _shape(_at(source, name)) for name in others}
    doubtful = [name for name in others if _could_be_ends(name, _at(source, name), steps)]
    unread = [name for name in others if "/" not in name and lengths[name][:1] == (steps,) and name not in doubtful]
    arrays = {role: _read(role, value, f"{roles[role]} of {origin}") for role, value in values.items()}
    said = frozenset(role for role, name in roles.items() if name in names)
    marks = {name: own_copy(_at(source, name), f"{name} of {origin}").reshape(-1) for name in doubtful}
    follows = "next_observations" in arrays or len(arrays["observations"]) != steps
    if follows or set(RLDS) & set(names) or any(name not in source for name in RLDS):
        return Columns(arrays, said, tuple(unread), marks)
    others = [name for role, name in roles.items() if role not in (*NEEDED, "episode") and name not in RLDS]
    flags = [cast_flags(source[name], f"{name} of {origin}") for name in RLDS]
    arrays, rows = rlds_transitions(arrays, flags, others, origin)
    marks = {name: values[rows] for name, values in marks.items() if name not in RLDS}
    message = (
        f"{', '.join(RLDS)}: read as RLDS, whose last step of an episode holds only an observation; its action and "
        "reward are left out, and its is_terminal is that of the transition before."
    )
    return Columns(arrays, said, tuple(unread), marks, (Finding("rlds", "note", message),))


def _refuse_closed(source: Mapping[str, Any]) -> None:
    """Raise for arrays of a file that was opened and closed, such as h5py's groups after their ``with`` block."""
    if source.zip is None if isinstance(source, np.lib.npyio.NpzFile) else hasattr(source, "id") and not source:
        raise O2ODataError(
            f"got a {type(source).__name__} whose file is closed, expected an open one; load it within the `with` "
            "block that opens it, or give the file's path"
        )


def _roles(source: Mapping[str, Any], names: Mapping[str, str], origin: str) -> dict[str, str]:
    """Role -> name of each array to read."""
    wrong = {name: role for name, role in names.items() if not isinstance(name, str) or role not in (*NAMES, *SAID)}
    if wrong:
        raise O2OSpecError(f"got names={wrong}, expected each to be one of {', '.join((*NAMES, *SAID))}")
    said = [role for role in names.values() if role != "ignore"]
    twice = sorted({role for role in said if said.count(role) > 1})
    if twice:
        raise O2OSpecError(
            f"got names={names}, in which two arrays are {twice[0]}; expected one; give the others the role 'ignore', "
            "or join them to one array first"
        )
    absent = [name for name in names if _at(source, name) is None]
    if absent:
        raise O2ODataError(
            f"{origin} has no {', '.join(absent)}, which names refers to; it holds {sorted(map(str, source))}."
        )
    roles = {role: name for name, role in names.items() if role != "ignore"}
    for role, aliases in NAMES.items():
        found = next((alias for alias in aliases if alias in source and alias not in names), None)
        if found is not None and role not in roles and not any(other in roles for other in STAND_INS.get(role, ())):
            roles[role] = found
    if "dones" in roles:
        roles = {role: name for role, name in roles.items() if role not in ("masks", "ends") or name in names}
    missing = [role for role in NEEDED if role not in roles]
    if missing:
        raise O2ODataError(
            f"{origin} has no {', '.join(missing)}; it holds {sorted(map(str, source))}. Say what they are with names, "
            f"such as names={{...: {missing[0]!r}}}. Arrays that are parts of one, such as entries of an observation, "
            "have to be joined first, or given as a dictionary in its place."
        )
    return roles


def _others(source: Mapping[str, Any]) -> list[str]:
    """Names of the arrays of a source and its sub-dictionaries, whose entries have a slash in their names."""
    found = []
    for name in source:
        value = source[name]
        found += [f"{name}/{entry}" for entry in value] if hasattr(value, "keys") else [name]
    return [name for name in found if isinstance(name, str)]


def _at(source: Mapping[str, Any], name: str) -> Any:
    if name in source:
        return source[name]
    group, _, entry = name.partition("/")
    return source[group].get(entry) if hasattr(source.get(group), "keys") else None


def _shape(value: Any) -> tuple[int, ...]:
    """The shape of an array without reading it; of other values, the shape if it is known without a copy."""
    shape = getattr(value, "shape", None)
    return tuple(shape) if shape is not None else (len(value),) if isinstance(value, list | tuple) else ()


def _could_be_ends(name: str, value: Any, steps: int) -> bool:
    """Whether an array has one number per step and a name that suggests the ends of episodes."""
    shape, dtype = _shape(value), getattr(value, "dtype", np.dtype(float))
    numbers = getattr(dtype, "kind", "f") in "fiub" and len(shape) > 0 and math.prod(shape) == steps
    return numbers and speaks_of_ends(name)


def _shaped(value: Any, origin: str) -> Any:
    return value if hasattr(value, "shape") and hasattr(value, "dtype") else own_copy(value, origin)


def _read(role: str, value: Any, origin: str) -> np.ndarray:
    """Read one array, and cast large ones at once, so that only one array is in memory twice."""
    values = own_copy(value, origin)
    return cast_column(values, origin) if role in (*OBSERVATIONS, "rewards") else values


def _check_one_per_step(value: Any, origin: str) -> None:
    """Raise for an array of several numbers per step, because flattened it could fit a source with more steps."""
    shape = tuple(value.shape)
    if sum(length != 1 for length in shape) > 1:
        raise O2ODataError(
            f"{origin} has the shape {list(shape)}; expected one number per step, [N] or [N, 1]. Select the column, or "
            "compute the sum, that you mean."
        )


def _same_length(values: Mapping[str, Any], origin: str) -> None:
    rows = (*OBSERVATIONS, "actions")
    lengths = {
        role.removesuffix("s") if role in (*rows, "rewards") else role: value.shape[0]
        if role in rows
        else math.prod(value.shape)
        for role, value in values.items()
    }
    if len(set(lengths.values())) > 1:
        raise O2ODataError(f"the arrays of {origin} differ in length: {lengths}; expected one row per step in each.")


def unread_notes(columns: Columns, terminals: np.ndarray, ends: np.ndarray, origin: str) -> tuple[Finding, ...]:
    """Raise for unread arrays that could mark the ends of episodes; report other unread arrays.

    An array that agrees with those that were read is accepted.

    Args:
        columns: of the source.
        terminals: what was read, [N].
        ends: the last row of each episode, [N].
        origin: what to call the source in an error.

    Raises:
        O2ODataError: if such an array disagrees.
    """
    known = bool({"terminals", "masks", "dones"} & set(columns.arrays))
    for name, values in columns.doubtful.items():
        row = says_something_new(values, name, terminals, ends, known)
        if row is not None:
            raise O2ODataError(
                f"{origin}: {name} is not read, but it could mark the ends of episodes, and differs in row {row} from "
                f"the arrays that are read. Say what it means with names={{{name!r}: ...}}: 'terminals' (terminal "
                "states), 'ends' (the last row of each episode, whatever the reason), 'dones' (terminals, but time "
                "limits at max_episode_steps and in rows of timeouts), 'masks' (1 - terminal), 'starts', 'timeouts', "
                "'episode' or 'ignore'."
            )
    if not columns.unread:
        return columns.notes
    message = f"{', '.join(columns.unread)}: arrays with one row per step that are not read."
    return (*columns.notes, Finding("unread_arrays", "warning", message, count=len(columns.unread)))
