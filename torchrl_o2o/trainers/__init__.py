# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Training runs: sessions, phases, the hand-over from offline to online, evaluation, optimizers, signals."""

from __future__ import annotations

from torchrl_o2o._moved import old_names
from torchrl_o2o.trainers.collecting import make_collector, make_fleet
from torchrl_o2o.trainers.compiling import choose_route, compiled, product_dtype
from torchrl_o2o.trainers.continuing import continue_run
from torchrl_o2o.trainers.encoding import read_encoder, train_encoder
from torchrl_o2o.trainers.evaluation import MOVED_STATISTICS, EvaluationResult, evaluate
from torchrl_o2o.trainers.handover import (
    HandOver,
    align,
    carry_optimizer,
    carry_over,
    stack_agents,
    starting_buffer,
    top_episodes,
)
from torchrl_o2o.trainers.interrupt import graceful_exit, resume_command
from torchrl_o2o.trainers.launch import (
    ONLINE_ONLY,
    GivenPretraining,
    accept_actors,
    accept_seeds,
    fleet_settings,
    launch,
    load_problem,
    offline_phase,
    online_phase,
    run_options,
)
from torchrl_o2o.trainers.learner import Learner
from torchrl_o2o.trainers.optim import descend, weight_decay_groups
from torchrl_o2o.trainers.options import RunOptions
from torchrl_o2o.trainers.phases import Finetuning, Phase, Pretraining
from torchrl_o2o.trainers.pipeline import Pretrained, finetune, hand_over, pretrain
from torchrl_o2o.trainers.problem import Problem
from torchrl_o2o.trainers.run_status import RunStatus
from torchrl_o2o.trainers.seeds import Seeds, seed_configs
from torchrl_o2o.trainers.session import HasMetrics, Schedule, Session, handover_metrics
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.trainers.stabilization import (
    PhaseReport,
    StoppingRule,
    critics_alone,
    hold_out,
    is_due,
    stabilize,
)
from torchrl_o2o.trainers.trajectories import Trajectory, end_episodes_at_success, returns_of

__all__ = [
    "ONLINE_ONLY",
    "EvaluationResult",
    "Finetuning",
    "GivenPretraining",
    "HandOver",
    "HasMetrics",
    "Learner",
    "Phase",
    "PhaseReport",
    "Pretrained",
    "Pretraining",
    "Problem",
    "RunOptions",
    "RunStatus",
    "Schedule",
    "Seeds",
    "Session",
    "StoppingRule",
    "Trajectory",
    "accept_actors",
    "accept_seeds",
    "align",
    "carry_optimizer",
    "carry_over",
    "choose_route",
    "compiled",
    "continue_run",
    "critics_alone",
    "descend",
    "end_episodes_at_success",
    "evaluate",
    "finetune",
    "fleet_settings",
    "graceful_exit",
    "hand_over",
    "handover_metrics",
    "hold_out",
    "is_due",
    "launch",
    "load_problem",
    "make_collector",
    "make_fleet",
    "offline_phase",
    "online_phase",
    "plain",
    "pretrain",
    "product_dtype",
    "read_encoder",
    "resume_command",
    "returns_of",
    "run_options",
    "seed_configs",
    "stabilize",
    "stack_agents",
    "starting_buffer",
    "top_episodes",
    "train_encoder",
    "weight_decay_groups",
]

__getattr__ = old_names(__name__, {"Measured": HasMetrics, **MOVED_STATISTICS})
