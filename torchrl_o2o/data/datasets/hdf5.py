# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Arrays out of HDF5 files that may be damaged."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_o2o.data.datasets.optional import require
from torchrl_o2o.errors import O2ODataError

__all__ = ["open_hdf5", "read_array"]

#: No filter of HDF5 packs better than deflate's 1032 : 1; an array that claims more has a damaged size.
_LARGEST_RATIO = 1100


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open a file to read from, and name it in whatever goes wrong inside the block.

    Args:
        path: the file.

    Raises:
        O2ODataError: if the file, or anything read from it in the block, is damaged or missing.
        O2OSpecError: if h5py is not installed.
    """
    h5py = require("h5py", "minari")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except O2ODataError:
        raise
    except Exception as error:  # a damaged file makes HDF5 and h5py fail in any way
        raise O2ODataError(f"{path} is damaged or not HDF5 ({error}); download or record it again.") from error


def read_array(file: Any, name: str) -> np.ndarray:
    """Read a whole array; encoded images (Minari's JPEG) are decoded to [N, height, width, channel] uint8.

    This is h5py's low-level interface: with short episodes its objects take ten times as long as the reading.

    Args:
        file: an open file.
        name: path of the array in it.
    """
    h5d, h5s = require("h5py.h5d", "minari"), require("h5py.h5s", "minari")
    stored = h5d.open(file.id, name.encode())
    if stored.dtype.kind == "O":
        image = require("PIL.Image", "minari")
        return np.stack([np.asarray(image.open(io.BytesIO(encoded)), dtype=np.uint8) for encoded in file[name][()]])
    size = math.prod(stored.shape) * stored.dtype.itemsize
    if size > _LARGEST_RATIO * stored.get_storage_size():
        raise O2ODataError(f"{file.filename} is damaged: {name} claims {size} bytes; download or record it again.")
    values = np.empty(stored.shape, stored.dtype)
    stored.read(h5s.ALL, h5s.ALL, values)
    return values
