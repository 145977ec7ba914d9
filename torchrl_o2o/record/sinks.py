# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Displays of the metrics of a :class:`~torchrl_o2o.record.Recorder`, besides its own file."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from torchrl_o2o.errors import O2OSpecError

__all__ = ["ProgressSink", "Sink", "TensorBoardSink", "WandbSink"]

_PROGRESS_METRICS = 2
_RETURN = "evaluation/return"


class Sink(Protocol):
    """Receives rows of metrics in the order of their steps until it is closed.

    If a sink fails, the recorder warns and stops using it, and the run continues.

    Examples:
        >>> class Memory:
        ...     def __init__(self):
        ...         self.rows = []
        ...     def write(self, step, metrics):
        ...         self.rows.append((step, dict(metrics)))
        ...     def show(self, step, name, video):
        ...         pass
        ...     def rewind(self, step):
        ...         self.rows = [row for row in self.rows if row[0] < step]
        ...     def close(self):
        ...         pass
        >>> sink: Sink = Memory()
        >>> sink.write(1, {"train/loss": 0.5})
    """

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of one row."""
        ...

    def show(self, step: int, name: str, video: Path) -> None:
        """Show a video, a file that the next one may replace."""
        ...

    def rewind(self, step: int) -> None:
        """A resumed run continues at this step: earlier rows of this and later steps are written again."""
        ...

    def close(self) -> None:
        """Flush the written rows and free all resources."""
        ...


class TensorBoardSink:
    """Write TensorBoard event files.

    After a resume TensorBoard drops the steps that are written again.

    Args:
        folder: where the event files go; made if absent.

    Raises:
        O2OSpecError: if tensorboard is not installed.

    Examples:
        >>> TensorBoardSink(Path("run") / "tensorboard")  # doctest: +SKIP
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise O2OSpecError("tensorboard=True needs an extra: pip install torchrl_o2o[tensorboard]") from error
        self._folder, self._open = folder, SummaryWriter
        self._writer = SummaryWriter(folder)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add each metric as a scalar."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def show(self, step: int, name: str, video: Path) -> None:
        """Add a GIF to the images; TensorBoard cannot animate other formats."""
        # protobuf makes the classes of a _pb2 module when it is imported, unseen by a type checker.
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        if video.suffix != ".gif":
            warnings.warn(f"TensorBoard shows GIFs and not {video.name}; name the video .gif", stacklevel=5)
            return
        image = Summary.Image(colorspace=3, encoded_image_string=video.read_bytes())
        self._writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def rewind(self, step: int) -> None:
        """Continue in a new event file, at whose beginning TensorBoard drops the steps from this one on."""
        self._writer.close()
        self._writer = self._open(self._folder, purge_step=step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbSink:
    """Log to Weights & Biases; without a key or a network the run is stored in a local folder, with a warning.

    wandb drops rows whose step is negative or below the last one. The step is therefore a separate column, ``"step"``,
    which wandb uses as the x-axis of all metrics. Rows that a resumed run repeats are not logged twice.

    In a terminal wandb first asks for a key.

    Args:
        folder: the run's folder; wandb's files go to ``folder/wandb``.
        run: the run's description; ``id`` names the wandb run, so that a resumed run continues it, and ``config`` is
            shown.
        options: further keyword arguments of ``wandb.init``.

    Raises:
        O2OSpecError: if wandb is not installed.

    Examples:
        >>> WandbSink(Path("run"), {"id": "a1b2", "config": {}}, {"project": "o2o"})  # doctest: +SKIP
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]  # the extra wandb is not in dev
        except ImportError as error:
            raise O2OSpecError("wandb=... needs an extra: pip install torchrl_o2o[wandb]") from error
        settings = {"dir": folder, "config": run["config"], "id": run["id"], "resume": "allow"} | dict(options)
        try:
            self._run = wandb.init(**settings)
        except wandb.errors.Error as error:
            warnings.warn(
                f"WANDB IS OFFLINE: {error}. The run is stored in {folder / 'wandb'}; `wandb sync` uploads it later.",
                stacklevel=5,
            )
            self._run = wandb.init(**settings | {"mode": "offline", "resume": None})
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._logged: float = -math.inf

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one row, unless an earlier part of the run has logged it."""
        if step >= self._logged:  # at its last step, what was logged may have been cut short
            self._run.log({"step": step, **metrics})

    def show(self, step: int, name: str, video: Path) -> None:
        """Log a video, like :meth:`write` does a row."""
        import wandb  # pyright: ignore[reportMissingImports]

        if step >= self._logged:
            self._run.log({"step": step, name: wandb.Video(str(video), format=video.suffix[1:])})

    def rewind(self, step: int) -> None:
        """Skip the rows that wandb already has: those before the last step of the earlier part of the run."""
        self._logged = self._run.summary.get("step", -math.inf)

    def close(self) -> None:
        """Finish the wandb run; it counts as failed if an exception ends it."""
        if sys.exc_info()[0] is None:
            self._run.finish()
        else:
            self._run.finish(exit_code=1)


class ProgressSink:
    """Show a progress bar on standard error, with the last evaluation's return and metrics of the latest row.

    The bar begins at the first row's step, so that its speed is correct in a resumed run and in an offline phase with
    negative steps.

    Args:
        total: the step at which the run is complete.

    Examples:
        >>> sink = ProgressSink(10)
        >>> sink.write(10, {"train/loss": 0.5})
        >>> sink.close()
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar: tqdm | None = None
        self._first = 0
        self._return: dict[str, str] = {}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar to the step."""
        if self._bar is None:
            self._bar = self._start(step)
        if _RETURN in metrics:
            self._return = {"return": f"{metrics[_RETURN]:.4g}"}
        train = [(name, value) for name, value in metrics.items() if name.startswith("train/")][:_PROGRESS_METRICS]
        shown = {name.removeprefix("train/"): f"{value:.3g}" for name, value in train}
        if shown or _RETURN in metrics:
            self._bar.set_postfix(self._return | shown, refresh=False)
        self._bar.update(step - self._first - self._bar.n)

    def show(self, step: int, name: str, video: Path) -> None:
        """Do nothing, because a bar cannot show videos."""

    def _start(self, step: int) -> tqdm:
        self._first = min(step, 0)  # a bar cannot show negative steps: it counts from the first one
        return tqdm(total=self._total - self._first, initial=step - self._first, unit="step", dynamic_ncols=True)

    def rewind(self, step: int) -> None:
        """Start again at the next row."""
        self.close()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None
