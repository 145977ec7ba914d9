# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""This package's own tasks: environments with the arguments of their offline data.

A task fixes all random or free settings of the registered environment, so that data, training and evaluation agree.
Importing this module is cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = ["TASKS", "EnvTask", "observation_keys"]

_GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")


@dataclass(frozen=True)
class EnvTask:
    """A registered environment with fixed arguments.

    Args:
        env_id: the gymnasium id.
        kwargs: arguments of ``gymnasium.make`` that replace those of the registration; JSON values only, so that an
            environment spec stored with a data set describes the task completely.
        obs_keys: entries of a dictionary observation, in the order in which they are concatenated.
        max_episode_steps: the time limit in environment steps.
        entry_point: ``module:Class`` of an environment of this package, which gymnasium's registry does not know.

    Examples:
        >>> from torchrl_o2o.envs import EnvTask
        >>> task = EnvTask("PointMaze_UMaze-v3", {"continuing_task": False}, max_episode_steps=300)
        >>> task.kwargs
        {'continuing_task': False}
    """

    env_id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    obs_keys: tuple[str, ...] | None = None
    max_episode_steps: int | None = None
    entry_point: str | None = None


def observation_keys(env_id: str) -> tuple[str, ...]:
    """Name the entries of a dictionary observation that are concatenated for an environment, in order.

    PointMaze leaves out ``achieved_goal``, which repeats the position; entries that an environment lacks are skipped.

    Args:
        env_id: the gymnasium id.

    Returns:
        The names; an environment need not have all of them.

    Examples:
        >>> from torchrl_o2o.envs.tasks import observation_keys
        >>> observation_keys("PointMaze_UMaze-v3")
        ('observation', 'desired_goal')
        >>> observation_keys("AntMaze_UMaze-v5")
        ('observation', 'achieved_goal', 'desired_goal')
    """
    return tuple(key for key in _GOAL_KEYS if not (env_id.startswith("PointMaze") and key == "achieved_goal"))


# "r" is the only start cell and "g" the only goal cell, at opposite ends. The environment draws both positions
# uniformly within 0.25 m of the cell's center and pays 1 within 0.45 m of the goal, so the center always counts as the
# goal.
_UMAZE = ("11111", "1r001", "11101", "1g001", "11111")
_MEDIUM = ("11111111", "1r011001", "10010001", "11000111", "10010001", "10100101", "100010g1", "11111111")
_LARGE = (
    "111111111111",
    "1r0001000001",
    "101101010101",
    "100000010001",
    "101111011101",
    "100101000001",
    "110101010111",
    "1001000100g1",
    "111111111111",
)


def _point_maze(env_id: str, rows: tuple[str, ...], max_episode_steps: int) -> EnvTask:
    maze = [[int(cell) if cell in "01" else cell for cell in row] for row in rows]
    return EnvTask(
        env_id,
        MappingProxyType({"maze_map": maze, "continuing_task": False}),
        observation_keys(env_id),
        max_episode_steps,
    )


#: Sparse PointMaze with one start and one goal cell; an episode ends at the goal, as in D4RL. DotReach is of images.
TASKS: Mapping[str, EnvTask] = MappingProxyType(
    {
        "o2o/PointMaze-UMaze-v0": _point_maze("PointMaze_UMaze-v3", _UMAZE, 300),
        "o2o/PointMaze-Medium-v0": _point_maze("PointMaze_Medium-v3", _MEDIUM, 600),
        "o2o/PointMaze-Large-v0": _point_maze("PointMaze_Large-v3", _LARGE, 800),
        "o2o/DotReach-v0": EnvTask(
            "o2o/DotReach-v0", max_episode_steps=25, entry_point="torchrl_o2o.envs.pixels:DotReachEnv"
        ),
    }
)
