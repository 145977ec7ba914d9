# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Crash-safe files (plain writes, a flush to disk, one rename into place) and a lock on a folder.

Memory-mapped writes are avoided on purpose: on a full disk they raise ``SIGBUS`` instead of an ``OSError``.
Files are opened without following symbolic links, because a folder from elsewhere may contain links to other files.
Needs a POSIX system (``fcntl``).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from torchrl_o2o.errors import O2OCheckpointError

__all__ = [
    "FolderLock",
    "identity",
    "open_file",
    "read_file",
    "refuse_link",
    "refuse_other",
    "replace_durably",
    "reserve",
    "sync_folder",
    "write_durably",
]

_LOCK_FILE = ".lock"
_ZEROS = 2**20


def open_file(path: Path, *, append: bool = False) -> BinaryIO:
    """Open a file for writing bytes, replacing an existing one, or for reading and appending.

    A symbolic link is replaced in the first case and raises an error in the second; its target is never changed.

    Args:
        path: the file.

    Keyword Args:
        append: keep the content and allow reading it. Writes are not buffered. Defaults to ``False``.

    Raises:
        OSError: if it cannot be opened, is a symbolic link (with ``append``), or is not a regular file.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "theirs").write_text("theirs"); (folder / "a").symlink_to(folder / "theirs")
        >>> with open_file(folder / "a") as file:
        ...     _ = file.write(b"ours")
        >>> (folder / "theirs").read_text(), (folder / "a").read_text()
        ('theirs', 'ours')
    """
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe in its place must not block
    if append:
        descriptor = os.open(path, flags | os.O_RDWR | os.O_APPEND, 0o666)
    else:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, flags | os.O_WRONLY | os.O_EXCL, 0o666)
    _require_regular(descriptor, path)
    return open(descriptor, "a+b" if append else "wb", buffering=0 if append else -1)


def read_file(path: Path) -> bytes:
    """Read a file, or what a symbolic link to it shows; a pipe in its place is not waited for.

    Args:
        path: the file.

    Raises:
        OSError: if it cannot be read, or is not a regular file.

    Examples:
        >>> import tempfile
        >>> pipe = Path(tempfile.mkdtemp()) / "pipe"
        >>> os.mkfifo(pipe)
        >>> read_file(pipe)
        Traceback (most recent call last):
        OSError: [Errno 22] not a regular file: ...
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    _require_regular(descriptor, path)
    with open(descriptor, "rb") as file:
        return file.read()


def _require_regular(descriptor: int, path: Path) -> None:
    """Close what was opened, and raise, if it is not a regular file."""
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def refuse_link(folder: Path) -> None:
    """Raise if a folder is a symbolic link, because files would be written and removed somewhere else.

    Args:
        folder: the folder, which need not exist.

    Raises:
        O2OCheckpointError: if it is one; the message names the target.

    Examples:
        >>> refuse_link(Path("nowhere"))
    """
    if folder.is_symlink():
        raise O2OCheckpointError(
            f"got {folder}, a symbolic link to {os.readlink(folder)}, expected a folder, because files would be "
            "written and removed there; remove the link, or name the folder itself"
        )


def identity(path: Path) -> tuple[int, int]:
    """Identify a file or folder by device and inode, so that another one of the same name is recognized.

    Args:
        path: an existing file or folder.

    Examples:
        >>> identity(Path(".")) == identity(Path.cwd())
        True
    """
    status = os.stat(path)
    return status.st_dev, status.st_ino


def refuse_other(folder: Path, expected: tuple[int, int]) -> None:
    """Raise if another folder has taken a folder's name, so that nothing is written into it.

    Args:
        folder: its path.
        expected: its original :func:`identity`.

    Raises:
        O2OCheckpointError: if it was moved or removed, even if another folder now has its name.

    Examples:
        >>> refuse_other(Path("."), identity(Path(".")))
    """
    with suppress(OSError):
        if identity(folder) == expected:
            return
    raise O2OCheckpointError(
        f"{folder} is not the folder that this run began in: it was moved or removed during the run; move it back, or "
        "resume the run at the new place"
    )


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and return only when its bytes are on the disk.

    Args:
        path: the file; overwritten if it exists. Use :func:`replace_durably` for files that others may read meanwhile.
            A symbolic link is replaced.
        data: its whole content.

    Raises:
        OSError: if the disk is full or the folder cannot be written.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.bin"
        >>> write_durably(path, b"abc")
        >>> path.read_bytes()
        b'abc'
    """
    with open_file(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (names, renames, removals) to the disk.

    Args:
        folder: an existing folder.

    Examples:
        >>> import tempfile
        >>> sync_folder(Path(tempfile.mkdtemp()))
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(path: Path, data: bytes) -> None:
    """Replace a file's content so that a reader sees the old or the new content, never a mixture, even after a crash.

    Args:
        path: the file to create or replace; ``<name>.tmp`` next to it is used as a temporary file.
        data: its whole new content.

    Raises:
        OSError: if the disk is full or the folder cannot be written; the file then keeps the old content.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "latest"
        >>> replace_durably(path, b"step-1"); replace_durably(path, b"step-2")
        >>> path.read_text(), sorted(entry.name for entry in path.parent.iterdir())
        ('step-2', ['latest'])
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    staged = path.with_name(f"{path.name}.tmp")
    write_durably(staged, data)
    os.replace(staged, path)
    sync_folder(path.parent)


def reserve(path: Path) -> None:
    """Allocate the disk blocks of a new file of zeros, so that a memory-mapped write into it cannot raise ``SIGBUS``.

    Args:
        path: a file that is still all zeros, of its full size.

    Raises:
        OSError: if the disk is full.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a"
        >>> _ = path.write_bytes(bytes(10)); reserve(path); path.read_bytes() == bytes(10)
        True
    """
    with path.open("r+b") as file:
        size = path.stat().st_size
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(1, size))
            return
        for start in range(0, size, _ZEROS):  # macOS lacks this call
            file.write(bytes(min(_ZEROS, size - start)))


class FolderLock:
    """Lock for one writer per folder: an advisory ``flock`` on ``FOLDER/.lock``, freed when its process ends.

    A lock file left by a killed process therefore does not block.

    Args:
        folder: an existing folder.

    Raises:
        O2OCheckpointError: if another process, or another part of this one, holds the lock (the message names the
            process), or if the folder cannot be written.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with FolderLock(folder):
        ...     FolderLock(folder)
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OCheckpointError: ... is in use by process ...
        >>> FolderLock(folder).release()
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / _LOCK_FILE
        try:
            self._file = open_file(path, append=True)
        except OSError as error:
            raise O2OCheckpointError(f"cannot write to {path.parent} ({error}); choose a writable folder") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._refuse(path, error)
        # The holder's name is only informative, so a full disk does not matter here.
        with suppress(OSError):
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()} ({Path(sys.argv[0]).name})".encode())

    def _refuse(self, path: Path, error: OSError) -> None:
        self._file.seek(0)
        holder = self._file.read().decode(errors="replace") or "another process"
        self._file.close()
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise O2OCheckpointError(f"cannot lock {path} ({error}); choose a folder on a local disk") from error
        raise O2OCheckpointError(
            f"{path.parent} is in use by {holder}; stop that run, or choose another folder for this one"
        ) from error

    def release(self) -> None:
        """Release the lock; further calls do nothing."""
        self._file.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
