# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Many runs of one script through Hydra's launchers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.scripts.running import run_script
from torchrl_o2o.record.recorder import read_metrics

SMALL = (
    "preset=cpu",
    "data=linear-mix-v0",
    "compile=false",
    "actor.hidden_sizes=[8]",
    "qvalue.hidden_sizes=[8]",
    "online.total_frames=30",
    "online.init_random_frames=20",
    "online.batch_size=8",
    "utd_ratio=1",
    "evaluation.num_episodes=1",
    "schedule.eval_every=30",
    "+env.max_episode_steps=20",
)


def sweep(folder: Path, launcher: str, *words: str) -> subprocess.CompletedProcess[str]:
    words = ("-m", f"hydra/launcher={launcher}", *words, *SMALL)
    return run_script("sota-implementations/rlpd/rlpd.py", *words, cwd=folder)


def last_step(folder: Path, seed: int) -> int:
    return read_metrics(folder / f"runs/rlpd/halfcheetah-linear-mix-v0-cpu/seed{seed}")[-1]["step"]


def test_a_run_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    result = sweep(tmp_path, "joblib", "hydra.launcher.n_jobs=2", "seed=-1,0")
    assert result.returncode == 1
    assert "O2OSpecError: got seed=-1, expected a whole number" in result.stderr
    assert last_step(tmp_path, 0) == 30


@pytest.mark.slow
def test_a_sweep_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert sweep(tmp_path, "joblib", "hydra.launcher.n_jobs=2", "seed=0,1").returncode == 0
    again = sweep(tmp_path, "joblib", "hydra.launcher.n_jobs=2", "seed=0,2", "resume=true")
    assert again.returncode == 0, again.stderr
    assert "seed0, from checkpoint 30" in again.stderr
    assert last_step(tmp_path, 2) == 30


@pytest.mark.slow
def test_as_on_a_cluster(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    result = sweep(tmp_path, "submitit_local", "seed=0,1")
    assert result.returncode == 0, result.stderr
    assert [last_step(tmp_path, seed) for seed in (0, 1)] == [30, 30]
