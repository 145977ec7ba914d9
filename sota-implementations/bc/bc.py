# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Behavior cloning of all episodes or of the best, followed by nothing, more cloning, or SAC.

python sota-implementations/bc/bc.py task=halfcheetah preset=cpu seed=0
python sota-implementations/bc/bc.py preset=cpu learner=none best_episodes=0.1  # 10 % BC, offline only
python sota-implementations/bc/bc.py task=halfcheetah preset=cpu policy=tanh_gaussian learner=sac  # SAC with a BC start
"""

from __future__ import annotations

from dataclasses import replace

import hydra
import torch
from omegaconf import DictConfig

from torchrl_o2o.data.transforms import AffineReward, episode_returns
from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import Problem, launch, load_problem, offline_phase, online_phase, top_episodes
from torchrl_o2o.trainers.algorithms import make_bc, make_sac_of_clone

LEARNERS = {"bc": make_bc, "sac": make_sac_of_clone}


def best_only(problem: Problem, share: float) -> Problem:
    """The same problem with only the best episodes (at least one), by the environment's own undiscounted return."""
    if not 0.0 < share <= 1.0:
        raise O2OSpecError(f"got best_episodes={share}, expected a share in (0, 1]; 0.1 is the usual 10 % BC")
    if share == 1.0:
        return problem
    number = max(1, int(share * len(episode_returns(problem.offline))))
    reward = problem.convention.reward
    recorded = AffineReward(1.0 / reward.scale, -reward.shift / reward.scale)(problem.offline)
    best = top_episodes(recorded, number)["episode"]
    return replace(problem, offline=problem.offline[torch.isin(problem.offline["episode"], best)])


def train(cfg: DictConfig) -> None:
    """Clone, or read a cloned policy; continue as ``learner`` says."""
    check_option("learner", cfg.learner, ("none", *LEARNERS))
    if cfg.learner == "sac" and cfg.policy == "deterministic":
        raise O2OSpecError("learner=sac needs a stochastic policy; clone policy=tanh_gaussian or policy=gaussian")
    problem = load_problem(cfg, "bc")
    best, then = best_only(problem, cfg.best_episodes), LEARNERS.get(cfg.learner)
    with offline_phase(cfg, best, make_bc, then=then) as offline:
        for _ in offline.steps():
            offline.log(offline.learner.update(offline.sample()))
    if cfg.learner == "none" or not cfg.online.total_frames:
        return
    with online_phase(cfg, problem, offline.folder, LEARNERS[cfg.learner]) as online:
        for step, data in online.steps():
            online.buffer.extend(problem.convention.online(data).select(*online.learner.keys))
            if online.may_update(step):
                online.log(online.learner.update(online.sample()))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
