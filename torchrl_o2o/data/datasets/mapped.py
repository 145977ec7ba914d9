# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Transitions in memory-mapped files, used in place without a copy.

Shapes: N transitions, E episodes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from tensordict import MemoryMappedTensor, NestedKey, TensorDict, TensorDictBase

from torchrl_o2o.data.datasets.cache import RawDataset, SourceMeta
from torchrl_o2o.data.datasets.casting import refuse_keys
from torchrl_o2o.data.datasets.columns import ReadOptions
from torchrl_o2o.data.keys import EPISODE, STEPS, TRANSITION, has_steps
from torchrl_o2o.errors import O2ODataError, O2OSpecError

__all__ = ["is_mapped", "is_mapped_folder", "open_mapped", "read_mapped"]

#: The metadata file that TensorDict writes next to the data files.
_META = "meta.json"
_ROWS_AT_ONCE = 2**22
#: The types that columns may have, and their dimensions if fixed.
_EXPECTED: dict[NestedKey, tuple[tuple[torch.dtype, ...], tuple[int, ...] | None]] = {
    "observation": ((torch.float32, torch.uint8), None),
    "action": ((torch.float32,), None),
    ("next", "observation"): ((torch.float32, torch.uint8), None),
    ("next", "reward"): ((torch.float32,), (1,)),
    **{("next", flag): ((torch.bool,), (1,)) for flag in ("terminated", "truncated", "done")},
    EPISODE: ((torch.int64,), ()),
}


def is_mapped(data: TensorDictBase) -> bool:
    """Whether transitions lie in memory-mapped files.

    Args:
        data: transitions [N].

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.testing import random_transitions
        >>> rows = random_transitions(4, 3, 2)
        >>> is_mapped(rows), is_mapped(rows.memmap(tempfile.mkdtemp()))
        (False, True)
    """
    return all(isinstance(data.get(key, None), MemoryMappedTensor) for key in TRANSITION)


def is_mapped_folder(path: Path) -> bool:
    """Whether ``TensorDict.memmap`` wrote a folder.

    Args:
        path: the folder.
    """
    return (path / _META).is_file()


def open_mapped(path: Path) -> TensorDictBase:
    """Map the files that ``TensorDict.memmap`` wrote into a folder.

    Args:
        path: the folder.

    Raises:
        O2ODataError: if it is damaged, or reading it would run code.
    """
    try:
        for meta in path.rglob(_META):
            _check_sizes(meta)
        return TensorDict.load_memmap(path, allow_pickle=False)
    except Exception as error:  # TensorDict, json and the system each raise their own
        raise O2ODataError(f"{path} is damaged or was not written by TensorDict.memmap ({error}).") from error


def _check_sizes(meta: Path) -> None:
    """Raise if files do not have the size in the metadata, because torch extends short files with zeros."""
    for name, entry in json.loads(meta.read_bytes()).items():
        if isinstance(entry, dict) and "dtype" in entry:
            dtype = getattr(torch, entry["dtype"].removeprefix("torch."))
            file, expected = meta.parent / f"{name}.memmap", math.prod(entry["shape"]) * dtype.itemsize
            if file.stat().st_size != expected:
                raise ValueError(f"{file} has {file.stat().st_size} bytes, expected {expected}: copy or write it again")


def read_mapped(data: TensorDictBase, origin: str, options: ReadOptions) -> RawDataset:
    """Read memory-mapped transitions without changes. Converting or dropping rows would need memory.

    Args:
        data: transitions [N], all entries mapped, with ``episode`` (or ``("collector", "traj_ids")``).
        origin: what to call them.
        options: how; episodes must have ``min_episode_length`` transitions.

    Returns:
        The same tensors, views of the same files.

    Raises:
        O2ODataError: if an entry is missing, of another type or shape, or episodes are not in order from 0 on.
        O2OSpecError: if an option contradicts the fixed meaning of the entries.
    """
    if options.names not in ({}, {"terminals": "terminals"}):  # confirms that terminals at a time limit are terminal
        raise O2OSpecError(
            f"got names={dict(options.names)} for {origin}, whose entries in memory-mapped files have fixed meanings; "
            "load_offline(data.clone(), names=...) reads the rows in memory"
        )
    refuse_keys(options.obs_keys, origin)
    entries = {key: data.get(key, None) for key in TRANSITION}
    entries[EPISODE] = data.get(EPISODE, data.get(("collector", "traj_ids"), None))
    wrong = _wrong(data, entries)
    if wrong:
        raise O2ODataError(
            f"{origin} lies in memory-mapped files, which are read without conversion, but {wrong}. Write the files in "
            "that form, or convert the rows in memory with load_offline(data.clone())."
        )
    _check_episodes(entries[EPISODE], options.min_episode_length, origin)
    rows = TensorDict({}, [len(data)])
    for key, value in entries.items():
        rows.set(key, value)
    return RawDataset(rows, SourceMeta(origin, max_episode_steps=options.max_episode_steps))


def _wrong(data: TensorDictBase, entries: dict[NestedKey, torch.Tensor | None]) -> str:
    """What differs from the expected layout; empty if nothing does."""
    if data.ndim != 1 or not len(data):
        return f"they have the batch size {tuple(data.shape)}, expected [N] with N >= 1"
    if has_steps(data):
        return f"they have {STEPS!r}: rows over several steps cannot be audited; map the one-step rows"
    for key, value in entries.items():
        dtypes, shape = _EXPECTED[key]
        if value is None:
            return f"{key!r} is missing; expected {[*TRANSITION, EPISODE]}"
        if value.dtype not in dtypes or (shape is not None and value.shape[1:] != shape) or value.ndim < 1:
            form = "[N, ...]" if shape is None else f"{['N', *shape]}".replace("'", "")
            return f"{key!r} is {value.dtype} {list(value.shape)}, expected {' or '.join(map(str, dtypes))} {form}"
    return "" if data.get("action").ndim == 2 else "'action' is not a vector in each row, expected [N, a]"


def _check_episodes(episode: torch.Tensor, shortest: int, origin: str) -> None:
    """Raise if episodes are not numbered 0, 1, 2, ... in order, or are too short."""
    starts, before = [], -1
    for first in range(0, len(episode), _ROWS_AT_ONCE):
        part = torch.cat([torch.tensor([before]), episode[first : first + _ROWS_AT_ONCE]])
        step = part.diff()
        wrong = (step < 0) | (step > 1)
        if wrong.any():
            row = int(wrong.view(torch.uint8).argmax())
            raise O2ODataError(
                f"{origin}: row {first + row} is of episode {part[row + 1]}, the row before it of {part[row]}; "
                "expected numbers 0, 1, 2, ... in order. Write the column in this form, or convert the rows in memory "
                "with load_offline(data.clone())."
            )
        starts.append(first + step.nonzero().squeeze(-1))
        before = int(part[-1])
    lengths = torch.cat([*starts, torch.tensor([len(episode)])]).diff()
    short = int((lengths < shortest).sum())
    if short:
        raise O2ODataError(
            f"{origin}: {short} episodes have fewer than {shortest} transitions, and rows cannot be left out of "
            "memory-mapped files; pass min_episode_length=1 to keep them, or load_offline(data.clone()) in memory."
        )
