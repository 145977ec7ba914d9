# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Offline data sets, the storage they share with online data, and the samplers and transforms over them."""

from __future__ import annotations

from torchrl_o2o.data.keys import EPISODE, TRANSITION
from torchrl_o2o.data.samplers import BalancedSampler
from torchrl_o2o.data.storage import offline_online_storage
from torchrl_o2o.data.writers import OnlineWriter

__all__ = ["EPISODE", "TRANSITION", "BalancedSampler", "OnlineWriter", "offline_online_storage"]
