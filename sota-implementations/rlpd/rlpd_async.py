# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""rlpd.py with actors in separate processes, two unless actors= says otherwise; the learner does not wait for them.

    python sota-implementations/rlpd/rlpd_async.py task=halfcheetah data=linear-mix-v0 actors=4 seed=0
    python sota-implementations/rlpd/rlpd_async.py task=halfcheetah actors=4 fleet.slack=20 fleet.max_staleness=200
    python sota-implementations/rlpd/rlpd_async.py task=halfcheetah actors=8 resume=true  # after an interruption

The actors are TorchRL's asynchronous collectors, a process each. What is promised about counts, staleness and faults is
in docs/actors_elsewhere.md.
"""

from __future__ import annotations

from typing import cast

import hydra
import rlpd
from omegaconf import DictConfig, OmegaConf

from torchrl_o2o.scripts import start
from torchrl_o2o.trainers import accept_actors, launch


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    merged = cast(DictConfig, OmegaConf.merge({"actors": 2}, cfg))  # OmegaConf's annotation includes lists
    launch(merged, rlpd.train, optional=("actors", "fleet"))


if __name__ == "__main__":
    accept_actors()
    start(main)
