# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""TD3+BC (Fujimoto & Gu 2021): pre-train, hand over, continue online with the same loss and exploration noise.

    python sota-implementations/td3_bc/td3_bc.py task=halfcheetah preset=cpu seed=0
    python sota-implementations/td3_bc/td3_bc.py task=halfcheetah preset=cpu pretrained=runs/td3_bc/.../seed0/offline

The update is that of examples/td3_bc.py, in the same order. The paper is offline only; this is the usual baseline.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import launch, load_problem, offline_phase, online_phase
from torchrl_o2o.trainers.algorithms import make_td3_bc


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, then fine-tune."""
    problem = load_problem(cfg, "td3_bc")
    with offline_phase(cfg, problem, make_td3_bc, then=make_td3_bc) as offline:
        for _ in offline.steps():
            offline.log(offline.learner.update(offline.sample()))
    if not cfg.online.total_frames:  # the offline phase alone
        return
    with online_phase(cfg, problem, offline.folder, make_td3_bc) as online:
        for step, data in online.steps():
            online.buffer.extend(problem.convention.online(data).select(*online.learner.keys))
            if online.may_update(step):
                online.log(online.learner.update(online.sample()))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
