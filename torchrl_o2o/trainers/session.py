# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One run folder: signals, evaluation, metrics and checkpoints around a loop that stays in the script.

A session's phases are generators over steps. What surrounds a step (evaluating, saving, stopping on a signal) happens
in them; what a step does is between the script and its learner.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from tensordict import TensorDict
from torch import Tensor
from torchrl.data import ReplayBuffer

from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.provenance import plain_config
from torchrl_o2o.record.curves import dip, gain, handover_score, regret
from torchrl_o2o.record.recorder import Recorder, read_metrics
from torchrl_o2o.trainers.interrupt import graceful_exit, resume_command

__all__ = ["Measured", "Schedule", "Session", "handover_metrics"]

_RETURN, _SCORE = "evaluation/return", "evaluation/normalized_score"


class Measured(Protocol):
    """What an evaluation returns: an :class:`~torchrl_o2o.trainers.EvaluationResult`, or other numbers by name."""

    def metrics(self) -> Mapping[str, float]:
        """Numbers to log, by name."""
        ...


@dataclass(frozen=True)
class Schedule:
    """How often a session evaluates, logs and saves, in steps; a step is an update offline, a transition online.

    Args:
        eval_every: steps between evaluations. Defaults to 5000.
        log_every: steps between rows of training metrics. Defaults to 1000.
        checkpoint_every: steps between checkpoints, which is what a crash may cost. Defaults to 25 000.

    Raises:
        O2OSpecError: if one is below 1.

    Examples:
        >>> Schedule(log_every=100).log_every
        100
    """

    eval_every: int = 5_000
    log_every: int = 1_000
    checkpoint_every: int = 25_000

    def __post_init__(self) -> None:
        """Check the values."""
        if min(self.eval_every, self.log_every, self.checkpoint_every) < 1:
            raise O2OSpecError(f"got {self}, expected at least 1 step between two of anything")


@dataclass
class Session:
    """A run folder and what goes into it, as a context.

    Entering it goes on with the newest valid checkpoint if ``resume`` is on and there is one. SIGTERM and the first
    Ctrl-C end the running phase after its step, with a checkpoint; the context then prints the command to go on with
    and exits with the shell's status for that signal.

    Args:
        folder: the run's folder.
        config: what is recorded, and compared when a run is resumed: a mapping or dataclass of plain values.
        objects: what changes while training, by name; see :class:`~torchrl_o2o.checkpoint.Checkpointer`.
        buffer: the replay buffer of the run.
        evaluate: evaluates the policy.
        schedule: how often. Defaults to :class:`Schedule`'s.
        resume: whether to go on with what is in the folder. Defaults to ``False``.
        recorder: further arguments of :class:`~torchrl_o2o.record.Recorder`, such as ``{"tensorboard": True}``.

    Raises:
        O2OCheckpointError: if the folder cannot be written, or holds a run and ``resume`` is off.
        O2OSpecError: if an object cannot be saved.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> import torch
        >>> from torchrl_o2o.trainers import EvaluationResult
        >>> from torchrl_o2o.record import read_metrics
        >>> score = lambda: EvaluationResult(returns=np.array([1.0]), lengths=np.array([10]))
        >>> net, folder = torch.nn.Linear(2, 1), Path(tempfile.mkdtemp()) / "run"
        >>> with Session(folder, {"seed": 0}, {"net": net}, None, score, Schedule(eval_every=2)) as session:
        ...     for step in session.offline(4):
        ...         session.metrics = {"loss": torch.tensor(1.0)}  # an update goes here
        >>> [row["step"] for row in read_metrics(folder) if "evaluation/return" in row]
        [-4, -2, 0]
    """

    folder: str | Path
    config: Any
    objects: Mapping[str, Any]
    buffer: ReplayBuffer | None
    evaluate: Callable[[], Measured]
    schedule: Schedule = field(default_factory=Schedule)
    resume: bool = False
    recorder: Mapping[str, Any] = field(default_factory=dict)
    #: What the last step's update measured, logged every ``log_every`` steps under ``train/``.
    metrics: Mapping[str, Tensor] = field(default_factory=dict, init=False)
    #: Updates made offline, part of the checkpoint.
    counters: dict[str, int] = field(default_factory=lambda: {"offline": 0}, init=False)
    restored: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Open the folder; what is wrong with it is said before training."""
        config = plain_config(self.config)
        self.record = Recorder(self.folder, config=config, resume=self.resume, **self.recorder)
        objects = {**self.objects, "recorder": self.record, "counters": self.counters}
        folder = Path(self.folder) / "checkpoints"
        try:
            self.checkpoint = Checkpointer(folder, objects=objects, buffer=self.buffer, config=config)
        except BaseException:
            self.record.close()
            raise
        self.interrupt = graceful_exit()

    def __enter__(self) -> Session:
        """Watch for signals, and restore."""
        self.interrupt.__enter__()
        try:
            self.restored = self.checkpoint.restore() if self.resume else None
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files; leave with the signal's status if one came."""
        self.record.close()
        self.interrupt.__exit__(kind, error, trace)
        if kind is None and self.interrupt.requested:
            sys.stderr.write(f"stopped by {self.interrupt.signal_name}; go on with:\n  {resume_command()}\n")
            raise SystemExit(self.interrupt.exit_code)

    @property
    def stopped(self) -> bool:
        """Whether a signal asked the run to stop."""
        return self.interrupt.requested

    def offline(self, num_steps: int) -> Iterator[int]:
        """Count updates from ``1 - num_steps`` to 0, from wherever the run stands.

        Args:
            num_steps: updates of the whole phase.

        Yields:
            The step that the next update is.
        """
        if self.restored is None:
            self._evaluate(-num_steps)
        while self.counters["offline"] < num_steps and not self.stopped:
            step = self.counters["offline"] + 1 - num_steps
            yield step
            self.counters["offline"] += 1
            self._after(step, self.counters["offline"], last=step == 0)
        if num_steps == 0 or self.stopped:
            self.checkpoint.save(self.counters["offline"])

    def online(self, collector: StepCollector) -> Iterator[tuple[int, TensorDict]]:
        """Collect to the end, from wherever the run stands.

        Args:
            collector: delivers one transition at a time; it is among ``objects``.

        Yields:
            The number of the step, from 1, and its transition, shape [1].
        """
        if self.restored is None:
            self._evaluate(0)
        if not self.stopped:
            for data in collector:
                step = collector.frames
                yield step, data
                if data["next", "done"].item():
                    self.record.log(step, {"train/episode_return": data["next", "episode_reward"]})
                self._after(step, step, last=step == collector.total_frames, online=True)
                if self.stopped:
                    break
        self.checkpoint.save(collector.frames)

    def _after(self, step: int, count: int, *, last: bool, online: bool = False) -> None:
        schedule = self.schedule
        if self.metrics and step % schedule.log_every == 0:
            self.record.log(step, {f"train/{name}": value for name, value in self.metrics.items()})
        if step % schedule.eval_every == 0 or last:
            self._evaluate(step)
        if last and online:
            self.record.log(step, handover_metrics(read_metrics(self.folder)))
        if count % schedule.checkpoint_every == 0 or last or self.stopped:
            self.checkpoint.save(count)

    def _evaluate(self, step: int) -> None:
        self.record.log(step, self.evaluate().metrics())


def handover_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What going online did to the policy, from a run's evaluations; see :mod:`torchrl_o2o.record`.

    Args:
        rows: of ``metrics.jsonl``, the evaluation at step 0 among them.

    Returns:
        ``handover/return`` (at step 0), ``handover/dip`` (fall in the first tenth of the online steps),
        ``handover/gain`` (last minus first), in units of the return; and ``handover/regret`` where the task has a
        normalized score.

    Raises:
        O2OSpecError: if there is no evaluation at step 0, or none after it.

    Examples:
        >>> handover_metrics([{"step": 0, "evaluation/return": 40.0}, {"step": 100, "evaluation/return": 25.0}])
        {'handover/return': 40.0, 'handover/dip': 15.0, 'handover/gain': -15.0}
    """
    steps, returns = zip(*[(row["step"], row[_RETURN]) for row in rows if _RETURN in row], strict=True)
    metrics = {
        "handover/return": handover_score(steps, returns),
        "handover/dip": dip(steps, returns),
        "handover/gain": gain(steps, returns),
    }
    scored = [(row["step"], row[_SCORE]) for row in rows if _SCORE in row]
    return metrics | ({"handover/regret": regret(*zip(*scored, strict=True))} if scored else {})
