# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Read HDF5 files in D4RL's or robomimic's layout, and other flat sources: npz files, dictionaries, episodes, TED."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_o2o.data.datasets.cache import RawDataset, SourceMeta
from torchrl_o2o.data.datasets.casting import StoredArray, check_size, plain_tensor, refuse_stand_in
from torchrl_o2o.data.datasets.columns import ReadOptions
from torchrl_o2o.data.datasets.hdf5 import StoredGroup, open_hdf5
from torchrl_o2o.data.datasets.names import NAMES
from torchrl_o2o.data.datasets.ogbench import is_ogbench, ogbench_arrays
from torchrl_o2o.data.datasets.rows import RawRows, rows_from_episodes, rows_from_flat
from torchrl_o2o.data.datasets.ted import to_transitions
from torchrl_o2o.data.findings import Finding
from torchrl_o2o.data.keys import STEPS, TRANSITION, check_padding, has_steps
from torchrl_o2o.errors import O2ODataError, O2OError

__all__ = ["open_npz", "pack_rows", "read_arrays", "read_episodes", "read_flat", "read_hdf5", "read_npz"]

_DEMO = re.compile(r"demo_\d+")
_MOST_MEMBERS = 10_000


def read_hdf5(path: Path, options: ReadOptions) -> RawDataset:
    """Read an HDF5 file of flat arrays (D4RL), or of demonstrations ``data/demo_0``, ``data/demo_1``, ... (robomimic).

    ``next_observations`` are kept if they are stored (D4RL's gym-mujoco v2). Otherwise, the successor of a timeout row
    is unknown and the row is dropped, as in ``d4rl.qlearning_dataset``.

    Args:
        path: the file.
        options: how; ``max_episode_steps`` is needed if the file has no ``timeouts`` (maze2d).

    Raises:
        O2ODataError: if the file is damaged, lacks arrays, stores them in other files, or does not mark the ends of
            episodes.
    """
    with open_hdf5(path) as file:
        if "episode_0" in file and "observations" not in file:
            raise O2ODataError(
                f"{path} is part of a Minari data set; expected its folder, which holds data/metadata.json. Pass that "
                "folder."
            )
        demos = _demos(file)
        if demos is None:
            return read_flat(file, str(path), options)
        read = read_episodes(demos, f"{path} (data/demo_0, ...)", options)
        return replace(read, notes=(*read.notes, *_unread_lists(file, len(demos))))


def _demos(file: StoredGroup) -> list[Any] | None:
    """The demonstrations of a file in robomimic's layout, or None."""
    data = file.get("data")
    if not isinstance(data, StoredGroup):
        return None
    names = sorted(filter(_DEMO.fullmatch, data), key=lambda name: int(name[5:]))
    return [data[name] for name in names] or None


def _unread_lists(file: StoredGroup, demos: int) -> tuple[Finding, ...]:
    """A warning of robomimic's lists of demonstrations, such as those of training and validation."""
    lists = file.get("mask")
    if not isinstance(lists, StoredGroup) or not len(lists):
        return ()
    message = (
        f"{', '.join(f'mask/{name}' for name in lists)}: lists of demonstrations that are not read; all {demos} "
        "demonstrations are loaded. To load those of one list, pass them as a list of episodes."
    )
    return (Finding("unread_lists", "warning", message, count=len(lists)),)


def read_npz(path: Path, options: ReadOptions) -> RawDataset:
    """Read an npz file of flat arrays, named as in D4RL, in Minari or in TED, with an optional ``episode`` array.

    Arrays that are not needed are not decompressed. A file of OGBench gets the rewards of its task.

    Args:
        path: the file; pickled objects in it are not read.
        options: how; ``max_episode_steps`` is needed if no array marks the ends of episodes.

    Raises:
        O2ODataError: if the file is damaged, lacks arrays, or does not mark the ends of episodes.
    """
    needed = [alias for aliases in NAMES.values() for alias in aliases]
    with open_npz(path, needed) as arrays:
        if is_ogbench(arrays):  # in robomimic a success ends an episode, which may have only that step
            return read_flat(ogbench_arrays(path), str(path), replace(options, min_episode_length=1))
        return read_flat(arrays, str(path), options)


@contextmanager
def open_npz(path: Path, needed: Collection[str]) -> Iterator[dict[str, StoredArray]]:
    """Open a file for reading; errors inside the block name the file.

    Args:
        path: the file.
        needed: names of arrays that must not be pickled objects.

    Yields:
        Its arrays by name, which are read when they are asked for.

    Raises:
        O2ODataError: if the file, or anything read from it in the block, is damaged or needs unpickling.
    """
    try:
        refuse_stand_in(path)
        with zipfile.ZipFile(path) as archive:
            yield _members(archive, needed)
    except O2OError:
        raise
    except Exception as error:  # zip, zlib and numpy each have their own errors for damaged files
        raise O2ODataError(f"{path} is not a readable npz file of plain arrays ({error}).") from error


def _members(archive: zipfile.ZipFile, needed: Collection[str]) -> dict[str, StoredArray]:
    members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    if len(members) > _MOST_MEMBERS:
        raise ValueError(f"it holds {len(members)} arrays, more than {_MOST_MEMBERS}")
    arrays = {info.filename.removesuffix(".npy"): _member(archive, info) for info in members}
    objects = [name for name, stored in arrays.items() if name in needed and stored.dtype.hasobject]
    if objects:
        raise ValueError(
            f"Object arrays cannot be loaded: {', '.join(objects)}; store each entry as an array of numbers"
        )
    return arrays


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> StoredArray:
    """The header of an array; only the header is decompressed."""
    with archive.open(info) as member:
        major, _ = np.lib.format.read_magic(member)
        header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(member)
        size, stored = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
    return StoredArray(shape, dtype, partial(_read_member, archive, info, size, stored))


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int, stored: int) -> np.ndarray:
    origin = f"{archive.filename}: {info.filename}"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise O2ODataError(f"{origin} is not packed as numpy does; store it again with numpy.savez_compressed.")
    if size > stored:
        raise O2ODataError(f"{origin} is damaged: it declares {size} bytes and holds {stored}.")
    check_size(size, info.compress_size, origin)
    with archive.open(info) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def read_arrays(
    source: Mapping[str, Any] | Sequence[Mapping[str, Any]] | TensorDictBase, options: ReadOptions
) -> RawDataset:
    """Read arrays in memory: a dictionary of flat arrays, a list of episodes, or transitions in TED.

    Args:
        source: see :func:`~torchrl_o2o.data.load_offline`.
        options: how.

    Raises:
        O2ODataError: if the arrays do not fit together.
    """
    if isinstance(source, TensorDictBase):
        return read_flat(_ted_arrays(source), "the TensorDict", options)
    if isinstance(source, Mapping):
        return read_flat(source, "the dictionary", options)
    return read_episodes(source, "the list of episodes", options)


def read_episodes(episodes: Sequence[Mapping[str, Any]], origin: str, options: ReadOptions) -> RawDataset:
    """Read a list of episodes.

    Args:
        episodes: see :func:`~torchrl_o2o.data.datasets.rows.rows_from_episodes`.
        origin: what to call the source.
        options: how.

    Raises:
        O2ODataError: if an episode's arrays do not fit together.
    """
    rows = rows_from_episodes(
        episodes,
        origin=origin,
        max_episode_steps=options.max_episode_steps,
        names=options.names,
        obs_keys=options.obs_keys,
    )
    return pack_rows(rows, origin, options)


def _ted_arrays(data: TensorDictBase) -> dict[str, np.ndarray]:
    keys = data.keys(include_nested=True)
    if has_steps(data):
        raise O2ODataError(
            f"the TensorDict has {STEPS!r}: rows over several steps cannot be audited; load the one-step rows, then "
            "apply torchrl_o2o.data.n_step"
        )
    missing = [key for key in TRANSITION if key not in keys and key != ("next", "done")]
    if missing:
        raise O2ODataError(f"the TensorDict lacks {missing}; expected the entries {list(TRANSITION)}.")
    if data.ndim != 1:
        raise O2ODataError(
            f"the TensorDict has the batch size {tuple(data.shape)}; expected [N], with the rows of an episode one "
            "after the other. data.reshape(-1) converts [environments, steps]."
        )
    if data.device is not None and data.device.type == "meta":
        raise O2ODataError("the TensorDict is on the device meta, where tensors have no values; expected numbers.")
    check_padding(data)
    named = {
        "observations": "observation",
        "actions": "action",
        "next_observations": ("next", "observation"),
        "rewards": ("next", "reward"),
        "terminals": ("next", "terminated"),
        "timeouts": ("next", "truncated"),
        "episode": "episode" if "episode" in keys else ("collector", "traj_ids"),
    }
    return {name: _numpy(data.get(key)) for name, key in named.items() if key in keys}


def _numpy(value: Any) -> Any:
    """A tensor as a numpy array, without its gradient; a nested observation stays a dictionary."""
    return plain_tensor(value).numpy() if isinstance(value, Tensor) else value.detach().cpu().numpy()


def read_flat(arrays: Mapping[str, Any], origin: str, options: ReadOptions) -> RawDataset:
    """Read flat arrays.

    Args:
        arrays: see :func:`~torchrl_o2o.data.datasets.rows.rows_from_flat`.
        origin: what to call the source.
        options: how.

    Raises:
        O2ODataError: if the arrays do not fit together.
    """
    rows = rows_from_flat(
        arrays,
        max_episode_steps=options.max_episode_steps,
        origin=origin,
        names=options.names,
        obs_keys=options.obs_keys,
    )
    return pack_rows(rows, origin, options)


def pack_rows(rows: RawRows, origin: str, options: ReadOptions) -> RawDataset:
    """Pack the rows of a source without metadata.

    Args:
        rows: its rows.
        origin: what to call it.
        options: how.
    """
    data, notes = to_transitions(rows, min_episode_length=options.min_episode_length, origin=origin)
    meta = SourceMeta(origin, max_episode_steps=options.max_episode_steps)
    return RawDataset(data, meta, notes, rows.kept_returns(options.min_episode_length))
