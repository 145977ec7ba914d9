# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Around the update: sessions, phases, hand-over, evaluation, optimizers, signals."""

from __future__ import annotations

from torchrl_o2o.trainers.encoding import read_encoder, train_encoder
from torchrl_o2o.trainers.evaluation import (
    EvaluationResult,
    dip,
    evaluate,
    gain,
    handover_score,
    iqm,
    normalized_score,
    regret,
    stratified_bootstrap_interval,
)
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
    choose_route,
    finetune_stage,
    launch,
    load_problem,
    load_script,
    plain,
    pretrain_stage,
    product_dtype,
    run_options,
)
from torchrl_o2o.trainers.optim import descend, weight_decay_groups
from torchrl_o2o.trainers.pipeline import (
    Learner,
    Pretrained,
    Problem,
    RunOptions,
    finetune,
    hand_over,
    make_collector,
    pretrain,
    save_policy,
)
from torchrl_o2o.trainers.session import Measured, Schedule, Session, handover_metrics

__all__ = [
    "ONLINE_ONLY",
    "EvaluationResult",
    "HandOver",
    "Learner",
    "Measured",
    "Pretrained",
    "Problem",
    "RunOptions",
    "Schedule",
    "Session",
    "align",
    "carry_optimizer",
    "carry_over",
    "choose_route",
    "descend",
    "dip",
    "evaluate",
    "finetune",
    "finetune_stage",
    "gain",
    "graceful_exit",
    "hand_over",
    "handover_metrics",
    "handover_score",
    "iqm",
    "launch",
    "load_problem",
    "load_script",
    "make_collector",
    "normalized_score",
    "plain",
    "pretrain",
    "pretrain_stage",
    "product_dtype",
    "read_encoder",
    "regret",
    "resume_command",
    "run_options",
    "save_policy",
    "stack_agents",
    "starting_buffer",
    "stratified_bootstrap_interval",
    "top_episodes",
    "train_encoder",
    "weight_decay_groups",
]
