# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Runs whose policy is never evaluated, and an offline phase that does not touch the environment."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import gymnasium
import pytest
import torch

from tests.scripts.phases import SHORT, rows
from tests.scripts.running import compose, script_of
from torchrl_o2o.deploy import read_policy
from torchrl_o2o.envs import make_gym_env
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.testing import probe_transitions
from torchrl_o2o.trainers import RunOptions, launch


def train(script: str, words: Sequence[str]) -> None:
    launch(compose(script, *SHORT, "evaluation.num_episodes=0", *words), script_of(script).train)


@pytest.mark.parametrize("script", ["awac", "iql"])
def test_an_offline_phase_alone_neither_resets_nor_steps_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    recorded = probe_transitions(make_gym_env("Pendulum-v1", max_episode_steps=20), 80)
    recorded.set("episode", torch.arange(80) // 20).memmap(str(tmp_path / "logs"))

    def moves(*_: object, **__: object) -> None:
        raise AssertionError("the robot moves")

    robot = gymnasium.make("Pendulum-v1").unwrapped
    monkeypatch.setattr(type(robot), "reset", moves)
    monkeypatch.setattr(type(robot), "step", moves)
    words = [f"run_dir={tmp_path / 'run'}", "task=custom", "task_name=arm", "env.env_id=Pendulum-v1"]
    words += [f"dataset.source=path:{tmp_path / 'logs'}", "dataset.action_bounds=[-1, 1]", "online.total_frames=0"]
    train(script, words)
    logged = rows(tmp_path / "run" / "offline")
    assert logged[-1]["step"] == 0
    assert not [row for row in logged if any(name.startswith("evaluation") for name in row)]
    actor = read_policy(tmp_path / "run" / "offline").actor()
    assert actor(recorded[:2].select("observation"))["action"].shape == (2, 1)


def test_an_online_run_without_evaluations_learns_and_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        train("td3_bc", [f"run_dir={tmp_path / 'run'}"])
    assert not [each for each in warned if "evaluation" in str(each.message)]
    logged = rows(tmp_path / "run")
    assert logged[-1]["step"] == 24
    assert any("train/loss_qvalue" in row for row in logged)
    assert not [row for row in logged if any(name.startswith(("evaluation", "handover")) for name in row)]


def test_a_video_needs_episodes() -> None:
    with pytest.raises(O2OSpecError, match=r"got evaluation.video=x.gif and evaluation.num_episodes=0"):
        RunOptions("runs/x", {}, seed=0, evaluation={"num_episodes": 0, "video": "x.gif"})
