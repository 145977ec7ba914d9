# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The package as others install it: a wheel, unpacked somewhere, used from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.scripts.running import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel's files are in."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    source = tmp_path_factory.mktemp("source") / "torchrl_o2o"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(wheels)]
    result = subprocess.run([*build, str(source)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def o2o(installed: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torchrl_o2o.commands.cli", *words]
    env = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False)


def test_what_is_in_it(installed: Path) -> None:
    scripts = {path.stem for path in (installed / "torchrl_o2o" / "_scripts").glob("*/*.py")}
    assert scripts == {path.stem for path in (ROOT / "sota-implementations").glob("*/*.py")}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "torchrl_o2o").rglob("*") if path.is_file()}
    data = {name for name in package if name.endswith((".yaml", ".npz", "py.typed"))}
    assert data, "there are such files"
    assert not [name for name in data if not (installed / name).exists()]
    assert not list(installed.rglob("tests"))


def test_scripts_are_trained_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """Settings, tasks and run folder are found without a checkout, and nothing but the run folder is left."""
    words = ["online.total_frames=40", "online.init_random_frames=20", "online.batch_size=16", "compile=false"]
    words += ["utd_ratio=1", "evaluation.num_episodes=1", "schedule.eval_every=20"]
    result = o2o(
        installed, "train", "rlpd", "task=halfcheetah", "data=linear-mix-v0", "preset=cpu", *words, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]
    (run,) = (path.parent for path in (tmp_path / "runs").rglob("run.json"))
    assert o2o(installed, "evaluate", str(run), "--episodes", "1", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "sota-implementations").glob("*/*.py")))
def test_every_script_starts(name: str, installed: Path, tmp_path: Path) -> None:
    result = o2o(installed, "train", name, "--cfg", "job", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "seed: 0" in result.stdout
    assert not list(tmp_path.iterdir())


def test_settings_of_a_relative_folder(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "task").mkdir(parents=True)
    task = next((installed / "torchrl_o2o").rglob("task/halfcheetah.yaml")).read_text()
    (tmp_path / "mine" / "task" / "own.yaml").write_text(task.replace("HalfCheetah-v5", "Hopper-v5"))
    result = o2o(installed, "train", "rlpd", "--config-dir", "mine", "task=own", "--cfg", "job", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "env_id: Hopper-v5" in result.stdout


def test_the_demo_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    tiny = {
        "online.total_frames": "40",
        "online.init_random_frames": "20",
        "online.batch_size": "16",
        "utd_ratio": "1",
        "evaluation.num_episodes": "1",
        "schedule.eval_every": "20",
    }
    settings = [word for key, value in tiny.items() for word in ("--set", f"{key}={value}")]
    result = o2o(installed, "demo", *settings, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "RLPD after 40 steps" in result.stdout
    assert (tmp_path / "runs" / "demo" / "halfcheetah" / "curves.png").exists()
