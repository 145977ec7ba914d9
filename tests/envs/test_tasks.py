# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import json
import subprocess
import sys

import pytest

from torchrl_o2o.data.datasets import recipes
from torchrl_o2o.data.datasets.recipes import LOCAL_DATASETS
from torchrl_o2o.envs import tasks
from torchrl_o2o.envs.tasks import TASKS, observation_keys

MAZES = {name: task for name, task in TASKS.items() if name.startswith("o2o/PointMaze-")}


def test_mazes_are_plain_json_and_end_at_the_goal() -> None:
    assert len(MAZES) == len(TASKS) - 1
    for task in MAZES.values():
        kwargs = json.loads(json.dumps(dict(task.kwargs)))
        assert kwargs["continuing_task"] is False
        cells = [cell for row in kwargs["maze_map"] for cell in row]
        assert (cells.count("r"), cells.count("g")) == (1, 1)
        assert task.obs_keys == observation_keys(task.env_id) == ("observation", "desired_goal")


def test_own_tasks_have_the_published_walls() -> None:
    maps = pytest.importorskip("gymnasium_robotics.envs.maze.maps")
    for task, published in zip(MAZES.values(), (maps.U_MAZE, maps.MEDIUM_MAZE, maps.LARGE_MAZE)):
        walls = [[int(cell == 1) for cell in row] for row in task.kwargs["maze_map"]]
        assert walls == published


def test_recipes_name_tasks_that_exist() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    for name, recipe in LOCAL_DATASETS.items():
        assert name.startswith("o2o/")
        assert name.endswith(("-v0", "-v1"))
        if recipe.env_id.startswith("o2o/"):
            assert recipe.env_id in TASKS
        elif not recipe.env_id.startswith("Adroit"):
            assert recipe.env_id in gymnasium.registry
        assert recipe.env_id in recipe.description


def test_every_promised_name_is_there() -> None:
    names = set(LOCAL_DATASETS)
    assert {f"o2o/pointmaze/{size}-play-v0" for size in ("umaze", "medium", "large")} <= names
    for env in ("halfcheetah", "hopper"):
        assert {f"o2o/{env}/linear-{kind}-v0" for kind in ("random", "medium", "mix")} <= names
    for env in ("halfcheetah", "hopper", "walker2d", "ant"):
        assert {f"o2o/{env}/{kind}-v0" for kind in ("random", "medium", "expert", "medium-expert")} <= names
        assert f"o2o/{env}/random-v1" in names
    for level in ("medium", "medium-replay", "medium-expert", "expert"):
        assert f"o2o/halfcheetah/{level}-v1" in names
    for env in ("door", "pen", "hammer", "relocate"):
        assert {f"o2o/adroit/{env}/{kind}-v0" for kind in ("expert", "cloned")} <= names


def test_the_tables_themselves_need_nothing() -> None:
    """Read as plain files, they import nothing but the standard library."""
    script = (
        "import runpy, sys;"
        "[runpy.run_path(path) for path in sys.argv[1:]];"
        "assert not {'torch', 'numpy', 'gymnasium'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, tasks.__file__, recipes.__file__], check=True)
