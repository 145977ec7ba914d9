# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""AWAC (Nair et al. 2020): pre-train, hand over, fine-tune, with one update for both phases.

    python sota-implementations/awac/awac.py task=locomotion-cpu seed=0
    python sota-implementations/awac/awac.py task=locomotion-cpu seed=0 pretrained=runs/awac/.../seed0/offline
    python sota-implementations/awac/awac.py task=adroit reference=authors_hand

The update is that of examples/awac.py, in the same order.
"""

from __future__ import annotations

import hydra
import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import SoftUpdate

from torchrl_o2o.modules import make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import AWACLoss
from torchrl_o2o.trainers import (
    Learner,
    descend,
    finetune_stage,
    launch,
    load_problem,
    plain,
    pretrain_stage,
    product_dtype,
)


class AWAC(Learner):
    """Critics on one-step targets without entropy; the actor by weighted likelihood of recorded actions."""

    loss: AWACLoss

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        self.actor = make_gaussian_actor(*dims, **plain(cfg.actor))
        self.loss = AWACLoss(self.actor, make_qvalue_ensemble(*dims, **plain(cfg.qvalue)), **plain(cfg.loss))
        self.loss.make_value_estimator(**plain(cfg.value_estimator))
        self.target_updater = SoftUpdate(self.loss, **plain(cfg.target))
        actor, critics = self.loss.actor_network_params, self.loss.qvalue_network_params
        self.optims = {
            "qvalue": torch.optim.Adam(critics.parameters(), **plain(cfg.optim)),
            "actor": torch.optim.Adam(actor.parameters(), weight_decay=cfg.actor_weight_decay, **plain(cfg.optim)),
        }
        if cfg.compile:
            self.compile(matmul_dtype=product_dtype(cfg.matmul_dtype))

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """CORL's order: critics, then the actor on the new critics, then the targets."""
        loss_qvalue, info = self.loss.qvalue_loss(batch)
        descend(self.optims["qvalue"], loss_qvalue, "loss_qvalue")
        loss_actor, actor_info = self.loss.actor_loss(batch)
        descend(self.optims["actor"], loss_actor, "loss_actor")
        self.target_updater.step()
        means = {name: value.mean() for name, value in (info | actor_info).items()}
        return {"loss_qvalue": loss_qvalue.detach(), "loss_actor": loss_actor.detach(), **means}


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, then fine-tune."""
    problem = load_problem(cfg, "awac")
    pretrained = pretrain_stage(cfg, problem, AWAC)
    finetune_stage(cfg, problem, pretrained, AWAC)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    main()
