# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""IQL (Kostrikov et al. 2022): pre-train, hand over, fine-tune, with one update for both phases.

    python sota-implementations/iql/iql.py task=halfcheetah preset=cpu seed=0
    python sota-implementations/iql/iql.py task=halfcheetah preset=cpu seed=0 pretrained=runs/iql/.../seed0/offline
    python sota-implementations/iql/iql.py task=antmaze-medium reference=corl

The authors' update is that of examples/iql.py, in the same order.
"""

from __future__ import annotations

from functools import partial

import hydra
from omegaconf import DictConfig

from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import launch, load_problem, offline_phase, online_phase
from torchrl_o2o.trainers.algorithms import decay_actor_lr, make_iql


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, then fine-tune; the learning rate decays offline only."""
    problem = load_problem(cfg, cfg.convention_of)
    decay_steps = cfg.offline.num_steps if cfg.decay_actor_lr else None
    make_offline = partial(make_iql, decay_steps=decay_steps)
    with offline_phase(cfg, problem, make_offline, then=make_iql) as offline:
        for _ in offline.steps():
            metrics = offline.learner.update(offline.sample())
            offline.log(metrics | decay_actor_lr(offline.learner))
    if not cfg.online.total_frames:  # the offline phase alone
        return
    with online_phase(cfg, problem, offline.folder, make_iql) as online:
        for step, data in online.steps():
            online.buffer.extend(problem.convention.online(data).select(*online.learner.keys))
            if online.may_update(step):
                metrics = online.learner.update(online.sample())
                online.log(metrics | decay_actor_lr(online.learner))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
