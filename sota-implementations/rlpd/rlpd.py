# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""RLPD (Ball et al. 2023) and its relatives SACfD, REDQ and SAC, with the papers' settings, logs and resume.

    python sota-implementations/rlpd/rlpd.py task=halfcheetah data=linear-mix-v0 seed=0
    python sota-implementations/rlpd/rlpd.py -m algorithm=rlpd,sac seed=0,1,2 data=linear-mix-v0 preset=cpu
    python sota-implementations/rlpd/rlpd.py task=halfcheetah actors=4  # actors in separate processes

The update is the paper's Algorithm 1 as in examples/rlpd.py; a test runs both and compares every parameter. The order
of its steps is in `torchrl_o2o.trainers.algorithms.ensemble_sac`.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from torchrl_o2o.functional import offline_share
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import accept_actors, fleet_settings, launch, load_problem, online_phase
from torchrl_o2o.trainers.algorithms import make_rlpd


def train(cfg: DictConfig) -> None:
    """Learn online, with part of each batch from the data; before that learn offline, if the configuration says so."""
    problem = load_problem(cfg, "rlpd")
    with online_phase(cfg, problem, None, make_rlpd, fleet=fleet_settings(cfg)) as run:
        for _ in run.offline_steps(cfg.offline.num_steps):
            run.log(run.learner.update(run.sample_offline()))
        for step, data in run.steps():
            run.buffer.extend(problem.convention.online(data).select(*run.learner.keys))
            for _ in run.updates(step, data):
                batch = run.sample()
                share = {"offline_share": offline_share(batch["index"], len(problem.offline))}
                run.log(run.learner.update(batch) | share)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train, optional=("actors", "fleet"))


if __name__ == "__main__":
    accept_actors()
    start(main)
