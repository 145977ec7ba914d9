# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchrl_o2o.commands.cli import main
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.record.recorder import read_run
from torchrl_o2o.scripts import find_script, script_command

TINY = {
    "collector.total_frames": "40",
    "collector.init_random_frames": "20",
    "training.batch_size": "16",
    "training.utd_ratio": "1",
    "evaluation.num_episodes": "1",
    "eval_every": "20",
}


@pytest.mark.parametrize("task", ["halfcheetah", "pointmaze"])
def test_demo_trains_both_and_summarizes(task: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    assert main(["demo", task, "--out", str(tmp_path), *settings]) == 0
    out = capfd.readouterr().out
    for row in ("RLPD before training", "RLPD after 40 steps", "SAC without data, 40 steps", "data, best episode"):
        assert row in out
    folder = tmp_path / task
    assert (folder / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (folder / "rlpd" / "policy.pt").exists()
    settings_of = {name: read_run(folder / name)["config"] for name in ("rlpd", "sac")}
    assert settings_of["sac"]["offline_fraction"] == 0.0
    assert settings_of["rlpd"]["collector"] == settings_of["sac"]["collector"], "the same environment steps"


def test_demo_reports_a_failed_run(tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path), "--set", "no_such_setting=1"]) != 0


def test_help_is_quick() -> None:
    began = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "torchrl_o2o.commands.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert "train" in result.stdout
    assert time.perf_counter() - began < 2.0, "it takes a tenth of a second; torch must have been imported"


def test_train_runs_a_script(tmp_path: Path) -> None:
    words = [f"{key}={value}" for key, value in TINY.items()]
    words += ["task=halfcheetah-linear-mix-cpu", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", "rlpd", *words]) == 0
    assert (tmp_path / "run" / "policy.pt").exists()


def test_unknown_script() -> None:
    with pytest.raises(O2OSpecError, match=r"no script is called 'rlpt'; there are .*rlpd.* \(rlpd\?\)"):
        find_script("rlpt")
    assert main(["train", "rlpt"]) == 2


def test_script_command() -> None:
    command = script_command("rlpd", ["seed=3"])
    assert command[0] == sys.executable
    assert command[1].endswith("sota-implementations/rlpd/rlpd.py")
    assert command[2:] == ["seed=3"]
