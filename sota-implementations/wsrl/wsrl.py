# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""WSRL (Zhou et al. 2024): learn offline, collect with the frozen policy, continue without the data.

    python sota-implementations/wsrl/wsrl.py task=halfcheetah preset=cpu seed=0
    python sota-implementations/wsrl/wsrl.py preset=cpu handover.warmup_steps=0 pretrained=runs/wsrl/.../seed0/offline

The update is that of examples/wsrl.py, in the same order.
"""

from __future__ import annotations

from dataclasses import replace

import hydra
from omegaconf import DictConfig

from torchrl_o2o.errors import check_option
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import launch, load_problem, offline_phase, online_phase, returns_of
from torchrl_o2o.trainers.algorithms import make_cal_ql, make_cql, make_wsrl

OFFLINE = {"cal_ql": make_cal_ql, "cql": make_cql}
#: Entries that only the online phase reads.
ONLINE_ONLY = ("online_loss", "utd_ratio", "ghost_steps")


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, then fine-tune on online data alone."""
    check_option("algorithm", cfg.algorithm, tuple(OFFLINE))
    problem, make_offline = load_problem(cfg, "cal_ql"), OFFLINE[cfg.algorithm]
    recorded = problem
    if cfg.algorithm == "cal_ql":  # its lower bound on values is the return of each row
        recorded = replace(problem, offline=returns_of(cfg, problem)(problem.offline))
    with offline_phase(cfg, recorded, make_offline, then=make_wsrl, online_only=ONLINE_ONLY) as offline:
        for _ in offline.steps():
            offline.log(offline.learner.update(offline.sample()))
    if not cfg.online.total_frames:  # the offline phase alone
        return
    with online_phase(cfg, problem, offline.folder, make_wsrl) as online:
        for step, data in online.steps():
            online.buffer.extend(problem.convention.online(data).select(*online.learner.keys))
            if online.may_update(step):  # not in the first handover.warmup_steps
                online.log(online.learner.update(online.sample()))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
