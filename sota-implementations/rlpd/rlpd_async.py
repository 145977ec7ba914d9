# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""RLPD with actors in other processes: one learner that never waits for them beyond a stated bound.

    python sota-implementations/rlpd/rlpd_async.py task=halfcheetah data=linear-mix-v0 actors=4 seed=0
    python sota-implementations/rlpd/rlpd_async.py task=halfcheetah actors=4 fleet.slack=20 fleet.max_staleness=200
    python sota-implementations/rlpd/rlpd_async.py task=halfcheetah actors=8 resume=true  # after an interruption

Configuration, learner, buffer and run folder are those of rlpd.py. The actors are TorchRL's asynchronous collectors, a
process each. What is promised about counts, staleness and faults is in docs/actors_elsewhere.md.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from torchrl_o2o.functional import offline_share
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import accept_actors, fleet_settings, launch, load_problem, online_phase
from torchrl_o2o.trainers.algorithms import make_rlpd


def train(cfg: DictConfig) -> None:
    """The loop of rlpd.py, with as many updates a transition on the average as there."""
    problem = load_problem(cfg, "rlpd")
    with online_phase(cfg, problem, None, make_rlpd, fleet=fleet_settings(cfg)) as run:
        for _ in run.offline_steps(cfg.offline.num_steps):
            run.log(run.learner.update(run.sample_offline()))
        for step, data in run.steps():  # what has arrived; nothing, at times
            run.buffer.extend(problem.convention.online(data).select(*run.learner.keys))
            if not run.may_update(step):
                continue
            # One update a transition, at most fleet.slack more or less: more while nothing arrives.
            for _ in run.fleet.updates(len(data)):
                batch = run.sample()
                metrics = run.learner.update(batch)
                run.fleet.publish()  # the actors act by the new policy from their next step on
                share = {"offline_share": offline_share(batch["index"], len(problem.offline))}
                run.log(metrics | share | run.fleet.metrics())


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    accept_actors()
    start(main)
