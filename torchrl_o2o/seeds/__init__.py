# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Many seeds in one process: N agents whose updates are one, each with the numbers of its single run."""

from __future__ import annotations

from torchrl_o2o.checkpoint import AgentCheckpointer, restore_together
from torchrl_o2o.seeds.acting import StackedActor, StackedCollector
from torchrl_o2o.seeds.density import StackedDensityRatio
from torchrl_o2o.seeds.learner import StackedLearner
from torchrl_o2o.seeds.sac import StackedSAC, stack_losses
from torchrl_o2o.seeds.stacking import StackedNonFiniteError, StackedOptimizer, stack_leaves
from torchrl_o2o.seeds.storage import AgentStorage, SharedRows
from torchrl_o2o.seeds.streams import RandomStream

__all__ = [
    "AgentCheckpointer",
    "AgentStorage",
    "RandomStream",
    "SharedRows",
    "StackedActor",
    "StackedCollector",
    "StackedDensityRatio",
    "StackedLearner",
    "StackedNonFiniteError",
    "StackedOptimizer",
    "StackedSAC",
    "restore_together",
    "stack_leaves",
    "stack_losses",
]
