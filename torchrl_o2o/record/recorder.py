# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Record a run: ``run.json`` describes it, ``metrics.jsonl`` holds its metrics, one JSON object per line.

The two files are always written; TensorBoard, Weights & Biases and a progress bar are optional. A row reaches the
operating system before :meth:`Recorder.log` returns, so a killed process loses no rows.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.durable import FolderLock, identity, open_file, refuse_link, refuse_other, replace_durably
from torchrl_o2o.errors import O2OCheckpointError, O2OError, O2OSpecError
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.provenance import describe_run, plain_config, plain_number
from torchrl_o2o.record.sinks import ProgressSink, Sink, TensorBoardSink, WandbSink

__all__ = ["Recorder", "read_metrics", "read_rows", "read_run"]

_RUN_FILE = "run.json"
_METRICS_FILE = "metrics.jsonl"
_TRACES = (_RUN_FILE, _METRICS_FILE, "checkpoints")
_RESERVED = ("step", "time")
_LARGEST_BITS = 1023  # integers of more bits exceed the range of floats
_DIGEST_BYTES = 32
_DESCRIBED = ("id", "resumed", "config", "command", "commit", "versions", "threads", "started")


class Recorder:
    """Write a run's configuration and metrics into its folder.

    A resumed run (``resume=True``) continues with the same files. Loading the recorder's state from a checkpoint cuts
    the rows that were written after it, so that the file ends up as an uninterrupted run's, except for the times. If no
    state is loaded, the first row logged cuts the rows of its own step and later ones, with a warning.

    Args:
        folder: the run's folder; made if absent.

    Keyword Args:
        config: the run's configuration, a mapping or dataclass of plain values (see
            :func:`~torchrl_o2o.provenance.plain_config`).
        seed: the run's seed, recorded as ``config["seed"]``; may be left out if the configuration has it.
        resume: continue with the run in ``folder`` if there is one. Defaults to ``False``, which refuses such a folder.
        tensorboard: also write event files to ``folder/tensorboard``. Defaults to ``False``.
        wandb: keyword arguments of ``wandb.init``, such as ``{"project": "o2o"}``, to log there too. Without a key or a
            network the run is logged offline, with a warning. Defaults to ``None``: not used.
        progress_total: the last step of the run, to show a progress bar. Defaults to ``None``: no bar.

    Raises:
        O2OCheckpointError: if the folder cannot be written, holds a run already, or is in use by another process.
        O2OSpecError: if the configuration is not plain, contradicts ``seed``, or an extra is not installed.

    Examples:
        >>> import tempfile
        >>> import torch
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with Recorder(folder, config={"gamma": 0.99}, seed=7) as recorder:
        ...     recorder.log(1, {"train/loss_qvalue": torch.tensor(0.5)})
        ...     recorder.log(2, {"train/loss_qvalue": float("nan"), "eval/return": 10})
        >>> read_run(folder)["config"]
        {'gamma': 0.99, 'seed': 7}
        >>> [sorted(row) for row in read_metrics(folder)]
        [['step', 'time', 'train/loss_qvalue'], ['eval/return', 'step', 'time', 'train/loss_qvalue']]
    """

    @checked_arguments
    def __init__(
        self,
        folder: str | Path,
        *,
        config: Any,
        seed: int | None = None,
        resume: bool = False,
        tensorboard: bool = False,
        wandb: Mapping[str, Any] | None = None,
        progress_total: int | None = None,
    ) -> None:
        self.folder = Path(folder).absolute()  # an environment, or Hydra, may change the working directory
        plain = _seeded(plain_config(config), seed)
        _make_folder(self.folder)
        self._identity = identity(self.folder)
        self._lock = FolderLock(self.folder)
        self._sinks: list[Sink] = []
        try:
            run = _describe(self.folder, plain, resume)
            if tensorboard:
                self._start(TensorBoardSink, _own_folder(self.folder / "tensorboard"))
            if wandb is not None:
                _own_folder(self.folder / "wandb")
                self._start(WandbSink, self.folder, run, wandb)
            if progress_total is not None:
                self._start(ProgressSink, progress_total)
            # Last, so that a start that fails because of a missing extra leaves no run in the folder.
            _write_run(self.folder, run)
            self._metrics = _RowFile(self.folder / _METRICS_FILE)
        except BaseException:
            self._close_sinks()
            self._lock.release()
            raise
        self._started = time.monotonic()
        self._last_step: int | None = None

    def _start(self, kind: Callable[..., Sink], *arguments: Any) -> None:
        try:
            self._sinks.append(kind(*arguments))
        except O2OError:  # a missing extra: the caller must install it before the run begins
            raise
        except Exception as error:
            _warn_of_sink(kind.__name__, error)

    def _to_sinks(self, act: Callable[[Sink], None]) -> None:
        """Call all sinks. A sink that fails is removed, because a display must not end a run."""
        for sink in list(self._sinks):
            try:
                act(sink)
            except Exception as error:
                _warn_of_sink(type(sink).__name__, error)
                self._sinks.remove(sink)

    def _close_sinks(self) -> None:
        self._to_sinks(lambda sink: sink.close())
        self._sinks = []

    @property
    def last_step(self) -> int | None:
        """The step of the last row, of the state restored if there is none since; ``None`` in a run without rows."""
        return self._last_step

    def log(self, step: int, metrics: Mapping[str, float | Tensor]) -> None:
        """Write one row: ``{"step": step, "time": seconds since the start, **metrics}``.

        Args:
            step: the run's step counter; it never goes down in the course of a run (several rows may share a step).
            metrics: numbers or one-element tensors by name, namespaced by a slash, as in ``"train/loss_qvalue"``.
                Values that are not finite are written as the strings ``"nan"``, ``"inf"`` and ``"-inf"``, which JSON
                lacks; :func:`read_metrics` turns them back.

        Raises:
            O2OSpecError: if a metric is not a number, a step is no whole number or goes down, or the recorder is
                closed.
            O2OCheckpointError: if the row cannot be written; the file then ends with the row before.
        """
        step = _whole(step)
        if self._metrics.closed:
            raise O2OSpecError(f"log() after the recorder of {self.folder} was closed; log inside its 'with' block")
        if self._last_step is None:
            if self._metrics.cut_from_step(step):
                self._to_sinks(lambda sink: sink.rewind(step))
        elif step < self._last_step:
            raise O2OSpecError(
                f"log() got step {step} after step {self._last_step}; count one step through all phases of the run"
            )
        if not hasattr(metrics, "items"):
            raise O2OSpecError(
                f"log() got metrics={metrics!r}, a {type(metrics).__name__}; expected a dictionary of numbers"
            )
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        row = {"step": step, "time": round(self._elapsed(), 3)}
        self._metrics.append(row | {name: plain_number(value) for name, value in numbers.items()})
        self._last_step = step
        self._to_sinks(lambda sink: sink.write(step, numbers))

    def note(self, name: str, value: Any) -> None:
        """Put an entry into ``run.json``, in place of the one of that name.

        Args:
            name: the entry's name, none of what :func:`~torchrl_o2o.provenance.describe_run` writes.
            value: plain values, see :func:`~torchrl_o2o.provenance.plain_config`.

        Raises:
            O2OSpecError: if the name is taken, or the value is not plain.
            O2OCheckpointError: if the file cannot be written.
        """
        run = read_run(self.folder)
        if name in _DESCRIBED:
            raise O2OSpecError(f"{name!r} is an entry of run.json already; take another name")
        self.check_place()
        _write_run(self.folder, run | plain_config({name: value}))

    def show(self, step: int, videos: Mapping[str, Path]) -> None:
        """Show videos where the metrics are shown.

        Args:
            step: as in :meth:`log`.
            videos: files by what they show.
        """
        for name, file in videos.items():
            self._to_sinks(lambda sink, name=name, file=file: sink.show(int(step), f"evaluation/{name}", file))

    def dump(self, name: str, data: TensorDictBase) -> Path:
        """Write tensors next to the metrics, for instance the batch whose loss was not finite.

        Args:
            name: the file's name without its ending; an existing file is replaced.
            data: tensors; written as nested dicts.

        Returns:
            The file, ``folder/name.pt``; ``torch.load(weights_only=True)`` reads it.

        Raises:
            O2OCheckpointError: if it cannot be written.
        """
        path, stream = self.folder / f"{name}.pt", io.BytesIO()
        torch.save(data.to_dict(), stream)
        self.check_place()
        try:
            replace_durably(path, stream.getvalue())
        except OSError as error:
            raise O2OCheckpointError(f"cannot write {path} ({error}); make room on the disk") from error
        return path

    def check_place(self) -> None:
        """See that the run's folder is still the one the run began in.

        Raises:
            O2OCheckpointError: if it was moved or removed, and perhaps another folder has taken its name.
        """
        refuse_other(self.folder, self._identity)

    @contextmanager
    def dump_if_not_finite(self, batch: TensorDictBase) -> Iterator[None]:
        """Write the batch to ``offending-batch.pt`` if the update in this context ends in a ``NonFiniteError``.

        Args:
            batch: what the update learns from.

        Raises:
            NonFiniteError: the same, with the file's name added.

        Examples:
            >>> import tempfile
            >>> from tensordict import TensorDict
            >>> from torchrl_o2o.functional import finite_or_raise
            >>> batch = TensorDict({"reward": torch.tensor([1.0, torch.nan])}, [2])
            >>> with Recorder(tempfile.mkdtemp(), config={}) as recorder, recorder.dump_if_not_finite(batch):
            ...     finite_or_raise({"loss": batch["reward"].sum()})
            Traceback (most recent call last):
            torchrl_o2o.functional.diagnostics.NonFiniteError: not finite: loss (1 of 1 values)... The batch is in ...
        """
        try:
            yield
        except NonFiniteError as error:
            try:
                where = f"The batch is in {self.dump('offending-batch', batch)}"
            except O2OCheckpointError as refused:
                where = f"The batch is not kept: {refused}"
            raise NonFiniteError(f"{error}. {where}") from error

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: length and hash of the metrics file, the last step, the seconds elapsed.

        The rows counted are on the disk when this returns.
        """
        return {**self._metrics.sync(), "step": self._last_step, "seconds": self._elapsed()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go back to the state: cut the rows written after it and continue counting its seconds.

        Rows that were altered since then are dropped or named in a warning, and the file as it was is kept as
        ``metrics.jsonl.damaged``: a damaged record is no reason to give up the training.

        Args:
            state_dict: from :meth:`state_dict`, of a recorder of the same folder.

        Raises:
            O2OCheckpointError: if the file is shorter than the state says, that is, not the file it was taken of.
        """
        self._metrics.cut(state_dict["position"], state_dict.get("blake2b"))
        self._last_step = state_dict["step"]
        self._started = time.monotonic() - state_dict["seconds"]
        if self._last_step is not None:
            following = self._last_step + 1
            self._to_sinks(lambda sink: sink.rewind(following))

    def close(self) -> None:
        """Flush every file to the disk and free the folder; calling it again does nothing."""
        try:
            self._close_sinks()
            self._metrics.close()
        finally:
            self._lock.release()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _warn_of_sink(name: str, error: Exception) -> None:
    warnings.warn(
        f"{name} FAILED ({type(error).__name__}: {error}) and is left out from here on; the run continues, and its "
        "metrics.jsonl has every row",
        stacklevel=5,
    )


def _own_folder(folder: Path) -> Path:
    refuse_link(folder)
    return folder


def _seeded(config: dict[str, Any], seed: int | None) -> dict[str, Any]:
    if seed is None:
        return config
    if config.get("seed", seed) != seed:
        raise O2OSpecError(f"seed is {seed} but config['seed'] is {config['seed']}; give one of the two")
    return config | {"seed": int(seed)}


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise O2OCheckpointError(f"cannot make the run folder {folder} ({error}); choose a writable one") from error


def _describe(folder: Path, config: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Describe a new run, or add to the existing description that the run was resumed."""
    traces = [name for name in _TRACES if (folder / name).exists()]
    if traces and not resume:
        raise O2OCheckpointError(
            f"{folder} holds a run already ({', '.join(traces)}); "
            "resume it (resume=True), remove it, or choose another folder"
        )
    run = describe_run(config)
    if (folder / _RUN_FILE).exists():
        first = read_run(folder)
        return first | {"resumed": [*first.get("resumed", []), run]}
    return {"id": uuid.uuid4().hex[:12]} | run


def _write_run(folder: Path, run: Mapping[str, Any]) -> None:
    try:
        replace_durably(folder / _RUN_FILE, (json.dumps(run, indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise O2OCheckpointError(
            f"cannot write {folder / _RUN_FILE} ({error}); make room or choose a writable folder"
        ) from error


def _whole(step: Any) -> int:
    """A step as a Python int: 3, 3.0 and one-element tensors of them are steps, 1.5 and NaN are not."""
    try:
        number = float(step)
        if isinstance(step, str) or not number.is_integer():
            raise ValueError
        return int(step)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise O2OSpecError(f"log() got step={step!r}, a {type(step).__name__}; expected a whole number") from error


def _number(name: str, value: Any) -> float:
    if not isinstance(name, str):
        raise O2OSpecError(f"a metric is called {name!r}, a {type(name).__name__}; expected a text")
    if name in _RESERVED:
        raise O2OSpecError(f"metric {name!r} is a column of its own; give it a namespace, as in 'train/{name}'")
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        if math.prod(value.shape) != 1:
            raise O2OSpecError(f"metric {name!r} has shape {tuple(value.shape)}, expected one number; reduce it first")
        value = value.item()
    if not isinstance(value, (int, float)):
        raise O2OSpecError(f"metric {name!r} is a {type(value).__name__}, expected a number or one-element tensor")
    if isinstance(value, int) and value.bit_length() > _LARGEST_BITS:
        raise O2OSpecError(f"metric {name!r} has {value.bit_length()} bits, more than a float holds; scale it down")
    return int(value) if isinstance(value, bool) else value


class _RowFile:
    """A file of JSON lines that always ends with a complete line."""

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
        self._settle()
        os.fsync(self._file.fileno())
        return {"position": self._position, "blake2b": self._hash.hexdigest()}

    def cut(self, position: int, expected: str | None) -> None:
        if position > self._position:
            raise O2OCheckpointError(
                f"{self.path} has {self._position} bytes, the checkpoint was taken at {position}: rows were removed, "
                "or it is another run's; restore the file or start a new run in another folder"
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
        dropped = f"lines {torn} are no rows any more and are dropped" if torn else "some of its numbers are not those"
        warnings.warn(
            f"{self.path} WAS ALTERED since the checkpoint was taken: {dropped}. The file as it was is {aside}",
            stacklevel=4,
        )

    def cut_from_step(self, step: int) -> bool:
        """Cut the rows of a step and later ones, and say whether there were any."""
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
        return self._file.closed

    def close(self) -> None:
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
        floats). A last line that is still being written is left out.

    Raises:
        O2OCheckpointError: if there is no such file, or a line of it is not a row.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with Recorder(folder, config={}) as recorder:
        ...     recorder.log(5, {"eval/return": float("inf")})
        >>> [(row["step"], row["eval/return"]) for row in read_metrics(folder)]
        [(5, inf)]
    """
    return read_rows(folder)[0]


def read_rows(folder: str | Path) -> tuple[list[dict[str, Any]], bool]:
    """:func:`read_metrics`, and whether a last line was left out; from one look at the file, which may be growing.

    Args:
        folder: the run's folder.

    Raises:
        O2OCheckpointError: as :func:`read_metrics`.
    """
    path = Path(folder) / _METRICS_FILE
    *lines, rest = _read_bytes(path).split(b"\n")
    return [_parse_row(path, number, line) for number, line in enumerate(lines, start=1)], rest != b""


def _parse_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
        numbers = {name: float(value) if isinstance(value, str) else value for name, value in row.items()}
        odd = [name for name, value in numbers.items() if not isinstance(value, int | float)]
        if odd or not isinstance(numbers.get("step"), int):
            raise ValueError(f"{odd[0]} is no number" if odd else "it has no step")
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
        O2OCheckpointError: if the file is absent, not JSON or describes no run.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> Recorder(folder, config={"gamma": 0.9}).close()
        >>> read_run(folder)["config"]
        {'gamma': 0.9}
    """
    path = Path(folder) / _RUN_FILE
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
        return path.read_bytes()
    except OSError as error:
        raise O2OCheckpointError(f"cannot read {path} ({error}); expected the folder of a run") from error
