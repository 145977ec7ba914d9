# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Create folders atomically: write them under a hidden name, then rename them."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrl_o2o.durable import sync_folder

__all__ = ["discard_directory", "staged_directory"]


@contextmanager
def staged_directory(target: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a folder to fill; if the block ends without an error, one rename makes it ``target``.

    A process killed inside the block leaves only a hidden folder, which the next call for the same target on the same
    host removes. If another process finished ``target`` meanwhile, its folder stays and this one is discarded.

    Args:
        target: the folder to make; its parents are created.
        sync: whether the files are flushed to the disk before the rename. Set it to ``False`` only if damaged files are
            detected later.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchrl_o2o.data.datasets.staging import staged_directory
        >>> target = Path(tempfile.mkdtemp()) / "set"
        >>> with staged_directory(target) as folder:
        ...     _ = (folder / "a.txt").write_text("done")
        ...     target.exists()
        False
        >>> [path.name for path in target.iterdir()], [path.name for path in target.parent.iterdir()]
        (['a.txt'], ['set'])
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    staged = _hidden_name(target)
    staged.mkdir()
    try:
        yield staged
        if sync:
            _sync_tree(staged)
        _put_in_place(staged, target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def discard_directory(target: Path) -> None:
    """Remove a folder such that no reader ever finds it half removed.

    Args:
        target: the folder; may be absent.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from torchrl_o2o.data.datasets.staging import discard_directory
        >>> folder = Path(tempfile.mkdtemp()) / "set"
        >>> folder.mkdir(); discard_directory(folder); folder.exists()
        False
    """
    if target.exists():
        hidden = _hidden_name(target)
        target.rename(hidden)
        shutil.rmtree(hidden)


def _prefix(target: Path) -> str:
    return f".{target.name}.tmp-{socket.gethostname()}-"


def _hidden_name(target: Path) -> Path:
    return target.with_name(f"{_prefix(target)}{os.getpid()}-{secrets.token_hex(4)}")


def _sweep(target: Path) -> None:
    for left in target.parent.iterdir():
        if left.name.startswith(_prefix(target)) and not _alive(left.name.removeprefix(_prefix(target))):
            shutil.rmtree(left, ignore_errors=True)


def _alive(suffix: str) -> bool:
    process = suffix.partition("-")[0]
    if not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)  # signal 0 only asks whether the process exists
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _put_in_place(staged: Path, target: Path) -> None:
    try:
        staged.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        sync_folder(path)  # fsync takes files and folders alike
    sync_folder(folder)
