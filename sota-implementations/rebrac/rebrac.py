# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""ReBRAC (Tarasov et al. 2023): pre-train, hand over, continue online without the critics' penalty.

    python sota-implementations/rebrac/rebrac.py task=halfcheetah preset=cpu seed=0
    python sota-implementations/rebrac/rebrac.py preset=cpu seed=1 pretrained=runs/rebrac/.../seed0/offline

The update is that of examples/rebrac.py, in the same order.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import hydra
from omegaconf import DictConfig

from torchrl_o2o.data import add_next_action
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import launch, load_problem, offline_phase, online_phase, returns_of
from torchrl_o2o.trainers.algorithms import decay_penalty, make_rebrac


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, then fine-tune; the actor's penalty falls to one half online."""
    problem, make_online = load_problem(cfg, "rebrac"), partial(make_rebrac, online=True)
    add_return = returns_of(cfg, problem)
    rows = add_return(problem.offline) if cfg.loss.calibrate else problem.offline
    recorded = replace(problem, offline=add_next_action(rows))
    with offline_phase(cfg, recorded, make_rebrac, then=make_online) as offline:
        for _ in offline.steps():
            offline.log(offline.learner.update(offline.sample()))
    if not cfg.online.total_frames:  # the offline phase alone
        return
    with online_phase(cfg, problem, offline.folder, make_online) as online:
        for step, data in online.steps():
            online.buffer.extend(problem.convention.online(data).select(*online.learner.keys))
            if online.may_update(step):
                decay_penalty(cfg, online.learner)
                online.log(online.learner.update(online.sample()))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
