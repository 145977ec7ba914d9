# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The folder of checkpoints: list them, decide which to keep, and remove the remains of killed processes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl_o2o.checkpoint.manifest import FORMAT, DamagedError, check_manifest, read_manifest, verify_file
from torchrl_o2o.durable import replace_durably, sync_folder
from torchrl_o2o.errors import O2OCheckpointError

__all__ = [
    "SEGMENTS",
    "commit",
    "copy_of",
    "prune",
    "retire",
    "step_folder",
    "steps",
    "sweep",
    "verify",
    "verify_segment",
]

#: The folder of the buffer's segments within the folder of checkpoints.
SEGMENTS = "segments"
_STEP = re.compile(r"step-(\d+)")


def steps(root: Path) -> list[int]:
    """List the checkpoints' steps, valid or not, newest first.

    Args:
        root: the folder of checkpoints.

    Examples:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("step-9", "step-10", "step-11.tmp", "segments"):
        ...     (root / name).mkdir()
        >>> steps(root)
        [10, 9]
    """
    if not root.is_dir():
        return []
    return sorted((int(match[1]) for path in root.iterdir() if (match := _STEP.fullmatch(path.name))), reverse=True)


def step_folder(root: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint.

    Args:
        root: the folder of checkpoints.
        step: the checkpoint's step.

    Examples:
        >>> step_folder(Path("checkpoints"), 12).name
        'step-12'
    """
    return root / f"step-{step}"


def verify(root: Path, step: int) -> dict[str, Any]:
    """Check every file of a checkpoint against the manifest.

    Args:
        root: the folder of checkpoints.
        step: which one.

    Returns:
        The manifest.

    Raises:
        DamagedError: if a file is missing or altered and has no copy; the message names the first.
        O2OCheckpointError: if a file cannot be read at the moment.

    Examples:
        >>> verify(Path("nowhere"), 3)
        Traceback (most recent call last):
        torchrl_o2o.checkpoint.manifest.DamagedError: nowhere/step-3/manifest.json is missing ...
    """
    folder = step_folder(root, step)
    manifest = read_manifest(folder)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return manifest  # written by another version, so its contents are unknown
    for name in _names(manifest):
        _refuse_foreign(name, folder)
    check_manifest(manifest, step)
    for name, entry in manifest["files"].items():
        verify_file(folder / name, entry)
    for entry in manifest["buffer"]["segments"]:
        verify_segment(root, entry)
    return manifest


def _names(manifest: Mapping[str, Any]) -> list[str]:
    try:
        return [*manifest["files"], *(entry["file"] for entry in manifest["buffer"]["segments"])]
    except (KeyError, TypeError) as error:
        raise DamagedError(
            f"a manifest does not fit together: {f'no {error}' if type(error) is KeyError else error}"
        ) from error


def copy_of(segment: Path) -> Path:
    """Path of a segment's second copy. Checkpoints share segments, so one damaged file would spoil them all.

    Args:
        segment: the file.

    Examples:
        >>> copy_of(Path("segments/online-0-9-abc.pt")).name
        'online-0-9-abc.pt.copy'
    """
    return segment.with_name(f"{segment.name}.copy")


def verify_segment(root: Path, entry: Mapping[str, Any]) -> tuple[bytes, O2OCheckpointError | None]:
    """Read a segment, or its copy if the segment is damaged.

    Args:
        root: the folder of checkpoints.
        entry: the segment's manifest entry.

    Returns:
        The content, and the segment's error if the content is the copy's.

    Raises:
        O2OCheckpointError: the segment's error, if there is no intact copy.
    """
    path = root / SEGMENTS / entry["file"]
    try:
        return verify_file(path, entry), None
    except O2OCheckpointError as error:
        try:
            return verify_file(copy_of(path), entry), error
        except O2OCheckpointError:
            raise error from None


def _refuse_foreign(name: str, folder: Path) -> None:
    if Path(name).name != name:
        raise DamagedError(f"the manifest of {folder} names {name!r}, expected a file of the checkpoint's folder")


def commit(staged: Path, root: Path, step: int) -> None:
    """Put a complete, staged checkpoint in place by one rename, then point ``latest`` to it.

    Args:
        staged: the folder with its files on the disk.
        root: the folder of checkpoints.
        step: the checkpoint's step.

    Raises:
        OSError: if the files cannot be renamed or written.

    Examples:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "step-3.tmp").mkdir()
        >>> commit(root / "step-3.tmp", root, 3)
        >>> sorted(path.name for path in root.iterdir()), (root / "latest").read_text()
        (['latest', 'step-3'], 'step-3')
    """
    sync_folder(staged)
    staged.rename(step_folder(root, step))
    sync_folder(root)
    replace_durably(root / "latest", step_folder(root, step).name.encode())


def retire(root: Path, step: int) -> None:
    """Set a damaged checkpoint aside for inspection; the next save removes it.

    Args:
        root: the folder of checkpoints.
        step: the damaged one's step.

    Examples:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "step-3").mkdir()
        >>> retire(root, 3)
        >>> [path.name for path in root.iterdir()]
        ['step-3.broken']
    """
    folder = step_folder(root, step)
    aside = folder.with_name(f"{folder.name}.broken")
    if aside.exists() or aside.is_symlink():
        _remove(aside)
    folder.rename(aside)


def prune(root: Path, keep: int) -> None:
    """Remove all checkpoints except the newest, those set aside, and the segments that no kept checkpoint needs.

    Args:
        root: the folder of checkpoints; the newest one has just been written.
        keep: how many to keep.

    Examples:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for step in (1, 2, 3):
        ...     (root / f"step-{step}").mkdir()
        >>> prune(root, keep=2)
        >>> steps(root)
        [3, 2]
    """
    for step in steps(root)[keep:]:
        folder = step_folder(root, step)
        # Rename first: if the process is killed halfway, the rest must not look like a checkpoint.
        _remove(folder.rename(folder.with_name(f"{folder.name}.tmp")))
    for path in _entries(root):
        if path.name.startswith("step-") and path.suffix == ".broken":
            _remove(path)
    sweep(root)


def sweep(root: Path) -> None:
    """Remove what a killed process left: staged folders and files, and segments that no checkpoint names.

    Args:
        root: the folder of checkpoints.

    Examples:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "step-3.tmp").mkdir(); (root / "segments").mkdir()
        >>> _ = (root / "segments" / "online-0-9-abc.pt").write_bytes(b"orphan")
        >>> sweep(root)
        >>> [path.name for path in root.rglob("*")]
        ['segments']
    """
    segments = _entries(root / SEGMENTS)
    for path in [*_entries(root), *segments]:
        if path.suffix == ".tmp":
            _remove(path)
    named: set[str] = set()
    for folder in [path for path in _entries(root) if path.name.startswith("step-")]:
        try:
            named.update(entry["file"] for entry in read_manifest(folder)["buffer"]["segments"])
        except (O2OCheckpointError, KeyError, TypeError):
            return  # it is unknown which segments it needs, so none is removed
    for path in segments:
        if path.suffix in (".pt", ".copy") and path.name.removesuffix(".copy") not in named:
            _remove(path)


def _entries(folder: Path) -> list[Path]:
    """The entries of a folder. Unlike glob(), raises if the folder is unreadable: what is not listed gets removed."""
    return list(folder.iterdir()) if folder.is_dir() else []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
