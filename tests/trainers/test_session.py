# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A session: what surrounds a step happens on time, survives death, and stops in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.modules import make_gaussian_actor
from torchrl_o2o.record.files import read_metrics
from torchrl_o2o.testing import DelayedRewardEnv
from torchrl_o2o.trainers.evaluation import EvaluationResult
from torchrl_o2o.trainers.session import Schedule, Session, handover_metrics


@pytest.fixture(autouse=True)
def _default_handlers() -> Iterator[None]:
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


class Walk:
    """A 'learner': one random number added per step."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"value": torch.zeros(())}

    def step(self) -> dict[str, torch.Tensor]:
        self.state["value"] = self.state["value"] + torch.randn(())
        return {"value": self.state["value"]}


def score() -> EvaluationResult:
    return EvaluationResult(returns=np.array([1.0]), lengths=np.array([10]))


def open_session(folder: Path, walk: Walk, schedule: Schedule, resume: bool = False, **objects: Any) -> Session:
    return Session(folder, {"seed": 0}, {"walk": walk.state, **objects}, None, score, schedule, resume)


def run_offline(folder: Path, schedule: Schedule, *, resume: bool = False, die_at: int | None = None) -> Walk:
    torch.manual_seed(0)
    walk = Walk()
    with open_session(folder, walk, schedule, resume) as session:
        for step in session.offline(10):
            if step == die_at:
                raise KeyError
            session.metrics = walk.step()
    return walk


def steps(folder: Path, key: str) -> list[int]:
    return [row["step"] for row in read_metrics(folder) if key in row]


def test_steps_evaluations_and_logs(tmp_path: Path) -> None:
    run_offline(tmp_path / "run", Schedule(eval_every=4, log_every=5, checkpoint_every=3))
    assert steps(tmp_path / "run", "evaluation/return") == [-10, -8, -4, 0]
    assert steps(tmp_path / "run", "train/value") == [-5, 0]


@pytest.mark.parametrize("die_at", [-6, -3, 0])
def test_death_costs_nothing_that_a_resumed_run_does_not_repeat(tmp_path: Path, die_at: int) -> None:
    schedule = Schedule(eval_every=4, log_every=1, checkpoint_every=3)
    whole = run_offline(tmp_path / "whole", schedule)
    with pytest.raises(KeyError):
        run_offline(tmp_path / "parts", schedule, die_at=die_at)
    parts = run_offline(tmp_path / "parts", schedule, resume=True)
    assert torch.equal(whole.state["value"], parts.state["value"])
    for key in ("train/value", "evaluation/return"):
        assert steps(tmp_path / "whole", key) == steps(tmp_path / "parts", key)


def test_a_complete_phase_is_not_repeated(tmp_path: Path) -> None:
    schedule = Schedule(checkpoint_every=5)
    first = run_offline(tmp_path / "run", schedule)
    rows = read_metrics(tmp_path / "run")
    again = run_offline(tmp_path / "run", schedule, resume=True)
    assert torch.equal(first.state["value"], again.state["value"])
    assert read_metrics(tmp_path / "run") == rows


def test_a_signal_saves_and_leaves_with_its_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def train() -> None:
        walk = Walk()
        with open_session(tmp_path / "run", walk, Schedule(checkpoint_every=1000)) as session:
            for step in session.offline(10):
                seen.append(step)
                session.metrics = walk.step()
                if step == -5:
                    os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as leaving:
        train()
    assert leaving.value.code == 143
    assert seen[-1] == -5
    assert "resume=true" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-5"]


def test_online_steps_and_returns(tmp_path: Path) -> None:
    walk = Walk()
    env = gymnasium.wrappers.TimeLimit(DelayedRewardEnv(), 10)
    collector = StepCollector(env, make_gaussian_actor(1, 1, hidden_sizes=(8,)), total_frames=5, seed=0)
    schedule = Schedule(eval_every=2, log_every=1, checkpoint_every=4)
    with open_session(tmp_path / "run", walk, schedule, collector=collector) as session:
        for step, data in session.online(collector):
            assert data.batch_size == (1,)
            assert step == collector.frames
            session.metrics = walk.step() if step > 2 else {}
    assert steps(tmp_path / "run", "evaluation/return") == [0, 2, 4, 5]
    assert steps(tmp_path / "run", "train/episode_return") == [2, 4]
    assert steps(tmp_path / "run", "train/value") == [3, 4, 5]
    last = read_metrics(tmp_path / "run")[-1]
    assert (last["handover/return"], last["handover/dip"], last["handover/gain"]) == (1.0, 0.0, 0.0)


def test_what_going_online_did() -> None:
    scores = {0: 40.0, 10: 10.0, 50: 5.0, 100: 90.0}
    rows = [{"step": step, "evaluation/return": 10 * score} for step, score in scores.items()]
    assert handover_metrics(rows) == {"handover/return": 400.0, "handover/dip": 300.0, "handover/gain": 500.0}
    normalized = [row | {"evaluation/normalized_score": row["evaluation/return"] / 10} for row in rows]
    area = (10 * (60 + 90) / 2 + 40 * (90 + 95) / 2 + 50 * (95 + 10) / 2) / 100 / 100
    assert handover_metrics(normalized)["handover/regret"] == pytest.approx(area)


def test_a_folder_with_a_run_is_refused_unless_resumed(tmp_path: Path) -> None:
    run_offline(tmp_path / "run", Schedule())
    with pytest.raises(O2OCheckpointError, match="resume"):
        run_offline(tmp_path / "run", Schedule())


def test_what_cannot_be_saved_is_refused_and_the_folder_is_free_again(tmp_path: Path) -> None:
    with pytest.raises(O2OSpecError, match="state_dict"):
        Session(tmp_path / "run", {"seed": 0}, {"thing": object()}, None, score)
    Session(tmp_path / "run", {"seed": 0}, {}, None, score, resume=True).record.close()


@pytest.mark.parametrize("field", ["eval_every", "log_every", "checkpoint_every"])
def test_schedule_needs_steps(field: str) -> None:
    with pytest.raises(O2OSpecError, match=field):
        Schedule(**{field: 0})


def collect(total_frames: int = 6) -> StepCollector:
    env = gymnasium.wrappers.TimeLimit(DelayedRewardEnv(), 10)
    return StepCollector(env, make_gaussian_actor(1, 1, hidden_sizes=(8,)), total_frames=total_frames, seed=0)


SELDOM = Schedule(eval_every=100, log_every=1, checkpoint_every=100)


def test_a_phase_that_is_left_by_break_is_saved_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run_offline(tmp_path / "whole", SELDOM)
    torch.manual_seed(0)
    walk = Walk()
    with open_session(tmp_path / "run", walk, SELDOM) as session:
        for step in session.offline(10):
            session.log(walk.step())
            if step == -6:
                break
    assert "left before its end, saved there" in capsys.readouterr().err
    parts = run_offline(tmp_path / "run", SELDOM, resume=True)
    assert torch.equal(whole.state["value"], parts.state["value"])
    assert steps(tmp_path / "run", "train/value") == [-9, -8, -7, *range(-5, 1)]  # a step left is not logged


def test_an_online_phase_that_is_left_goes_on_with_the_next_transition(tmp_path: Path) -> None:
    collector = collect()
    with open_session(tmp_path / "run", Walk(), SELDOM, collector=collector) as session:
        assert list(session.offline(4)) == [-3, -2, -1, 0]
        for step, _ in session.online(collector):
            if step == 2:
                break
        assert [step for step, _ in session.online(collector)] == [3, 4, 5, 6]
    collector = collect(8)
    with open_session(tmp_path / "run", Walk(), SELDOM, True, collector=collector) as session:
        assert [step for step, _ in session.online(collector)] == [7, 8]


def test_a_failure_in_a_step_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        run_offline(tmp_path / "run", SELDOM, die_at=-3)
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_a_run_goes_on_with_its_own_collector(tmp_path: Path) -> None:
    collector = collect()
    with open_session(tmp_path / "run", Walk(), SELDOM) as session, pytest.warns(UserWarning, match="not among"):
        assert [step for step, _ in session.online(collector)] == [1, 2, 3, 4, 5, 6]
    with (
        open_session(tmp_path / "run", Walk(), SELDOM, resume=True) as session,
        pytest.raises(O2OSpecError, match="delivered 0 transitions, but the run has made 6"),
    ):
        next(session.online(collect()))


def test_steps_of_an_offline_phase_are_counted_by_one_number(tmp_path: Path) -> None:
    run_offline(tmp_path / "run", SELDOM)
    with open_session(tmp_path / "run", Walk(), SELDOM, resume=True) as session:
        with pytest.raises(O2OSpecError, match=r"the 10 offline steps .* were counted to step 0"):
            next(session.offline(12))
        with pytest.raises(O2OSpecError, match="num_steps=-3"):
            next(session.offline(-3))
        with pytest.raises(O2OSpecError, match="num_steps=-1"):
            next(session.further(-1))
        collector = collect()
        assert [step for step, _ in session.online(collector)] == [1, 2, 3, 4, 5, 6]
        with pytest.raises(O2OSpecError, match=r"went online after 10 offline steps"):
            next(session.offline(12))


def test_what_is_no_evaluation_is_named(tmp_path: Path) -> None:
    with (
        Session(tmp_path / "run", {"seed": 0}, {}, None, lambda: 3.0) as session,  # type: ignore[arg-type,return-value]
        pytest.raises(O2OSpecError, match=r"evaluate gave 3\.0"),
    ):
        next(session.offline(1))
