# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Contract tests for losses and samplers, also for your own classes.

Subclass a contract in a pytest module and implement its ``make_*`` methods; pytest then runs all of its tests on your
class.
"""

from __future__ import annotations

from torchrl_o2o.testing.losses import LossContract, random_transitions
from torchrl_o2o.testing.probes import ContextualTargetEnv, DelayedRewardEnv, probe_transitions
from torchrl_o2o.testing.samplers import SamplerContract, counting_storage

__all__ = [
    "ContextualTargetEnv",
    "DelayedRewardEnv",
    "LossContract",
    "SamplerContract",
    "counting_storage",
    "probe_transitions",
    "random_transitions",
]
