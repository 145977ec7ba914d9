# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import numpy as np
import pytest

from torchrl_o2o.data.datasets.pointmaze import shortest_path, wander
from torchrl_o2o.data.datasets.rollout import Rollout
from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.envs.tasks import TASKS

pytest.importorskip("gymnasium_robotics")
RADIUS = 0.45
NAME = "o2o/PointMaze-UMaze-v0"


@pytest.fixture(scope="module")
def wandered() -> list[Rollout]:
    env = make_gym_env(NAME)
    trajectories = wander(env, num_steps=6000, seed=0)
    env.close()
    return trajectories


def test_rewards_and_ends_follow_from_the_positions(wandered: list[Rollout]) -> None:
    reached = 0
    for part in wandered:
        goal = part.observations["desired_goal"]
        assert (goal == goal[0]).all()
        distance = np.linalg.norm(part.observations["achieved_goal"] - goal, axis=-1)
        assert (distance[:-1] > RADIUS).all()
        np.testing.assert_array_equal(part.rewards, distance[1:] <= RADIUS)
        np.testing.assert_array_equal(part.terminations, distance[1:] <= RADIUS)
        assert part.terminations[-1] != part.truncations[-1]
        assert not part.truncations[:-1].any()
        reached += part.terminations[-1]
    assert reached > 3


def test_goals_are_drawn_as_the_task_draws_them(wandered: list[Rollout]) -> None:
    env = make_gym_env(NAME)
    center = env.unwrapped.maze.unique_goal_locations[0]
    goals = np.array([part.observations["desired_goal"][0] for part in wandered])
    assert (np.abs(goals - center) <= 0.25).all()
    assert np.ptp(goals, axis=0).min() > 0.3
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        assert (np.abs(observation[-2:] - center) <= 0.25 + 1e-6).all()
    env.close()


def test_transitions_are_the_environments(wandered: list[Rollout]) -> None:
    """Step the task's own environment from a stored state with the stored action."""
    env = make_gym_env(NAME)
    env.reset(seed=0)
    maze = env.unwrapped
    part = max(wandered, key=lambda part: len(part.rewards))
    for row in range(0, len(part.rewards), 7):
        state = part.observations["observation"][row]
        maze.goal = part.observations["desired_goal"][row]
        maze.point_env.set_state(state[:2], state[2:])
        observation, reward, terminated, _, _ = maze.step(part.actions[row])
        np.testing.assert_allclose(observation["observation"], part.observations["observation"][row + 1], atol=1e-9)
        assert (reward, terminated) == (part.rewards[row], part.terminations[row])
    env.close()


def test_actions_are_in_the_box_and_reach_its_faces(wandered: list[Rollout]) -> None:
    actions = np.concatenate([part.actions for part in wandered])
    assert actions.dtype == np.float32
    assert np.abs(actions).max() == 1


def test_the_whole_maze_is_visited(wandered: list[Rollout]) -> None:
    env = make_gym_env(NAME)
    maze = env.unwrapped.maze
    positions = np.concatenate([part.observations["achieved_goal"] for part in wandered])
    visited = {tuple(maze.cell_xy_to_rowcol(position).tolist()) for position in positions}
    free = {(i, j) for i, row in enumerate(maze.maze_map) for j, cell in enumerate(row) if cell != 1}
    assert visited == free
    env.close()


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if "maze_map" in task.kwargs])
def test_start_and_goal_are_connected(name: str) -> None:
    maze = TASKS[name].kwargs["maze_map"]
    cells = {cell: (i, j) for i, row in enumerate(maze) for j, cell in enumerate(row)}
    path = shortest_path(maze, cells["r"], cells["g"])
    assert path[-1] == cells["g"]
    for first, second in zip([cells["r"], *path], path):
        assert abs(first[0] - second[0]) + abs(first[1] - second[1]) == 1


def test_paths_that_do_not_exist() -> None:
    assert shortest_path([[0, 1, 0]], (0, 0), (0, 2)) == []
    assert shortest_path([[0, 0]], (0, 1), (0, 1)) == []
