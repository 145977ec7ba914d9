# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The meaning of a source's arrays: one table of names for all readers, and the casts of the arrays.

Readers read only what is needed, and never silently ignore an array that could mark the end of an episode.
Shapes: N rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrl_o2o.data.findings import Finding
from torchrl_o2o.envs.tasks import observation_keys
from torchrl_o2o.errors import O2ODataError, O2OSpecError

__all__ = [
    "NAMES",
    "Columns",
    "ReadOptions",
    "StoredArray",
    "cast_column",
    "cast_episode",
    "cast_flags",
    "check_size",
    "find_columns",
    "joined",
    "plain_tensor",
    "refuse_keys",
    "speaks_of_ends",
    "unread_notes",
]

#: Role of an array -> names that projects give it. The first name that is present is read.
NAMES: Mapping[str, tuple[str, ...]] = {
    "observations": ("observations", "observation", "obs"),
    "actions": ("actions", "action", "acts"),
    "rewards": ("rewards", "reward", "rews"),
    "next_observations": ("next_observations", "next_observation", "next_obs"),
    "terminals": ("terminals", "terminations", "terminated", "terminal", "is_terminal"),
    "timeouts": ("timeouts", "truncations", "truncated", "timeout"),
    "episode": ("episode", "episodes", "episode_ids", "episode_id", "traj_ids", "traj_id"),
    "masks": ("masks",),  # 1 - terminal, as in jaxrl
    "starts": ("episode_starts", "is_first"),  # the first row of each episode, as in Stable-Baselines and RLDS
    "ends": ("dones_float",),  # the last row of each episode, whatever the reason, as in jaxrl
}
#: Further roles that ``names`` may assign to an array.
_SAID = ("dones", "ignore")
#: These are read if none of the listed roles is present; otherwise they are compared with those roles.
_STAND_INS = {
    "masks": ("terminals",),
    "starts": ("timeouts", "episode"),
    "ends": ("timeouts", "episode", "starts"),
}
#: If all of these are present, the last row of an episode holds only an observation, as in RLDS.
_RLDS = ("is_first", "is_last", "is_terminal")
_NEEDED = ("observations", "actions", "rewards")
_OBSERVATIONS = ("observations", "next_observations")
_COULD_BE_ENDS = re.compile(
    r"done|termin|trunc|time_?limit|timeout|mask|discount|reset|episode|traj|step_?type"
    r"|(^|[_/.])(is_)?(first|last|starts?|ends?|final)($|_)",
    re.IGNORECASE,
)
_COULD_BE_TERMINALS = re.compile(r"done|termin|mask|discount", re.IGNORECASE)
#: Names of arrays that are 0 where an episode ends.
_COULD_BE_INVERSE = re.compile(r"mask|discount|continu|alive|valid|not|non", re.IGNORECASE)
#: What arrays of such names most likely are, the first that fits; d3rlpy's episode_terminals are the ends of episodes.
_LIKELY = tuple(
    (re.compile(pattern, re.IGNORECASE), role)
    for pattern, role in (
        (r"mask|discount", "masks"),
        (r"episode.*termin", "ends"),
        (r"termin", "terminals"),
        (r"trunc|time_?limit|timeout", "timeouts"),
        (r"first|start|reset", "starts"),
        (r"last|end|final|done", "ends"),
        (r"episode|traj", "episode"),
        (r"", "ends"),
    )
)
#: HDF5 and npz compress at most 1032 : 1 (deflate). An array that claims more has a damaged size.
_LARGEST_RATIO = 1100
#: Arrays above this size hold numbers, which do not compress to a hundredth.
_LARGE, _LARGE_RATIO = 1 << 30, 100


@dataclass(frozen=True)
class ReadOptions:
    """The options for reading a source; each is explained at :func:`~torchrl_o2o.data.load_offline`."""

    max_episode_steps: int | None = None
    obs_keys: tuple[str, ...] | None = None
    min_episode_length: int = 2
    cache: bool = True
    cache_dir: str | Path | None = None
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredArray:
    """An array that lies in a file and is read when numpy asks for it.

    Args:
        shape: its shape.
        dtype: its type.
        read: reads it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read the array."""
        values = self.read()
        return values if dtype is None else values.astype(dtype)


@dataclass(frozen=True)
class Columns:
    """The arrays of a source from which transitions are made.

    Args:
        arrays: by the keys of :data:`NAMES`, and ``"dones"`` where an array was said to be that.
        said: those of its keys that the caller named.
        unread: names of other arrays with one row per step.
        doubtful: those of them that could say where episodes end, by name, [N].
        notes: how they were read, where that is not as they lie there.
    """

    arrays: dict[str, np.ndarray]
    said: frozenset[str] = frozenset()
    unread: tuple[str, ...] = ()
    doubtful: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[Finding, ...] = ()


def check_size(size: int, stored: int, origin: str) -> None:
    """Refuse an array that claims more than its file can hold, before anything is allocated for it.

    Args:
        size: bytes that it declares.
        stored: bytes that it takes in the file.
        origin: what to call it in an error.

    Raises:
        O2ODataError: if the claim is impossible, or not plausible for numbers.
    """
    if size > _LARGEST_RATIO * stored:
        raise O2ODataError(f"{origin} is damaged: it declares {size} bytes in {stored}; download or record it again.")
    if size > _LARGE and size > _LARGE_RATIO * stored:
        raise O2ODataError(
            f"{origin} would be {size} bytes out of {stored} in the file: numbers do not compress like that. "
            "If the file is intact, store it without compression."
        )


def find_columns(
    source: Mapping[str, Any],
    *,
    names: Mapping[str, str] | None = None,
    obs_keys: Sequence[str] | None = None,
    single: bool = False,
    origin: str,
) -> Columns:
    """Tell what each array of a source is, and read those that are needed.

    A source with ``is_first``, ``is_last`` and ``is_terminal``, none of them in ``names``, is read as `RLDS
    <https://github.com/google-research/rlds#dataset-format>`_ writes it: the last row of an episode holds only an
    observation, the next one of the row before, and ``is_terminal`` speaks of that observation.

    Args:
        source: name -> array, list of numbers, or for observations a dictionary of them.
        names: array -> what it is, for arrays that :data:`NAMES` does not know or that mean something else here.
        obs_keys: entries of a dictionary observation to join; see :func:`joined`.
        single: whether the source is one episode, whose flags may be one value and whose rows need not be counted.
        origin: what to call the source in an error.

    Raises:
        O2ODataError: if arrays are missing, are not one row per step, or do not fit together.
        O2OSpecError: if ``names`` are not understood.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.data.datasets.columns import find_columns
        >>> source = {"obs": np.zeros((4, 2)), "acts": np.zeros((4, 1)), "rews": np.zeros(4), "qpos": np.zeros((4, 9))}
        >>> found = find_columns(source, origin="toy")
        >>> sorted(found.arrays), found.unread
        (['actions', 'observations', 'rewards'], ('qpos',))
    """
    names = dict(names or {})
    roles = _roles(source, names, origin)
    nothing = [name for name in roles.values() if source[name] is None]
    if nothing:
        raise O2ODataError(f"{', '.join(nothing)} of {origin} is None; leave out what is not there.")
    values = {role: source[name] for role, name in roles.items()}
    for role in _OBSERVATIONS:
        if hasattr(values.get(role), "keys"):
            values[role] = joined(values[role], obs_keys, f"{origin}, {roles[role]}")
        elif role in values:
            refuse_keys(obs_keys, f"{roles[role]} of {origin}")
    values = {role: _shaped(value, f"{roles[role]} of {origin}") for role, value in values.items()}
    rows = (*_NEEDED, *_OBSERVATIONS)  # flags may be a single value per episode
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
    marks = {name: _owned(_at(source, name), f"{name} of {origin}").reshape(-1) for name in doubtful}
    found = Columns(arrays, said, tuple(unread), marks)
    follows = "next_observations" in arrays or len(arrays["observations"]) != steps
    if follows or set(_RLDS) & set(names) or any(name not in source for name in _RLDS):
        return found
    others = [name for role, name in roles.items() if role not in (*_NEEDED, "episode") and name not in _RLDS]
    flags = [cast_flags(source[name], f"{name} of {origin}") for name in _RLDS]
    return _from_rlds(found, flags, others, origin)


def _from_rlds(found: Columns, flags: Sequence[np.ndarray], others: Sequence[str], origin: str) -> Columns:
    """Transitions from RLDS steps. An episode's last step gives only its observation and whether it is terminal."""
    arrays = dict(found.arrays)
    lengths = {len(flag) for flag in flags} | {len(arrays[role]) for role in _NEEDED}
    if others or len(lengths) > 1:
        wrong = f"also {', '.join(others)}" if others else f"arrays of the lengths {sorted(lengths)}"
        raise O2ODataError(
            f"{origin} has {', '.join(_RLDS)}, RLDS's flags of each step, and {wrong}; expected one row per step and "
            "nothing else that says where episodes end. Say what each is by names, such as names={...: 'ignore'}."
        )
    first, last, terminal = flags
    ends = last | np.append(first[1:], True)[: len(last)]
    _check_rlds(arrays, ends, last, terminal, origin)
    rows = np.flatnonzero(~ends)
    arrays["next_observations"] = arrays["observations"][rows + 1]
    arrays |= {role: arrays[role][rows] for role in (*_NEEDED, "episode") if role in arrays}
    arrays |= {"terminals": terminal[rows + 1], "ends": ends[rows + 1]}
    arrays.pop("starts", None)
    doubtful = {name: marks[rows] for name, marks in found.doubtful.items() if name not in _RLDS}
    message = (
        f"{', '.join(_RLDS)}: read as RLDS, whose last step of an episode holds only an observation; its action and "
        "reward are left out, and its is_terminal is that of the transition before."
    )
    return Columns(arrays, found.said, found.unread, doubtful, (Finding("rlds", "note", message),))


def _check_rlds(
    arrays: Mapping[str, np.ndarray], ends: np.ndarray, last: np.ndarray, terminal: np.ndarray, origin: str
) -> None:
    """Raise if steps have RLDS's flag names, but not its layout."""
    said = "names={'is_first': 'starts', 'is_last': 'ends', 'is_terminal': 'terminals'}"
    about = f"{origin} has {', '.join(_RLDS)}, as RLDS, whose last step of an episode holds only an observation"
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
            f"If each row is a transition, also the last one, pass {said}. If a reward was stored with the "
            "observation after it, move rewards one row up. If it means nothing, set it to 0."
        )
    if "episode" in arrays:
        episode = cast_episode(arrays["episode"], f"episode of {origin}")
        spread = np.flatnonzero((episode[1:] != episode[:-1]) & ~ends[:-1])
        if len(spread):
            raise O2ODataError(
                f"{about}, but row {spread[0]} of episode {episode[spread[0]]} is not its last and is followed by one "
                "of another episode. Put the rows of each episode together."
            )


def _roles(source: Mapping[str, Any], names: Mapping[str, str], origin: str) -> dict[str, str]:
    """Role -> name of each array that is to be read."""
    wrong = {name: role for name, role in names.items() if not isinstance(name, str) or role not in (*NAMES, *_SAID)}
    if wrong:
        raise O2OSpecError(f"got names={wrong}, expected each to be one of {', '.join((*NAMES, *_SAID))}")
    said = [role for role in names.values() if role != "ignore"]
    twice = sorted({role for role in said if said.count(role) > 1})
    if twice:
        raise O2OSpecError(
            f"got names={names}, in which two arrays are {twice[0]}; expected one, and 'ignore' of others"
        )
    absent = [name for name in names if _at(source, name) is None]
    if absent:
        raise O2ODataError(
            f"{origin} has no {', '.join(absent)}, which names refers to; it holds {sorted(map(str, source))}."
        )
    roles = {role: name for name, role in names.items() if role != "ignore"}
    for role, aliases in NAMES.items():
        found = next((alias for alias in aliases if alias in source and alias not in names), None)
        if found is not None and role not in roles and not any(other in roles for other in _STAND_INS.get(role, ())):
            roles[role] = found
    if "dones" in roles:
        roles = {role: name for role, name in roles.items() if role not in ("masks", "ends") or name in names}
    missing = [role for role in _NEEDED if role not in roles]
    if missing:
        raise O2ODataError(
            f"{origin} has no {', '.join(missing)}; it holds {sorted(map(str, source))}. Say what they are with names, "
            f"such as names={{...: {missing[0]!r}}}."
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


def speaks_of_ends(name: str) -> bool:
    """Whether an array's name says that it could tell where episodes end.

    Args:
        name: of the array.

    Examples:
        >>> speaks_of_ends("is_last"), speaks_of_ends("velocity")
        (True, False)
    """
    return _COULD_BE_ENDS.search(name) is not None


def likely_role(name: str) -> str:
    """What an array that speaks of ends most likely is, by its name, to be suggested in an error.

    Args:
        name: of the array.

    Examples:
        >>> [likely_role(name) for name in ("terminateds", "truncateds", "discount", "episode_terminals", "dones")]
        ['terminals', 'timeouts', 'masks', 'ends', 'ends']
    """
    return next(role for pattern, role in _LIKELY if pattern.search(name))


def _could_be_ends(name: str, value: Any, steps: int) -> bool:
    """Whether an array has one number per step and a name that suggests the ends of episodes."""
    shape, dtype = _shape(value), getattr(value, "dtype", np.dtype(float))
    numbers = getattr(dtype, "kind", "f") in "fiub" and len(shape) > 0 and math.prod(shape) == steps
    return numbers and speaks_of_ends(name)


def _shaped(value: Any, origin: str) -> Any:
    return value if hasattr(value, "shape") and hasattr(value, "dtype") else _owned(value, origin)


def _read(role: str, value: Any, origin: str) -> np.ndarray:
    """Read one array, and cast large ones at once, so that only one array is in memory twice."""
    owned = _owned(value, origin)
    return cast_column(owned, origin) if role in (*_OBSERVATIONS, "rewards") else owned


def _owned(value: Any, origin: str) -> np.ndarray:
    """A copy of an array that shares no memory with the caller's."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        row = int(np.flatnonzero(np.ma.getmaskarray(value).reshape(len(value), -1).any(1))[0])
        raise O2ODataError(f"{origin} is masked in row {row}; fill it, or leave those rows out.")
    try:
        value = plain_tensor(value) if isinstance(value, Tensor) else value
        return np.array(value) if isinstance(value, np.ndarray) else np.asarray(value)
    except O2ODataError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, foreign objects
        raise O2ODataError(f"{origin} is not an array ({error}); expected real numbers, one row per step.") from error


def plain_tensor(value: Tensor) -> Tensor:
    """A tensor that numpy takes: without gradients, on the CPU, and of a type that numpy has.

    Args:
        value: any tensor.

    Examples:
        >>> import torch
        >>> plain_tensor(torch.ones(1, dtype=torch.bfloat16, requires_grad=True)).numpy()
        array([1.], dtype=float32)
    """
    value = value.detach().cpu()
    return value.float() if value.dtype == torch.bfloat16 else value


def _check_one_per_step(value: Any, origin: str) -> None:
    """Refuse an array of several numbers per step: read in a row, it would fit a source of as many more steps."""
    shape = tuple(value.shape)
    if sum(length != 1 for length in shape) > 1:
        raise O2ODataError(
            f"{origin} has the shape {list(shape)}; expected one number per step, [N] or [N, 1]. Take the column, or "
            "the sum, that is meant."
        )


def _same_length(values: Mapping[str, Any], origin: str) -> None:
    rows = (*_OBSERVATIONS, "actions")
    lengths = {
        role.removesuffix("s") if role in (*rows, "rewards") else role: value.shape[0]
        if role in rows
        else math.prod(value.shape)
        for role, value in values.items()
    }
    if len(set(lengths.values())) > 1:
        raise O2ODataError(f"the arrays of {origin} differ in length: {lengths}; expected one row per step in each.")


def refuse_keys(keys: Sequence[str] | None, origin: str) -> None:
    """Raise if keys of a dictionary observation are given for data without one.

    Args:
        keys: ``obs_keys``, or ``None``.
        origin: what to call the observation in an error.

    Raises:
        O2OSpecError: if keys are given.
    """
    if keys is not None:
        raise O2OSpecError(f"got obs_keys={list(keys)}, but {origin} is one array without keys; leave obs_keys out")


def joined(
    node: Mapping[str, Any], keys: Sequence[str] | None, origin: str, *, usual: Sequence[str] = observation_keys("")
) -> np.ndarray:
    """Join the entries of a dictionary observation, nested ones in alphabetical order.

    Args:
        node: name -> [N, ...] or a dictionary of them.
        keys: which, in order; ``None`` takes the usual ones, those that are there.
        origin: what to call the observation in an error.
        usual: the usual keys; ``observation``, ``achieved_goal``, ``desired_goal`` by default.

    Raises:
        O2ODataError: if entries are missing, or several are to be joined that are no vectors.
    """
    wanted = list(keys) if keys is not None else [key for key in usual if key in node]
    if not wanted or any(key not in node for key in wanted):
        expected = wanted or list(usual)
        raise O2ODataError(
            f"{origin} observes {sorted(map(str, node))}, not {expected}; pass obs_keys with entries that it has."
        )
    parts = [part for key in wanted for part in _leaves(node[key], key, origin)]
    if len(parts) == 1:
        return parts[0]
    parts = [part[:, None] if part.ndim == 1 else part for part in parts]
    if any(part.ndim != 2 for part in parts) or len({len(part) for part in parts}) > 1:
        shapes = [part.shape for part in parts]
        raise O2ODataError(
            f"{origin}: only vectors with one row per step can be joined, got the shapes {shapes}; pass obs_keys."
        )
    return np.concatenate(parts, axis=-1)


def _leaves(node: Any, name: str, origin: str) -> list[np.ndarray]:
    if not hasattr(node, "keys"):
        return [cast_column(_owned(node, f"{name} of {origin}"), f"{name} of {origin}")]
    return [leaf for key in sorted(node) for leaf in _leaves(node[key], f"{name}/{key}", origin)]


def cast_column(values: Any, name: str) -> np.ndarray:
    """Cast one array to what batches are made of: float32, or uint8 where the rows are images.

    What is of that type already is not copied: :func:`find_columns` did.

    Args:
        values: [N, ...] numbers of any kind.
        name: what to call it in an error.

    Raises:
        O2ODataError: if the values are not real numbers.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.data.datasets.columns import cast_column
        >>> cast_column(np.zeros((3, 2)), "observations").dtype
        dtype('float32')
        >>> cast_column(np.zeros((3, 8, 8, 3), np.uint8), "observations").dtype
        dtype('uint8')
    """
    values = values if isinstance(values, np.ndarray) else _owned(values, name)
    if values.dtype.kind not in "fiub":
        raise O2ODataError(f"{name} holds {values.dtype}; expected real numbers in one array.")
    if values.dtype == np.uint8 and values.ndim >= 3:
        return values
    with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes inf, whose position the audit reports
        return values.astype(np.float32, copy=False)


def cast_flags(values: Any, name: str) -> np.ndarray:
    """Cast flags to bool [N].

    Args:
        values: N numbers, each 0 or 1.
        name: what to call them in an error.

    Raises:
        O2ODataError: if a value is something else, NaN included; the message names the first such row.

    Examples:
        >>> from torchrl_o2o.data.datasets.columns import cast_flags
        >>> cast_flags([0.0, 1.0], "terminals")
        array([False,  True])
        >>> cast_flags([0, 2], "terminals")
        Traceback (most recent call last):
        ...
        torchrl_o2o.errors.O2ODataError: terminals holds 2 in row 1; expected 0 or 1 in every row.
    """
    values = _owned(values, name).reshape(-1)
    if values.dtype.kind not in "fiub":
        raise O2ODataError(f"{name} holds {values.dtype}; expected 0 or 1 in every row.")
    if values.dtype.kind == "b":
        return values.view(np.uint8) != 0  # in damaged files a bool can be any byte
    bad = (values != 0) & (values != 1)
    if bad.any():
        row = int(bad.argmax())
        raise O2ODataError(f"{name} holds {values[row]} in row {row}; expected 0 or 1 in every row.")
    return values != 0


def cast_episode(values: Any, name: str) -> np.ndarray:
    """Check the numbers, or names, of each row's episode, [N].

    Args:
        values: N integers, finite numbers or short texts.
        name: what to call them in an error.

    Raises:
        O2ODataError: if a value is something else; the message names the first such row.
    """
    values = _owned(values, name).reshape(-1)
    if values.dtype.kind not in "fiubUS":
        raise O2ODataError(f"{name} holds {values.dtype}; expected the number of each row's episode.")
    bad = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)
    if bad.any():
        row = int(bad.argmax())
        raise O2ODataError(f"{name} holds {values[row]} in row {row}; expected the number of each row's episode.")
    return values


def unread_notes(columns: Columns, terminals: np.ndarray, ends: np.ndarray, origin: str) -> tuple[Finding, ...]:
    """Refuse arrays that could say where episodes end and were not read; name the others that were not.

    An array that says the same as those that were read is passed over.

    Args:
        columns: of the source.
        terminals: what was read, [N].
        ends: the last row of each episode, [N].
        origin: what to call the source in an error.

    Raises:
        O2ODataError: if such an array says something else.
    """
    known = bool({"terminals", "masks", "dones"} & set(columns.arrays))
    for name, values in columns.doubtful.items():
        row = _says_something_new(values, name, terminals, ends, known)
        if row is not None:
            raise O2ODataError(
                f"{origin}: {name} is not read, but it could say where episodes end, and differs in row {row} from "
                f"the arrays that are read. Say what it means with names={{{name!r}: ...}}: 'terminals' (terminal "
                "states), 'ends' (the last row of each episode, whatever the reason), 'dones' (terminals, but time "
                "limits at max_episode_steps and in rows of timeouts), 'masks' (1 - terminal), 'starts', 'timeouts', "
                "'episode' or 'ignore'."
            )
    if not columns.unread:
        return columns.notes
    message = f"{', '.join(columns.unread)}: arrays with one row per step that are not read."
    return (*columns.notes, Finding("unread_arrays", "warning", message, count=len(columns.unread)))


def _says_something_new(
    values: np.ndarray, name: str, terminals: np.ndarray, ends: np.ndarray, known: bool
) -> int | None:
    """The first row in which marks differ from the known flags, or None if they agree."""
    if values.dtype.kind not in "fiub" or not len(values):
        return None
    starts = np.append(True, ends[:-1])
    inner = slice(None, -1)  # the last row need not be marked as an end
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
