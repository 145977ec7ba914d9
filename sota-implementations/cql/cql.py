# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""CQL (Kumar et al. 2020) and Cal-QL (Nakamoto et al. 2023): conservative values offline, fine-tuned online.

    python sota-implementations/cql/cql.py algorithm=cal_ql task=antmaze-medium seed=0
    python sota-implementations/cql/cql.py algorithm=cql task=halfcheetah preset=cpu seed=0
    python sota-implementations/cql/cql.py algorithm=cql learner=sac preset=cpu pretrained=runs/cql/.../offline

The update is that of examples/cal_ql.py: all gradients at the same parameters, then all steps, then the targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import hydra
from omegaconf import DictConfig
from tensordict import TensorDictBase

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.data import TRANSITION
from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import (
    Finetuning,
    Trajectory,
    end_episodes_at_success,
    launch,
    load_problem,
    offline_phase,
    online_phase,
    returns_of,
)
from torchrl_o2o.trainers.algorithms import make_cal_ql, make_cql, make_sac_after_cql

#: Entries that only the online phase reads.
ONLINE_ONLY = ("learner", "collect", "utd_ratio")
LEARNERS = {"cql": make_cql, "cal_ql": make_cal_ql, "sac": make_sac_after_cql}


def check(cfg: DictConfig) -> None:
    """Raise for settings that do not fit together, before anything is trained."""
    check_option("algorithm", cfg.algorithm, ("cql", "cal_ql"))
    check_option("learner", cfg.learner, tuple(LEARNERS))
    check_option("collect", cfg.collect, ("step", "trajectory"))
    if cfg.learner == "cal_ql" and cfg.collect == "step":
        raise O2OSpecError(
            "Cal-QL needs the returns of whole trajectories, but collect=step; set collect=trajectory, or learner=cql "
            "to turn the calibration off online as CORL does"
        )


def finetune_step_by_step(online: Finetuning) -> None:
    """CORL's online phase: one update per environment step."""
    with online:
        for step, data in online.steps():
            online.buffer.extend(online.problem.convention.online(data).select(*online.learner.keys))
            if online.may_update(step):
                online.log(online.learner.update(online.sample()))


def finetune_trajectories(
    online: Finetuning, trajectory: Trajectory, utd_ratio: int, add_return: Callable[[TensorDictBase], TensorDictBase]
) -> None:
    """The authors' online phase: a whole trajectory, its returns, then `utd_ratio` updates for each of its steps."""

    def learn(step: int) -> None:
        rows = trajectory.take()
        online.buffer.extend(add_return(rows).select(*online.learner.keys))  # SAC leaves the returns out
        for _ in range(len(rows) * utd_ratio if online.may_update(step) else 0):
            trajectory.metrics = online.learner.update(online.sample())
        online.log(trajectory.metrics)

    assert isinstance(online.collector, StepCollector)
    online.collector.on_cut = trajectory.truncate  # its last row is not in the buffer yet
    with online:
        online.log(trajectory.metrics)  # of a resumed run
        for step, data in online.steps():
            if trajectory.over:  # cut by a failure of the environment
                learn(step)
            trajectory.rows.append(online.problem.convention.online(data).select(*TRANSITION))
            if trajectory.over:
                learn(step)


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, then fine-tune."""
    check(cfg)
    problem = end_episodes_at_success(cfg, load_problem(cfg, cfg.algorithm))
    add_return = returns_of(cfg, problem)
    if "cal_ql" in (cfg.algorithm, cfg.learner):
        problem = replace(problem, offline=add_return(problem.offline))
    with offline_phase(
        cfg, problem, LEARNERS[cfg.algorithm], then=LEARNERS[cfg.learner], online_only=ONLINE_ONLY
    ) as offline:
        for _ in offline.steps():
            offline.log(offline.learner.update(offline.sample()))
    if not cfg.online.total_frames:  # the offline phase alone
        return
    trajectory = Trajectory()
    objects = {"trajectory": trajectory} if cfg.collect == "trajectory" else {}
    online = online_phase(cfg, problem, offline.folder, LEARNERS[cfg.learner], objects=objects)
    if cfg.collect == "trajectory":
        finetune_trajectories(online, trajectory, cfg.utd_ratio, add_return)
    else:
        finetune_step_by_step(online)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
