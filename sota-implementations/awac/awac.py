# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""AWAC (Nair et al. 2020): pre-train, hand over, fine-tune, with one update for both phases.

    python sota-implementations/awac/awac.py task=halfcheetah preset=cpu seed=0
    python sota-implementations/awac/awac.py task=halfcheetah preset=cpu seed=0 pretrained=runs/awac/.../seed0/offline
    python sota-implementations/awac/awac.py task=adroit-pen reference=authors_hand
    python sota-implementations/awac/awac.py task=halfcheetah actors=4  # online, actors in separate processes

The update is that of examples/awac.py, in the same order. With `bc_steps`, the first updates of the offline phase clone
the data.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import accept_actors, fleet_settings, launch, load_problem, offline_phase, online_phase
from torchrl_o2o.trainers.algorithms import make_awac


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, then fine-tune."""
    if cfg.offline.num_steps < cfg.bc_steps:
        raise O2OSpecError(
            f"got offline.num_steps={cfg.offline.num_steps}, which counts the {cfg.bc_steps} of bc_steps, too; "
            f"expected at least as many"
        )
    problem = load_problem(cfg, cfg.convention_of)
    with offline_phase(cfg, problem, make_awac, then=make_awac) as offline:
        for step in offline.steps():
            clones = step + cfg.offline.num_steps <= cfg.bc_steps  # the first bc_steps updates
            update = offline.learner.further["cloning"] if clones else offline.learner.update
            offline.log(update(offline.sample()))
    if not cfg.online.total_frames:  # the offline phase alone
        return
    with online_phase(cfg, problem, offline.folder, make_awac, fleet=fleet_settings(cfg)) as online:
        for step, data in online.steps():
            online.buffer.extend(problem.convention.online(data).select(*online.learner.keys))
            for _ in online.updates(step, data):
                online.log(online.learner.update(online.sample()))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train, optional=("actors", "fleet"))


if __name__ == "__main__":
    accept_actors()
    start(main)
