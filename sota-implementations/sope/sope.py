# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SOPE, SPEQ-O2O and SPEQ: one update per step, and phases that train only the critics on the present data.

    python sota-implementations/sope/sope.py task=halfcheetah preset=cpu seed=0
    python sota-implementations/sope/sope.py task=halfcheetah preset=cpu algorithm=speq_o2o
    python sota-implementations/sope/sope.py task=halfcheetah preset=cpu phases.rule.sope_code=true target_entropy=-2

A phase follows every `phases.every` environment steps, before that step's own update, as in examples/sope.py.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from torchrl_o2o.errors import check_option
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import (
    StoppingRule,
    is_due,
    launch,
    load_problem,
    online_phase,
    plain,
    stabilize,
)
from torchrl_o2o.trainers.algorithms import check_phases, make_critics_alone, make_sope, phase_settings


def train(cfg: DictConfig) -> None:
    """Learn online and from the data, with phases that train only the critics."""
    check_option("handover.data", cfg.handover.data, ("symmetric", "none"))
    problem, rule = load_problem(cfg, "sope"), StoppingRule(**plain(cfg.phases.rule))
    num_offline = len(problem.offline) if cfg.handover.data == "symmetric" else 0
    check_phases(cfg, num_offline)
    phase = phase_settings(cfg, num_offline)
    with online_phase(cfg, problem, None, make_sope) as run:
        alone = make_critics_alone(cfg, run.learner)
        for step, data in run.steps():
            run.buffer.extend(problem.convention.online(data).select(*run.learner.keys))
            if run.may_update(step):
                metrics = {}
                if is_due(step, cfg.phases.every):
                    metrics = stabilize(run.learner, alone, run.buffer, rule, **phase).metrics()
                run.log(run.learner.update(run.sample()) | metrics)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
