# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Make OGBench-like maze data with OGBench's environments and its data-collecting behavior, in its file format."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from torchrl_o2o.data.datasets.optional import require
from torchrl_o2o.durable import replace_durably
from torchrl_o2o.errors import O2ODataError, O2OSpecError

__all__ = ["make_ogbench"]

_NAME = re.compile(r"ogbench/(?P<env>pointmaze-(?:medium|large|giant|teleport))-navigate-(?P<version>v0)")
_EPISODE, _STEPS = 1_001, 1_000_000  # rows of an episode, the last of which is only a successor; steps in all
_NOISE = 0.5
Cell = tuple[int, int]


def make_ogbench(name: str, *, seed: int = 0, num_steps: int | None = None, root: str | Path | None = None) -> Path:
    """Make a data set of OGBench, ``pointmaze-*-navigate``: noisy paths between goals, 1000 steps an episode.

    The numbers differ from the published file, which was made with other draws. OGBench's other data sets need its
    manipulation oracles or expert policies; use OGBench's own files for them.

    Source: the recipe of ogbench 1.2's ``generate_locomaze.py`` (Park et al. 2025, arXiv:2410.20092).

    Args:
        name: ``"ogbench/pointmaze-medium-navigate-v0"``, or ``large``, ``giant``, ``teleport``.
        seed: of the environment, the goals and the noise.
        num_steps: number of transitions, rounded to whole episodes of 1000; ``None`` is a million.
        root: folder; ``None`` is the working folder.

    Returns:
        The npz file, which :func:`~torchrl_o2o.data.load_offline` reads by its path. An existing file is not changed.

    Raises:
        O2ODataError: if the name is another one.
        O2OSpecError: if ogbench is not installed, or ``num_steps`` is below one episode.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise O2ODataError(
            f"{name!r} cannot be made here; expected ogbench/pointmaze-{{medium,large,giant,teleport}}-navigate-v0. "
            "For others, download OGBench's own file and pass its path."
        )
    steps = _STEPS if num_steps is None else num_steps
    if steps < _EPISODE - 1 or seed < 0:
        raise O2OSpecError(
            f"num_steps={steps}, seed={seed}; expected at least {_EPISODE - 1} steps, and a seed from 0."
        )
    file = (Path() if root is None else Path(root)) / f"{name.partition('/')[2]}.npz"
    if file.exists():
        return file
    require("ogbench", "ogbench")
    env_id = f"{match['env']}-{match['version']}"
    env = gymnasium.make(env_id, terminate_at_goal=False, max_episode_steps=_EPISODE)
    rng = np.random.default_rng(seed)
    episodes = [_navigate(env, rng, seed + k) for k in range(steps // (_EPISODE - 1))]
    env.close()
    columns = {key: np.concatenate([episode[key] for episode in episodes]) for key in episodes[0]}
    stream = io.BytesIO()
    np.savez_compressed(stream, **columns)  # pyright: ignore[reportArgumentType]
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(file, stream.getvalue())
    return file


def _navigate(env: gymnasium.Env, rng: np.random.Generator, seed: int) -> dict[str, np.ndarray]:
    """One episode: go to a goal on the shortest path, with noise, and to a new goal when it is reached."""
    maze: Any = env.unwrapped
    cells = [(i, j) for i, j in np.argwhere(maze.maze_map == 0).tolist()]
    goals = [cell for cell in cells if not _is_corridor(maze.maze_map, cell)]
    task = {"init_ij": cells[rng.integers(len(cells))], "goal_ij": goals[rng.integers(len(goals))]}
    observation, _ = env.reset(seed=seed, options={"task_info": task})
    rows: dict[str, list[Any]] = {key: [] for key in ("observations", "actions", "qpos", "qvel")}
    for _ in range(_EPISODE):
        subgoal, _ = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)
        way = np.asarray(subgoal) - maze.get_xy()
        action = np.clip(way / (np.linalg.norm(way) + 1e-6) + _NOISE * rng.standard_normal(2), -1.0, 1.0)
        here = observation, action, maze.data.qpos.copy(), maze.data.qvel.copy()
        for column, value in zip(rows.values(), here, strict=True):
            column.append(np.asarray(value, np.float32))
        observation, _, _, _, info = env.step(action.astype(np.float32))
        if info["success"]:
            maze.set_goal(goals[rng.integers(len(goals))])
    terminals = np.arange(_EPISODE) == _EPISODE - 1
    return {**{key: np.stack(column) for key, column in rows.items()}, "terminals": terminals}


def _is_corridor(maze: np.ndarray, cell: Cell) -> bool:
    """Whether a cell's only ways out are two opposite ones."""
    i, j = cell
    up, down, left, right = (maze[a, b] == 0 for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)))
    return (up and down and not left and not right) or (left and right and not up and not down)
