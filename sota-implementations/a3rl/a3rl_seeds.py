# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A3RL and its ablations, many seeds in one process: N agents, one update, N run folders.

    python sota-implementations/a3rl/a3rl_seeds.py task=halfcheetah-linear-mix seeds=[0,1,2,3,4]

Configuration, random numbers and run folders are those of a3rl.py with each of the seeds. Actors, critics and density
ratios of all seeds are stacked (../rlpd/rlpd_seeds.py, docs/seeds.md); each seed scores its own pool.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

from torchrl_o2o.seeds import StackedDensityRatio, StackedOptimizer
from torchrl_o2o.trainers import load_script

rlpd_seeds = load_script("rlpd/rlpd_seeds")
Metrics = rlpd_seeds.Metrics


@dataclass
class SeedRuns(rlpd_seeds.SeedRuns):
    """RLPD's seeds with density ratios and scored pools."""

    density: StackedDensityRatio = field(init=False)
    density_optim: StackedOptimizer = field(init=False)

    def __post_init__(self) -> None:
        """Stack the density ratios as well."""
        parts: list[Any] = [run.density for run in self.runs]
        self.density = StackedDensityRatio([part.loss for part in parts])
        self.density_optim = StackedOptimizer([part.optim for part in parts], self.density.leaves)
        if self.cfg.compile:
            self.density.compile()

    @property
    def optimizers(self) -> list[StackedOptimizer]:
        """Those of the learner and of the density ratio."""
        return [*super().optimizers, self.density_optim]

    def update_density(self) -> Metrics:
        """Density.update of a3rl.py, all agents at once."""
        info: Metrics = {}
        if len(self.runs[0].buffer) == self.runs[0].num_offline:
            return info
        size = self.cfg.training.batch_size
        for _ in range(self.cfg.density_updates):
            rows = torch.stack(self.sample(lambda agent: self.runs[agent].density.draw(self.runs[agent].buffer, size)))
            losses, info = self.density.density_ratio_loss(rows[:, 0::2], rows[:, 1::2])  # even rows are offline
            self.density_optim.descend(losses, "loss_density_ratio")
            info = {**info, "loss_density_ratio": losses.detach()}
        return info

    def replay(self, at: int) -> list[Metrics]:
        """Run.replay of a3rl.py, all agents at once but for the scores of their pools."""
        for run in self.runs:
            run.anneal(at)
        info = self.update_density() if self.cfg.density_update == "before" else {}
        batches = self.sample(lambda agent: self.runs[agent].buffer.sample())
        metrics = self.update(batches)
        if self.cfg.density_update == "after":
            info = self.update_density()
        each = self.each(at, metrics | info)
        return [own | run.sampled(at, batch) for run, own, batch in zip(self.runs, each, batches, strict=True)]


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train all seeds into their run folders."""
    rlpd_seeds.launch(cfg, load_script("a3rl"), SeedRuns)


if __name__ == "__main__":
    rlpd_seeds.accept_seeds()
    main()
