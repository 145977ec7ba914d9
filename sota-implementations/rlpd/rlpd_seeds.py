# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""RLPD and its relatives, many seeds in one process: N agents, one update, N run folders.

    python sota-implementations/rlpd/rlpd_seeds.py task=halfcheetah data=linear-mix-v0 'seeds=[0,1,2,3,4]'
    o2o report runs/rlpd/halfcheetah-linear-mix-v0-paper

Configuration, networks, random numbers and run folders are those of rlpd.py with each of the seeds; the networks of all
seeds are stacked and learn in one update (docs/seeds.md). A test compares the runs of both scripts.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from torchrl_o2o.data.shared_rows import SharedRows
from torchrl_o2o.functional import offline_share
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import Finetuning, Seeds, accept_seeds, launch, load_problem, online_phase, seed_configs
from torchrl_o2o.trainers.algorithms import make_rlpd


def train(cfg: DictConfig) -> None:
    """The loop of rlpd.py, in rounds of one step of every seed."""
    problem, configs = load_problem(cfg, "rlpd"), seed_configs(cfg)

    shared = SharedRows(len(configs))  # all agents share one copy of the data

    def make(own: DictConfig) -> Finetuning:
        return online_phase(own, problem, None, make_rlpd, make_storage=shared)

    with Seeds(make, configs) as seeds:
        update = seeds.stacked()
        for _ in seeds.offline_steps(cfg.offline.num_steps):
            seeds.log(seeds.learn(update, seeds.draw(lambda run: run.sample_offline())))
        for step, rows in seeds.steps():
            for run, data in zip(seeds.runs, rows, strict=True):
                run.buffer.extend(problem.convention.online(data).select(*run.learner.keys))
            if seeds.runs[0].may_update(step):
                batches = seeds.draw(lambda run: run.sample())
                shares = [{"offline_share": offline_share(each["index"], len(problem.offline))} for each in batches]
                seeds.log(seeds.learn(update, batches), shares)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train all seeds into their run folders."""
    launch(cfg, train, optional=("seeds",))


if __name__ == "__main__":
    accept_seeds()
    start(main)
