# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Environments of the collectors' tests, importable in other processes."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces


class Counter(gymnasium.Env):
    """Returns its own array and rewards of shape (1,), writes into its argument, and ends after three steps."""

    observation_space, action_space = spaces.Box(-99, 99, (1,), np.float32), spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self) -> None:
        self.state = np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        self.state[:] = 0.0
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple:
        self.state += 1.0
        action[:] = 9.0
        return self.state, np.array([0.5]), False, bool(self.state[0] >= 3), {}


class Rejecting(Counter):
    """Counts rejected parts, or whatever it means by that name."""

    def step(self, action: np.ndarray) -> tuple:
        return *super().step(action)[:4], {"rejected": True}
