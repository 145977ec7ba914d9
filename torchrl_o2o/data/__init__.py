# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Offline data sets, the storage that they share with online data, and samplers and transforms for both."""

from __future__ import annotations

from torchrl_o2o.data.audit import AuditReport, Finding, audit
from torchrl_o2o.data.conventions import CONVENTIONS, Convention, FittedConvention, get_convention
from torchrl_o2o.data.datasets.local import make_local_dataset
from torchrl_o2o.data.datasets.rendered import record_frames
from torchrl_o2o.data.datasets.vd4rl import load_vd4rl
from torchrl_o2o.data.episode_rows import EpisodeRows
from torchrl_o2o.data.frames import FrameStorage
from torchrl_o2o.data.interventions import INTERVENED, insert_intervened, reserve_slots
from torchrl_o2o.data.keys import EPISODE, STEPS, TRANSITION, stored_keys, transition_keys
from torchrl_o2o.data.load import DatasetInfo, check_offline, describe_offline, load_offline
from torchrl_o2o.data.pixels import PixelData, pixel_data, stack_rows
from torchrl_o2o.data.samplers import (
    BalancedReplaySampler,
    BalancedSampler,
    ChunkSampler,
    PoolSampler,
    PrioritizedReplaySampler,
)
from torchrl_o2o.data.shift import RandomShift
from torchrl_o2o.data.storage import offline_online_storage
from torchrl_o2o.data.torchrl_datasets import (
    offline_online_replay_buffer,
    offline_replay_buffer,
    register_with_torchrl,
    select_transition,
)
from torchrl_o2o.data.trajectories import TrajectoryReplay, returns_to_go
from torchrl_o2o.data.transforms import add_next_action, end_at_success, n_step
from torchrl_o2o.data.writers import OnlineWriter

__all__ = [
    "CONVENTIONS",
    "EPISODE",
    "INTERVENED",
    "STEPS",
    "TRANSITION",
    "AuditReport",
    "BalancedReplaySampler",
    "BalancedSampler",
    "ChunkSampler",
    "Convention",
    "DatasetInfo",
    "EpisodeRows",
    "Finding",
    "FittedConvention",
    "FrameStorage",
    "OnlineWriter",
    "PixelData",
    "PoolSampler",
    "PrioritizedReplaySampler",
    "RandomShift",
    "TrajectoryReplay",
    "add_next_action",
    "audit",
    "check_offline",
    "describe_offline",
    "end_at_success",
    "get_convention",
    "insert_intervened",
    "load_offline",
    "load_vd4rl",
    "make_local_dataset",
    "n_step",
    "offline_online_replay_buffer",
    "offline_online_storage",
    "offline_replay_buffer",
    "pixel_data",
    "record_frames",
    "register_with_torchrl",
    "reserve_slots",
    "returns_to_go",
    "select_transition",
    "stack_rows",
    "stored_keys",
    "transition_keys",
]
