# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Where a :class:`~torchrl_o2o.record.Recorder` shows its metrics besides its own file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from torchrl_o2o.errors import O2OSpecError

__all__ = ["ProgressSink", "Sink", "TensorBoardSink", "WandbSink"]

_PROGRESS_METRICS = 3


class Sink(Protocol):
    """Takes rows of metrics, in the order of their steps, until it is closed.

    Examples:
        >>> class Memory:
        ...     def __init__(self):
        ...         self.rows = []
        ...     def write(self, step, metrics):
        ...         self.rows.append((step, dict(metrics)))
        ...     def close(self):
        ...         pass
        >>> sink: Sink = Memory()
        >>> sink.write(1, {"train/loss": 0.5})
    """

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of one row."""
        ...

    def close(self) -> None:
        """Flush what was written and free what is held."""
        ...


class TensorBoardSink:
    """Write TensorBoard event files.

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
        self._writer = SummaryWriter(folder)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add each metric as a scalar."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbSink:
    """Log to Weights & Biases; without a key or a network the run is kept in a local folder, with a warning.

    At a terminal wandb itself asks for a key first.

    Args:
        folder: the run's folder; wandb's files go to ``folder/wandb``.
        run: the run's description; ``id`` names the wandb run (so that a resumed run goes on with it) and ``config`` is
            shown.
        options: keyword arguments of ``wandb.init`` that come on top.

    Raises:
        O2OSpecError: if wandb is not installed.

    Examples:
        >>> WandbSink(Path("run"), {"id": "a1b2", "config": {}}, {"project": "o2o"})  # doctest: +SKIP
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise O2OSpecError("wandb=... needs an extra: pip install torchrl_o2o[wandb]") from error
        settings = {"dir": folder, "config": run["config"], "id": run["id"], "resume": "allow"} | dict(options)
        try:
            self._run = wandb.init(**settings)
        except wandb.errors.Error as error:
            warnings.warn(
                f"WANDB IS OFFLINE: {error}. The run is kept in {folder / 'wandb'}; `wandb sync` uploads it later.",
                stacklevel=4,
            )
            self._run = wandb.init(**settings | {"mode": "offline", "resume": None})

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one row."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the wandb run."""
        self._run.finish()


class ProgressSink:
    """Show a progress bar on standard error, with the first metrics of the latest row.

    Args:
        total: the step at which the run is complete.

    Examples:
        >>> sink = ProgressSink(10)
        >>> sink.write(10, {"train/loss": 0.5})
        >>> sink.close()
    """

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, unit="step", dynamic_ncols=True)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar to the step."""
        shown = list(metrics.items())[:_PROGRESS_METRICS]
        self._bar.set_postfix({name.rpartition("/")[2]: f"{value:.3g}" for name, value in shown}, refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
