# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Collectors of transitions from one or many environments, with TorchRL modules or numpy."""

from __future__ import annotations

from torchrl_o2o.collectors.acting_policy import ActingPolicy
from torchrl_o2o.collectors.actors import Actors, TransitionStream
from torchrl_o2o.collectors.fleet import Fleet
from torchrl_o2o.collectors.frame_actor import FrameActor
from torchrl_o2o.collectors.numpy_actor import FastActor, PolicyParts, find_parts, policy_parts
from torchrl_o2o.collectors.process_actors import ProcessActors
from torchrl_o2o.collectors.ray_actors import RayActors
from torchrl_o2o.collectors.replay_service import ServedReplayBuffer, serve_replay
from torchrl_o2o.collectors.rollouts import ReturnConditionedRollouts
from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.collectors.vector import VectorCollector, make_vector_env

__all__ = [
    "ActingPolicy",
    "Actors",
    "FastActor",
    "Fleet",
    "FrameActor",
    "PolicyParts",
    "ProcessActors",
    "RayActors",
    "ReturnConditionedRollouts",
    "ServedReplayBuffer",
    "StepCollector",
    "TransitionStream",
    "VectorCollector",
    "find_parts",
    "make_vector_env",
    "policy_parts",
    "serve_replay",
]
