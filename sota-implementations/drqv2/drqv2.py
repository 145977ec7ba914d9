# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""DrQ-v2 (Yarats et al. 2021), and DrQ-v2+BC, BC and DrQ-v2+CQL from recorded images (Lu et al. 2023).

python sota-implementations/drqv2/drqv2.py seed=0
python sota-implementations/drqv2/drqv2.py preset=online env.env_id=... task_name=... seed=0
python sota-implementations/drqv2/drqv2.py algorithm=bc seed=0
python sota-implementations/drqv2/drqv2.py algorithm=drqv2_cql n_step=1 seed=0
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig
from tensordict.nn import TensorDictSequential

from torchrl_o2o.data import BalancedSampler, EpisodeRows
from torchrl_o2o.functional import linear_schedule
from torchrl_o2o.objectives import DrQV2Loss
from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import launch
from torchrl_o2o.trainers.algorithms import PixelRun, make_drqv2


def train(cfg: DictConfig) -> None:
    """Learn from the data, then online; either may have no steps."""
    rows = EpisodeRows(cfg.n_step, cfg.value_estimator.gamma)
    run = PixelRun(cfg, make_drqv2, rows=rows)
    learner, sampler = run.learner, run.buffer.sampler
    loss, explorer = learner.loss, learner.explorer
    assert isinstance(loss, DrQV2Loss)
    assert isinstance(explorer, TensorDictSequential)
    assert isinstance(sampler, BalancedSampler)

    def shrink_noise(counted: int) -> None:
        std = linear_schedule(counted, cfg.std.start, cfg.std.end, cfg.std.duration)
        loss.std.fill_(std)
        explorer[-1].get_buffer("sigma").fill_(std)

    with run.session as session:
        sampler.offline_fraction = float(cfg.offline.num_steps > 0)
        for step in session.offline(cfg.offline.num_steps):
            shrink_noise(2 * (step + cfg.offline.num_steps - 1))  # the counter from before the update
            session.log(learner.update(run.buffer.sample()))
        sampler.offline_fraction, before = cfg.offline_fraction, 2 * cfg.offline.num_steps
        shrink_noise(before + run.collector.frames)
        for step, transition in session.online(run.collector) if cfg.online.total_frames else ():
            run.buffer.extend(rows.add(transition))
            shrink_noise(before + step)
            has_rows = len(run.buffer) > len(run.data)
            if step >= cfg.online.init_random_frames and step % cfg.update_every == 0 and has_rows:
                session.log(learner.update(run.buffer.sample()))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    start(main)
