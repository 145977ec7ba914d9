# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Samplers draw transitions. Some take priorities, callables that score transitions."""

from __future__ import annotations

from torchrl_o2o.data.samplers.balanced import BalancedSampler
from torchrl_o2o.data.samplers.chunks import ChunkSampler
from torchrl_o2o.data.samplers.pool import PoolSampler
from torchrl_o2o.data.samplers.prioritized import PrioritizedReplaySampler
from torchrl_o2o.data.samplers.replay import BalancedReplaySampler

__all__ = ["BalancedReplaySampler", "BalancedSampler", "ChunkSampler", "PoolSampler", "PrioritizedReplaySampler"]
