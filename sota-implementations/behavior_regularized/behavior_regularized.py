# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""BRAC (Wu et al. 2019) and BEAR (Kumar et al. 2019): pre-train, hand over, continue online with the same update.

    python sota-implementations/behavior_regularized/behavior_regularized.py task=halfcheetah preset=cpu seed=0
    python sota-implementations/behavior_regularized/behavior_regularized.py method=brac_p task=hopper
    python sota-implementations/behavior_regularized/behavior_regularized.py method=brac_dual
    python sota-implementations/behavior_regularized/behavior_regularized.py method=bear

The first `clone_steps` updates of the offline phase clone the data for BRAC-p and BRAC-v; BEAR's model of the data and
the critic of the dual form's divergence learn with every update. The updates of BRAC and BEAR are those of
examples/brac.py and examples/bear.py.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import launch, load_problem, offline_phase, online_phase
from torchrl_o2o.trainers.algorithms import BEHAVIOR_REGULARIZED, start_on_penalty


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, then fine-tune."""
    check_option("method", cfg.method, tuple(BEHAVIOR_REGULARIZED))
    make = BEHAVIOR_REGULARIZED[cfg.method]
    clone_steps = cfg.clone_steps if cfg.method in ("brac_p", "brac_v") else 0
    if cfg.offline.num_steps < clone_steps:
        raise O2OSpecError(
            f"got offline.num_steps={cfg.offline.num_steps}, which counts the {clone_steps} of clone_steps, too; "
            f"expected at least as many"
        )
    problem = load_problem(cfg, "brac")
    with offline_phase(cfg, problem, make, then=make) as offline:
        for step in offline.steps():
            if step + cfg.offline.num_steps <= clone_steps:  # the first updates
                offline.log(offline.learner.further["behavior"](offline.sample()))
                continue
            start_on_penalty(cfg, offline.learner)
            offline.log(offline.learner.update(offline.sample()))
    if not cfg.online.total_frames:  # the offline phase alone
        return
    with online_phase(cfg, problem, offline.folder, make) as online:
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
