# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from torchrl_o2o.commands.cli import main

pytest.importorskip("minari")
pytest.importorskip("mujoco")
h5py = pytest.importorskip("h5py")
NAME = "o2o/hopper/random-v0"
ARM = """
import gymnasium
from gymnasium import spaces


class ItsArm(gymnasium.Env):
    observation_space = spaces.Dict({"joint": spaces.Box(-9, 9, (2,)), "target": spaces.Box(-9, 9, (3,))})
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


gymnasium.register("ItsArm-v0", entry_point="its_arm:ItsArm", max_episode_steps=4)
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    return tmp_path / "sets"


def test_make_list_show_and_check(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "make", NAME, "--steps", "200", "--seed", "4"]) == 0
    assert f"{NAME} is in {root / NAME}" in capsys.readouterr().out
    assert main(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert "o2o/hopper/expert-v0                     * a given expert actor, Hopper-v5" in listed
    assert listed.rstrip().endswith(f"On this machine, in {root}:\n  {NAME}")
    assert main(["data", "show", NAME]) == 0
    shown = {line[:18].strip(): line[19:] for line in capsys.readouterr().out.splitlines()}
    assert shown["env_id"] == "Hopper-v5"
    assert shown["observation_shape"] == "11"
    assert "seed 4" in shown["provenance"]
    assert main(["data", "check", NAME, "--env", "Hopper-v5"]) == 0
    assert "0 errors" in capsys.readouterr().out


def test_a_check_that_fails_says_so_in_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "make", NAME, "--steps", "200"])
    capsys.readouterr()
    assert main(["data", "check", NAME, "--env", "Pendulum-v1", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    codes = [finding["code"] for finding in report["findings"] if finding["severity"] == "error"]
    assert codes == ["observation_shape", "action_shape"]


def test_a_check_joins_the_environments_entries_as_those_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "its_arm.py").write_text(ARM)
    monkeypatch.syspath_prepend(str(tmp_path))
    with h5py.File(tmp_path / "log.hdf5", "w") as file:
        for name, width in (("joint", 2), ("target", 3)):
            file[f"observations/{name}"] = np.random.default_rng(width).normal(size=(8, width))
        file["actions"], file["rewards"] = np.linspace(-1, 1, 8)[:, None], np.arange(8.0)
        file["terminals"], file["timeouts"] = np.zeros(8), np.arange(8) % 4 == 3
    asked = ["data", "check", f"path:{tmp_path}/log.hdf5", "--env", "its_arm:ItsArm-v0", "--allow-modules", "its_arm"]
    assert main([*asked, "--obs-keys", "target", "joint"]) == 0
    assert "0 errors" in capsys.readouterr().out
    assert main([*asked, "--obs-keys", "target"]) == 0  # the policy sees only this entry, in training too
    assert main(asked) == 2
    assert "observes ['joint', 'target'], not" in capsys.readouterr().err


def test_json_and_a_picture(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    main(["data", "make", NAME, "--steps", "200"])
    capsys.readouterr()
    assert main(["data", "show", NAME, "--json", "--plot", str(root / "a.png")]) == 0
    out, _, drawn = capsys.readouterr().out.rpartition("drawn to ")
    assert json.loads(out)["action_dim"] == 3
    assert Path(drawn.strip()).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["make", "o2o/hopper/randm-v0"], "is not a local data set; expected one of o2o/hopper/random-v0"),
        (["make", "o2o/hopper/expert-v0"], "pass policy= (o2o data make o2o/hopper/expert-v0 --policy FILE)"),
        (["show", "../x-v0"], "is not a data set id"),
        (["check", "path:absent.npz"], "absent.npz does not exist"),
    ],
)
def test_bad_input_is_explained_without_a_traceback(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("o2o: ")
    assert message in error
    assert "Traceback" not in error


def test_help_is_quick() -> None:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "torchrl_o2o.commands.cli", "data", "--help"], check=True, capture_output=True
    )
    assert time.perf_counter() - start < 2
    script = "import sys, torchrl_o2o.commands.data; assert not {'torch', 'numpy', 'gymnasium'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_picture_that_cannot_be_written(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    main(["data", "make", NAME, "--steps", "200"])
    assert main(["data", "show", NAME, "--plot", str(root / "nowhere" / "a.png")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_a_picture_of_an_unknown_format_is_refused_before_the_data_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for words in (["show", "path:none.npz"], ["coverage", "path:none.npz", "path:none.npz"]):
        assert main(["data", *words, "--plot", "a.docx"]) == 2
        assert "got the picture a.docx, expected a name that ends in one of" in capsys.readouterr().err
