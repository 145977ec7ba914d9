# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SPOT (Wu et al. 2022): fit a VAE to the data, pre-train inside its support, hand over, loosen the constraint online.

    python sota-implementations/spot/spot.py task=halfcheetah preset=cpu seed=0
    python sota-implementations/spot/spot.py task=halfcheetah preset=cpu pretrained=runs/spot/.../seed0/offline

The first `vae_steps` updates of the offline phase are the VAE's, the others are those of examples/spot.py: TD3's, as in
../td3_bc/td3_bc.py, on SPOT's loss.
"""

from __future__ import annotations

from functools import partial

import hydra
from omegaconf import DictConfig

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import launch, load_problem, offline_phase, online_phase
from torchrl_o2o.trainers.algorithms import decay_constraint, make_spot


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, then fine-tune; the hand-over makes new optimizers."""
    if cfg.offline.num_steps < cfg.vae_steps:
        raise O2OSpecError(
            f"got offline.num_steps={cfg.offline.num_steps}, which counts the {cfg.vae_steps} of vae_steps, too; "
            f"expected at least as many"
        )
    problem = load_problem(cfg, "spot")
    make_online = partial(make_spot, online=True)
    with offline_phase(cfg, problem, make_spot, then=make_online) as offline:
        for step in offline.steps():
            fits_vae = step + cfg.offline.num_steps <= cfg.vae_steps  # the first vae_steps of them
            update = offline.learner.further["vae"] if fits_vae else offline.learner.update
            offline.log(update(offline.sample()))
    if not cfg.online.total_frames:  # the offline phase alone
        return
    with online_phase(cfg, problem, offline.folder, make_online) as online:
        for step, data in online.steps():
            online.buffer.extend(problem.convention.online(data).select(*online.learner.keys))
            if online.may_update(step):
                decay_constraint(cfg, online.learner)
                online.log(online.learner.update(online.sample()))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
