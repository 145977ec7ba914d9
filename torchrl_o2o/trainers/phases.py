# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The offline and online phases of a run as contexts, with everything that a script's loop needs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, Storage, TensorDictReplayBuffer

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.checkpoint.fingerprints import fingerprint
from torchrl_o2o.collectors.fleet import Fleet
from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.data import BalancedSampler
from torchrl_o2o.data.buffers import offline_buffer
from torchrl_o2o.data.storage import MappedStorage
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError, check_count
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.trainers.collecting import make_collector, make_fleet
from torchrl_o2o.trainers.handover import HandOver, MakeStorage
from torchrl_o2o.trainers.learner import Learner
from torchrl_o2o.trainers.options import RunOptions
from torchrl_o2o.trainers.problem import Problem
from torchrl_o2o.trainers.session import Session
from torchrl_o2o.updates import Update

__all__ = [
    "Finetuning",
    "Phase",
    "Pretraining",
    "PretrainingPlan",
    "check_finetuning",
]


@dataclass(frozen=True)
class PretrainingPlan:
    """The number of updates that a run makes, so that an unfinished run is recognized, and its data.

    Args:
        num_steps: updates.
        data: the rows' :func:`~torchrl_o2o.checkpoint.fingerprints.fingerprint`.
    """

    num_steps: int
    data: str

    def state_dict(self) -> dict[str, Any]:
        """Both values, for the checkpoint."""
        return {"num_steps": self.num_steps, "data": self.data}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Check that the data are those the run began with; its session checks the number of updates."""
        if state_dict.get("data", self.data) != self.data:
            raise O2OCheckpointError(
                "the data are not those that the run began with: they are other data of the same name, or the "
                "convention was fitted again; resume with the data and convention of that run, or start a new run in "
                "another folder"
            )


class Phase:
    """A running phase as a context, with everything that a script's loop needs.

    Leaving it closes the run folder. If a batch makes a loss or a gradient NaN or infinite, it is saved in the folder.

    Args:
        problem: environment and data.
        learner: the learner that is trained.
        buffer: the replay buffer that batches are drawn from.
        session: the session of the run folder.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers.algorithms import make_bc
        >>> from torchrl_o2o.trainers import starting_buffer
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1", "max_episode_steps": 9}, rows, Convention().fit(rows))
        >>> cfg = script_config("bc", ["preset=cpu", "compile=false"])
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> options = RunOptions(folder, {"algorithm": "bc"}, seed=0, evaluation={"num_episodes": 1})
        >>> learner, buffer = make_bc(cfg, problem.dims), starting_buffer(rows, 1, batch_size=16)
        >>> session = options.session(problem, learner, buffer, learner.objects(), total=0)
        >>> with Phase(problem, learner, buffer, session) as phase:
        ...     for step in session.offline(2):
        ...         phase.log(learner.update(phase.sample()))
        >>> step
        0
    """

    @checked_arguments
    def __init__(self, problem: Problem, learner: Learner, buffer: TensorDictReplayBuffer, session: Session) -> None:
        self.problem, self.learner, self.buffer, self.session = problem, learner, buffer, session
        self._device = learner.device
        learner.see(buffer)
        self._batch: TensorDictBase | None = None

    def __enter__(self) -> Self:
        """Enter the session, which restores a resumed run."""
        self.session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Save a batch that led to values that are not finite, and close the folder."""
        try:
            if isinstance(error, NonFiniteError) and self._batch is not None:
                with self.session.record.dump_if_not_finite(self._batch):
                    raise error
        finally:
            self.session.__exit__(kind, error, trace)

    def sample(self) -> TensorDictBase:
        """Draw the next batch, and move it to the learner's device."""
        self._batch = self.buffer.sample().to(self._device)
        return self._batch

    def log(self, metrics: Mapping[str, Tensor]) -> None:
        """Set the metrics of the update; they are logged every ``log_every`` steps."""
        self.session.log({name: value for name, value in metrics.items() if name != "finite"})


class Pretraining(Phase):
    """The offline phase: learning from data alone. Its last checkpoint can start any compatible fine-tuning.

    Args:
        problem: environment and data.
        learner: the learner that is trained.
        options: the run's options.

    Keyword Args:
        num_steps: number of updates. Steps count up to 0.
        batch_size: rows per minibatch, drawn uniformly; a learner whose update repeats on G minibatches gets G times as
            many.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers.algorithms import make_bc
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1", "max_episode_steps": 9}, rows, Convention().fit(rows))
        >>> cfg = script_config("bc", ["preset=cpu", "compile=false"])
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> options = RunOptions(folder, {"algorithm": "bc"}, seed=0, evaluation={"num_episodes": 1})
        >>> learner = make_bc(cfg, problem.dims)
        >>> with Pretraining(problem, learner, options, num_steps=3, batch_size=16) as phase:
        ...     for step in phase.steps():
        ...         phase.log(learner.update(phase.sample()))
        >>> step, learner.calls
        (0, 3)
    """

    @checked_arguments
    def __init__(
        self, problem: Problem, learner: Learner, options: RunOptions, *, num_steps: int, batch_size: int
    ) -> None:
        check_count("batch_size", batch_size, least=1)
        buffer = _buffer_of_data(problem, learner, _rows_drawn(learner, batch_size))
        objects = {
            **learner.objects(),
            "convention": problem.convention.state_dict(),
            "pretraining": PretrainingPlan(num_steps, fingerprint(problem.offline.select(*learner.keys))),
        }
        self.num_steps, self.folder = num_steps, Path(options.folder)
        super().__init__(problem, learner, buffer, options.session(problem, learner, None, objects, 0))

    def steps(self) -> Iterator[int]:
        """The remaining steps, from ``1 - num_steps`` to 0; each is one update."""
        return self.session.offline(self.num_steps)


class Finetuning(Phase):
    """The online phase, of a learner that was already handed over. The policy is written to
    ``policy.pt`` at every checkpoint; :func:`~torchrl_o2o.deploy.load_policy` reads it.

    Args:
        problem: environment and data; ``handover.data`` says how the data are used.
        learner: the learner that is trained.
        options: the run's options.

    Keyword Args:
        handover: starting buffer and warm-up.
        total_frames: environment steps.
        batch_size: rows per minibatch; a learner whose update repeats on G minibatches gets G times as many.
        online_capacity: slots for online rows; ``None`` (default) keeps all.
        init_random_frames: environment steps with uniform actions and without updates. Defaults to 0.
        buffer: used in place of the hand-over's starting buffer. Defaults to ``None``.
        make_storage: makes the storage of that buffer, see :func:`~torchrl_o2o.trainers.starting_buffer`. Defaults to
            ``None``.
        scratch_dir: folder for that buffer's rows in memory-mapped files, for data larger than memory; it must be empty
            or not exist. ``None`` (default) keeps rows in memory. A given ``buffer`` already has its own files.
        objects: further objects that change during training, by name. Defaults to none.
        fleet: settings of :func:`make_fleet`: actors in other processes collect. ``None`` (default) steps one
            environment here.

    Raises:
        O2OSpecError: if a number is out of range, if ``online_capacity`` is given and leaves the buffer fewer slots
            than a batch has rows, or the buffer's online slots, one a step by default, are fewer than the online rows
            of a batch.
        EnvFaultError: if the environment keeps failing.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers.algorithms import make_bc
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1", "max_episode_steps": 9}, rows, Convention().fit(rows))
        >>> cfg = script_config("bc", ["preset=cpu", "compile=false"])
        >>> folder = tempfile.mkdtemp() + "/run"
        >>> options = RunOptions(folder, {"algorithm": "bc"}, seed=0, evaluation={"num_episodes": 1})
        >>> learner = make_bc(cfg, problem.dims)
        >>> with Finetuning(problem, learner, options, handover=HandOver(), total_frames=3, batch_size=16) as phase:
        ...     for step, data in phase.steps():
        ...         _ = phase.buffer.extend(problem.convention.online(data).select(*learner.keys))
        ...         if phase.may_update(step):
        ...             phase.log(learner.update(phase.sample()))
        >>> step, len(phase.buffer), learner.calls
        (3, 103, 3)
    """

    @checked_arguments
    def __init__(
        self,
        problem: Problem,
        learner: Learner,
        options: RunOptions,
        *,
        handover: HandOver,
        total_frames: int,
        batch_size: int,
        online_capacity: int | None = None,
        init_random_frames: int = 0,
        buffer: TensorDictReplayBuffer | None = None,
        make_storage: MakeStorage | None = None,
        scratch_dir: str | Path | None = None,
        objects: Mapping[str, Any] | None = None,
        fleet: Mapping[str, Any] | None = None,
    ) -> None:
        check_count("total_frames", total_frames, least=1)
        check_count("batch_size", batch_size, least=1)
        capacity = total_frames if online_capacity is None else online_capacity
        rows = _rows_drawn(learner, batch_size)
        drawn_from = buffer
        if drawn_from is None:  # not `or`: an empty buffer is false
            how = {"batch_size": rows, "keys": learner.keys, "make_storage": make_storage, "scratch_dir": scratch_dir}
            if make_storage is None and scratch_dir is None:  # those decide themselves where rows lie
                how["device"] = learner.device
            drawn_from = handover.buffer(problem.offline, capacity, **how)
        elif scratch_dir is not None and not isinstance(drawn_from.storage, MappedStorage):
            raise O2OSpecError(
                f"got scratch_dir={str(scratch_dir)!r} and a buffer whose rows are in memory; leave it out, or build "
                "its storage with offline_online_storage(..., scratch_dir=...)"
            )
        if online_capacity is not None:
            _check_slots(online_capacity, drawn_from.storage.max_size, rows)
        sampler, is_warm = drawn_from.sampler, _is_warm(total_frames, init_random_frames, handover)
        if isinstance(sampler, BalancedSampler):
            _check_online_slots(sampler, drawn_from.storage, rows, is_warm)  # before anything is written
        self.handover, self.options, self.rows, self.init_random_frames = handover, options, rows, init_random_frames
        self.collector: StepCollector | Fleet
        if fleet is None:
            self.collector = make_collector(problem, learner, options, drawn_from, total_frames, init_random_frames)
        else:
            self.collector = make_fleet(problem, learner, options, total_frames, init_random_frames, fleet)
        self._offline: TensorDictReplayBuffer | None = None
        self._looked_ahead = False
        objects = {**learner.objects(), **(objects or {}), "collector": self.collector}
        session = options.session(problem, learner, drawn_from, objects, total_frames)
        super().__init__(problem, learner, drawn_from, session)

    @property
    def fleet(self) -> Fleet:
        """The actors in other processes.

        Raises:
            O2OSpecError: if the phase steps one environment itself.
        """
        if not isinstance(self.collector, Fleet):
            raise O2OSpecError(
                "got a phase without fleet, which steps a single environment, expected actors; pass "
                "fleet={'num_actors': 4}"
            )
        return self.collector

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Shut down the actors in other processes, and close the folder."""
        if isinstance(self.collector, Fleet):
            self.collector.shutdown()
        super().__exit__(kind, error, trace)

    def steps(self) -> Iterator[tuple[int, TensorDictBase]]:
        """The remaining steps, each with its transition [1] in the environment's units.

        A fleet may deliver several transitions at a step, or none.
        """
        return self.session.online(self.collector)

    def may_update(self, step: int) -> bool:
        """Whether random steps and warm-up are over and the buffer holds a batch.

        The first call warns if this will be true at no step of the run.
        """
        if not self._looked_ahead:
            self._look_ahead(step)
        return _is_warm(step, self.init_random_frames, self.handover) and len(self.buffer) >= self.rows

    def _look_ahead(self, step: int) -> None:
        self._looked_ahead, total = True, self.collector.total_frames
        held = min(len(self.buffer) + total - step, self.buffer.storage.max_size)
        if not _is_warm(total, self.init_random_frames, self.handover) or held < self.rows:
            warnings.warn(
                f"this run makes no update: it has total_frames={total}, of which the first {self.init_random_frames} "
                f"are random (init_random_frames) and {self.handover.warmup_steps} are warm-up (warmup_steps), and "
                f"its buffer will hold {held} rows, a batch {self.rows}; raise total_frames, or lower these settings",
                stacklevel=3,
            )

    def updates(self, step: int, data: TensorDictBase) -> Iterator[int]:
        """The updates to make after a step's transitions were stored: one, or with a fleet those that its counts allow.

        There are none while :meth:`may_update` is false. After each, a fleet's actors get the new policy.

        Args:
            step: the environment step.
            data: the data that :meth:`steps` yielded with it, [n].

        Yields:
            The number of updates of this step that are left; with a fleet, T - U, see
            :class:`~torchrl_o2o.collectors.Fleet`.
        """
        if not self.may_update(step):
            return
        if not isinstance(self.collector, Fleet):
            yield 0
            return
        for owed in self.collector.updates(len(data)):
            yield owed
            self.collector.publish()

    def log(self, metrics: Mapping[str, Tensor]) -> None:
        """Log the metrics of the update and of actors in other processes."""
        super().log({**metrics, **self.collector.metrics()} if isinstance(self.collector, Fleet) else metrics)

    def offline_steps(self, num_steps: int) -> Iterator[int]:
        """Yield updates on the data alone before the first environment step, in the same run, up to step 0.

        Args:
            num_steps: number of updates; with 0 there are none.
        """
        return self.session.offline(num_steps) if num_steps else iter(())

    def sample_offline(self) -> TensorDictBase:
        """Draw the next batch only from the offline rows."""
        offline = self._offline
        if offline is None:
            offline = _buffer_of_data(self.problem, self.learner, self.rows)
            self.learner.see(offline)
        self._offline, self._batch = offline, offline.sample()
        return self._batch


def check_finetuning(
    problem: Problem,
    learner: Learner,
    options: RunOptions,
    *,
    handover: HandOver,
    total_frames: int,
    batch_size: int,
    online_capacity: int | None = None,
    init_random_frames: int = 0,
    scratch_dir: str | Path | None = None,
    fleet: Mapping[str, Any] | None = None,
) -> None:
    """Raise for settings that :class:`Finetuning` would refuse, before the offline phase; builds no environment.

    Args:
        problem: see :class:`Finetuning`.
        learner: see there.
        options: see there.

    Keyword Args:
        handover: see :class:`Finetuning`.
        total_frames: see there; with 0 there is no online phase to check.
        batch_size: see there.
        online_capacity: see there. Defaults to ``None``.
        init_random_frames: see there. Defaults to 0.
        scratch_dir: see there. Defaults to ``None``.
        fleet: see there. Defaults to ``None``.

    Raises:
        O2OSpecError: if the buffer could not hold a batch or the online rows of one, its folder is not empty, or a
            fleet's setting is out of range.

    Examples:
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers.algorithms import make_bc
        >>> rows = random_transitions(100, 3, 1)
        >>> problem = Problem({"env_id": "Pendulum-v1"}, rows, Convention().fit(rows))
        >>> learner = make_bc(script_config("bc", ["preset=cpu", "compile=false"]), problem.dims)
        >>> options, how = RunOptions("runs/bc", {}, seed=0), HandOver(data="none")
        >>> settings = {"handover": how, "total_frames": 100, "batch_size": 16}
        >>> check_finetuning(problem, learner, options, **settings)
        >>> check_finetuning(problem, learner, options, **settings, online_capacity=2)
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got online_capacity=2, with which the buffer has 2 slots in all, ...
    """
    if not total_frames:
        return
    rows, fixed = _rows_drawn(learner, batch_size), len(problem.offline)
    capacity = total_frames if online_capacity is None else online_capacity
    if online_capacity is not None and handover.data == "none":
        _check_slots(online_capacity, online_capacity, rows)
    if handover.data == "symmetric":
        sampler = BalancedSampler(fixed, handover.offline_fraction)
        is_warm = _is_warm(total_frames, init_random_frames, handover)
        _check_online_slots(sampler, LazyTensorStorage(fixed + capacity), rows, is_warm)
    if scratch_dir is not None:
        MappedStorage(fixed, capacity, scratch_dir)  # writes nothing yet
    if fleet is not None:
        make_fleet(problem, learner, options, total_frames, init_random_frames, fleet)


def _is_warm(step: int, init_random_frames: int, handover: HandOver) -> bool:
    """Whether random steps and warm-up are over."""
    return step > init_random_frames and handover.may_update(step)


def _check_online_slots(sampler: BalancedSampler, storage: Storage, rows: int, is_warm: bool) -> None:
    """Raise if the first draw would raise, unless the run ends before it, of which a warning tells."""
    if is_warm and getattr(storage, "max_size", rows) >= rows:
        sampler.check_capacity(storage, rows)


def _check_slots(online_capacity: int, slots: int, rows: int) -> None:
    if slots < rows:
        raise O2OSpecError(
            f"got online_capacity={online_capacity}, with which the buffer has {slots} slots in all, expected at least "
            f"the {rows} rows of a batch; raise online_capacity, or lower batch_size"
        )


def _buffer_of_data(problem: Problem, learner: Learner, rows: int) -> TensorDictReplayBuffer:
    """The recorded rows alone, on the learner's device."""
    return offline_buffer(problem.offline, batch_size=rows, keys=learner.keys, device=learner.device)


def _rows_drawn(learner: Learner, batch_size: int) -> int:
    """Rows of all minibatches of one update."""
    return batch_size * (learner.update.num_minibatches if isinstance(learner.update, Update) else 1)
