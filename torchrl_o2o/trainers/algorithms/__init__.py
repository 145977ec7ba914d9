# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Constructors of the papers' learners from sections of a configuration, which the scripts share."""

from __future__ import annotations

from torchrl_o2o.trainers.algorithms.a3rl import (
    anneal_pool,
    density_rows,
    learn_density,
    make_a3rl,
    make_pool,
    pool_metrics,
)
from torchrl_o2o.trainers.algorithms.aca import (
    decay_alignment,
    make_aca,
    make_baseline_learner,
    make_sac_after_sac_ml,
    make_sac_ml,
)
from torchrl_o2o.trainers.algorithms.awac import make_awac
from torchrl_o2o.trainers.algorithms.awr import check_awr, make_awr
from torchrl_o2o.trainers.algorithms.bc import make_bc, make_sac_of_clone
from torchrl_o2o.trainers.algorithms.behavior import (
    BEHAVIOR_REGULARIZED,
    make_bear,
    make_brac,
    make_brac_dual,
    start_on_penalty,
)
from torchrl_o2o.trainers.algorithms.cql import make_cal_ql, make_cql, make_sac_after_cql
from torchrl_o2o.trainers.algorithms.iql import decay_actor_lr, make_iql
from torchrl_o2o.trainers.algorithms.odt import TransformerLearner, make_odt, open_odt
from torchrl_o2o.trainers.algorithms.off2on import (
    balanced_replay_buffer,
    make_off2on_agent,
    make_off2on_ensemble,
    read_off2on_agents,
    replay_priority,
)
from torchrl_o2o.trainers.algorithms.pex import make_pex
from torchrl_o2o.trainers.algorithms.pixels import PixelRun, load_pixels, make_drqv2, make_rlpd_pixels
from torchrl_o2o.trainers.algorithms.qc import make_qc
from torchrl_o2o.trainers.algorithms.sac import ensemble_sac, make_rlpd
from torchrl_o2o.trainers.algorithms.samg import BASES, Guide, make_base, make_confidence, raw_convention
from torchrl_o2o.trainers.algorithms.sope import check_phases, make_critics_alone, make_sope, phase_settings
from torchrl_o2o.trainers.algorithms.td3 import decay_constraint, decay_penalty, make_rebrac, make_spot, make_td3_bc
from torchrl_o2o.trainers.algorithms.wsrl import ghostless_lr, make_wsrl, warm_start_update

__all__ = [
    "BASES",
    "BEHAVIOR_REGULARIZED",
    "Guide",
    "PixelRun",
    "TransformerLearner",
    "anneal_pool",
    "balanced_replay_buffer",
    "check_awr",
    "check_phases",
    "decay_actor_lr",
    "decay_alignment",
    "decay_constraint",
    "decay_penalty",
    "density_rows",
    "ensemble_sac",
    "ghostless_lr",
    "learn_density",
    "load_pixels",
    "make_a3rl",
    "make_aca",
    "make_awac",
    "make_awr",
    "make_base",
    "make_baseline_learner",
    "make_bc",
    "make_bear",
    "make_brac",
    "make_brac_dual",
    "make_cal_ql",
    "make_confidence",
    "make_cql",
    "make_critics_alone",
    "make_drqv2",
    "make_iql",
    "make_odt",
    "make_off2on_agent",
    "make_off2on_ensemble",
    "make_pex",
    "make_pool",
    "make_qc",
    "make_rebrac",
    "make_rlpd",
    "make_rlpd_pixels",
    "make_sac_after_cql",
    "make_sac_after_sac_ml",
    "make_sac_ml",
    "make_sac_of_clone",
    "make_sope",
    "make_spot",
    "make_td3_bc",
    "make_wsrl",
    "open_odt",
    "phase_settings",
    "pool_metrics",
    "raw_convention",
    "read_off2on_agents",
    "replay_priority",
    "start_on_penalty",
    "warm_start_update",
]
