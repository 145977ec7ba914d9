# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""RLPD from pixels (Ball et al. 2023), with the authors' settings, logs and resume.

    python sota-implementations/rlpd_pixels/rlpd_pixels.py seed=0
    python sota-implementations/rlpd_pixels/rlpd_pixels.py offline_fraction=0 seed=0

The update is that of examples/rlpd_pixels.py; a test runs both and compares every parameter.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from torchrl_o2o.data import TRANSITION
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import launch
from torchrl_o2o.trainers.algorithms import PixelRun, make_rlpd_pixels


def train(cfg: DictConfig) -> None:
    """Learn online, with part of each batch from the data."""
    run = PixelRun(cfg, make_rlpd_pixels)
    with run.session as session:
        for step, transition in session.online(run.collector):
            run.buffer.extend(transition.select(*TRANSITION))
            if step > cfg.online.init_random_frames:
                session.log(run.learner.update(run.buffer.sample()))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
