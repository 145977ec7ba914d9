# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Environments: build them from an allow-list, guard, save and restore them; tasks and reference scores."""

from __future__ import annotations

from torchrl_o2o.envs.guard import GuardedEnv
from torchrl_o2o.envs.make import TRUSTED_MODULES, make_env, make_gym_env, mujoco_warnings, seed_everything
from torchrl_o2o.envs.outputs import CheckedEnv, EnvFaultError
from torchrl_o2o.envs.pixels import DotReachEnv, RenderedFrames, RepeatAction, StackFrames
from torchrl_o2o.envs.scores import (
    D4RL_REFERENCES,
    OWN_REFERENCES,
    V5_REFERENCES,
    Reference,
    find_reference,
    get_reference,
    normalized_score,
)
from torchrl_o2o.envs.snapshot import env_state, restore_env_state
from torchrl_o2o.envs.success import EndAtSuccess
from torchrl_o2o.envs.tasks import TASKS, EnvTask, observation_keys
from torchrl_o2o.envs.video import Film, drawing_arguments, drawing_env, film_episode, write_video

__all__ = [
    "D4RL_REFERENCES",
    "OWN_REFERENCES",
    "TASKS",
    "TRUSTED_MODULES",
    "V5_REFERENCES",
    "CheckedEnv",
    "DotReachEnv",
    "EndAtSuccess",
    "EnvFaultError",
    "EnvTask",
    "Film",
    "GuardedEnv",
    "Reference",
    "RenderedFrames",
    "RepeatAction",
    "StackFrames",
    "drawing_arguments",
    "drawing_env",
    "env_state",
    "film_episode",
    "find_reference",
    "get_reference",
    "make_env",
    "make_gym_env",
    "mujoco_warnings",
    "normalized_score",
    "observation_keys",
    "restore_env_state",
    "seed_everything",
    "write_video",
]
