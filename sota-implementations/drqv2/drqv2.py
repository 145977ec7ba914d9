# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""DrQ-v2+BC from recorded images (Lu et al. 2023, V-D4RL), with the authors' settings, logs and resume.

python sota-implementations/drqv2/drqv2.py seed=0
python sota-implementations/drqv2/drqv2.py loss.use_bc=false seed=0
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from torchrl_o2o.functional import linear_schedule
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import launch
from torchrl_o2o.trainers.algorithms import PixelRun, make_drqv2


def train(cfg: DictConfig) -> None:
    """Learn from the data alone."""
    run = PixelRun(cfg, make_drqv2)
    with run.session as session:
        for step in session.offline(cfg.offline.num_steps):
            counted = 2 * (step + cfg.offline.num_steps)
            run.learner.loss.std.fill_(linear_schedule(counted, cfg.std.start, cfg.std.end, cfg.std.duration))
            session.log(run.learner.update(run.buffer.sample()))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
