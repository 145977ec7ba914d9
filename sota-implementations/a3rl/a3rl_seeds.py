# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A3RL and its ablations, many seeds in one process: N agents, one update, N run folders.

    python sota-implementations/a3rl/a3rl_seeds.py task=halfcheetah data=linear-mix-v0 'seeds=[0,1,2,3,4]'
    o2o report runs/a3rl-advantage_density/halfcheetah-linear-mix-v0-paper

Configuration, networks, random numbers and run folders are those of a3rl.py with each of the seeds; networks and
density ratios of all seeds are stacked and learn in one update each, pools are scored one by one (docs/seeds.md).
"""

from __future__ import annotations

from functools import partial

import hydra
from omegaconf import DictConfig
from torch import Tensor

from torchrl_o2o.data.shared_rows import SharedRows
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import (
    Finetuning,
    Problem,
    Seeds,
    accept_seeds,
    launch,
    load_problem,
    online_phase,
    seed_configs,
)
from torchrl_o2o.trainers.algorithms import anneal_pool, density_rows, make_a3rl, make_pool, pool_metrics
from torchrl_o2o.updates import StackedUpdate


def learn_densities(cfg: DictConfig, seeds: Seeds, problem: Problem, update: StackedUpdate) -> dict[str, Tensor]:
    """`learn_density` of a3rl.py, all seeds at once."""
    info: dict[str, Tensor] = {}
    number = len(problem.offline)
    for _ in range(cfg.density_updates):
        rows = seeds.draw(lambda run: density_rows(run.buffer, number, cfg.online.batch_size))
        info = seeds.learn(update, rows)
    return {name: value for name, value in info.items() if name != "finite"}


def train(cfg: DictConfig) -> None:
    """The loop of a3rl.py, in rounds of one step of every seed."""
    problem, configs = load_problem(cfg, "a3rl"), seed_configs(cfg)

    shared = SharedRows(len(configs))  # all agents share one copy of the data

    def make(own: DictConfig) -> Finetuning:
        pool = partial(make_pool, own, problem, make_storage=shared)
        return online_phase(own, problem, None, make_a3rl, make_buffer=pool)

    with Seeds(make, configs) as seeds:
        update, density = seeds.stacked(), seeds.stacked("density_ratio")
        for step, rows in seeds.steps():
            for run, data in zip(seeds.runs, rows, strict=True):
                run.buffer.extend(problem.convention.online(data).select(*run.learner.keys))
            if seeds.runs[0].may_update(step):
                for run in seeds.runs:
                    anneal_pool(cfg, run.buffer, step)
                before = cfg.density_update == "before"  # the paper; after: the authors' code
                ratio = learn_densities(cfg, seeds, problem, density) if before else {}
                batches = seeds.draw(lambda run: run.sample())
                metrics = seeds.learn(update, batches)
                if not before:
                    ratio = learn_densities(cfg, seeds, problem, density)
                pools = [pool_metrics(*pair, step) for pair in zip(seeds.runs, batches, strict=True)]
                seeds.log(metrics | ratio, pools)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train all seeds into their run folders."""
    launch(cfg, train, optional=("seeds",))


if __name__ == "__main__":
    accept_seeds()
    start(main)
