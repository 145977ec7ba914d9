# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Record a run: ``run.json`` describes it, ``metrics.jsonl`` contains its metrics, one JSON object per line.

The two files are always written; TensorBoard, Weights & Biases and a progress bar are optional. A row reaches the
operating system before :meth:`Recorder.log` returns, so a killed process loses no rows.
"""

from __future__ import annotations

import io
import math
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
from torchrl_o2o.durable import FolderLock, identity, refuse_link, refuse_other, replace_durably
from torchrl_o2o.errors import O2OCheckpointError, O2OError, O2OSpecError, check_unmasked
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.provenance import describe_run, plain_config, plain_number
from torchrl_o2o.record.files import METRICS_FILE, RUN_FILE, RowFile, read_run, write_run
from torchrl_o2o.record.sinks import ProgressSink, Sink, TensorBoardSink, WandbSink

__all__ = ["Recorder"]

_TRACES = (RUN_FILE, METRICS_FILE, "checkpoints")
_RESERVED = ("step", "time")
_LARGEST_BITS = 1023  # integers of more bits exceed the range of floats
_DESCRIBED = ("id", "resumed", "config", "command", "commit", "versions", "threads", "started")


class Recorder:
    """Write a run's configuration and metrics into its folder.

    A resumed run (``resume=True``) continues with the same files. Loading the recorder's state from a checkpoint
    removes the rows that were written after it, so that the final file equals an uninterrupted run's except for the
    times. If no state is loaded, the first row logged removes the rows of its own step and later ones, with a warning.

    Args:
        folder: the run's folder; made if absent.

    Keyword Args:
        config: the run's configuration, a mapping or dataclass of plain values (see
            :func:`~torchrl_o2o.provenance.plain_config`).
        seed: the run's seed, recorded as ``config["seed"]``; optional if the configuration contains it.
        resume: continue the run in ``folder`` if there is one. Defaults to ``False``, which raises an error for such a
            folder.
        tensorboard: also write event files to ``folder/tensorboard``. Defaults to ``False``.
        wandb: keyword arguments of ``wandb.init``, such as ``{"project": "o2o"}``, to log to Weights & Biases too.
            Without a key or a network the run is logged offline, with a warning. Defaults to ``None``, which does not
            use it.
        progress_total: the last step of the run, to show a progress bar. Defaults to ``None``, no bar.

    Raises:
        O2OCheckpointError: if the folder cannot be written, already contains a run, or is in use by another process.
        O2OSpecError: if the configuration is not plain, contradicts ``seed`` or the resumed run's seed, an extra is not
            installed, or the folder begins with a tilde.

    Examples:
        >>> import tempfile
        >>> import torch
        >>> from torchrl_o2o.record import read_metrics, read_run
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
        _refuse_tilde(Path(folder))
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
            write_run(self.folder, run)
            self._metrics = RowFile(self.folder / METRICS_FILE)
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
        """Step of the last row, or of the restored state if there is no later row; ``None`` in a run without rows."""
        return self._last_step

    def log(self, step: int, metrics: Mapping[str, float | Tensor]) -> None:
        """Write one row: ``{"step": step, "time": seconds since the start, **metrics}``.

        Args:
            step: the run's step counter, which must not decrease during a run (several rows may share a step).
            metrics: numbers or one-element tensors by name, namespaced by a slash, as in ``"train/loss_qvalue"``.
                Values that are not finite are written as the strings ``"nan"``, ``"inf"`` and ``"-inf"``, which JSON
                lacks; :func:`read_metrics` turns them back.

        Raises:
            O2OSpecError: if a metric is not a number, a step is not a whole number or decreases, or the recorder is
                closed.
            O2OCheckpointError: if the row cannot be written; the file then ends with the previous row.
        """
        step = _whole(step)
        self._refuse_closed("log() is called")
        if self._last_step is None:
            if self._metrics.cut_from_step(step):
                self._to_sinks(lambda sink: sink.rewind(step))
        elif step < self._last_step:
            raise O2OSpecError(
                f"got step {step} after step {self._last_step}, expected steps that do not decrease; use one step "
                "counter for all phases of the run"
            )
        if not hasattr(metrics, "items"):
            raise O2OSpecError(f"got metrics={metrics!r}, a {type(metrics).__name__}, expected a dictionary of numbers")
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        row = {"step": step, "time": round(self._elapsed(), 3)}
        self._metrics.append(row | {name: plain_number(value) for name, value in numbers.items()})
        self._last_step = step
        self._to_sinks(lambda sink: sink.write(step, numbers))

    def note(self, name: str, value: Any) -> None:
        """Write an entry of ``run.json``, replacing an earlier one of the same name.

        Args:
            name: the entry's name, different from those that :func:`~torchrl_o2o.provenance.describe_run` writes.
            value: plain values, see :func:`~torchrl_o2o.provenance.plain_config`.

        Raises:
            O2OSpecError: if the name is taken, or the value is not plain.
            O2OCheckpointError: if the file cannot be written.
        """
        run = read_run(self.folder)
        if name in _DESCRIBED:
            raise O2OSpecError(f"got the name {name!r}, which run.json already uses; choose another name")
        self.check_place()
        write_run(self.folder, run | plain_config({name: value}))

    def show(self, step: int, videos: Mapping[str, Path]) -> None:
        """Show videos in the sinks of the metrics.

        Args:
            step: as in :meth:`log`.
            videos: files by the name of what they show.
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
            O2OSpecError: if the name is empty or leads out of the folder.
            O2OCheckpointError: if it cannot be written.
        """
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise O2OSpecError(f"got the name {name!r}, expected that of a file in the run's folder, such as 'batch'")
        path, stream = self.folder / f"{name}.pt", io.BytesIO()
        torch.save(data.clone().to_dict(), stream)  # a view would be written with all the rows that it is of
        self.check_place()
        try:
            replace_durably(path, stream.getvalue())
        except OSError as error:
            raise O2OCheckpointError(f"cannot write {path} ({error}); make room on the disk") from error
        return path

    def check_place(self) -> None:
        """Check that the run's folder is still the one that the run began in.

        Raises:
            O2OCheckpointError: if it was moved or removed, even if another folder now has its name.
        """
        refuse_other(self.folder, self._identity)

    @contextmanager
    def dump_if_not_finite(self, batch: TensorDictBase) -> Iterator[None]:
        """Write the batch to ``offending-batch.pt`` if the update in this context ends in a ``NonFiniteError``.

        Args:
            batch: the batch of the update.

        Raises:
            NonFiniteError: the original error, with the file's name added.

        Examples:
            >>> import tempfile
            >>> from tensordict import TensorDict
            >>> from torchrl_o2o.functional import finite_or_raise
            >>> batch = TensorDict({"reward": torch.tensor([1.0, torch.nan])}, [2])
            >>> with Recorder(tempfile.mkdtemp(), config={}) as recorder, recorder.dump_if_not_finite(batch):
            ...     finite_or_raise({"loss": batch["reward"].sum()})
            Traceback (most recent call last):
            ...
            torchrl_o2o.functional.diagnostics.NonFiniteError: not finite: loss (1 of 1 values)...
        """
        try:
            yield
        except NonFiniteError as error:
            try:
                where = f"The batch is in {self.dump('offending-batch', batch)}"
            except O2OCheckpointError as refused:
                where = f"The batch is not kept: {refused}"
            raise NonFiniteError(f"{error}. {where}") from error

    def _refuse_closed(self, what: str) -> None:
        if self._metrics.closed:
            raise O2OSpecError(
                f"{what} after the recorder of {self.folder} was closed, expected before; do it inside its 'with' block"
            )

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a resumed run: length and hash of the metrics file, last step, seconds elapsed.

        All counted rows are then on the disk.

        Raises:
            O2OSpecError: if the recorder is closed.
        """
        self._refuse_closed("its state is saved")
        return {**self._metrics.sync(), "step": self._last_step, "seconds": self._elapsed()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go back to the state: remove the rows written after it and continue counting its seconds.

        Rows that were altered since then are dropped or named in a warning, and the altered file is kept as
        ``metrics.jsonl.damaged``. A damaged record does not stop the training.

        Args:
            state_dict: the :meth:`state_dict` of a recorder of the same folder.

        Raises:
            O2OCheckpointError: if the file is shorter than the state says, so that it is not the same file.
            O2OSpecError: if the recorder is closed.
        """
        self._refuse_closed("a state is loaded")
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
        f"{name} FAILED ({type(error).__name__}: {error}) and is not used from now on; the run continues, and its "
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
        raise O2OSpecError(f"got seed={seed} and config['seed']={config['seed']}, expected the same; pass only one")
    return config | {"seed": int(seed)}


def _refuse_tilde(folder: Path) -> None:
    if folder.parts and folder.parts[0].startswith("~"):
        raise O2OSpecError(
            f"got the folder {folder}, which would be a folder called {folder.parts[0]!r} here, expected a path in "
            "which no shell has to replace the tilde; write your home folder in full, or pass Path(...).expanduser()"
        )


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
            f"{folder} already contains a run ({', '.join(traces)}); resume it (resume=True), remove it, or choose "
            "another folder"
        )
    run = describe_run(config)
    if (folder / RUN_FILE).exists():
        first = read_run(folder)
        seeds = [each["seed"] for each in (first.get("config", {}), config) if "seed" in each]
        if seeds[:-1] and seeds[0] != seeds[1]:
            raise O2OSpecError(
                f"got seed={seeds[1]} for the run in {folder}, which has the seed {seeds[0]}, expected the same; "
                "resume it with its own seed, or choose another folder"
            )
        return first | {"resumed": [*first.get("resumed", []), run]}
    return {"id": uuid.uuid4().hex[:12]} | run


def _whole(step: Any) -> int:
    """A step as a Python int: 3, 3.0 and one-element tensors of them are steps, 1.5 and NaN are not."""
    try:
        number = float(step)
        if isinstance(step, str) or not number.is_integer():
            raise ValueError
        return int(step)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise O2OSpecError(f"got step={step!r}, a {type(step).__name__}, expected a whole number") from error


def _number(name: str, value: Any) -> float:
    if not isinstance(name, str):
        raise O2OSpecError(f"got the metric name {name!r}, a {type(name).__name__}, expected a string")
    if not name.strip():
        raise O2OSpecError(f"got the metric name {name!r}, expected a word, such as 'train/loss'")
    if name in _RESERVED:
        raise O2OSpecError(
            f"got the metric name {name!r}, which is a reserved column; add a namespace, as in 'train/{name}'"
        )
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        check_unmasked(f"metric {name!r}", value)
        if math.prod(value.shape) != 1:
            raise O2OSpecError(
                f"got metric {name!r} of shape {tuple(value.shape)}, expected one number; reduce it first"
            )
        value = value.item()
    if not isinstance(value, (int, float)):
        raise O2OSpecError(f"got a {type(value).__name__} as metric {name!r}, expected a number or one-element tensor")
    if isinstance(value, int) and value.bit_length() > _LARGEST_BITS:
        raise O2OSpecError(
            f"got metric {name!r} with {value.bit_length()} bits, more than the range of a float; scale it down"
        )
    return int(value) if isinstance(value, bool) else value
