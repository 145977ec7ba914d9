# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Read arrays of any kind as numpy arrays of the types that batches are made of. Shapes: N rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrl_o2o.envs.tasks import observation_keys
from torchrl_o2o.errors import O2ODataError, O2OError, O2OSpecError

__all__ = [
    "StoredArray",
    "cast_column",
    "cast_episode",
    "cast_flags",
    "check_size",
    "joined",
    "own_copy",
    "plain_tensor",
    "refuse_keys",
    "refuse_stand_in",
]

#: Minari's name of an entry of a tuple.
_ELEMENT = re.compile(r"_index_(\d+)")
#: How files begin that a download or a checkout leaves in the place of the data, in small letters -> what they are.
_STAND_INS = {
    b"version https://git-lfs.github.com/": "a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`",
    b"<!doctype html": "a web page, not the file itself; download it again from the address of the file",
    b"<html": "a web page, not the file itself; download it again from the address of the file",
}
#: HDF5 and npz compress at most 1032 : 1 (deflate). An array that claims more has a damaged size.
_LARGEST_RATIO = 1100
#: Arrays above this size hold numbers, which do not compress to a hundredth.
_LARGE, _LARGE_RATIO = 1 << 30, 100


@dataclass(frozen=True)
class StoredArray:
    """An array in a file, which is read when numpy asks for it.

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


def refuse_stand_in(path: Path) -> None:
    """Raise for a file that only stands for the data: a pointer of Git LFS, or the page of a failed download.

    Args:
        path: the file.

    Raises:
        O2ODataError: if it is such a file.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(64).lstrip().lower()
    except OSError:  # whoever reads the file says why it cannot be read
        return
    for words, what in _STAND_INS.items():
        if beginning.startswith(words):
            raise O2ODataError(f"{path} is {what}.")


def check_size(size: int, stored: int, origin: str) -> None:
    """Raise for an array whose declared size exceeds what its file can hold, before anything is allocated.

    Args:
        size: bytes that it declares.
        stored: bytes that it takes in the file.
        origin: what to call it in an error.

    Raises:
        O2ODataError: if the size is impossible, or implausible for numbers.
    """
    if size > _LARGEST_RATIO * stored:
        raise O2ODataError(f"{origin} is damaged: it declares {size} bytes in {stored}; download or record it again.")
    if size > _LARGE and size > _LARGE_RATIO * stored:
        raise O2ODataError(
            f"{origin} declares {size} bytes, stored in {stored}; expected less compression, because numbers do not "
            "compress so well. If the file is intact, store it without compression."
        )


def own_copy(value: Any, origin: str) -> np.ndarray:
    """A copy of an array that shares no memory with the caller's.

    Args:
        value: an array, a tensor, a list, or a :class:`StoredArray`, which is read.
        origin: what to call it in an error.

    Raises:
        O2ODataError: if it is no array of numbers, or a masked one.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        row = int(np.flatnonzero(np.ma.getmaskarray(value).reshape(len(value), -1).any(1))[0])
        raise O2ODataError(f"{origin} is masked in row {row}; fill it, or leave those rows out.")
    try:
        value = plain_tensor(value) if isinstance(value, Tensor) else value
        array = np.array(value) if isinstance(value, np.ndarray) else np.asarray(value)
        # A column of a data frame holds its rows, vectors or texts, as objects.
        return np.array(array.tolist()) if array.dtype.hasobject and array.size else array
    except O2OError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, foreign objects
        raise O2ODataError(f"{origin} is not an array ({error}); expected real numbers, one row per step.") from error


def plain_tensor(value: Tensor) -> Tensor:
    """Convert a tensor for numpy: without gradients, on the CPU, and of a dtype that numpy has.

    Args:
        value: any tensor.

    Examples:
        >>> import torch
        >>> plain_tensor(torch.ones(1, dtype=torch.bfloat16, requires_grad=True)).numpy()
        array([1.], dtype=float32)
    """
    value = value.detach().cpu()
    return value.float() if value.dtype == torch.bfloat16 else value


def refuse_keys(keys: Sequence[str] | None, origin: str) -> None:
    """Raise if keys of a dictionary observation are given for data without one.

    Args:
        keys: ``obs_keys``, or ``None``.
        origin: what to call the observation in an error.

    Raises:
        O2OSpecError: if keys are given.
    """
    if keys is not None:
        raise O2OSpecError(
            f"got obs_keys={list(keys)}, but {origin} is one array, expected a dictionary; leave obs_keys out"
        )


def joined(
    node: Mapping[str, Any], keys: Sequence[str] | None, origin: str, *, usual: Sequence[str] = observation_keys("")
) -> np.ndarray:
    """Join the entries of a dictionary observation, nested ones in alphabetical order, those of tuples in theirs.

    Args:
        node: name -> [N, ...] or a dictionary of them.
        keys: the entries to join, in order; ``None`` takes the usual ones that exist.
        origin: what to call the observation in an error.
        usual: the usual keys; ``observation``, ``achieved_goal``, ``desired_goal`` by default.

    Raises:
        O2ODataError: if entries are missing, or several entries should be joined that are not vectors.
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
        return [cast_column(own_copy(node, f"{name} of {origin}"), f"{name} of {origin}")]
    return [leaf for key in sorted(node, key=_place) for leaf in _leaves(node[key], f"{name}/{key}", origin)]


def _place(key: str) -> tuple[int, str]:
    """Entries of a tuple, as Minari names them, in order; others in alphabetical order, as in gymnasium."""
    element = _ELEMENT.fullmatch(key)
    return (int(element[1]) if element else -1, key)


def cast_column(values: Any, name: str) -> np.ndarray:
    """Cast one array to the dtype of batches: float32, or uint8 if the rows are images.

    Arrays that have this dtype are not copied, because :func:`find_columns` has copied them.

    Args:
        values: [N, ...] numbers of any kind.
        name: what to call it in an error.

    Raises:
        O2ODataError: if the values are not real numbers.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.data.datasets.casting import cast_column
        >>> cast_column(np.zeros((3, 2)), "observations").dtype
        dtype('float32')
        >>> cast_column(np.zeros((3, 8, 8, 3), np.uint8), "observations").dtype
        dtype('uint8')
    """
    values = values if isinstance(values, np.ndarray) else own_copy(values, name)
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
        >>> from torchrl_o2o.data.datasets.casting import cast_flags
        >>> cast_flags([0.0, 1.0], "terminals")
        array([False,  True])
        >>> cast_flags([0, 2], "terminals")
        Traceback (most recent call last):
        ...
        torchrl_o2o.errors.O2ODataError: terminals holds 2 in row 1; expected 0 or 1 in every row.
    """
    values = own_copy(values, name).reshape(-1)
    if values.dtype.kind not in "fiub":
        raise O2ODataError(f"{name} holds {values.dtype}; expected 0 or 1 in every row.")
    if values.dtype.kind == "b":
        return values.view(np.uint8) != 0  # in damaged files, a bool can be any byte
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
    values = own_copy(values, name).reshape(-1)
    if values.dtype.kind not in "fiubUS":
        raise O2ODataError(f"{name} holds {values.dtype}; expected the number of each row's episode.")
    bad = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)
    if bad.any():
        row = int(bad.argmax())
        raise O2ODataError(f"{name} holds {values[row]} in row {row}; expected the number of each row's episode.")
    large = np.abs(values) >= 2.0 ** np.finfo(values.dtype).nmant * 2 if values.dtype.kind == "f" else bad
    if large.any():
        row = int(large.argmax())
        raise O2ODataError(
            f"{name} holds {values[row]:.0f} in row {row}, where {values.dtype} rounds whole numbers, so that episodes "
            "may have the same number; store integers."
        )
    return values
