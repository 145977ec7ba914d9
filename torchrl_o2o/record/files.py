# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The two files of a run: ``run.json``, which describes it, and ``metrics.jsonl``, a JSON object per line."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrl_o2o.durable import open_file, read_file, replace_durably
from torchrl_o2o.errors import O2OCheckpointError

__all__ = ["METRICS_FILE", "RUN_FILE", "RowFile", "read_metrics", "read_rows", "read_run", "write_run"]

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
_DIGEST_BYTES = 32


def write_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Write a run's ``run.json``, durably and in one step.

    Args:
        folder: the run's folder.
        run: what :func:`read_run` will return.

    Raises:
        O2OCheckpointError: if the file cannot be written.
    """
    try:
        replace_durably(folder / RUN_FILE, (json.dumps(run, indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise O2OCheckpointError(
            f"cannot write {folder / RUN_FILE} ({error}); make room or choose a writable folder"
        ) from error


class RowFile:
    """A file of JSON lines that always ends with a complete line.

    Args:
        path: the file; made if it does not exist.

    Raises:
        O2OCheckpointError: if it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open_file(path, append=True)
            self._note(self._read())
        except OSError as error:
            raise O2OCheckpointError(f"cannot write {path} ({error}); choose a writable folder") from error

    def _read(self) -> bytes:
        self._file.seek(0)
        return self._file.read()

    def _note(self, content: bytes) -> None:
        self._position, self._hash = len(content), hashlib.blake2b(content, digest_size=_DIGEST_BYTES)
        self._ragged = not content.endswith(b"\n") and content != b""

    def _cut_to(self, content: bytes) -> None:
        """Truncate the file to its beginning, ``content``."""
        self._file.truncate(len(content))
        self._note(content)

    def _settle(self) -> None:
        """Remove the incomplete line that a killed process left. Not done earlier: it may be a row that was altered."""
        if self._ragged:
            content = self._read()
            self._cut_to(content[: content.rfind(b"\n") + 1])

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. It has reached the operating system when this returns.

        Args:
            row: what is written as one JSON object.

        Raises:
            O2OCheckpointError: if there is no room; the file is as it was before.
        """
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        try:
            self._settle()
            written = self._file.write(line)
            if written != len(line):  # when the disk becomes full, a part may be written
                raise OSError(f"{written} of {len(line)} bytes written")
        except OSError as error:
            self._file.truncate(self._position)
            raise O2OCheckpointError(f"cannot write {self.path} ({error}); make room on the disk and resume") from error
        self._position += len(line)
        self._hash.update(line)

    def sync(self) -> dict[str, Any]:
        """Wait until the file is on the disk, and return its state: its length and its hash."""
        self._settle()
        os.fsync(self._file.fileno())
        return {"position": self._position, "blake2b": self._hash.hexdigest()}

    def cut(self, position: int, expected: str | None) -> None:
        """Remove the rows behind a position.

        Args:
            position: number of bytes that are kept.
            expected: hash of these bytes, as from :meth:`sync`. If they have another one, lines that are not rows are
                removed with a warning, and the altered file is kept beside this one.

        Raises:
            O2OCheckpointError: if the file is shorter.
        """
        if position > self._position:
            raise O2OCheckpointError(
                f"got {self.path} with {self._position} bytes, expected at least {position} as in the checkpoint: rows "
                "were removed, or it is another run's file; restore the file or start a new run in another folder"
            )
        content = self._read()
        kept = content[:position]
        found = hashlib.blake2b(kept, digest_size=_DIGEST_BYTES).hexdigest()
        if found == expected or (expected is None and _torn(kept) == []):
            return self._cut_to(kept)
        return self._repair(content, kept)

    def _repair(self, content: bytes, kept: bytes) -> None:
        torn = _torn(kept)
        lines = [line for number, line in enumerate(kept.splitlines(keepends=True), start=1) if number not in torn]
        aside = self.path.with_name(f"{self.path.name}.damaged")
        replace_durably(aside, content)
        replace_durably(self.path, b"".join(lines))
        self._file.close()
        self._file = open_file(self.path, append=True)
        self._cut_to(b"".join(lines))
        dropped = f"lines {torn} are not valid rows and are dropped" if torn else "some of its numbers are not those"
        warnings.warn(
            f"{self.path} WAS ALTERED since the checkpoint was taken: {dropped}. The altered file is kept as {aside}",
            stacklevel=4,
        )

    def cut_from_step(self, step: int) -> bool:
        """Remove the rows of a step and later ones, and return whether there were any."""
        self._settle()
        position, content = 0, self._read()
        lines = content.splitlines(keepends=True)
        for index, line in enumerate(lines):
            if _step(line, -math.inf) >= step:
                warnings.warn(
                    f"{self.path}: {len(lines) - index} rows from step {step} on are dropped, because the run "
                    "continues from there without the recorder's state; they are recomputed",
                    stacklevel=4,
                )
                self._cut_to(content[:position])
                return True
            position += len(line)
        return False

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._file.closed

    def close(self) -> None:
        """Sync and close the file; it can be called again."""
        if not self.closed:
            with self._file:
                self.sync()


def _torn(content: bytes) -> list[int]:
    """The numbers, from 1, of the lines that are not valid rows."""
    lines = enumerate(content.splitlines(keepends=True), start=1)
    return [number for number, line in lines if not line.endswith(b"\n") or _step(line, math.nan) != _step(line, 0.0)]


def _step(line: bytes, otherwise: float) -> float:
    """The step of a row; ``otherwise`` for lines that are not valid rows."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return otherwise


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Read a run's metrics, also while it is running.

    Args:
        folder: the run's folder.

    Returns:
        The rows in the order they were logged: ``step``, ``time`` [s] and the metrics as numbers (NaN and infinities as
        floats). An incomplete last line is skipped.

    Raises:
        O2OCheckpointError: if there is no such file, or a line of it is not a row.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.record import Recorder
        >>> folder = tempfile.mkdtemp()
        >>> with Recorder(folder, config={}) as recorder:
        ...     recorder.log(5, {"eval/return": float("inf")})
        >>> [(row["step"], row["eval/return"]) for row in read_metrics(folder)]
        [(5, inf)]
    """
    return read_rows(folder)[0]


def read_rows(folder: str | Path) -> tuple[list[dict[str, Any]], bool]:
    """:func:`read_metrics`, and whether an incomplete last line was skipped; both from a single read of the file.

    Args:
        folder: the run's folder.

    Raises:
        O2OCheckpointError: as :func:`read_metrics`.
    """
    path = Path(folder) / METRICS_FILE
    *lines, rest = _read_bytes(path).split(b"\n")
    return [_parse_row(path, number, line) for number, line in enumerate(lines, start=1)], rest != b""


def _parse_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
        numbers = {name: float(value) if isinstance(value, str) else value for name, value in row.items()}
        odd = [name for name, value in numbers.items() if not isinstance(value, int | float)]
        if odd or not isinstance(numbers.get("step"), int):
            raise ValueError(f"{odd[0]} is not a number" if odd else "it has no step")
        return numbers
    except (ValueError, AttributeError, RecursionError) as error:
        raise O2OCheckpointError(f"{path} line {number} is not a row of metrics ({error}); remove the line") from error


def read_run(folder: str | Path) -> dict[str, Any]:
    """Read a run's ``run.json``.

    Args:
        folder: the run's folder.

    Returns:
        ``id`` and the fields of :func:`~torchrl_o2o.provenance.describe_run`; ``resumed``, a list of the latter, if the
        run was resumed.

    Raises:
        O2OCheckpointError: if the file is missing, is not JSON or does not describe a run.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.record import Recorder
        >>> folder = tempfile.mkdtemp()
        >>> Recorder(folder, config={"gamma": 0.9}).close()
        >>> read_run(folder)["config"]
        {'gamma': 0.9}
    """
    path = Path(folder) / RUN_FILE
    try:
        run = json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise O2OCheckpointError(f"{path} is not JSON ({error}); start a new run in another folder") from error
    kinds = {"config": dict, "versions": dict, "command": str}
    if not isinstance(run, dict) or any(not isinstance(run.get(name, kind()), kind) for name, kind in kinds.items()):
        raise O2OCheckpointError(f"{path} is JSON, but does not describe a run; start a new run in another folder")
    return run


def _read_bytes(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise O2OCheckpointError(f"cannot read {path} ({error}); expected the folder of a run") from error
