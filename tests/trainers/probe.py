# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A small learner and the options of its runs, for the tests of the phases and of the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import SoftUpdate

from torchrl_o2o.modules import make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import AWACLoss
from torchrl_o2o.trainers.learner import Learner
from torchrl_o2o.trainers.optim import descend
from torchrl_o2o.trainers.options import RunOptions
from torchrl_o2o.trainers.session import Schedule

ENV = "torchrl_o2o_tests/ContextualTarget-v0"


class AWAC(Learner):
    loss: AWACLoss

    def __init__(self, width: int = 32, lr: float = 3e-3) -> None:
        torch.manual_seed(0)
        self.actor = make_gaussian_actor(1, 1, hidden_sizes=(width,))
        critics = make_qvalue_ensemble(1, 1, num_qvalue_nets=2, hidden_sizes=(width,), layer_norm=False)
        self.loss = AWACLoss(self.actor, critics, awac_lambda=0.1)
        self.updater = SoftUpdate(self.loss, tau=0.05)
        self.optims = {
            "qvalue": torch.optim.Adam(self.loss.qvalue_network_params.parameters(), lr=lr),
            "actor": torch.optim.Adam(self.loss.actor_network_params.parameters(), lr=lr),
        }

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        loss_qvalue, _ = self.loss.qvalue_loss(batch)
        descend(self.optims["qvalue"], loss_qvalue, "loss_qvalue")
        loss_actor, _ = self.loss.actor_loss(batch)
        descend(self.optims["actor"], loss_actor, "loss_actor")
        self.updater.step()
        return {"loss_qvalue": loss_qvalue.detach()}


def options(folder: Path, **changes: Any) -> RunOptions:
    given = {"seed": 0, "schedule": Schedule(50, 10, 100), "evaluation": {"num_episodes": 5}} | changes
    return RunOptions(folder, {"algorithm": "probe", "env": {"env_id": ENV}}, **given)
