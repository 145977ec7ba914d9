# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Success flags of environments, and episodes that end at a success."""

from __future__ import annotations

from typing import Any

import gymnasium

__all__ = ["SUCCESS_KEYS", "EndAtSuccess"]

#: Names under which environments report success; the first one found is used.
SUCCESS_KEYS = ("success", "is_success")


class EndAtSuccess(gymnasium.Wrapper):
    """Terminate an episode at its first success, as Cal-QL's authors do while they collect on binary Adroit.

    Args:
        env: an environment that reports ``info["success"]`` or ``info["is_success"]``; without either, nothing changes.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> env = EndAtSuccess(make_gym_env("Pendulum-v1"))
        >>> env.action_space
        Box(-1.0, 1.0, (1,), float32)
    """

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; ``terminated`` is also true at a success."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        reached = next((info[key] for key in SUCCESS_KEYS if key in info), False)
        return observation, reward, bool(terminated) or bool(reached), truncated, info
