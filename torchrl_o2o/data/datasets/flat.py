# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Legacy D4RL HDF5 files and the project's other flat sources: npz files, dictionaries, lists of episodes, TED."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensordict import TensorDictBase

from torchrl_o2o.data.datasets.cache import RawDataset, SourceMeta
from torchrl_o2o.data.datasets.hdf5 import open_hdf5, read_array
from torchrl_o2o.data.datasets.rows import rows_from_episodes, rows_from_flat
from torchrl_o2o.data.datasets.ted import to_transitions
from torchrl_o2o.data.keys import STEPS, TRANSITION, has_steps
from torchrl_o2o.errors import O2ODataError

__all__ = ["read_arrays", "read_d4rl", "read_npz"]

_D4RL_KEYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


def read_d4rl(path: Path, *, max_episode_steps: int | None, min_episode_length: int) -> RawDataset:
    """Read a D4RL HDF5 file: ``observations``, ``actions``, ``rewards``, ``terminals``, ``timeouts``.

    ``next_observations`` are kept where they are stored (D4RL's gym-mujoco v2). Where they are not, the successor of a
    timeout row is unknown and the row is dropped, as ``d4rl.qlearning_dataset`` does.

    Args:
        path: the file.
        max_episode_steps: needed where the file has no ``timeouts`` (maze2d).
        min_episode_length: shorter episodes are skipped.

    Raises:
        O2ODataError: if the file is damaged, lacks arrays, or does not say where episodes end.
    """
    with open_hdf5(path) as file:
        arrays = {key: read_array(file, key) for key in _D4RL_KEYS if key in file}
    return _from_flat(arrays, str(path), max_episode_steps, min_episode_length)


def read_npz(path: Path, *, max_episode_steps: int | None, min_episode_length: int) -> RawDataset:
    """Read an npz file of flat arrays, named as in D4RL, in Minari or in TED, with an optional ``episode`` array.

    Args:
        path: the file; pickled objects in it are refused.
        max_episode_steps: needed where neither ``timeouts`` nor ``episode`` is there.
        min_episode_length: shorter episodes are skipped.

    Raises:
        O2ODataError: if the file is damaged, holds objects, lacks arrays, or does not say where episodes end.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # zip, zlib and numpy each have their own errors for damaged files
        raise O2ODataError(f"{path} is not a readable npz file of plain arrays ({error}).") from error
    return _from_flat(arrays, str(path), max_episode_steps, min_episode_length)


def read_arrays(
    source: Mapping[str, Any] | Sequence[Mapping[str, Any]] | TensorDictBase,
    *,
    max_episode_steps: int | None,
    min_episode_length: int,
) -> RawDataset:
    """Read arrays in memory: a dictionary of flat arrays, a list of episodes, or transitions in TED.

    Args:
        source: see :func:`~torchrl_o2o.data.load_offline`.
        max_episode_steps: as in :func:`read_npz`.
        min_episode_length: shorter episodes are skipped.

    Raises:
        O2ODataError: if the arrays do not fit together.
    """
    # Copies: the caller's arrays must not change with the transitions.
    if isinstance(source, TensorDictBase):
        return _from_flat(_ted_arrays(source), "the TensorDict", max_episode_steps, min_episode_length)
    if isinstance(source, Mapping):
        arrays = {key: np.array(values) for key, values in source.items() if not isinstance(values, Mapping)}
        return _from_flat(arrays, "the dictionary", max_episode_steps, min_episode_length)
    rows = rows_from_episodes(source, origin="the list of episodes")
    data, notes = to_transitions(rows, min_episode_length=min_episode_length, origin="the list of episodes")
    return RawDataset(data, SourceMeta("the list of episodes"), notes)


def _ted_arrays(data: TensorDictBase) -> dict[str, np.ndarray]:
    keys = data.keys(include_nested=True)
    if has_steps(data):
        raise O2ODataError(
            f"the TensorDict has {STEPS!r}: rows over several steps cannot be audited; load the one-step rows, then "
            f"take torchrl_o2o.data.n_step of them"
        )
    missing = [key for key in TRANSITION if key not in keys and key != ("next", "done")]
    if missing or data.ndim != 1:
        raise O2ODataError(f"the TensorDict has the batch size {tuple(data.shape)} and lacks {missing}; expected [N].")
    named = {
        "observations": "observation",
        "actions": "action",
        "next_observations": ("next", "observation"),
        "rewards": ("next", "reward"),
        "terminals": ("next", "terminated"),
        "timeouts": ("next", "truncated"),
        "episode": "episode",
    }
    return {name: data.get(key).cpu().clone().numpy() for name, key in named.items() if key in keys}


def _from_flat(arrays: Mapping[str, np.ndarray], origin: str, limit: int | None, min_length: int) -> RawDataset:
    rows = rows_from_flat(arrays, max_episode_steps=limit, origin=origin)
    data, notes = to_transitions(rows, min_episode_length=min_length, origin=origin)
    return RawDataset(data, SourceMeta(origin, max_episode_steps=limit), notes)
