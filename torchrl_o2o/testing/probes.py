# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Probe environments: each isolates one ability and can be solved in seconds."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict

__all__ = ["ContextualTargetEnv", "DelayedRewardEnv", "probe_transitions"]

_UNIT_BOX = spaces.Box(-1.0, 1.0, (1,), np.float32)


class ContextualTargetEnv(gymnasium.Env):
    """One step: observe x in [-1, 1], earn -(a - x/2)^2. Solved by an actor that outputs x/2.

    Examples:
        >>> env = ContextualTargetEnv()
        >>> observation, _ = env.reset(seed=0)
        >>> env.step(observation / 2)[1:4]
        (-0.0, True, False)
    """

    observation_space = _UNIT_BOX
    action_space = _UNIT_BOX

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Draw a new context."""
        super().reset(seed=seed)
        self._context = self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)
        return self._context, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """End with the squared distance as cost."""
        return self._context, -float(np.square(action - self._context / 2).item()), True, False, {}


class DelayedRewardEnv(gymnasium.Env):
    """Two steps with reward 1 only at the end: Q is gamma in the first state and 1 in the second, for any action.

    Examples:
        >>> env = DelayedRewardEnv()
        >>> _ = env.reset(seed=0)
        >>> [env.step(np.zeros(1))[1:3] for _ in range(2)]
        [(0.0, False), (1.0, True)]
    """

    observation_space = _UNIT_BOX
    action_space = _UNIT_BOX

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Go to the first state, -1."""
        super().reset(seed=seed)
        self._steps = 0
        return np.array([-1.0], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Go to the second state, +1, then end."""
        self._steps += 1
        return np.array([1.0], np.float32), float(self._steps == 2), self._steps == 2, False, {}


def probe_transitions(env: gymnasium.Env, num_transitions: int, seed: int = 0) -> TensorDict:
    """Transitions of uniformly random actions, as an offline data set or a full replay buffer.

    Args:
        env: a probe environment, or another with one action dimension in [-1, 1].
        num_transitions: number of rows N.
        seed: seed of the environment and the actions.

    Returns:
        TED transitions of batch shape [N].

    Examples:
        >>> probe_transitions(DelayedRewardEnv(), 4)["next", "reward"].squeeze(-1)
        tensor([0., 1., 0., 1.])
    """
    generator = np.random.default_rng((seed, 1))  # not the environment's own stream
    observation, _ = env.reset(seed=seed)
    rows = []
    for _ in range(num_transitions):
        action = generator.uniform(-1.0, 1.0, 1).astype(np.float32)
        following, reward, terminated, truncated, _ = env.step(action)
        rows.append((observation, action, following, [reward], [terminated], [truncated]))
        observation = env.reset()[0] if terminated or truncated else following
    columns = [torch.as_tensor(np.array(column)) for column in zip(*rows, strict=True)]
    outcome = {"observation": columns[2], "reward": columns[3].float(), "terminated": columns[4]}
    outcome |= {"truncated": columns[5], "done": columns[4] | columns[5]}
    return TensorDict({"observation": columns[0], "action": columns[1], "next": outcome}, [num_transitions])
