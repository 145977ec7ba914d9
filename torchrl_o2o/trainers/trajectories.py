# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Learn from whole trajectories, whose returns are known at their end: Cal-QL's online phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict, TensorDictBase, cat
from torch import Tensor

from torchrl_o2o.data.transforms import add_mc_return, end_at_success
from torchrl_o2o.errors import O2OSpecError, check_state
from torchrl_o2o.trainers.problem import Problem

__all__ = ["Trajectory", "end_episodes_at_success", "returns_of"]


class Trajectory:
    """The running trajectory, and what the last update measured; a checkpoint holds both.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> trajectory = Trajectory()
        >>> trajectory.rows += random_transitions(3, 2, 1).split(1)
        >>> trajectory.truncate()
        >>> trajectory.over, trajectory.take().shape, trajectory.over
        (True, torch.Size([3]), False)
    """

    def __init__(self) -> None:
        self.rows: list[TensorDictBase] = []
        self.metrics: Mapping[str, Tensor] = {}

    def truncate(self) -> None:
        """The environment failed after the last row, which so becomes the trajectory's last."""
        if self.rows:
            for key in ("truncated", "done"):
                self.rows[-1]["next", key] = torch.ones(1, 1, dtype=torch.bool)

    @property
    def over(self) -> bool:
        """Whether its last row ends it."""
        return bool(self.rows) and bool(self.rows[-1]["next", "done"])

    def take(self) -> TensorDictBase:
        """Its rows [T] as one episode; a new trajectory begins."""
        rows = cat(self.rows)
        self.rows = []
        return rows.set("episode", torch.zeros(len(rows), dtype=torch.long))

    def state_dict(self) -> dict[str, Any]:
        """The rows' entries, nested as they are, and the metrics."""
        return {"rows": cat(self.rows).to_dict() if self.rows else None, "metrics": dict(self.metrics)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Args:
            state_dict: of another trajectory.
        """
        check_state(self, state_dict, {"rows": None, "metrics": None})
        rows = state_dict["rows"]
        # Copies, because the last row may still be marked as truncated.
        self.rows = [] if rows is None else list(TensorDict(rows, [len(rows["action"])]).clone().split(1))
        self.metrics = dict(state_dict["metrics"])


def returns_of(cfg: DictConfig, problem: Problem) -> Callable[[TensorDictBase], TensorDictBase]:
    """The function that adds each row's Monte-Carlo return of the transformed reward.

    Args:
        cfg: ``value_estimator.gamma``, and ``failure_reward``, what the environment pays for a step without success in
            a sparse task; ``None`` in a dense one. ``failure_rule`` may be absent, and is ``"all"`` then.
        problem: whose reward convention holds.

    Returns:
        A function of rows with ``episode``, which sets ``mc_return``; see
        :func:`~torchrl_o2o.data.transforms.add_mc_return`.

    Examples:
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> rows = random_transitions(3, 2, 1).set("episode", torch.zeros(3, dtype=torch.long))
        >>> rows["next", "reward"], rows["next", "done"] = torch.ones(3, 1), torch.tensor([[False], [False], [True]])
        >>> problem = Problem({"env_id": "Pendulum-v1"}, rows, Convention().fit(rows))
        >>> cfg = script_config("cql", ["algorithm=cal_ql", "value_estimator.gamma=0.5"])
        >>> returns_of(cfg, problem)(rows)["mc_return"].squeeze(-1)
        tensor([1.7500, 1.5000, 1.0000])
    """
    rule, failure = cfg.get("failure_rule", "all"), _failure_reward(cfg, problem)
    return partial(add_mc_return, gamma=cfg.value_estimator.gamma, failure_reward=failure, failure_rule=rule)


def end_episodes_at_success(cfg: DictConfig, problem: Problem) -> Problem:
    """The problem whose episodes end with their successes, those of the data and those that are collected.

    Args:
        cfg: ``end_at_success``, whether to do so, and ``failure_reward``, see :func:`returns_of`.
        problem: as it is.

    Raises:
        O2ODataError: if no step of the data succeeds.
        O2OSpecError: if there is no ``failure_reward`` to tell successes by.

    Examples:
        >>> from torchrl_o2o.data import Convention
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> rows = random_transitions(3, 2, 1).set("episode", torch.zeros(3, dtype=torch.long))
        >>> rows["next", "reward"], rows["next", "done"] = torch.tensor([[0.0], [1.0], [0.0]]), torch.zeros(3, 1).bool()
        >>> problem = Problem({"env_id": "Pendulum-v1"}, rows, Convention().fit(rows))
        >>> cfg = script_config("cql", ["failure_reward=0.0", "end_at_success=true"])
        >>> end_episodes_at_success(cfg, problem).offline["next", "reward"].squeeze(-1)
        tensor([0., 1.])
    """
    if not cfg.end_at_success:
        return problem
    failure = _failure_reward(cfg, problem)
    if failure is None:
        raise O2OSpecError(
            "got end_at_success=true without failure_reward, expected the reward of steps without success"
        )
    cut = end_at_success(problem.offline, problem.offline["next", "reward"] > failure)
    return replace(problem, offline=cut, end_at_success=True)


def _failure_reward(cfg: DictConfig, problem: Problem) -> float | None:
    if cfg.failure_reward is None:
        return None
    # The same arithmetic as for the rows, because the values are compared for equality.
    row = TensorDict({"next": {"reward": torch.tensor([[float(cfg.failure_reward)]])}}, [1])
    return problem.convention.reward(row)["next", "reward"].item()
