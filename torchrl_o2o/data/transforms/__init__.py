# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Transforms of a data set, applied once before training: reward scaling, returns, steps, standardized observations.

Each is a pure function of transitions in TED. The matching TorchRL transform applies the same numbers to the
environment, so that offline and online data agree.
"""

from __future__ import annotations

from torchrl_o2o.data.transforms.observations import ObservationStats
from torchrl_o2o.data.transforms.rewards import (
    AffineReward,
    add_mc_return,
    episode_returns,
    locomotion_reward,
    mc_return,
)
from torchrl_o2o.data.transforms.steps import add_next_action, end_at_success, n_step

__all__ = [
    "AffineReward",
    "ObservationStats",
    "add_mc_return",
    "add_next_action",
    "end_at_success",
    "episode_returns",
    "locomotion_reward",
    "mc_return",
    "n_step",
]
