# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""FQL (Park et al. 2025), Q-chunking (Li et al. 2025) and their relatives: pre-train, hand over, continue online.

    python sota-implementations/qc/qc.py task=pointmaze-medium preset=cpu seed=0
    python sota-implementations/qc/qc.py algorithm=fql task=... ; also qc_fql, bfn, fql_n, bfn_n, rlpd_ac, qc_rlpd

The update is that of examples/qc.py. RLPD's relatives, rlpd_ac and qc_rlpd, have no offline phase.
"""

from __future__ import annotations

from functools import partial

import hydra
from omegaconf import DictConfig

from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import launch, load_problem, offline_phase, online_phase
from torchrl_o2o.trainers.algorithms import make_qc


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training if the variant has an offline phase, then learn online."""
    problem, make_online = load_problem(cfg, "qc"), partial(make_qc, online=True)
    pretrained = None
    if cfg.pretrain:
        with offline_phase(cfg, problem, make_qc, then=make_online) as offline:
            for _ in offline.steps():
                offline.log(offline.learner.update(offline.sample()))
        if not cfg.online.total_frames:  # the offline phase alone
            return
        pretrained = offline.folder
    with online_phase(cfg, problem, pretrained, make_online) as online:
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
