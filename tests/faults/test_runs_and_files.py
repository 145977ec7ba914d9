# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Cases of the second list about runs and their files: B18 to B21, C24, C25, C27 and what a report does with NaN.

The letters are those of the list: A wrong numbers, B runs that end, C intruders, D friction.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from tests.record.test_sinks import FakeWandb
from torchrl_o2o.checkpoint import folders
from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.collectors.vector import VectorCollector, make_vector_env
from torchrl_o2o.modules import make_actor
from torchrl_o2o.record.recorder import Recorder, read_metrics
from torchrl_o2o.record.sinks import ProgressSink, TensorBoardSink
from torchrl_o2o.testing import DelayedRewardEnv
from torchrl_o2o.trainers.evaluation import EvaluationResult
from torchrl_o2o.trainers.interrupt import graceful_exit
from torchrl_o2o.trainers.session import Schedule, Session


def score() -> EvaluationResult:
    return EvaluationResult(returns=np.array([1.0]), lengths=np.array([10]))


def make_env() -> gymnasium.Env:
    return gymnasium.wrappers.TimeLimit(DelayedRewardEnv(), 4)


class TwoPhases:
    """Six updates offline, a hand-over, nine transitions online, in one folder; an 'update' adds a random number."""

    def __init__(self, folder: Path, resume: bool = False, num_envs: int = 0, **options: Any) -> None:
        torch.manual_seed(0)
        actor = make_actor(1, 1, hidden_sizes=(4,))
        self.walk: dict[str, Any] = {"value": torch.zeros(()), "handed_over": 0}
        if num_envs:
            self.collector: Any = VectorCollector(
                make_vector_env(make_env, num_envs), actor, total_frames=9, seeds=[*range(num_envs)]
            )
        else:
            self.collector = StepCollector(make_env(), actor, total_frames=9, seed=0)
        schedule = options.pop("schedule", Schedule(eval_every=4, log_every=1, checkpoint_every=4))
        objects = {"walk": self.walk, "collector": self.collector}
        self.session = Session(folder, {"seed": 0}, objects, None, score, schedule, resume, **options)

    def update(self) -> None:
        self.walk["value"] = self.walk["value"] + torch.randn(())
        self.session.log({"value": self.walk["value"]})

    def run(self) -> TwoPhases:
        with self.session as session:
            for _ in session.offline(6):
                self.update()
            if not session.is_online and not session.stopped:
                self.walk["handed_over"] += 1
            for _ in session.online(self.collector):
                self.update()
        return self


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row | {"time": 0} for row in read_metrics(folder)]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def test_case_b19_offline_and_online_in_one_folder(tmp_path: Path) -> None:
    whole = TwoPhases(tmp_path / "run").run()
    evaluations = [row["step"] for row in read_metrics(tmp_path / "run") if "evaluation/return" in row]
    assert evaluations == [-6, -4, 0, 4, 8, 9]
    assert [row["step"] for row in read_metrics(tmp_path / "run") if "train/value" in row] == [*range(-5, 10)]
    assert folders.steps(tmp_path / "run" / "checkpoints") == [15, 14]
    assert whole.walk["handed_over"] == 1


class Asked(graceful_exit):
    """A signal comes right after the run was looked at for the n-th time, or while it evaluates, and so on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after, self.looks = after, 0

    @property
    def requested(self) -> bool:
        seen = super().requested
        self.looks += 1
        if self.looks == self.after:
            os.kill(os.getpid(), signal.SIGTERM)
        return seen


def test_case_b19_a_signal_between_two_looks_never_ends_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    whole = TwoPhases(tmp_path / "whole")
    whole.session.interrupt = Asked(10**6)
    whole.run()
    for after in range(1, whole.session.interrupt.looks - 1):
        folder = tmp_path / str(after)
        first = TwoPhases(folder)
        first.session.interrupt = Asked(after)
        with pytest.raises(SystemExit, match="143"):
            first.run()
        done = first.session.counters
        assert folders.steps(folder / "checkpoints")[0] == done["offline"] + done["online"], "nothing is lost"
        second = TwoPhases(folder, resume=True).run()
        assert second.walk == whole.walk
        assert rows(folder) == rows(tmp_path / "whole")


def test_case_b19_several_environments_at_once_miss_no_evaluation(tmp_path: Path) -> None:
    TwoPhases(tmp_path / "run", num_envs=3).run()
    found = [row["step"] for row in read_metrics(tmp_path / "run") if "evaluation/return" in row]
    assert found == [-6, -4, 0, 6, 9]  # 4 lies between 3 and 6, 8 between 6 and 9
    assert len([row for row in read_metrics(tmp_path / "run") if "train/episode_return" in row]) == 3


def test_case_a07_the_policy_is_written_at_every_checkpoint(tmp_path: Path) -> None:
    seen: list[tuple[Path, int]] = []

    def on_save(folder: Path) -> None:
        seen.append((folder, folders.steps(folder / "checkpoints")[0]))

    TwoPhases(tmp_path / "run", on_save=on_save).run()
    assert seen == [(tmp_path / "run", step) for step in (4, 6, 10, 14, 15)]
    seen.clear()
    TwoPhases(tmp_path / "run", resume=True, on_save=on_save).run()
    assert seen == [(tmp_path / "run", 15)], "a process killed between checkpoint and policy left an older policy"


def test_case_d_a_run_says_where_it_is_and_what_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my run"
    TwoPhases(folder, on_save=lambda run: (run / "policy.pt").write_text("here")).run()
    first, *_, complete, policy, curves = capsys.readouterr().err.splitlines()
    assert first.endswith(f"seed 0: {folder}")
    assert "seed 0: complete: return 1" in complete
    assert policy == f"  policy: {folder / 'policy.pt'}"
    assert curves == f"  curves: o2o report '{folder}'"


# Sinks


class Failing:
    """A sink that cannot do one thing."""

    def __init__(self, fails_at: str) -> None:
        self.fails_at, self.rows = fails_at, 0

    def _do(self, name: str) -> None:
        if name == self.fails_at:
            raise OSError(28, "No space left on device")

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.rows += 1
        self._do("write")

    def rewind(self, step: int) -> None:
        self._do("rewind")

    def close(self) -> None:
        self._do("close")


@pytest.mark.parametrize("fails_at", ["write", "rewind", "close"])
def test_case_b20_a_sink_that_fails_does_not_end_the_run(tmp_path: Path, fails_at: str) -> None:
    recorder = Recorder(tmp_path, config={})
    sink = Failing(fails_at)
    recorder._sinks = [sink]

    def run() -> None:
        recorder.load_state_dict(recorder.state_dict() | {"step": 0})
        for step in (1, 2):
            recorder.log(step, {"train/loss": 1.0})
        recorder.close()

    with pytest.warns(UserWarning, match=r"Failing FAILED \(OSError.*No space left.*the run goes on"):
        run()
    assert sink.rows == {"write": 1, "rewind": 0, "close": 2}[fails_at]
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    Recorder(tmp_path, config={}, resume=True).close()


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_case_b20_a_sink_that_cannot_start_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def refuse(*words: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    fake = FakeWandb()
    fake.init = refuse
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(TensorBoardSink, "__init__", refuse)
    options: dict[str, Any] = {"tensorboard": True} if kind == "tensorboard" else {"wandb": {}}
    with (
        pytest.warns(UserWarning, match="FAILED .*No space left"),
        Recorder(tmp_path, config={}, **options) as recorder,
    ):
        recorder.log(1, {"train/loss": 1.0})
    assert len(read_metrics(tmp_path)) == 1


def test_case_b21_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Recorder(tmp_path, config={}, tensorboard=True) as recorder:
        for step in (-2, -1, 0):
            recorder.log(step, {"train/x": 1.0})
        state = recorder.state_dict()
        recorder.log(1, {"train/x": 1.0})
    for cut in ("state", "step"):
        with Recorder(tmp_path, config={}, tensorboard=True, resume=True) as recorder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if cut == "state":
                recorder.load_state_dict(state)
            for step in (1, 2):
                recorder.log(step, {"train/x": 2.0})
        events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        found = [(event.step, event.value) for event in events.Scalars("train/x")]
        assert found == [(-2, 1.0), (-1, 1.0), (0, 1.0), (1, 2.0), (2, 2.0)]


def test_case_b21_wandb_gets_negative_steps_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    fake.init = lambda **settings: fake
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with Recorder(tmp_path, config={}, wandb={}) as recorder:
        for step in (-2, -1):
            recorder.log(step, {"train/x": float(step)})
        state = recorder.state_dict()
        recorder.log(0, {"train/x": 0.0})
        recorder.log(1, {"train/x": 1.0})
    fake.summary = {"step": 1}
    with Recorder(tmp_path, config={}, wandb={}, resume=True) as recorder:
        recorder.load_state_dict(state)
        for step in (0, 1, 2):
            recorder.log(step, {"train/x": float(step)})
    assert [row["step"] for row in fake.rows] == [-2, -1, 0, 1, 1, 2]
    assert all(row["step"] == row["train/x"] for row in fake.rows)


def test_case_a14_the_bar_shows_the_evaluations_return_and_counts_up(capsys: pytest.CaptureFixture[str]) -> None:
    sink = ProgressSink(10)
    sink.write(-10, {"evaluation/return": 3.0})
    sink.write(0, {"train/loss": 0.25, "train/q": 1.5})
    sink.write(10, {"evaluation/return": 71.0})
    sink.write(10, {"handover/return": 42.0, "handover/dip": 1.0})
    assert sink._bar is not None
    assert (sink._bar.n, sink._bar.total) == (20, 20)
    sink.close()
    shown = capsys.readouterr().err
    assert "return=71" in shown
    assert "return=42" not in shown
    assert "-" not in shown.replace("--", "")
