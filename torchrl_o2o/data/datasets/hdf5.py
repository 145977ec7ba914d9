# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Read arrays from HDF5 files that may be damaged, open elsewhere, or crafted to expose other files."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torchrl_o2o.data.datasets.casting import StoredArray, check_size, refuse_stand_in
from torchrl_o2o.data.datasets.optional import require
from torchrl_o2o.errors import O2ODataError, O2OError

__all__ = ["StoredGroup", "open_hdf5", "read_array"]

_PLUGIN = (
    "holds an array that was compressed by a plugin of HDF5 that is not installed ({error}). Import hdf5plugin before "
    "you load the file, or store it again with gzip: h5repack -f GZIP=4 FILE COPY."
)
#: Longest chain of links that is followed.
_MOST_LINKS = 8
#: Words of HDF5's errors on files that are not damaged -> what to say instead.
_INTACT = {
    "unable to lock file": "is locked: another process has it open for writing. Close it there, or read a copy.",
    "already open for write": (
        "is marked as open for writing: another process has it open, or ended without closing it. Close it there; if "
        "no process has it open, clear the mark with HDF5's tool, `h5clear -s FILE`."
    ),
    "required filter": _PLUGIN,
    "can't open directory (": _PLUGIN,
}
#: Formats and largest size of image observations: Minari writes JPEG, others PNG.
_IMAGE_FORMATS, _IMAGE_MODES, _MOST_PIXELS = ("JPEG", "PNG"), ("L", "RGB", "RGBA"), 1 << 22


@contextmanager
def open_hdf5(path: Path) -> Iterator[StoredGroup]:
    """Open a file for reading; errors inside the block name the file.

    Args:
        path: the file.

    Raises:
        O2ODataError: if the file, or anything read from it in the block, is damaged, missing or cannot be read now.
        O2OSpecError: if h5py is not installed.
    """
    h5py = require("h5py", "minari")
    try:
        refuse_stand_in(path)
        with h5py.File(path, "r") as file:
            yield StoredGroup(h5py, file.id, "", str(path))
    except O2OError:  # wrong options, too, are no damage
        raise
    except Exception as error:  # on damaged files HDF5 and h5py can raise any exception
        reason = next((said for words, said in _INTACT.items() if words in str(error)), None)
        if reason is not None:
            raise O2ODataError(f"{path} {reason.format(error=error)}") from error
        if isinstance(error, PermissionError | MemoryError):
            raise O2ODataError(f"{path} cannot be read ({error!r}).") from error
        raise O2ODataError(f"{path} is damaged or not HDF5 ({error}); download or record it again.") from error


class StoredGroup(Mapping[str, Any]):
    """A group of an HDF5 file, as a mapping of names to arrays and groups, which are read when they are asked for.

    Nothing outside the file is reached: links to other files, external storage and virtual arrays are refused.

    Args:
        h5py: the library.
        group: h5py's identifier of the group.
        path: of the group in its file; empty for the file itself.
        filename: of the file.
    """

    def __init__(self, h5py: Any, group: Any, path: str, filename: str) -> None:
        self.h5py, self.group, self.path, self.filename = h5py, group, path, filename

    def __getitem__(self, name: str) -> StoredArray | StoredGroup:
        """Look up an entry; see the class."""
        self._stay_inside(self.group, name)
        found, path = self.h5py.h5o.open(self.group, name.encode()), f"{self.path}/{name}"
        if isinstance(found, self.h5py.h5g.GroupID):
            return StoredGroup(self.h5py, found, path, self.filename)
        if not isinstance(found, self.h5py.h5d.DatasetID):
            raise O2ODataError(f"{self.filename}: {path} is neither an array nor a group.")
        shape, dtype = found.shape, found.dtype
        return StoredArray(shape, dtype, lambda: self._read(found, shape, dtype, f"{self.filename}: {path}"))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return (name.decode() for name in self.group)

    def __len__(self) -> int:
        """Count the entries."""
        return self.group.get_num_objs()

    def __contains__(self, name: object) -> bool:
        """Whether there is an entry of this name, even if it is a link out of the file."""
        return isinstance(name, str) and self.group.links.exists(name.encode())

    def _stay_inside(self, group: Any, path: str, followed: int = 0) -> None:
        """Raise if a path leads out of the file."""
        links, walked = group.links, ""
        for part in filter(None, path.split("/")):
            where = f"{walked}/{part}" if walked else part
            if not links.exists(where.encode()):
                raise KeyError(where)
            kind = links.get_info(where.encode()).type
            if kind == self.h5py.h5l.TYPE_SOFT:
                target = links.get_val(where.encode()).decode()
                self._follow(group, f"{self.path}/{where}", walked, target, followed)
            elif kind != self.h5py.h5l.TYPE_HARD:
                raise O2ODataError(
                    f"{self.filename}: {self.path}/{where} is a link that leads out of the file; expected all data "
                    "inside the file. Copy the link's target into the file."
                )
            walked = where

    def _follow(self, group: Any, link: str, walked: str, target: str, followed: int) -> None:
        """Raise if a link inside the file leads out of it, to nothing, or to no end of links."""
        if followed == _MOST_LINKS:
            raise O2ODataError(
                f"{self.filename}: the link {link} leads to further links, more than {_MOST_LINKS} or without end; "
                "expected links to arrays and groups. Remove it from the file."
            )
        try:
            if target.startswith("/"):
                root = self.h5py.h5i.get_file_id(group)
                self._stay_inside(self.h5py.h5o.open(root, b"/"), target, followed + 1)
            else:
                self._stay_inside(group, f"{walked}/{target}", followed + 1)
        except KeyError as error:
            raise O2ODataError(
                f"{self.filename}: {link} is a link to {target}, which is not in the file; expected all data inside "
                "the file. Remove the link, or write what it stands for."
            ) from error

    def _read(self, stored: Any, shape: tuple[int, ...], dtype: np.dtype, origin: str) -> np.ndarray:
        """Read an array through h5py's low-level interface, which is ten times faster on short episodes."""
        h5py = self.h5py
        if stored.get_offset() is None and _lies_elsewhere(h5py, stored.get_create_plist()):
            raise O2ODataError(
                f"{origin} stores its values in other files; expected them in this file. Copy them into it."
            )
        if dtype.kind == "O" and (h5py.check_string_dtype(dtype) or h5py.check_vlen_dtype(dtype) == np.uint8):
            return _images(h5py.Dataset(stored)[()], origin)
        if dtype.kind not in "fiubS":
            raise O2ODataError(f"{origin} holds {dtype}; expected real numbers.")
        size, packed = math.prod(shape) * dtype.itemsize, stored.get_storage_size()
        # An array that was never written takes no space and holds its fill value.
        check_size(size, packed or Path(self.filename).stat().st_size, origin)
        values = np.empty(shape, dtype)
        stored.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
        return values


def _lies_elsewhere(h5py: Any, settings: Any) -> bool:
    return settings.get_layout() == h5py.h5d.VIRTUAL or settings.get_external_count() > 0


def read_array(group: StoredGroup, name: str) -> np.ndarray:
    """Read a whole array; encoded images (Minari's JPEG) are decoded to [N, height, width, channel] uint8.

    Args:
        group: where it is.
        name: its path from there.

    Raises:
        O2ODataError: if there is no such array, or it declares more than the file can hold.
    """
    found = group.get(name)
    if found is None:
        raise O2ODataError(
            f"{group.filename}: {group.path} has no {name}; it holds {sorted(group)}. Add the array, or download or "
            "record the file again."
        )
    if not isinstance(found, StoredArray):
        raise O2ODataError(f"{group.filename}: {group.path}/{name} is a group; expected an array.")
    return np.asarray(found)


def _images(encoded: Any, origin: str) -> np.ndarray:
    image = require("PIL.Image", "minari")
    decoded, size, packed = [], 0, 0
    for number, content in enumerate(encoded):
        content = bytes(content)
        try:
            picture = image.open(io.BytesIO(content), formats=_IMAGE_FORMATS)
        except OSError as error:
            raise O2ODataError(
                f"{origin}: image {number} is not a {' or '.join(_IMAGE_FORMATS)} image ({error})."
            ) from error
        width, height = picture.size
        if picture.mode not in _IMAGE_MODES or width * height > _MOST_PIXELS:
            raise O2ODataError(
                f"{origin}: image {number} has {width} x {height} pixels of the kind {picture.mode}; expected at most "
                f"{_MOST_PIXELS} of {', '.join(_IMAGE_MODES)}."
            )
        size, packed = size + width * height * len(picture.mode), packed + len(content)
        check_size(size, packed, origin)
        decoded.append(np.asarray(picture, dtype=np.uint8))
    if len({picture.shape for picture in decoded}) > 1:
        raise O2ODataError(f"{origin}: its images differ in shape; expected one shape.")
    return np.stack(decoded)
