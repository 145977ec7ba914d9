# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""ODT (Zheng et al. 2022, Algorithm 1): a decision transformer, offline, then from its own rollouts.

    python sota-implementations/odt/odt.py task=hopper preset=cpu seed=0
    python sota-implementations/odt/odt.py task=halfcheetah returns.evaluation=6000 returns.exploration=12000

The loss is TorchRL's; the transformer needs `pip install "torchrl_o2o[odt]"`. Both phases are in one run folder: steps
below zero are updates on the data, those above are environment steps.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from torchrl_o2o.data.datasets.optional import require
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import launch, load_problem
from torchrl_o2o.trainers.algorithms import open_odt


def train(cfg: DictConfig) -> None:
    """Updates on the data, then updates after each rollout."""
    require("transformers", "odt")
    session, learner, replay, rollouts = open_odt(cfg, load_problem(cfg, "odt"))
    with session:
        if not session.is_online:
            for _ in session.offline(cfg.offline.num_steps):
                session.log(learner.update(replay.sample(cfg.offline.batch_size, cfg.context)))
        for _, episode in session.online(rollouts):
            replay.append(episode["observation"], episode["action"], episode["next", "reward"].squeeze(-1))
            for _ in range(cfg.updates_per_rollout):
                session.log(learner.update(replay.sample(cfg.online.batch_size, cfg.context)))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
