# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Read OGBench's files. They hold no rewards; the ``ogbench`` package computes a task's. Nothing is downloaded."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np

from torchrl_o2o.data.datasets.optional import require
from torchrl_o2o.errors import O2ODataError

__all__ = ["is_ogbench", "ogbench_arrays", "ogbench_task"]

_NAME = re.compile(r"(?P<env>[a-z0-9-]+?)-[a-z]+(?P<task>-singletask(-task\d)?)?-(?P<version>v\d+)(-val)?")


def is_ogbench(names: Collection[str]) -> bool:
    """Whether arrays of these names are a file of OGBench, which has states of the simulator and no rewards.

    Args:
        names: of the arrays in a file.

    Returns:
        ``True`` if so.

    Examples:
        >>> is_ogbench({"observations", "actions", "terminals", "qpos", "qvel"})
        True
        >>> is_ogbench({"observations", "actions", "terminals", "rewards"})
        False
    """
    there = {"observations", "actions", "terminals", "qpos", "qvel"} <= set(names)
    return there and not {"rewards", "next_observations"} & set(names)


def ogbench_task(path: Path) -> str:
    """The single-task environment in a file's name.

    Args:
        path: named as OGBench names it, ``cube-single-play-v0.npz``; or as the task,
            ``cube-single-play-singletask-task2-v0.npz``, by a link for example.

    Returns:
        Its id.

    Raises:
        O2ODataError: if it has another name.

    Examples:
        >>> ogbench_task(Path("cube-single-play-v0.npz"))
        'cube-single-singletask-v0'
        >>> ogbench_task(Path("pointmaze-medium-navigate-singletask-task2-v0-val.npz"))
        'pointmaze-medium-singletask-task2-v0'
    """
    match = _NAME.fullmatch(path.stem)
    if match is None:
        raise O2ODataError(
            f"{path.name} is a file of OGBench, whose rewards depend on the task; name it as OGBench does, such as "
            f"cube-single-play-v0.npz, or as the task, such as cube-single-play-singletask-task2-v0.npz."
        )
    return f"{match['env']}{match['task'] or '-singletask'}-{match['version']}"


def ogbench_arrays(path: Path) -> dict[str, np.ndarray]:
    """Flat arrays of a file of OGBench, with the rewards that ``ogbench`` computes for its single task.

    As in OGBench's own loader, the last row of an episode only serves as the successor of the row before it. An episode
    also ends where the task succeeds, because the environment ends there. If the recording continues, each row of
    success is a separate episode. All of them are kept. (A chunk that meets a success before its last row therefore has
    weight 0 in :class:`~torchrl_o2o.data.ChunkSampler`, while QC's code trains on it without bootstrapping.)

    Source: ``ogbench.utils.load_dataset`` and ``ogbench.relabel_utils.relabel_dataset`` of ogbench 1.2 (Park et al.
    2025, arXiv:2410.20092).

    Args:
        path: the npz file.

    Returns:
        Arrays by the names of D4RL.

    Raises:
        O2OSpecError: if ogbench is not installed.
        O2ODataError: if the file's name does not name a task, or ``ogbench`` has no such task.
    """
    name = ogbench_task(path)
    package, utils, relabel = (require(f"ogbench{part}", "ogbench") for part in ("", ".utils", ".relabel_utils"))
    gymnasium = require("gymnasium", "ogbench")
    try:
        env = gymnasium.make(name)
    except gymnasium.error.Error as error:
        raise O2ODataError(f"{package.__name__} has no task {name!r}, which {path.name} requires ({error}).") from error
    try:
        data = utils.load_dataset(str(path), add_info=True)
        relabel.relabel_dataset(name, env, data)
    finally:
        env.close()
    success = data["masks"] == 0
    return {
        **{key: data[key] for key in ("observations", "actions", "next_observations", "rewards")},
        "terminals": success,
        "timeouts": (data["terminals"] > 0) & ~success,
    }
