# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchrl_o2o.commands.cli import main
from torchrl_o2o.deploy import read_policy
from torchrl_o2o.durable import FolderLock
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.record.files import read_run
from torchrl_o2o.scripts import find_script, script_command

TINY = {
    "compile": "false",
    "online.total_frames": "40",
    "online.init_random_frames": "20",
    "online.batch_size": "16",
    "utd_ratio": "1",
    "evaluation.num_episodes": "1",
    "schedule.eval_every": "20",
}


@pytest.mark.parametrize("task", ["halfcheetah", pytest.param("pointmaze", marks=pytest.mark.slow)])
def test_demo_trains_both_and_summarizes(
    task: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchrl_o2o.commands.demo._FILMED_STEPS", 2)
    settings = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    assert main(["demo", task, "--out", str(tmp_path), *settings]) == 0
    out = capfd.readouterr().out
    for row in ("RLPD before training", "RLPD after 40 steps", "SAC without data, 40 steps", "data, best episode"):
        assert row in out
    folder = tmp_path / task
    assert (folder / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert read_policy(folder / "rlpd").env == read_run(folder / "rlpd")["config"]["env"]
    assert (folder / "rlpd-worst.gif").exists() or "no video: the environment cannot be drawn here" in out
    settings_of = {name: read_run(folder / name)["config"] for name in ("rlpd", "sac")}
    assert settings_of["sac"]["handover"]["offline_fraction"] == 0.0
    assert settings_of["rlpd"]["online"] == settings_of["sac"]["online"], "the same environment steps"


def test_demo_reports_a_failed_run(tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path), "--set", "no_such_setting=1"]) != 0


def test_help_is_quick() -> None:
    began = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "torchrl_o2o.commands.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert "train" in result.stdout
    assert time.perf_counter() - began < 2.0, "it takes a tenth of a second; torch must have been imported"


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """`o2o` in a process and a session of its own."""
    command = [sys.executable, "-m", "torchrl_o2o.commands.cli", *words]
    root = str(Path(__file__).parents[2])
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=os.environ | {"PYTHONPATH": root}, start_new_session=True, **output)


def test_train_runs_a_script(tmp_path: Path) -> None:
    words = [f"{key}={value}" for key, value in TINY.items()]
    process = start(
        "train", "rlpd", "task=halfcheetah", "data=linear-mix-v0", "preset=cpu", *words, "run_dir=run", cwd=tmp_path
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "1"]) == 0


LONG = {**TINY, "online.total_frames": "100000", "schedule.eval_every": "100000", "schedule.log_every": "5"}


def wait_for_training(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until a row of training metrics is there."""
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        if (folder / "metrics.jsonl").exists() and "train/loss" in (folder / "metrics.jsonl").read_text():
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate()[0])


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_case_b15_a_signal_to_train_is_a_signal_to_the_training(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C killed the child after a quarter of a second, SIGTERM left it running: now either ends in a checkpoint."""
    words = [f"{key}={value}" for key, value in LONG.items()]
    process = start(
        "train", "rlpd", "task=halfcheetah", "data=linear-mix-v0", "preset=cpu", *words, "run_dir=run", cwd=tmp_path
    )
    wait_for_training(tmp_path / "run", process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert list((tmp_path / "run" / "checkpoints").glob("step-*/manifest.json"))
    assert "resume=true" in output


@pytest.mark.parametrize(
    ("number", "group"),
    [
        pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, False, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_case_b15_a_signal_to_the_demo_reaches_both_once(number: signal.Signals, group: bool, tmp_path: Path) -> None:
    """Sent to the parent alone, or to the terminal's whole group as Ctrl-C is: both runs save, none is left behind."""
    settings = [word for key, value in LONG.items() for word in ("--set", f"{key}={value}")]
    process = start("demo", "--out", str(tmp_path), *settings, cwd=tmp_path)
    folder = tmp_path / "halfcheetah"
    wait_for_training(folder / "rlpd", process)
    wait_for_training(folder / "sac", process)
    if group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    sent = signal.SIGTERM if number == signal.SIGHUP else number
    assert process.returncode == 128 + sent, output
    for name in ("rlpd", "sac"):
        assert list((folder / name / "checkpoints").glob("step-*/manifest.json")), name
        FolderLock(folder / name).release()
    assert f"stopped by {sent.name}; both runs are saved" in output
    assert "resume=true" in (folder / "sac.log").read_text()


def test_case_c27_a_script_that_is_started_by_itself_looks_at_settings_files_too(tmp_path: Path) -> None:
    """The callback would run before the script's own function."""
    (tmp_path / "task").mkdir()
    text = "# @package _global_\nhydra: {callbacks: {x: {_target_: os.mkdir, path: here}}}"
    (tmp_path / "task" / "mine.yaml").write_text(text)
    command = [sys.executable, str(find_script("bc")), "--config-dir", str(tmp_path), "task=mine"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("O2OSpecError: ")
    assert "mine.yaml configures Hydra itself (hydra)" in result.stderr
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["++sed=1", "++seed=1"], "got ++sed, expected a setting of this script: did you mean seed?"),
        (["+convention.reward_scal=2"], "got convention.reward_scal, which is not an argument of Convention"),
    ],
)
def test_a_setting_that_nothing_reads_ends_with_a_sentence(words: list[str], told: str, tmp_path: Path) -> None:
    command = script_command("bc", ["task=halfcheetah", f"run_dir={tmp_path}/run", *words])
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_unknown_script() -> None:
    with pytest.raises(O2OSpecError, match=r"the unknown script 'rlpt', expected one of .*rlpd.* \(rlpd\?\)"):
        find_script("rlpt")
    assert main(["train", "rlpt"]) == 2


def test_script_command() -> None:
    command = script_command("rlpd", ["seed=3"])
    assert command[0] == sys.executable
    assert command[1].endswith("sota-implementations/rlpd/rlpd.py")
    assert command[2:] == ["seed=3"]
