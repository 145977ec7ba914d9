# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""AWR (Peng et al. 2019, Algorithm 1): iterations on the data alone, then iterations that collect first.

    python sota-implementations/awr/awr.py task=halfcheetah preset=cpu seed=0
    python sota-implementations/awr/awr.py task=hopper loss.temperature=0.5

An iteration computes the return and the weight of every row along the recorded episodes, regresses V, computes both
anew, and regresses the policy. A step of the offline phase is an iteration; online it follows every
`frames_per_iteration` environment steps. It is that of examples/awr.py.
"""

from __future__ import annotations

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor
from torchrl.data import ReplayBuffer

from torchrl_o2o.objectives import AWRLoss
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import Learner, launch, load_problem, offline_phase, online_phase
from torchrl_o2o.trainers.algorithms import check_awr, make_awr


def iterate(cfg: DictConfig, learner: Learner, buffer: ReplayBuffer) -> dict[str, Tensor]:
    """One iteration on all rows of a buffer, in the order in which they were recorded."""
    rows = buffer[:]
    assert isinstance(learner.loss, AWRLoss)
    metrics: dict[str, Tensor] = {}
    for update, steps in ((learner.further["value"], cfg.value_steps), (learner.update, cfg.actor_steps)):
        labeled = learner.loss.label(rows)
        for _ in range(steps):
            metrics |= update(labeled[torch.randint(len(labeled), (cfg.batch_size,))])
    return metrics


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, then fine-tune."""
    check_awr(cfg)
    problem = load_problem(cfg, "brac")
    with offline_phase(cfg, problem, make_awr, then=make_awr) as offline:
        for _ in offline.steps():
            offline.log(iterate(cfg, offline.learner, offline.buffer))
    if not cfg.online.total_frames:  # the offline phase alone
        return
    with online_phase(cfg, problem, offline.folder, make_awr) as online:
        for step, data in online.steps():
            online.buffer.extend(problem.convention.online(data).select(*online.learner.keys))
            if step % cfg.frames_per_iteration == 0:
                online.log(iterate(cfg, online.learner, online.buffer))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
