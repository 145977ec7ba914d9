# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Log-priorities of transitions, which can be added, for samplers."""

from __future__ import annotations

from torchrl_o2o.priorities.advantage import Advantage
from torchrl_o2o.priorities.aligned import AdvantageAligned
from torchrl_o2o.priorities.base import LogPriority, Sum
from torchrl_o2o.priorities.density_ratio import DensityRatioScore
from torchrl_o2o.priorities.td_error import TDError

__all__ = [
    "Advantage",
    "AdvantageAligned",
    "DensityRatioScore",
    "LogPriority",
    "Sum",
    "TDError",
]
