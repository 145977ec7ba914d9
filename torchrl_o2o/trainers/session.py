# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A run folder with signals, evaluation, metrics and checkpoints, around a loop that stays in the script.

A session's phases are generators over steps. They evaluate, save and stop on signals between steps; the script's loop
body defines what a step does.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from tensordict import TensorDict
from torch import Tensor
from torchrl.data import ReplayBuffer

from torchrl_o2o._moved import old_names
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.errors import O2OSpecError, check_count
from torchrl_o2o.provenance import plain_config
from torchrl_o2o.record.curves import dip, gain, handover_score, regret
from torchrl_o2o.record.files import read_metrics
from torchrl_o2o.record.recorder import Recorder
from torchrl_o2o.trainers.interrupt import graceful_exit, resume_command

__all__ = ["Collector", "HasMetrics", "Schedule", "Session", "handover_metrics"]

_RETURN, _SCORE = "evaluation/return", "evaluation/normalized_score"


class HasMetrics(Protocol):
    """What an evaluation returns: an :class:`~torchrl_o2o.trainers.EvaluationResult`, or another object with metrics.

    Its attribute ``videos``, if it has one, is shown next to the metrics.

    Examples:
        >>> class Reached:
        ...     def metrics(self):
        ...         return {"evaluation/reached": 0.5}
        >>> def evaluate() -> HasMetrics:  # what Session(..., evaluate, ...) calls
        ...     return Reached()
        >>> evaluate().metrics()
        {'evaluation/reached': 0.5}
    """

    def metrics(self) -> Mapping[str, float]:
        """Numbers to log, by name."""
        ...


@checked_arguments
@dataclass(frozen=True)
class Schedule:
    """The intervals of evaluations, logs and checkpoints, in steps: updates offline, transitions online.

    Args:
        eval_every: steps between evaluations. Defaults to 5000.
        log_every: steps between rows of training metrics. Defaults to 1000.
        checkpoint_every: steps between checkpoints; a crash loses at most these. Defaults to 25 000.

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
            raise O2OSpecError(f"got {self}, expected intervals of at least 1 step")


class Collector(Protocol):
    """The interface of collectors, such as :class:`~torchrl_o2o.collectors.StepCollector` and ``VectorCollector``."""

    @property
    def frames(self) -> int:
        """Transitions delivered so far."""
        ...

    @property
    def total_frames(self) -> int | None:
        """The total number of transitions to deliver; ``None`` for no limit."""
        ...

    def __iter__(self) -> Iterator[TensorDict]:
        """Deliver transitions [N], from wherever the collector stands."""
        ...


@dataclass
class Session:
    """A context that manages a run folder.

    With ``resume``, entering it restores the newest valid checkpoint, if there is one. SIGTERM and the first Ctrl-C end
    the current phase after its step, with a checkpoint; the context then prints the command that resumes the run, and
    exits with the shell's status for that signal. At its beginning and end it prints the run's title, folder and
    results to standard error.

    A run may have an offline phase, an online phase, or an offline phase followed by an online one. Checkpoints are
    numbered by the steps of both together. A phase that is left with ``break`` is saved at that step, and continues
    there if the run is resumed. Code between the phases must not run again if a run is resumed online::

        with Session(...) as session:
            for step in session.offline(1_000):
                session.log(update(offline.sample()))
            if not session.is_online:
                hand_over(...)
            for step, data in session.online(collector):
                buffer.extend(data.select(*keys))
                session.log(update(buffer.sample()))

    Args:
        folder: the run's folder.
        config: a mapping or dataclass of plain values. It is recorded, and compared when the run is resumed.
        objects: the objects that change during training, by name, including the collector; see
            :class:`~torchrl_o2o.checkpoint.Checkpointer`.
        buffer: the replay buffer of the run.
        evaluate: evaluates the policy; ``None`` if there is no environment.
        schedule: how often to evaluate, log and save. Defaults to :class:`Schedule`'s defaults.
        resume: whether to continue the run in the folder. Defaults to ``False``.
        recorder: further arguments of :class:`~torchrl_o2o.record.Recorder`, such as ``{"tensorboard": True}``.
        on_save: called with the run's folder after each checkpoint, including the last, and after restoring one. Writes
            files that accompany a checkpoint, such as the policy file. Defaults to ``None``.
        restore: restores a checkpoint with a checkpointer, and returns its step. Defaults to
            :meth:`~torchrl_o2o.checkpoint.Checkpointer.restore`.
        resume_word: the command-line argument that resumes a stopped run. Defaults to ``"resume=true"``.

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
        ...         session.log({"loss": torch.tensor(1.0)})  # of an update
        >>> [row["step"] for row in read_metrics(folder) if "evaluation/return" in row]
        [-4, -2, 0]
    """

    folder: str | Path
    config: Any
    objects: Mapping[str, Any]
    buffer: ReplayBuffer | None
    evaluate: Callable[[], HasMetrics] | None
    schedule: Schedule = field(default_factory=Schedule)
    resume: bool = False
    recorder: Mapping[str, Any] = field(default_factory=dict)
    on_save: Callable[[Path], object] | None = None
    restore: Callable[[Checkpointer], int | None] = Checkpointer.restore
    resume_word: str = "resume=true"
    #: Metrics of the last step's update, logged every ``log_every`` steps under ``train/``; :meth:`log` sets them.
    metrics: Mapping[str, Tensor] = field(default_factory=dict, init=False)
    #: Updates made offline and transitions collected online, part of the checkpoint.
    counters: dict[str, int] = field(default_factory=lambda: {"offline": 0, "online": 0}, init=False)
    restored: int | None = field(default=None, init=False)
    _saved: int | None = field(default=None, init=False)
    _began: bool = field(default=False, init=False)
    _measured: dict[str, float] = field(default_factory=dict, init=False)
    #: The phase whose step the caller is executing, the online collector, and whether a phase was left by ``break``.
    _under_way: str | None = field(default=None, init=False)
    _collector: Collector | None = field(default=None, init=False)
    _broken_off: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Open the folder; raises before training if it cannot be used."""
        config = plain_config(self.config)
        self.record = Recorder(self.folder, config=config, resume=self.resume, **self.recorder)
        objects = {**self.objects, "recorder": self.record, "counters": self.counters}
        folder = self.record.folder / "checkpoints"
        try:
            self.checkpoint = Checkpointer(folder, objects=objects, buffer=self.buffer, config=config)
        except BaseException:
            self.record.close()
            raise
        self._title = _title(config)
        self.interrupt = graceful_exit()

    def __enter__(self) -> Session:
        """Install the signal handlers, and restore the checkpoint."""
        self.interrupt.__enter__()
        try:
            self.restored = self._saved = self.restore(self.checkpoint) if self.resume else None
            _say(f"{self._title}: {self.folder}{'' if self._saved is None else f', from checkpoint {self._saved}'}")
            if self.restored is not None and self.on_save is not None:
                self.on_save(self.record.folder)  # a process that was killed between the two saves left an older policy
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files; after a signal, exit with its status."""
        try:
            if kind is None:
                self._keep_what_was_left()
            self.record.close()
        finally:
            self.interrupt.__exit__(kind, error, trace)
        if kind is None and self.interrupt.requested:
            command = resume_command(self.resume_word)
            _say(f"stopped by {self.interrupt.signal_name}, saved in {self.folder}; continue with:\n  {command}")
            raise SystemExit(self.interrupt.exit_code)
        if kind is None:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        scores = [f"{name.removeprefix('evaluation/')} {value:.4g}" for name, value in self._measured.items()]
        end = "left before its end, saved there" if self._broken_off else "complete"
        _say(f"{self._title}: {end}{': ' if scores else ''}{', '.join(scores)}")
        if (self.record.folder / "policy.pt").exists():
            _say(f"  policy: {Path(self.folder) / 'policy.pt'}")
        _say(f"  curves: {shlex.join(['o2o', 'report', str(self.folder)])}")

    @property
    def stopped(self) -> bool:
        """Whether a signal asked the run to stop."""
        return self.interrupt.requested

    @property
    def is_online(self) -> bool:
        """Whether the online phase has begun, here or in an earlier part of the run."""
        return self.counters.get("online", 0) > 0

    def log(self, metrics: Mapping[str, Tensor]) -> None:
        """Set the metrics of a step's update; they are logged every ``log_every`` steps, under ``train/``.

        Args:
            metrics: scalars by name.
        """
        self.metrics = metrics

    def logs_at(self, step: int) -> bool:
        """Whether the metrics of a step will be logged, for metrics that are expensive to compute.

        Args:
            step: as :meth:`online` or :meth:`further` yielded it.
        """
        return _passed(self.schedule.log_every, self.counters["online"] + self.counters.get("further", 0), step)

    def offline(self, num_steps: int) -> Iterator[int]:
        """Count updates from ``1 - num_steps`` to 0; a resumed run yields the remaining ones.

        Args:
            num_steps: updates of the whole phase.

        Yields:
            The number of the next update.

        Raises:
            O2OSpecError: if ``num_steps`` is negative, or larger than before in a run that is already online or whose
                logged steps were numbered by the shorter length.
        """
        num_steps = check_count("num_steps", num_steps)
        self._keep_what_was_left()
        self._check_offline(num_steps)
        self._begin(-num_steps)
        stop = self.stopped
        while not stop and self.counters["offline"] < num_steps:
            step = self.counters["offline"] + 1 - num_steps
            self._under_way = "offline"
            yield step
            self._under_way = None
            self.counters["offline"] += 1
            stop = self._after(step, step - 1, last=step == 0, count=self.counters["offline"])
        self._save()
        self.metrics = {}  # metrics of offline updates are not logged at online steps

    def online(self, collector: Collector) -> Iterator[tuple[int, TensorDict]]:
        """Collect to the end; a resumed run yields the remaining steps.

        Args:
            collector: delivers transitions, usually one at a time; it is among ``objects``.

        Yields:
            The number of the step, from 1, and its transition, shape [1]; from N environments, N at a time.

        Raises:
            O2OSpecError: if the run has made more online steps than the collector, whose state was not saved with it.
        """
        self._keep_what_was_left()
        self._check_collector(collector)
        self.counters["online"], self._collector = collector.frames, collector
        self._begin(0)
        if not self.stopped:
            for data in collector:
                before, step = self.counters["online"], collector.frames
                self._under_way = "online"
                yield step, data
                self._under_way = None
                self.counters["online"] = step
                self._log_episodes(step, data)
                last = collector.total_frames is not None and step >= collector.total_frames
                if self._after(step, before, last=last, count=step, online=True):
                    break
        self._save()

    def further(self, num_steps: int) -> Iterator[int]:
        """Count updates on recorded data alone, after all other steps; a resumed run yields the remaining ones.

        Args:
            num_steps: number of such updates in the whole run.

        Yields:
            The number of the next update, counted on from the last online step, or from step 0.

        Raises:
            O2OSpecError: if ``num_steps`` is negative.
        """
        num_steps = check_count("num_steps", num_steps)
        self._keep_what_was_left()
        stop = self.stopped
        while not stop and self.counters.setdefault("further", 0) < num_steps:
            step = self.counters.get("online", 0) + self.counters["further"] + 1
            self._under_way = "further"
            yield step
            self._under_way = None
            self.counters["further"] += 1
            last = self.counters["further"] == num_steps
            stop = self._after(step, step - 1, last=last, count=sum(self.counters.values()))
        self._save()
        self.metrics = {}

    def _check_offline(self, num_steps: int) -> None:
        """Check the length of the phase: steps count up to 0, so the length cannot change once steps are logged."""
        made, last = self.counters["offline"], self.record.last_step
        if made >= num_steps:
            return
        if self.is_online:
            raise O2OSpecError(
                f"got num_steps={num_steps}, but this run went online after {made} offline steps; expected that "
                "number; pass it, or begin the phase only `if not session.is_online`"
            )
        if made and last is not None and made + 1 - num_steps <= last:
            raise O2OSpecError(
                f"got num_steps={num_steps}, but the {made} offline steps that this run has made were counted to step "
                f"{last}, from the end of a shorter phase; resume with its number, or start a new run in another folder"
            )

    def _check_collector(self, collector: Collector) -> None:
        if collector.frames < self.counters["online"]:
            raise O2OSpecError(
                f"the collector has delivered {collector.frames} transitions, but the run has made "
                f"{self.counters['online']} online steps; expected one collector that counts all of them; add it to "
                "the session's objects, so that a resumed run restores it, or start a new run"
            )
        if self.restored is None and not any(each is collector for each in self.objects.values()):
            warnings.warn(
                "the collector is not among the session's objects, so this run cannot be resumed online; add it: "
                '{"collector": collector}',
                stacklevel=3,
            )

    def _keep_what_was_left(self) -> None:
        """Count and save the step at which the caller left a phase with ``break``."""
        self._broken_off = self._under_way is not None
        if self._under_way is None:
            return
        if self._under_way == "online" and self._collector is not None:
            self.counters["online"] = self._collector.frames
        else:
            self.counters[self._under_way] += 1
        self._under_way = None
        self._save()

    def _begin(self, step: int) -> None:
        """Evaluate the initial policy of a run, once."""
        if self.restored is None and not self._began:
            self._evaluate(step)
        self._began = True

    def _log_episodes(self, step: int, data: TensorDict) -> None:
        done = data.get(("next", "done")).flatten()
        if done.any():
            for value in data.get(("next", "episode_reward")).flatten()[done]:
                self.record.log(step, {"train/episode_return": value})

    def _after(self, step: int, before: int, *, last: bool, count: int, online: bool = False) -> bool:
        """Evaluate, log and save if due after a step, and return whether to stop; checks the signals once."""
        schedule = self.schedule
        if self.metrics and _passed(schedule.log_every, before, step):
            self.record.log(step, {f"train/{name}": value for name, value in self.metrics.items()})
        if _passed(schedule.eval_every, before, step) or last:
            self._evaluate(step)
        if last and online and self.evaluate is not None:
            self._log_handover(step)
        stop = self.stopped
        if _passed(schedule.checkpoint_every, count - step + before, count) or last or stop:
            self._save()
        return stop

    def _log_handover(self, step: int) -> None:
        try:
            self.record.log(step, handover_metrics(read_metrics(self.record.folder)))
        except O2OSpecError as error:  # evaluations are missing, which must not prevent the end of a run
            warnings.warn(f"the effect of going online cannot be computed: {error}", stacklevel=2)

    def _save(self) -> None:
        count = sum(self.counters.values())
        if count == self._saved:
            return
        self.record.check_place()
        self.checkpoint.save(count)
        self._saved = count
        if self.on_save is not None:
            self.on_save(self.record.folder)

    def _evaluate(self, step: int) -> None:
        if self.evaluate is None:
            return
        result = self.evaluate()
        if not callable(getattr(result, "metrics", None)):
            raise O2OSpecError(
                f"evaluate gave {result!r}, expected a result of torchrl_o2o.trainers.evaluate, or another object "
                "whose metrics() returns numbers by name"
            )
        self._measured = dict(result.metrics())
        self.record.log(step, self._measured)
        self.record.show(step, getattr(result, "videos", {}))


def _passed(every: int, before: int, step: int) -> bool:
    """Whether a multiple was passed since the last step; several environments make several steps at once."""
    return step // every != before // every


def _title(config: Mapping[str, Any]) -> str:
    """A title of the run from its configuration: algorithm, task and seed."""
    words = [config.get("algorithm") or Path(sys.argv[0]).stem, config.get("task_name") or config.get("task")]
    seed = [f"seed {config['seed']}"] if "seed" in config else []
    return ", ".join([*(word for word in words if isinstance(word, str)), *seed])


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # a closed terminal must not end a run
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def handover_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The effect of online training on the policy, from a run's evaluations; see :mod:`torchrl_o2o.record`.

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
    steps, returns = _curve(rows, _RETURN)
    metrics = {
        "handover/return": handover_score(steps, returns),
        "handover/dip": dip(steps, returns),
        "handover/gain": gain(steps, returns),
    }
    scored = _curve(rows, _SCORE)
    return metrics | ({"handover/regret": regret(*scored)} if scored[0] else {})


def _curve(rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[list[int], list[float]]:
    """Steps and values; of equal steps the last value."""
    points = {row["step"]: row[metric] for row in rows if metric in row}
    return list(points), list(points.values())


__getattr__ = old_names(__name__, {"Measured": HasMetrics})
