# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Read Minari data sets (HDF5) into TED. They have T+1 observations per episode, so each row has its true successor.

The metadata are read as plain JSON. The environment that they name is never built, because its entry point can be any
code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_o2o.data.datasets.cache import RawDataset, SourceMeta
from torchrl_o2o.data.datasets.casting import StoredArray, joined, refuse_keys, refuse_stand_in
from torchrl_o2o.data.datasets.columns import ReadOptions
from torchrl_o2o.data.datasets.hdf5 import StoredGroup, open_hdf5, read_array
from torchrl_o2o.data.datasets.rows import RawRows, rows_from_episodes
from torchrl_o2o.data.datasets.ted import to_transitions
from torchrl_o2o.data.env_match import described
from torchrl_o2o.data.findings import Finding
from torchrl_o2o.envs.tasks import observation_keys
from torchrl_o2o.errors import O2ODataError

__all__ = ["check_dataset_id", "minari_files", "read_metadata", "read_minari"]

_ID = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*-v\d+")
_EPISODE = re.compile(r"episode_\d+")
_ARRAYS = ("observations", "actions", "rewards", "terminations", "truncations")
_PROVENANCE = ("algorithm_name", "author", "code_permalink", "minari_version", "description", "o2o")


def check_dataset_id(dataset_id: str) -> str:
    """Check that a Minari id is well formed, because it becomes a path below the data set folder, and return it.

    Args:
        dataset_id: such as ``"D4RL/door/human-v2"``.

    Raises:
        O2ODataError: for anything else, including absolute paths and ``..``.

    Examples:
        >>> from torchrl_o2o.data.datasets.minari import check_dataset_id
        >>> check_dataset_id("mujoco/hopper/expert-v0")
        'mujoco/hopper/expert-v0'
        >>> check_dataset_id("../outside/x-v0")
        Traceback (most recent call last):
        ...
        torchrl_o2o.errors.O2ODataError: '../outside/x-v0' is not a data set id...
    """
    if not _ID.fullmatch(dataset_id) or any(part.startswith(".") or ".." in part for part in dataset_id.split("/")):
        raise O2ODataError(
            f"{dataset_id!r} is not a data set id; expected names joined by '/' and ending in a version, such as "
            "'D4RL/door/human-v2'. Give a local file as a pathlib.Path or as 'path:FILE'."
        )
    return dataset_id


def minari_files(folder: Path) -> list[Path]:
    """Return the files that a Minari data set folder consists of.

    Args:
        folder: the folder that holds ``data/``.

    Raises:
        O2ODataError: if a file is missing.
    """
    files = [folder / "data" / name for name in ("metadata.json", "main_data.hdf5")]
    for path in files:
        if not path.is_file():
            raise O2ODataError(f"{path} is missing; expected a Minari data set in HDF5 form. Download it again.")
    return files


def read_minari(folder: Path, options: ReadOptions) -> RawDataset:
    """Read a Minari data set.

    Args:
        folder: the folder that holds ``data/``.
        options: the options. ``obs_keys=None`` takes the environment's usual keys that exist. ``names`` gives the roles
            of ``terminations``, ``truncations`` and other arrays of an episode if they differ from Minari's.

    Raises:
        O2ODataError: if a file is damaged or does not hold what Minari writes; the message names it.
    """
    metadata_file, data_file = minari_files(folder)
    metadata = read_metadata(metadata_file)
    rows, keys = _read_rows(data_file, metadata, options)
    data, notes = to_transitions(rows, min_episode_length=options.min_episode_length, origin=str(data_file))
    meta = replace(_meta(metadata, metadata_file), obs_keys=keys)
    return RawDataset(data, meta, notes, rows.kept_returns(options.min_episode_length))


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a Minari data set, and parse the environment's spec and the action bounds.

    Args:
        path: its ``metadata.json``.

    Raises:
        O2ODataError: if the file is damaged, or describes data that are not HDF5 or actions that are not vectors.
    """
    refuse_stand_in(path)
    try:
        metadata = json.loads(path.read_bytes())
        form = metadata["data_format"]
        metadata["total_episodes"] = int(metadata["total_episodes"])
        metadata["env_spec"] = dict(json.loads(metadata.get("env_spec") or "{}"))
        metadata["env_spec"]["max_episode_steps"] = _limit(metadata["env_spec"].get("max_episode_steps"))
        metadata["o2o"] = dict(metadata.get("o2o") or {})
        metadata["action_low"], metadata["action_high"] = _action_bounds(metadata.get("action_space"), path)
    except O2ODataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise O2ODataError(f"{path} is damaged ({error!r}); expected Minari's metadata. Download it again.") from error
    if form != "hdf5":
        raise O2ODataError(f"{path} describes data in the form {form!r}; only 'hdf5' is read. Convert it with Minari.")
    return metadata


def _limit(steps: Any) -> int | None:
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(f"max_episode_steps is {steps!r}")
    return steps


def _meta(metadata: dict[str, Any], path: Path) -> SourceMeta:
    return SourceMeta(
        id=str(metadata.get("dataset_id", path)),
        env_id=metadata["o2o"].get("task") or metadata["env_spec"].get("id"),
        max_episode_steps=metadata["env_spec"].get("max_episode_steps"),
        action_low=metadata["action_low"],
        action_high=metadata["action_high"],
        ref_min_score=metadata.get("ref_min_score"),
        ref_max_score=metadata.get("ref_max_score"),
        provenance={key: metadata[key] for key in _PROVENANCE if metadata.get(key)},
        recorded=tuple(filter(None, (_recorded(metadata.get(name)) for name in ("env_spec", "eval_env_spec")))),
    )


def _recorded(spec: Any) -> dict[str, Any] | None:
    """The parts of an environment's spec (JSON or parsed) that determine its behavior; ``None`` if it is not a spec."""
    try:
        found = json.loads(spec) if isinstance(spec, str) else spec
        wrappers = [wrapper["name"] for wrapper in found.get("additional_wrappers") or ()]
        return described(str(found["id"]), dict(found.get("kwargs") or {}), wrappers)
    except (ValueError, KeyError, TypeError, AttributeError):  # it is only used for a comparison
        return None


def _action_bounds(space: str | None, path: Path) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if space is None:
        return None, None
    described = json.loads(space) if isinstance(space, str) else space
    if described.get("type") != "Box" or len(described["shape"]) != 1:
        raise O2ODataError(f"{path} has the action space {described}; expected a Box of one dimension.")
    return tuple(map(float, described["low"])), tuple(map(float, described["high"]))


def _read_rows(path: Path, metadata: Mapping[str, Any], options: ReadOptions) -> tuple[RawRows, tuple[str, ...]]:
    """The rows, and the entries of a dictionary observation that were joined."""
    usual = observation_keys(str(metadata["env_spec"].get("id")))
    with open_hdf5(path) as file:
        stored = sum(_EPISODE.fullmatch(name) is not None for name in file)
        stated = metadata["total_episodes"]
        if stored > stated:
            raise O2ODataError(
                f"{path} holds {stored} episodes and its metadata speak of {stated}: from episode_{stated} on they "
                f"would be left out. Set total_episodes to {stored} in metadata.json, or remove them."
            )
        if stored < stated:
            raise O2ODataError(
                f"{path} is damaged: it holds {stored} episodes and its metadata speak of {stated}; download or record "
                "it again."
            )
        read = (_read_episode(file, number, options, usual) for number in range(stated))
        limit, names = options.max_episode_steps, options.names
        rows = rows_from_episodes(read, origin=str(path), max_episode_steps=limit, names=names)
        first = file["episode_0"]
        assert isinstance(first, StoredGroup)
        observed, known = first["observations"], (*_ARRAYS, *options.names)
        entries = observed if isinstance(observed, StoredGroup) else ()
        keys = tuple(options.obs_keys or (key for key in usual if key in entries))
        others = [name for name in first if name not in known and isinstance(first[name], StoredArray)]
    message = f"{', '.join(others)}: arrays of each episode that are not read."
    notes = (Finding("unread_arrays", "warning", message, count=len(others)),) if others else ()
    return replace(rows, notes=(*rows.notes, *notes)), keys


def _read_episode(file: StoredGroup, number: int, options: ReadOptions, usual: Sequence[str]) -> dict[str, np.ndarray]:
    group, keys = file[f"episode_{number}"], options.obs_keys
    assert isinstance(group, StoredGroup)
    named = [name for name in options.names if name not in _ARRAYS and isinstance(group.get(name), StoredArray)]
    episode = {name: read_array(group, name) for name in (*_ARRAYS[1:], *named)}
    observations = group.get("observations")
    if isinstance(observations, StoredGroup):
        return episode | {"observations": joined(observations, keys, f"{file.filename}, {group.path[1:]}", usual=usual)}
    refuse_keys(keys, f"the observation of {file.filename}")
    return episode | {"observations": read_array(group, "observations")}
