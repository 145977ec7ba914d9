# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Many runs of one script through Hydra's launchers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.scripts.phases import dying
from tests.scripts.running import compose, run_script, script_of
from torchrl_o2o.record import write_report
from torchrl_o2o.record.files import read_metrics

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


def test_a_half_finished_sweep_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    """Of three runs one cannot begin, one never began, and one was killed in its middle."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    folder, words = tmp_path / "runs/rlpd/halfcheetah-linear-mix-v0-cpu/seed1", (*SMALL, "seed=1")
    with dying("online", 25):
        script_of("rlpd").train(compose("rlpd", *words, f"run_dir={folder}", "schedule.checkpoint_every=25"))
    result = sweep(tmp_path, "joblib", "hydra.launcher.n_jobs=2", "seed=-1,0,1", "resume=true")
    assert result.returncode == 1
    assert "O2OSpecError: got seed=-1, expected a whole number" in result.stderr
    assert "seed1, from checkpoint 25" in result.stderr
    assert [last_step(tmp_path, seed) for seed in (0, 1)] == [30, 30]
    assert "| halfcheetah-linear-mix-v0 | rlpd | 2 |" in write_report([tmp_path], tmp_path / "out").read_text()


@pytest.mark.slow
def test_as_on_a_cluster(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    result = sweep(tmp_path, "submitit_local", "seed=0,1")
    assert result.returncode == 0, result.stderr
    assert [last_step(tmp_path, seed) for seed in (0, 1)] == [30, 30]


@pytest.mark.slow
def test_over_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    result = sweep(tmp_path, "ray", "+hydra.launcher.ray.init.num_cpus=2", "seed=-1,0,1")
    assert result.returncode == 1
    assert "O2OSpecError: got seed=-1, expected a whole number" in result.stderr + result.stdout
    assert [last_step(tmp_path, seed) for seed in (0, 1)] == [30, 30]
