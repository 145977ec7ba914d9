# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Read V-D4RL's files: episodes of images, 64 pixels as npz, 84 pixels as HDF5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchrl_o2o.data.datasets.casting import StoredArray
from torchrl_o2o.data.datasets.flat import open_npz
from torchrl_o2o.data.datasets.hdf5 import open_hdf5
from torchrl_o2o.data.datasets.names import speaks_of_ends
from torchrl_o2o.data.pixels import PixelData, assemble
from torchrl_o2o.errors import O2ODataError

__all__ = ["load_vd4rl"]

_IMAGES = ("image", "observation")
_READ = (*_IMAGES, "action", "reward", "discount", "is_first", "is_last", "is_terminal", "step_type")


def load_vd4rl(path: str | Path, *, num_stack: int = 3, mixed_episodes: bool = False) -> PixelData:
    """Load a V-D4RL data set, or your own in that form, from a file or a folder.

    A row has the action that led to its image and that action's reward; an episode's first row has the image at reset
    and a dummy action. A transition is therefore (image of row i - 1, action i, reward i, image of row i).

    Episodes begin where ``is_first`` (npz) is true or ``step_type`` (HDF5) is 0, or after ``is_last``. Without these
    entries, an npz file is one episode and HDF5 has blocks of 501 rows. Episodes end by a time limit unless
    ``is_terminal`` is true or, in files without it, ``discount`` is 0. Files are read in the order of their names.

    Source: Lu et al. 2023 (V-D4RL), arXiv:2206.04779; layout as in its repository.

    Args:
        path: an ``.npz``, ``.hdf5`` or ``.h5`` file, or a folder of them.

    Keyword Args:
        num_stack: frames of a stack. Defaults to 3.
        mixed_episodes: whether to reproduce RLPD's official loader, which ignores where episodes begin: the frames at
            reset, except for the very first, are lost, and the first ``num_stack`` stacks of an episode contain frames
            of the one before. Defaults to ``False``.

    Returns:
        The data, images as uint8, everything else float32.

    Raises:
        O2ODataError: if there are no files, a file is damaged or stores values in other files, entries are missing, or
            rows contradict each other.

    Warns:
        UserWarning: as in :func:`~torchrl_o2o.data.pixel_data`.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> first = np.arange(4) == 0
        >>> np.savez(folder / "20240101T000000-0-4.npz", image=np.zeros((4, 64, 64, 3), np.uint8), is_first=first,
        ...          action=np.zeros((4, 2)), reward=np.ones(4), is_terminal=np.zeros(4, bool))
        >>> data = load_vd4rl(folder)
        >>> len(data), data.rows["next", "truncated"].squeeze(-1).tolist()
        (3, [False, False, True])
    """
    named = ((f"episode {number} of {file}", each) for file in _files(Path(path)) for number, each in _episodes(file))
    data = assemble(named, str(path), num_stack=num_stack)
    return _mixed(data, num_stack) if mixed_episodes else data


def _files(path: Path) -> list[Path]:
    kinds = (".npz", ".hdf5", ".h5")
    found = path.iterdir() if path.is_dir() else [path]
    files = sorted(file for file in found if file.suffix in kinds and file.is_file())  # a pipe would be waited for
    if not files:
        raise O2ODataError(
            f"{path} has no {', '.join(kinds)} files, expected a file or a folder of V-D4RL episodes; check the path"
        )
    return files


def _read(file: Path) -> dict[str, np.ndarray]:
    with open_npz(file, _READ) if file.suffix == ".npz" else open_hdf5(file) as stored:
        rows = {key: stored[key] for key in _READ if key in stored}
        missing = [key for key in ("action", "reward") if key not in rows]
        if missing or not any(key in rows for key in _IMAGES):
            raise O2ODataError(
                f"{file} has {sorted(stored)}, expected 'image' (64 pixels) or 'observation' (84 pixels), 'action', "
                f"'reward'"
            )
        doubtful = [key for key in stored if key not in _READ and speaks_of_ends(key)]
        if doubtful:
            raise O2ODataError(
                f"{file} has {doubtful}, which is not read, but could mark how episodes end; store it as "
                "'is_terminal', or leave it out"
            )
        groups = [key for key, value in rows.items() if not isinstance(value, StoredArray)]
        if groups:
            raise O2ODataError(f"{file}: {groups} are groups, expected arrays")
        return {key: np.asarray(value) for key, value in rows.items()}


def _episodes(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The episodes of one file by number, each with one image more than actions."""
    rows = _read(file)
    images = next(rows[key] for key in _IMAGES if key in rows)
    lengths = {key: len(value) for key, value in rows.items() if np.ndim(value)}
    if len(set(lengths.values())) > 1:
        raise O2ODataError(f"{file} has entries of several lengths, {lengths}; frames or rows are missing")
    starts = np.flatnonzero(_first_rows(rows, len(images), file))
    terminal = _terminal_rows(rows, len(images))
    for number, (first, stop) in enumerate(zip(starts, [*starts[1:], len(images)], strict=True)):
        if stop - first < 2:
            raise O2ODataError(f"{file} has an episode of a single row at row {first}; leave it out")
        part = slice(first + 1, stop)
        yield (
            number,
            {
                "observation": images[first:stop],
                "action": rows["action"][part],
                "reward": rows["reward"][part].reshape(-1),
                "terminated": terminal[part],
            },
        )


def _first_rows(rows: Mapping[str, np.ndarray], count: int, file: Path) -> np.ndarray:
    if "is_first" in rows:
        first = rows["is_first"].reshape(-1).astype(bool)
    elif "step_type" in rows:
        first = rows["step_type"].reshape(-1) == 0
    elif "is_last" in rows:
        first = np.append(True, rows["is_last"].reshape(-1)[:-1].astype(bool))
    elif file.suffix == ".npz":
        first = np.arange(count) == 0
    else:
        first = np.arange(count) % 501 == 0
        if count % 501:
            raise O2ODataError(
                f"{file} has neither 'step_type' nor 'is_first', and its {count} rows are not blocks of 501; store one "
                "of the two entries"
            )
    wrong = np.flatnonzero(first[1:] != rows["is_last"].reshape(-1)[:-1].astype(bool)) if "is_last" in rows else []
    if len(wrong):
        raise O2ODataError(
            f"{file}: row {wrong[0]} has is_last={bool(rows['is_last'].reshape(-1)[wrong[0]])}, but row {wrong[0] + 1} "
            f"{'begins' if first[wrong[0] + 1] else 'does not begin'} an episode; store flags that agree"
        )
    if not first[0]:
        raise O2ODataError(f"{file} does not begin with an episode's first row: the frame at reset is missing")
    return first


def _terminal_rows(rows: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    if "is_terminal" in rows:
        return rows["is_terminal"].reshape(-1).astype(bool)
    terminal = rows["discount"].reshape(-1) == 0 if "discount" in rows else np.zeros(count, bool)
    # A first row has no discount; some writers store 0 there.
    return terminal & ~(np.arange(count) == 0)


def _mixed(data: PixelData, num_stack: int) -> PixelData:
    """One long episode in which the frames at later resets are missing."""
    newest = data.rows.get(("next", "observation"))[:, -1]
    stream = torch.cat([data.rows.get("observation")[:1, -1].expand(num_stack), newest])
    stacks = stream.unfold(0, num_stack, 1)
    rows = data.rows.copy().set("observation", stacks[:-1].contiguous())
    return PixelData(rows.set(("next", "observation"), stacks[1:].contiguous()), data.frames)
