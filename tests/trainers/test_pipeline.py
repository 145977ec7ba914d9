# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The pipeline on a probe environment: learn offline, hand over, learn online; and what it refuses."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from tests.trainers.probe import AWAC, options
from torchrl_o2o.data.buffers import StartingData
from torchrl_o2o.data.conventions import FittedConvention
from torchrl_o2o.data.transforms import AffineReward
from torchrl_o2o.deploy import load_policy, read_policy
from torchrl_o2o.envs.guard import EnvFaultError
from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.record.files import read_metrics
from torchrl_o2o.testing import DelayedRewardEnv
from torchrl_o2o.trainers.evaluation import EvaluationResult
from torchrl_o2o.trainers.handover import HandOver
from torchrl_o2o.trainers.pipeline import Pretrained, finetune, hand_over, pretrain
from torchrl_o2o.trainers.problem import Problem
from torchrl_o2o.trainers.session import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def returns(folder: Path) -> list[float]:
    return [row["evaluation/return"] for row in read_metrics(folder) if "evaluation/return" in row]


def test_learns_offline_hands_over_and_keeps_what_was_learned(tmp_path: Path, problem: Problem) -> None:
    learner = AWAC()
    pretrained = pretrain(problem, learner, options(tmp_path / "offline"), num_steps=300, batch_size=64)
    scores = returns(tmp_path / "offline")
    assert scores[0] < -0.05 < -0.02 < scores[-1], "the optimum is 0"

    online = AWAC()
    how = HandOver(keep_optimizers=True, warmup_steps=10)
    assert hand_over(pretrained, online, how) == []
    assert online.optims["actor"].state_dict()["state"][0]["step"] == 300
    finetune(problem, online, options(tmp_path / "run"), handover=how, total_frames=100, batch_size=64)
    after = returns(tmp_path / "run")
    assert after[0] == scores[-1]
    assert min(after) > -0.05
    policy = read_policy(tmp_path / "run")
    assert policy.convention is not None
    assert policy.convention.reward == AffineReward(1.0, -1.0)
    loaded, rows = load_policy(tmp_path / "run"), problem.offline[:5].select("observation")
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        assert torch.equal(loaded(rows.copy())["action"], online.actor.eval()(rows.copy())["action"])
    assert read_policy(tmp_path / "offline").env == problem.env


def test_warm_up_trains_nothing(tmp_path: Path, problem: Problem) -> None:
    learner = AWAC()
    before = {name: value.clone() for name, value in learner.loss.state_dict().items()}
    how = HandOver(warmup_steps=100)
    with pytest.warns(UserWarning, match="this run makes no update"):
        finetune(problem, learner, options(tmp_path / "run"), handover=how, total_frames=20, batch_size=64)
    assert all(torch.equal(value, before[name]) for name, value in learner.loss.state_dict().items())


def test_rows_are_converted_once_and_inserted_through_the_hook(tmp_path: Path, problem: Problem) -> None:
    seen: list[float] = []

    def insert(row: TensorDictBase) -> TensorDictBase:
        seen.append(row["next", "reward"].item())
        return row

    how = HandOver(data="none", warmup_steps=100)
    finetune(problem, AWAC(), options(tmp_path / "run"), handover=how, total_frames=20, batch_size=8, insert=insert)
    episode_returns = [
        row["train/episode_return"] for row in read_metrics(tmp_path / "run") if "train/episode_return" in row
    ]
    assert seen == pytest.approx([value - 1.0 for value in episode_returns])


@pytest.mark.parametrize("data", ["all", "symmetric", "none"])
def test_rows_in_files_train_the_same_networks(tmp_path: Path, problem: Problem, data: StartingData) -> None:
    rows, trained = problem.offline.memmap(tmp_path / "rows"), []
    for name, given in {"memory": problem, "files": Problem(problem.env, rows, problem.convention)}.items():
        scratch_dir = tmp_path / "scratch" if name == "files" else None
        torch.manual_seed(0)
        learner, how = AWAC(), HandOver(data=data)
        pretrain(given, learner, options(tmp_path / name / "offline"), num_steps=5, batch_size=8)
        finetune(
            given,
            learner,
            options(tmp_path / name),
            handover=how,
            total_frames=20,
            batch_size=8,
            scratch_dir=scratch_dir,
        )
        trained.append({key: value.clone() for key, value in learner.loss.state_dict().items()})
    assert (tmp_path / "scratch" / "observation.memmap").exists()
    torch.testing.assert_close(*trained, rtol=0, atol=0)


def test_a_run_that_diverges_keeps_the_batch_and_says_so(tmp_path: Path, problem: Problem) -> None:
    problem.offline["next", "reward"][::2] = float("inf")
    with pytest.raises(NonFiniteError, match="loss_qvalue"):
        pretrain(problem, AWAC(), options(tmp_path / "offline"), num_steps=10, batch_size=64)
    assert (tmp_path / "offline" / "offending-batch.pt").exists()


def test_what_does_not_fit_is_refused(tmp_path: Path, problem: Problem) -> None:
    pretrained = pretrain(problem, AWAC(), options(tmp_path / "offline"), num_steps=2, batch_size=8)
    with pytest.raises(O2OSpecError, match="use the same environment"):
        pretrained.check(Problem({"env_id": "Other-v0"}, problem.offline, problem.convention))
    with pytest.raises(O2OSpecError, match="standardized"):
        pretrained.check(Problem(problem.env, problem.offline, FittedConvention(AffineReward(), None)))
    with pytest.raises(O2OSpecError, match="hidden_sizes"):
        hand_over(pretrained, AWAC(width=8), HandOver())
    learner = AWAC()
    learner.optims = {}
    with pytest.raises(O2OSpecError, match="optimizers"):
        hand_over(pretrained, learner, HandOver(keep_optimizers=True))
    with pytest.raises(O2OCheckpointError, match="no checkpoint"):
        Pretrained.read(tmp_path / "nowhere")


def test_complete_pretraining_is_read_when_resumed(tmp_path: Path, problem: Problem) -> None:
    first = pretrain(problem, AWAC(), options(tmp_path / "offline"), num_steps=5, batch_size=8)
    again = pretrain(problem, AWAC(), options(tmp_path / "offline", resume=True), num_steps=5, batch_size=8)
    assert (first.updates, again.updates) == (5, 5)
    for name, value in first.states["loss"].items():
        assert torch.equal(value, again.states["loss"][name])


def test_an_unfinished_pretraining_is_not_taken_for_a_finished_one(tmp_path: Path, problem: Problem) -> None:
    class Stopped(AWAC):
        def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().update(batch)

    folder = tmp_path / "offline"
    with pytest.raises(SystemExit):
        pretrain(problem, Stopped(), options(folder), num_steps=5, batch_size=8)
    with pytest.raises(O2OCheckpointError, match=r"is at 1 of 5 updates.*resume=true"):
        Pretrained.read(folder)
    pretrain(problem, AWAC(), options(folder, resume=True), num_steps=5, batch_size=8)
    assert Pretrained.read(folder).updates == 5
    with pytest.raises(O2OSpecError, match=r"num_steps=8, but the 5 offline steps .* were counted to step 0"):
        pretrain(problem, AWAC(), options(folder, resume=True), num_steps=8, batch_size=8)


def test_an_environment_that_fails_is_built_anew_and_nothing_is_invented(
    tmp_path: Path, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises once, in the third step: the rows before stay, one episode is cut, and the run ends as planned."""
    calls = {"steps": 0}

    class Fragile(DelayedRewardEnv):
        def step(self, action: Any) -> Any:
            calls["steps"] += 1
            if calls["steps"] == 2:
                raise RuntimeError("the simulator is gone")
            return super().step(action)

    monkeypatch.setattr(
        "torchrl_o2o.trainers.problem.make_gym_env", lambda env_id: gymnasium.wrappers.TimeLimit(Fragile(), 5)
    )
    rows: list[TensorDictBase] = []

    def insert(row: TensorDictBase) -> TensorDictBase:
        rows.append(row.clone())
        return row

    how, run = HandOver(data="none", warmup_steps=100), options(tmp_path / "run", env_guard={"max_rebuilds": 1})
    quick = replace(run, schedule=Schedule(1000, 1000, 4))
    monkeypatch.setattr("torchrl_o2o.trainers.options.evaluate", lambda *_, **__: evaluated())
    with pytest.warns(UserWarning, match="simulator"):
        finetune(problem, AWAC(), quick, handover=how, total_frames=4, batch_size=8, insert=insert)
    assert len(rows) == 4
    assert all(torch.isfinite(row["next", "reward"]).all() for row in rows)

    monkeypatch.setattr(
        "torchrl_o2o.trainers.problem.make_gym_env", lambda env_id: gymnasium.wrappers.TimeLimit(Fragile(), 5)
    )
    calls["steps"] = 0
    stubborn = replace(quick, folder=tmp_path / "other", env_guard={"max_rebuilds": 0})
    with pytest.raises(EnvFaultError, match="simulator"):
        finetune(problem, AWAC(), stubborn, handover=how, total_frames=4, batch_size=8)


def evaluated() -> EvaluationResult:
    return EvaluationResult(returns=np.array([0.0]), lengths=np.array([1]))


def test_a_phase_has_steps_and_its_batches_rows(tmp_path: Path, problem: Problem) -> None:
    with pytest.raises(O2OSpecError, match="batch_size=0, expected a whole number of at least 1"):
        pretrain(problem, AWAC(), options(tmp_path / "offline"), num_steps=3, batch_size=0)
    with pytest.raises(O2OSpecError, match="batch_size=0, expected a whole number of at least 1"):
        finetune(problem, AWAC(), options(tmp_path / "run"), handover=HandOver(), total_frames=3, batch_size=0)
    with pytest.raises(O2OSpecError, match="total_frames=0, expected a whole number of at least 1"):
        finetune(problem, AWAC(), options(tmp_path / "run"), handover=HandOver(), total_frames=0, batch_size=3)
    assert not list(tmp_path.iterdir())
