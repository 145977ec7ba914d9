# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Continue a finished run with newly recorded episodes, without an environment.

One storage holds the rows of the run (its data set, what it collected, what was added before) and the new rows. Batches
are drawn uniformly from all of them, except by methods that separate data from experience (see
:mod:`torchrl_o2o.trainers.continued_methods`). Networks, targets, optimizers, metrics, the run folder, its checkpoints
and ``policy.pt`` continue from the end of the run. Rewards and observations keep the run's scaling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase, cat
from torch.optim import Optimizer

from torchrl_o2o import deploy
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.checkpoint.fingerprints import fingerprint
from torchrl_o2o.checkpoint.folders import retire
from torchrl_o2o.checkpoint.reading import read_rows, restore_objects
from torchrl_o2o.data import TRANSITION, add_next_action, load_offline
from torchrl_o2o.data.keys import cut_off_
from torchrl_o2o.envs.make import make_gym_env, seed_everything
from torchrl_o2o.errors import O2OCheckpointError, O2ODataError, O2OSpecError
from torchrl_o2o.objectives.carry import carry_optimizer
from torchrl_o2o.trainers.compiling import choose_route
from torchrl_o2o.trainers.continued_methods import ContinuedMethod, find_method
from torchrl_o2o.trainers.options import RunOptions
from torchrl_o2o.trainers.phases import Phase, PretrainingPlan
from torchrl_o2o.trainers.problem import Problem
from torchrl_o2o.trainers.run_status import RunStatus
from torchrl_o2o.trainers.session import Schedule, Session
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.trainers.trajectories import returns_of

__all__ = ["Continuing", "continue_run"]

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class _Recording:
    """Newly recorded episodes."""

    source: str
    rows: TensorDictBase

    def entry(self, number: int, num_steps: int) -> dict[str, Any]:
        return _entry(number, self.source, self.rows.select(*TRANSITION), int(self.rows["episode"][-1]) + 1, num_steps)


def _entry(number: int, source: str, rows: TensorDictBase, episodes: int | None, num_steps: int) -> dict[str, Any]:
    return {
        "round": number,
        "source": source,
        "rows": len(rows),
        "episodes": episodes,
        "fingerprint": fingerprint(rows),
        "added": datetime.now(UTC).isoformat(timespec="seconds"),
        "updates": num_steps,
    }


class Continuing(Phase):
    """A round of learning on recorded rows alone, in the folder of the run that it continues.

    A round that is stopped continues from its newest checkpoint, bit for bit; one that was killed before its first
    checkpoint starts over from the end of the run, with the same random numbers.

    Args:
        status: the status of the run.
        problem: environment, convention, and the run's rows in the learner's numbers, the new ones at the end.
        method: the method, with the run's state; a round that continues reads the state again.
        options: the run's options, with its configuration.

    Keyword Args:
        lineage: the run's lineage with this round's entries.
        with_env: whether the environment can be built, so that the policy is evaluated. Defaults to ``True``.
    """

    def __init__(
        self,
        status: RunStatus,
        problem: Problem,
        method: ContinuedMethod,
        options: RunOptions,
        *,
        lineage: Sequence[Entry],
        with_env: bool = True,
    ) -> None:
        self.status, self.lineage, self._seed = status, list(lineage), options.seed
        self._resumes = list(status.lineage) == self.lineage
        self.num_steps = sum({entry["round"]: entry["updates"] for entry in lineage}.values())
        buffer = method.buffer(problem, status.num_offline)
        before = status.manifest["step"] - status.further
        objects = {
            **method.objects(),
            "convention": problem.convention.state_dict(),
            "pretraining": PretrainingPlan(before + self.num_steps, fingerprint(problem.offline)),
        }
        policy, learner = status.policy, method.learner
        self._save = deploy.policy_saver(
            learner.actor,
            convention=problem.convention,
            env=policy.env,
            action_box=_box(policy),
            metadata=policy.metadata,
        )
        session = Session(
            options.folder,
            {**options.config, "lineage": self.lineage},
            objects,
            buffer,
            options.scorer(learner, problem.make_env, problem.env["env_id"]) if with_env else None,
            options.schedule,
            True,
            options.recorder,
            self._write,
            self._restore,
            "--resume",
        )
        super().__init__(problem, learner, buffer, session)

    def steps(self) -> Iterator[int]:
        """The steps that are left; each is one update."""
        return self.session.further(self.num_steps)

    def _write(self, folder: Path) -> None:
        """Write what accompanies a checkpoint: the policy, and the lineage in the run's record."""
        self._save(folder)
        if self._resumes or self.session.counters.get("further", 0) > self.status.further:  # it is in a checkpoint
            self.session.record.note("lineage", self.lineage)

    def _restore(self, checkpoint: Checkpointer) -> int | None:
        if self._resumes:
            return checkpoint.restore()
        status, session = self.status, self.session
        restore_objects(status.root, status.manifest, {"recorder": session.record, "counters": session.counters})
        for step in status.damaged:
            retire(status.root, step)
        seed_everything(self._seed + self.lineage[-1]["round"])
        return status.manifest["step"]


def _box(policy: deploy.PolicyFile) -> tuple[Any, Any]:
    """The box of one action; the box of a policy that decides several at once repeats it."""
    return policy.low[: policy.dims[-1]], policy.high[: policy.dims[-1]]


def _take_over(status: RunStatus, method: ContinuedMethod) -> None:
    """Load a run's networks, targets, moments and counts; learning rates come from the configuration."""
    try:
        for name, part in method.objects().items():
            state = status.state(name)
            if isinstance(part, Optimizer):
                carry_optimizer(state, part)
            elif isinstance(part, dict):
                part.update(state)
            elif state is not None or name != "update":  # runs of earlier versions have no counts
                part.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, O2OSpecError) as error:
        raise O2OCheckpointError(f"{status.folder} cannot be continued by this learner: {error}") from error


@checked_arguments
def continue_run(
    folder: str | Path,
    data: Sequence[Any] = (),
    *,
    num_steps: int | None = None,
    resume: bool = False,
    with_env: bool = True,
    reading: Mapping[str, Any] | None = None,
    schedule: Schedule | None = None,
    recorder: Mapping[str, Any] | None = None,
) -> Sequence[Entry]:
    """Append new recordings to a run's data and continue learning from all of them.

    It may be called any number of times. Each time is a round: it has a number, its own seed (the run's plus that
    number), and entries in the run's lineage, which is in ``run.json`` and in every checkpoint. Metrics continue after
    the run's last step. It supports runs of the scripts awac, iql, td3_bc, cql (and cal_ql), bc, rebrac, spot,
    behavior_regularized, pex, rlpd, wsrl, qc, aca, samg, a3rl and sope, either phase.

    Args:
        folder: the run's folder: of the online phase, or ``.../offline`` of the offline one.
        data: new recordings, each a source of :func:`~torchrl_o2o.data.load_offline`.

    Keyword Args:
        num_steps: updates of this round; ``None`` (default) is for a round that continues.
        resume: whether to continue a stopped round; if there is none, a new one begins. Defaults to ``False``.
        with_env: whether to build the run's environment, to audit the recordings against it and to evaluate the policy.
            Defaults to ``True``.
        reading: arguments of :func:`~torchrl_o2o.data.load_offline` for the new recordings; the others are those of the
            run's own data set. Defaults to none.
        schedule: how often to evaluate, log and save. Defaults to :class:`~torchrl_o2o.trainers.Schedule`'s.
        recorder: further arguments of :class:`~torchrl_o2o.record.Recorder`. Defaults to none.

    Returns:
        The lineage.

    Raises:
        O2ODataError: if a recording is broken, does not fit the run, or is in the run already.
        O2OSpecError: if the run's method cannot continue from recordings, or an argument does not fit.
        O2OCheckpointError: if the run has not come to its end, or cannot be read.
        SystemExit: if a signal asked to stop; the checkpoint is written.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.envs import make_gym_env
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import probe_transitions
        >>> from torchrl_o2o.trainers import online_phase
        >>> from torchrl_o2o.trainers.algorithms import make_rlpd
        >>> rows = probe_transitions(make_gym_env("Pendulum-v1"), 100)
        >>> problem = Problem({"env_id": "Pendulum-v1", "max_episode_steps": 9}, rows, Convention().fit(rows))
        >>> words = ["preset=cpu", "compile=false", f"run_dir={tempfile.mkdtemp()}/run"]
        >>> words += ["env.env_id=Pendulum-v1", "+env.max_episode_steps=9"]
        >>> words += ["online.total_frames=8", "online.batch_size=4", "evaluation.num_episodes=1"]
        >>> cfg = script_config("rlpd", words)
        >>> with online_phase(cfg, problem, None, make_rlpd) as run:
        ...     for step, data in run.steps():
        ...         _ = run.buffer.extend(data.select(*run.learner.keys))
        >>> new = probe_transitions(make_gym_env("Pendulum-v1"), 20, seed=1)
        >>> lineage = continue_run(cfg.run_dir, [new], num_steps=2, with_env=False)
        >>> [(entry["round"], entry["rows"], entry["updates"]) for entry in lineage]
        [(0, 108, 0), (1, 20, 2)]
    """
    status = RunStatus.read(folder)
    cfg: DictConfig = OmegaConf.create(_numbers(status.config))  # type: ignore[assignment]
    make = find_method(status.folder, status.config)
    choose_route(cfg.get("matmul_route", "default"))
    env = _environment(status) if with_env else None
    new = [_load(cfg, source, env, reading or {}) for source in data]
    lineage = _next_lineage(status, new, num_steps, resume=resume)
    method = make(cfg, _dims(status, new))
    _take_over(status, method)
    seed_everything(cfg.seed + status.round + 1)  # a method may draw random numbers for what it stores with a row
    old, *added = _parts(status, cfg, env, method, [] if lineage is None else new)
    if lineage is not None and not status.lineage:
        lineage = [_entry(0, str(cfg.dataset.source), old, None, 0), *lineage]
    if lineage is not None:
        _check_beginning(added, new, lineage[0])
    lineage = status.lineage if lineage is None else lineage
    options = RunOptions(
        folder,
        status.config,
        seed=cfg.seed,
        schedule=schedule or Schedule(),
        evaluation=dict(cfg.get("evaluation", {})),
        recorder=dict(recorder or {}),
    )
    problem = Problem(status.config["env"], _joined(old, *added), status.convention)
    phase = Continuing(status, problem, method, options, lineage=lineage, with_env=with_env)
    with phase:
        for step in phase.steps():
            phase.log(method.update(phase, step))
    return lineage


def _numbers(value: Any) -> Any:
    """A recorded configuration with infinities converted back to numbers, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if value in ("inf", "-inf", "nan") else value


def _environment(status: RunStatus) -> Any:
    try:
        return make_gym_env(**status.config["env"])
    except Exception as error:  # building an environment can raise any exception
        raise O2OSpecError(
            f"the environment of {status.folder} cannot be built here ({error}); continue without it, and without "
            "evaluation, with with_env=False (--without-env)"
        ) from error


def _load(cfg: DictConfig, source: Any, env: Any, reading: Mapping[str, Any]) -> _Recording:
    own = {key: value for key, value in plain(cfg.dataset).items() if key != "source"}
    given = {key: value for key, value in reading.items() if value not in (None, {})}
    named = str(source) if isinstance(source, str | Path) else f"a {type(source).__name__}"
    return _Recording(named, load_offline(source, env=env, **{**own, **given}))


def _next_lineage(
    status: RunStatus, new: Sequence[_Recording], num_steps: int | None, *, resume: bool
) -> list[Entry] | None:
    """The lineage with this round's entries; ``None`` to continue the last round."""
    left = status.planned - status.further
    last = [entry for entry in status.lineage if entry["round"] == status.round and status.round]
    found = [recording.entry(status.round + 1, num_steps or 0) for recording in new]
    prints = [entry["fingerprint"] for entry in found]
    if resume and last and (not found or prints == [entry["fingerprint"] for entry in last]):
        if num_steps not in (None, last[-1]["updates"]):
            raise O2OSpecError(
                f"got num_steps={num_steps}, expected {last[-1]['updates']}, those of the round that continues; leave "
                "it out"
            )
        return None
    if left:
        names = ", ".join(str(entry["source"]) for entry in last)
        raise O2OCheckpointError(
            f"round {status.round} of {status.folder}, on {names}, has {left} updates left, expected a finished round; "
            "continue it first (resume=True, --resume), with the same data or none"
        )
    if not found:
        raise O2OSpecError(
            f"got no recordings, expected some, because no round of {status.folder} has begun; name the new recordings"
        )
    if num_steps is None or num_steps < 1:
        raise O2OSpecError(f"got num_steps={num_steps}, expected a number of updates of at least 1")
    known = {entry["fingerprint"]: entry for entry in status.lineage}
    for entry in found:
        if entry["fingerprint"] in known:
            there = known[entry["fingerprint"]]
            raise O2ODataError(
                f"{entry['source']} holds the rows of {there['source']}, which the run has had since round "
                f"{there['round']}; name new recordings"
            )
        known[entry["fingerprint"]] = entry
    return [*status.lineage, *found]


def _check_beginning(added: Sequence[TensorDictBase], new: Sequence[_Recording], beginning: Entry) -> None:
    """Raise if new rows are those that the run began with, compared by the entries that the learner reads."""
    for recording, part in zip(new, added, strict=True):
        if fingerprint(part) == beginning["fingerprint"]:
            raise O2ODataError(
                f"{recording.source} holds the rows of {beginning['source']}, with which the run began; name new "
                "recordings"
            )


def _dims(status: RunStatus, new: Sequence[_Recording]) -> tuple[int, int]:
    dims = status.policy.dims
    for recording in new:
        there = recording.rows["observation"].shape[-1], recording.rows["action"].shape[-1]
        if there != dims:
            raise O2ODataError(
                f"{recording.source} has {there[0]} observation entries and {there[1]} action dimensions, expected "
                f"{'x'.join(map(str, dims[:-1]))} and {dims[-1]} as in the run {status.folder}; name recordings of the "
                "same robot or task"
            )
    return dims[0], dims[-1]


def _parts(
    status: RunStatus, cfg: DictConfig, env: Any, method: ContinuedMethod, new: Sequence[_Recording]
) -> list[TensorDictBase]:
    """The run's rows with the learner's scaling, from its checkpoint or data set, and the rows of each recording."""

    keys = method.learner.keys

    def seen(raw: TensorDictBase) -> TensorDictBase:
        rows = status.convention.data(raw)
        if "mc_return" in keys:
            rows = returns_of(cfg, Problem(status.config["env"], rows, status.convention))(rows)
        if ("next", "action") in keys:
            rows = add_next_action(rows)
        return method.complete(rows).select(*keys)

    old = read_rows(status.root, status.manifest)
    if old is None:
        old = seen(load_offline(**plain(cfg.dataset), env=env))
        planned = status.state("pretraining").get("data")
        if planned not in (None, fingerprint(old)):
            raise O2ODataError(
                f"{cfg.dataset.source} does not hold the rows from which {status.folder} has learned, but other data "
                "of the same name; restore the old data, or start a new run in another folder"
            )
    return [old, *(seen(recording.rows) for recording in new)]


def _joined(*parts: TensorDictBase) -> TensorDictBase:
    """All rows, with ends marked so that no chunk of rows continues into the next recording."""
    rows: TensorDictBase = cat(parts)
    for end in list(accumulate(map(len, parts)))[:-1]:
        last: TensorDictBase = rows[end - 1 : end].clone()
        rows[end - 1 : end] = cut_off_(last)
    return rows
