# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Demonstration pickles in hand_dapg's form, read by an unpickler that can build numpy arrays and nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_o2o.data.datasets.cache import RawDataset, SourceMeta
from torchrl_o2o.data.datasets.rows import rows_from_episodes
from torchrl_o2o.data.datasets.ted import to_transitions
from torchrl_o2o.errors import O2ODataError

__all__ = ["load_pickled_episodes", "read_demos"]

_RECONSTRUCT = np.zeros(0).__reduce__()[0]
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise O2ODataError(
                f"it asks for {module}.{name}, but only numpy arrays are allowed in a data file; if it is your own, "
                "save it as npz, or with pickle protocol 3 or 4"
            )
        return _ALLOWED[module, name]


def load_pickled_episodes(path: Path) -> Sequence[dict[str, Any]]:
    """Unpickle a list of episodes without running anything that the file names.

    Args:
        path: a pickled list of dictionaries of numpy arrays.

    Raises:
        O2ODataError: if the file is damaged, asks for anything besides numpy's array constructor, or holds something
            else.
    """
    try:
        with path.open("rb") as file:
            # bytes of Python 2, in which hand_dapg's files were written
            episodes = _ArraysOnly(file, encoding="latin1").load()
    except O2ODataError as error:
        raise O2ODataError(f"{path} is refused: {error}.") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise O2ODataError(f"{path} is not a readable pickle of episodes ({error!r}).") from error
    if not isinstance(episodes, list) or not all(isinstance(episode, dict) for episode in episodes):
        raise O2ODataError(f"{path} holds a {type(episodes).__name__}; expected a list of episodes (dictionaries).")
    return episodes


def read_demos(path: Path, *, min_episode_length: int) -> RawDataset:
    """Read demonstrations: per episode ``observations`` [T, o], ``actions`` [T, a], ``rewards`` [T].

    There are as many observations as actions, so the last transition of each episode has no successor: it is dropped
    and counted. Nothing is terminal; each episode ends by truncation.

    Args:
        path: the pickle.
        min_episode_length: shorter episodes are skipped.

    Raises:
        O2ODataError: as :func:`load_pickled_episodes`, or if an episode's arrays do not fit together.
    """
    wanted = ("observations", "actions", "rewards", "next_observations", "terminals", "terminated", "timeouts")
    episodes = [{key: demo[key] for key in wanted if key in demo} for demo in load_pickled_episodes(path)]
    rows = rows_from_episodes(episodes, origin=str(path))
    data, notes = to_transitions(rows, min_episode_length=min_episode_length, origin=str(path))
    return RawDataset(data, SourceMeta(str(path)), notes)
