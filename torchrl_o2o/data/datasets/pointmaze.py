# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The maze data: a controller pursues random goals, and its path is relabeled as attempts at the task's only goal.

Shapes: T steps of the whole simulation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

from torchrl_o2o.data.datasets.rollout import Rollout

__all__ = ["shortest_path", "wander"]

_GAIN, _DAMPING, _NOISE = 10.0, -1.0, 0.5
_WAYPOINT_RADIUS = 0.25  # m; cells are 1 m wide
Cell = tuple[int, int]


def shortest_path(maze: list[list[Any]], start: Cell, goal: Cell) -> list[Cell]:
    """Find a shortest way through a maze by breadth-first search.

    Args:
        maze: rows of cells; 1 is a wall.
        start: (row, column).
        goal: (row, column).

    Returns:
        The cells after ``start``, up to ``goal``; empty if there is no path or both are the same.

    Examples:
        >>> from torchrl_o2o.data.datasets.pointmaze import shortest_path
        >>> shortest_path([[0, 1, 0], [0, 0, 0]], (0, 0), (0, 2))
        [(1, 0), (1, 1), (1, 2), (0, 2)]
    """
    came_from: dict[Cell, Cell] = {goal: goal}
    waiting = deque([goal])
    while waiting and start not in came_from:
        row, column = waiting.popleft()
        for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            inside = 0 <= cell[0] < len(maze) and 0 <= cell[1] < len(maze[0])
            if inside and maze[cell[0]][cell[1]] != 1 and cell not in came_from:
                came_from[cell] = (row, column)
                waiting.append(cell)
    path: list[Cell] = []
    while start in came_from and start != goal:
        start = came_from[start]
        path.append(start)
    return path


def wander(env: gymnasium.Env, *, num_steps: int, seed: int) -> list[Rollout]:
    """Let a noisy PD controller chase random goals, and relabel every chase to the task's goal.

    Each chase becomes one or more episodes with a goal drawn as in the task. Rows inside the goal's radius are left
    out, entering it is a terminal row with reward 1, and the end of a chase is a truncation. Chases hardly ever lead
    from the task's start to its goal, so a learner must stitch trajectories together, as with D4RL's "play" data.

    Args:
        env: a PointMaze with one goal cell.
        num_steps: number of simulated steps; the data omit rows inside the goal's radius and single steps.
        seed: seed of all draws.
    """
    rng = np.random.default_rng((seed, 1))  # default_rng(seed) would repeat the environment's stream
    maze_env: Any = env.unwrapped
    maze_env.reset(seed=seed)
    limit = env.spec.max_episode_steps if env.spec is not None and env.spec.max_episode_steps else num_steps
    trajectories: list[Rollout] = []
    left = num_steps
    while left > 0:
        states, actions = _chase(maze_env, rng, min(left, limit))
        left -= len(actions)
        goal = maze_env.add_xy_position_noise(maze_env.maze.unique_goal_locations[0].copy())
        trajectories.extend(_relabeled(maze_env, states, actions, goal))
    return trajectories


def _chase(env: Any, rng: np.random.Generator, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulate up to a random goal: states [T+1, 4] (position, velocity) and actions [T, 2]."""
    maze, body = env.maze, env.point_env
    state = np.concatenate([body.data.qpos, body.data.qvel])
    here = tuple(maze.cell_xy_to_rowcol(state[:2]).tolist())
    free = [(row, column) for row, cells in enumerate(maze.maze_map) for column, cell in enumerate(cells) if cell != 1]
    path = shortest_path(maze.maze_map, here, free[rng.integers(len(free))]) or [here]
    waypoints = [maze.cell_rowcol_to_xy(np.array(cell)) for cell in path]
    states, actions = [state], []
    while len(actions) < limit and waypoints:
        push = _GAIN * (waypoints[0] - state[:2]) + _DAMPING * state[2:] + _NOISE * rng.standard_normal(2)
        action = np.clip(push, -1.0, 1.0).astype(np.float32)
        state = body.step(action)[0]
        states.append(state)
        actions.append(action)
        if np.hypot(*(waypoints[0] - state[:2])) < _WAYPOINT_RADIUS:
            waypoints.pop(0)
    return np.stack(states), np.stack(actions)


def _relabeled(env: Any, states: np.ndarray, actions: np.ndarray, goal: np.ndarray) -> Iterator[Rollout]:
    inside = env.compute_reward(states[:, :2], goal, {}) > 0
    outside = np.flatnonzero(~inside[:-1])
    for run in np.split(outside, np.flatnonzero(np.diff(outside) > 1) + 1):
        if len(run) < 2:
            continue
        first, last = run[0], run[-1]
        steps = states[first : last + 2]
        terminations, truncations = np.zeros(len(run), dtype=bool), np.zeros(len(run), dtype=bool)
        terminations[-1], truncations[-1] = inside[last + 1], not inside[last + 1]
        observations = {
            "observation": steps,
            "achieved_goal": steps[:, :2],
            "desired_goal": np.broadcast_to(goal, (len(steps), 2)),
        }
        rewards = inside[first + 1 : last + 2].astype(float)
        yield Rollout(observations, actions[first : last + 1], rewards, terminations, truncations)
