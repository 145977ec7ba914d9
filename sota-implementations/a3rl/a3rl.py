# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A3RL (Liu et al. 2025) and its ablations, with the paper's settings, logs and resume.

    python sota-implementations/a3rl/a3rl.py task=halfcheetah data=linear-mix-v0 seed=0
    python sota-implementations/a3rl/a3rl.py -m priority=advantage_density,td,uniform seed=0,1,2
    python sota-implementations/a3rl/a3rl.py task=halfcheetah actors=4  # actors in separate processes

The learner and its update are RLPD's; what is A3RL's own is in `torchrl_o2o.trainers.algorithms.a3rl`. A test runs this
and examples/a3rl.py and compares every parameter.
"""

from __future__ import annotations

from functools import partial

import hydra
from omegaconf import DictConfig

from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import accept_actors, fleet_settings, launch, load_problem, online_phase
from torchrl_o2o.trainers.algorithms import anneal_pool, learn_density, make_a3rl, make_pool, pool_metrics


def train(cfg: DictConfig) -> None:
    """Per environment step: the density ratio, then a pool scored by it and by the critics, then RLPD's update."""
    problem = load_problem(cfg, "a3rl")
    make_buffer, fleet = partial(make_pool, cfg, problem), fleet_settings(cfg)
    with online_phase(cfg, problem, None, make_a3rl, make_buffer=make_buffer, fleet=fleet) as run:
        for step, data in run.steps():
            run.buffer.extend(problem.convention.online(data).select(*run.learner.keys))
            for _ in run.updates(step, data):
                anneal_pool(cfg, run.buffer, step)
                ratio = learn_density(cfg, run) if cfg.density_update == "before" else {}  # the paper
                batch = run.sample()
                metrics = run.learner.update(batch)
                if cfg.density_update == "after":  # the authors' code
                    ratio = learn_density(cfg, run)
                run.log(metrics | ratio | pool_metrics(run, batch, step))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train, optional=("actors", "fleet"))


if __name__ == "__main__":
    accept_actors()
    start(main)
