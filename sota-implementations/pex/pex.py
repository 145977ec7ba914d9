# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""PEX (Zhang et al. 2023): pre-train by IQL, freeze the policy, train a new one next to it; and its baselines.

    python sota-implementations/pex/pex.py task=halfcheetah preset=cpu seed=0
    python sota-implementations/pex/pex.py preset=cpu algorithm=direct pretrained=runs/pex/.../seed0/offline
    python sota-implementations/pex/pex.py preset=cpu algorithm=buffer

The update is that of examples/pex.py, in the same order.
"""

from __future__ import annotations

from functools import partial

import hydra
from omegaconf import DictConfig

from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import launch, load_problem, offline_phase, online_phase
from torchrl_o2o.trainers.algorithms import decay_actor_lr, make_iql, make_pex

#: Entries that only the online phase reads.
ONLINE_ONLY = ("expansion", "eval_eps")


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, unless the algorithm has no offline phase; then learn online."""
    problem, make_online = load_problem(cfg, "pex"), make_pex if cfg.algorithm == "pex" else make_iql
    folder = None
    if cfg.handover.carry:
        decay_steps = cfg.offline.num_steps if cfg.decay_actor_lr else None
        make_offline = partial(make_iql, decay_steps=decay_steps)
        with offline_phase(cfg, problem, make_offline, then=make_online, online_only=ONLINE_ONLY) as offline:
            for _ in offline.steps():
                metrics = offline.learner.update(offline.sample())
                offline.log(metrics | decay_actor_lr(offline.learner))
        if not cfg.online.total_frames:  # the offline phase alone
            return
        folder = offline.folder
    with online_phase(cfg, problem, folder, make_online) as online:
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
