# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Detect the kind of a source, and read it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tensordict import TensorDictBase

from torchrl_o2o.data.datasets.cache import RawDataset, cached, dataset_root, default_cache_dir
from torchrl_o2o.data.datasets.columns import ReadOptions
from torchrl_o2o.data.datasets.demos import read_demos
from torchrl_o2o.data.datasets.flat import read_arrays, read_flat, read_hdf5, read_npz
from torchrl_o2o.data.datasets.local import make_local_dataset
from torchrl_o2o.data.datasets.mapped import is_mapped, is_mapped_folder, open_mapped, read_mapped
from torchrl_o2o.data.datasets.minari import check_dataset_id, minari_files, read_minari
from torchrl_o2o.data.datasets.optional import require
from torchrl_o2o.data.datasets.recipes import LOCAL_DATASETS
from torchrl_o2o.data.datasets.tables import csv_arrays
from torchrl_o2o.errors import O2ODataError, O2OSpecError

__all__ = ["Source", "known_names", "local_minari_ids", "read_source"]

#: A Minari id or local data set's name, a file (``Path`` or ``"path:FILE"``), arrays, episodes, or transitions in TED.
Source = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]] | TensorDictBase

_SUFFIXES = (".npz", ".hdf5", ".h5", ".pkl", ".pickle", ".csv")
_PATH_PREFIX = "path:"
_LOCAL_PREFIX = "o2o/"
#: Well-known remote sets, for hints on misspelled names.
_REMOTE = (
    *(f"mujoco/{e}/{q}-v0" for e in ("halfcheetah", "hopper", "walker2d") for q in ("simple", "medium", "expert")),
    *(f"mujoco/{e}/{q}-v0" for e in ("ant", "humanoid", "swimmer") for q in ("simple", "medium", "expert")),
    *(f"D4RL/{e}/{q}-v2" for e in ("door", "hammer", "pen", "relocate") for q in ("human", "cloned", "expert")),
    *(f"D4RL/kitchen/{q}-v2" for q in ("complete", "mixed", "partial")),
    *(f"D4RL/pointmaze/{m}{d}-v2" for m in ("open", "umaze", "medium", "large") for d in ("", "-dense")),
    *(f"D4RL/antmaze/{m}-v1" for m in ("umaze", "umaze-diverse", "medium-play", "medium-diverse")),
    *(f"D4RL/antmaze/{m}-v1" for m in ("large-play", "large-diverse")),
)

#: No episode has more steps than this; larger numbers exceed 64-bit integers.
_LONGEST = 2**62


def read_source(source: Source, options: ReadOptions) -> RawDataset:
    """Read any source into transitions.

    Args:
        source: what to read.
        options: how.

    Raises:
        O2ODataError: if the source is unknown, missing or damaged.
        O2OSpecError: if a length is below 1.
    """
    for name in ("max_episode_steps", "min_episode_length"):
        length = getattr(options, name)
        if length is None:
            continue
        number = isinstance(length, int | float | np.integer | np.floating) and not isinstance(length, bool)
        if not number or length % 1 != 0 or length > _LONGEST:
            raise O2OSpecError(f"got {name}={length!r}, expected a whole number of at least 1, and not beyond 2^62")
        if length < 1:
            raise O2OSpecError(f"got {name}={length}, expected at least 1 transition")
        options = replace(options, **{name: int(length)})  # Python's, which the cache can write
    if isinstance(source, str) and not source.startswith(_PATH_PREFIX):
        return _read_minari(_dataset_folder(check_dataset_id(source)), options)
    if isinstance(source, str | Path):
        return _read_path(Path(str(source).removeprefix(_PATH_PREFIX)).expanduser(), options)
    if isinstance(source, TensorDictBase) and is_mapped(source):
        return read_mapped(source, "the TensorDict", options)
    if isinstance(source, Mapping | Sequence | TensorDictBase):
        return read_arrays(source, options)
    raise O2ODataError(
        f"a {type(source).__name__} is not a source; expected a name, a pathlib.Path, a dictionary of arrays, "
        f"a list of episodes or a TensorDict.{_advice(source)}"
    )


def _advice(source: object) -> str:
    """Advice on what to pass instead of a data set that Minari has opened."""
    if not hasattr(source, "iterate_episodes"):
        return ""
    name = getattr(getattr(source, "spec", None), "dataset_id", None) or "its id"
    return f" Give its name, {name!r}, or, if it was filtered, its episodes: [vars(episode) for episode in dataset]."


def _dataset_folder(dataset_id: str) -> Path:
    folder = dataset_root() / dataset_id
    if folder.exists():
        return folder
    if dataset_id.startswith(_LOCAL_PREFIX):
        if dataset_id not in LOCAL_DATASETS:
            raise O2ODataError(f"{dataset_id!r} is neither in {dataset_root()} nor known. {_hint(dataset_id)}")
        return make_local_dataset(dataset_id)
    return _download(dataset_id)


def _download(dataset_id: str) -> Path:
    minari = require("minari", "minari")
    try:
        minari.download_dataset(dataset_id)
    except Exception as error:  # each remote store raises its own errors for an unknown name and for a missing network
        raise O2ODataError(
            f"{dataset_id!r} is not in {dataset_root()} and cannot be downloaded ({type(error).__name__}: {error}). "
            f"{_hint(dataset_id)} Without a network, copy the data set's folder there."
        ) from error
    return dataset_root() / dataset_id


def _hint(dataset_id: str) -> str:
    others = [name for name in known_names() if name != dataset_id]
    close = difflib.get_close_matches(dataset_id, others, n=3)
    return f"Close matches: {', '.join(close)}." if close else "See `o2o data list` for names."


def known_names() -> list[str]:
    """Return the names of local data sets, of installed ones and of well-known remote ones, sorted."""
    return sorted({*LOCAL_DATASETS, *_REMOTE, *local_minari_ids()})


def local_minari_ids() -> list[str]:
    """Return the ids of the installed Minari data sets, sorted."""
    root = dataset_root()
    folders = [path.parent.parent.relative_to(root) for path in root.rglob("data/metadata.json")]
    return sorted(path.as_posix() for path in folders if not any(part.startswith(".") for part in path.parts))


def _read_path(path: Path, options: ReadOptions) -> RawDataset:
    if not path.exists():
        where = "" if path.is_absolute() else f" in the working folder {Path.cwd()}"  # which Hydra may have changed
        raise O2ODataError(
            f"{path} does not exist{where}; expected a file or a Minari or memory-mapped data set's folder."
        )
    if is_mapped_folder(path):
        return read_mapped(open_mapped(path), str(path), options)
    if path.is_dir():
        folder = path.parent if path.name == "data" else path
        if not any((folder / "data" / name).exists() for name in ("metadata.json", "main_data.hdf5")):
            raise O2ODataError(_other_folder(path))
        return _read_minari(folder, options)
    if not path.is_file():  # a pipe or a device, which may never end
        raise O2ODataError(f"{path} is not a regular file; expected one, or a Minari data set's folder.")
    suffix = path.suffix.lower()
    if suffix in (".hdf5", ".h5"):
        return read_hdf5(path, options)
    if suffix == ".npz":
        return read_npz(path, options)
    if suffix == ".csv":
        return read_flat(csv_arrays(path), str(path), options)
    if suffix in (".pickle", ".pkl"):
        return _cached([path], options, lambda: read_demos(path, options))
    raise O2ODataError(
        f"{path} ends in {suffix!r}; expected .hdf5 or .h5 (D4RL), .npz, .csv, .pickle or .pkl. Read it with its own "
        "library, and pass a dictionary of arrays to load_offline."
    )


def _other_folder(path: Path) -> str:
    """The error message for a folder that no reader accepts."""
    kind, files = "", sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if (path / "meta" / "info.json").exists():
        kind = "; it is LeRobot's"
    elif (path / "dataset_info.json").exists():
        kind = "; it is TensorFlow's (RLDS)"
    elif any((path / name).exists() for name in (".zgroup", ".zarray", "zarr.json")):
        kind = "; it is Zarr's"
    elif files:
        kind = f"; its {len(files)} files such as {files[0].name} are loaded one by one, and torch.cat joins them"
    return (
        f"{path}/data/metadata.json is missing; expected a Minari data set, or a folder of TensorDict.memmap{kind}. "
        "Read another form with its own library, and pass a dictionary of arrays to load_offline; "
        "names={...} gives their roles."
    )


def _read_minari(folder: Path, options: ReadOptions) -> RawDataset:
    return _cached(minari_files(folder), options, lambda: read_minari(folder, options))


def _cached(files: list[Path], options: ReadOptions, convert: Any) -> RawDataset:
    if not options.cache:
        return convert()
    key = {name: getattr(options, name) for name in ("obs_keys", "min_episode_length", "max_episode_steps", "names")}
    return cached(Path(options.cache_dir or default_cache_dir()), files, key, convert)
