# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Files of OGBench. Its package is stood in for, so that tests need no simulator; one test uses it if it is there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest

from torchrl_o2o.data import load_offline
from torchrl_o2o.data.datasets.ogbench import ogbench_task
from torchrl_o2o.data.datasets.ogbench_make import make_ogbench
from torchrl_o2o.errors import O2ODataError, O2OSpecError

ROWS, EPISODES = 6, 2


def write(path: Path) -> Path:
    """Two episodes of six rows, so of five transitions; positions go from 0 to 5."""
    time = np.tile(np.arange(ROWS, dtype=np.float32), EPISODES)
    columns = {"observations": np.stack([time, time], 1), "actions": np.zeros((len(time), 2), np.float32)}
    columns["actions"][:, 0] = time / 10
    np.savez(path, **columns, qpos=time[:, None], qvel=time[:, None], terminals=time == ROWS - 1)
    return path


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for ogbench: success at position 4 in the first episode's fifth row; returns the tasks asked for."""
    asked: list[str] = []

    def load_dataset(path: str, add_info: bool) -> dict[str, np.ndarray]:
        assert add_info
        with np.load(path) as file:
            stays = ~file["terminals"]
            follows = np.concatenate([[False], stays[:-1]])
            rows = {key: file[key][stays] for key in ("observations", "actions", "qpos")}
            ends = np.concatenate([file["terminals"][1:], [True]])[stays]
            return {**rows, "next_observations": file["observations"][follows], "terminals": ends.astype(np.float32)}

    def relabel_dataset(name: str, env: Any, data: dict[str, np.ndarray]) -> None:
        success = (data["qpos"][:, 0] == 4) & (np.arange(len(data["qpos"])) < 5)
        data["rewards"], data["masks"] = success - 1.0, 1.0 - success

    for name in ("ogbench", "ogbench.utils", "ogbench.relabel_utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["ogbench.utils"].load_dataset = load_dataset
    sys.modules["ogbench.relabel_utils"].relabel_dataset = relabel_dataset

    class Task(gymnasium.Env):
        pass

    def make(name: str) -> gymnasium.Env:
        asked.append(name)
        if "cube" not in name:
            raise gymnasium.error.NameNotFound(name)
        return Task()

    monkeypatch.setattr(gymnasium, "make", make)
    return asked


def test_a_file_gets_the_rewards_of_its_task(tmp_path: Path, package: list[str]) -> None:
    data = load_offline(write(tmp_path / "cube-single-play-v0.npz"))
    assert package == ["cube-single-singletask-v0"]
    assert len(data) == 10
    assert data["observation"][:, 0].tolist() == [0, 1, 2, 3, 4] * 2
    assert data["next", "observation"][:, 0].tolist() == [1, 2, 3, 4, 5] * 2
    assert data["next", "reward"].flatten().tolist() == [-1, -1, -1, -1, 0] + [-1] * 5
    assert data["next", "terminated"].flatten().nonzero().flatten().tolist() == [4]
    assert data["next", "truncated"].flatten().nonzero().flatten().tolist() == [9]


def test_the_name_may_say_another_task(tmp_path: Path, package: list[str]) -> None:
    load_offline(write(tmp_path / "cube-single-play-singletask-task2-v0.npz"))
    assert package == ["cube-single-singletask-task2-v0"]


def test_names_of_files() -> None:
    assert ogbench_task(Path("antmaze-large-navigate-v0-val.npz")) == "antmaze-large-singletask-v0"
    assert ogbench_task(Path("puzzle-3x3-play-v0.npz")) == "puzzle-3x3-singletask-v0"


def test_what_does_not_fit_is_refused(tmp_path: Path, package: list[str]) -> None:
    with pytest.raises(O2ODataError, match="name it as OGBench does"):
        load_offline(write(tmp_path / "mine.npz"))
    with pytest.raises(O2ODataError, match="no task 'chess-large-singletask-v0'"):
        load_offline(write(tmp_path / "chess-large-play-v0.npz"))


@pytest.mark.skipif(importlib.util.find_spec("ogbench") is not None, reason="ogbench is installed")
def test_without_the_package_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(O2OSpecError, match=r"torchrl_o2o\[ogbench\]"):
        load_offline(write(tmp_path / "cube-single-play-v0.npz"))


@pytest.mark.parametrize("name", ["ogbench/cube-single-play-v0", "ogbench/pointmaze-tiny-navigate-v0"])
def test_what_cannot_be_made_is_said(name: str, tmp_path: Path) -> None:
    with pytest.raises(O2ODataError, match="cannot be made here"):
        make_ogbench(name, root=tmp_path)
    with pytest.raises(O2OSpecError, match="at least 1000 steps"):
        make_ogbench("ogbench/pointmaze-medium-navigate-v0", num_steps=10, root=tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("ogbench") is None, reason="needs torchrl_o2o[ogbench]")
@pytest.mark.filterwarnings("ignore")
def test_a_maze_is_walked_through(tmp_path: Path) -> None:
    file = make_ogbench("ogbench/pointmaze-medium-navigate-v0", num_steps=2_000, root=tmp_path)
    data = load_offline(file)
    assert len(data) <= 2_000
    assert (data["observation"] - data["next", "observation"]).abs().max() < 1.0
    assert data["observation"].std(0).min() > 1.0, "it went somewhere"


@pytest.mark.skipif(importlib.util.find_spec("ogbench") is None, reason="needs torchrl_o2o[ogbench]")
@pytest.mark.filterwarnings("ignore")
def test_with_the_package_itself(tmp_path: Path) -> None:
    assert len(load_offline(write(tmp_path / "pointmaze-medium-navigate-v0.npz"))) == 10
