# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Success flags of environments, and episodes that end at a success."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

__all__ = ["SUCCESS_KEYS", "EndAtSuccess", "reported", "verdict"]

#: Names under which environments report success; the first one found is used.
SUCCESS_KEYS = ("success", "is_success")


def reported(info: Mapping[str, Any]) -> Any:
    """What an environment reports about success, or ``None`` if nothing.

    Args:
        info: of a step.

    Examples:
        >>> reported({"success": None, "is_success": True}), reported({})
        (True, None)
    """
    return next((info[key] for key in SUCCESS_KEYS if info.get(key) is not None), None)


def verdict(flag: Any) -> float:
    """1 for success, 0 for failure, NaN for other values.

    Args:
        flag: what an environment reports.

    Examples:
        >>> verdict(np.array([True])), verdict(0), verdict("yes")
        (1.0, 0.0, nan)
    """
    found = np.asarray(flag)
    known = found.size == 1 and found.dtype.kind in "biuf" and found.item() in (0, 1)
    return float(found.item()) if known else math.nan


class EndAtSuccess(gymnasium.Wrapper):
    """Terminate an episode at its first success, as Cal-QL's authors do while they collect on binary Adroit.

    Args:
        env: an environment that reports ``info["success"]`` or ``info["is_success"]``; without either, and for values
            that are neither true nor false, nothing changes.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> env = EndAtSuccess(make_gym_env("Pendulum-v1"))
        >>> env.action_space
        Box(-1.0, 1.0, (1,), float32)
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; ``terminated`` is also true at a success."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        reached = verdict(reported(info)) == 1.0
        return observation, reward, bool(terminated) or reached, truncated, info
