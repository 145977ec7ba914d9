# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""TD3+BC (Fujimoto & Gu 2021): pre-train, hand over, go on online with the same loss and exploration noise.

    python sota-implementations/td3_bc/td3_bc.py task=locomotion-cpu seed=0
    python sota-implementations/td3_bc/td3_bc.py task=locomotion-cpu pretrained=runs/td3_bc/.../seed0/offline

The update is that of examples/td3_bc.py, in the same order. The paper is offline only; this is the usual baseline.
"""

from __future__ import annotations

from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torch import Tensor
from torchrl.modules import AdditiveGaussianModule
from torchrl.objectives import SoftUpdate

from torchrl_o2o.modules import make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import SPOTLoss, TD3BCLoss
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
from torchrl_o2o.updates import CompiledUpdate, compile_update


class TD3(Learner):
    """TD3's update, which SPOT has as well; a subclass builds actor, loss and optimizers, critics first."""

    loss: TD3BCLoss | SPOTLoss
    critics_alone: CompiledUpdate | None = None

    def finish(self, cfg: DictConfig) -> None:
        """What follows the loss and the optimizers."""
        self.target_updater = SoftUpdate(self.loss, **plain(cfg.target))
        self.noise = AdditiveGaussianModule(self.actor.spec, **plain(cfg.exploration))
        self.policy_delay, self.counters = cfg.policy_delay, {"updates": 0}
        if cfg.compile:
            dtype = product_dtype(cfg.matmul_dtype)
            self.critics_alone = compile_update(self.loss, {"qvalue": self.optims["qvalue"]}, matmul_dtype=dtype)
            self.compile(matmul_dtype=dtype)

    @property
    def explorer(self) -> TensorDictModuleBase:
        """The actor with noise behind it."""
        return TensorDictSequential(self.actor, self.noise)

    @property
    def moves_actor(self) -> bool:
        """Whether the running update steps the actor and the targets, too."""
        return self.counters["updates"] % self.policy_delay == 0

    @property
    def compiled(self) -> CompiledUpdate | None:
        """The whole update or the critics' part of it, which share loss and optimizers."""
        return super().compiled if self.moves_actor else self.critics_alone

    def step(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Count, and update, compiled or not."""
        self.counters["updates"] += 1
        return super().step(batch)

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Critics; at every second update the actor on the new critics, and all targets."""
        loss_qvalue, info = self.loss.qvalue_loss(batch)
        descend(self.optims["qvalue"], loss_qvalue, "loss_qvalue")
        metrics = {"loss_qvalue": loss_qvalue, **info}
        if self.moves_actor:
            loss_actor, actor_info = self.loss.actor_loss(batch)
            descend(self.optims["actor"], loss_actor, "loss_actor")
            self.target_updater.step()
            metrics |= {"loss_actor": loss_actor, **actor_info}
        return {name: value.detach().mean() for name, value in metrics.items()}

    def objects(self) -> dict[str, Any]:
        """The count that the delay goes by, too."""
        return super().objects() | {"update_counters": self.counters}


class TD3BC(TD3):
    """Critics on smoothed target actions; the actor climbs the first and is held to the recorded actions."""

    loss: TD3BCLoss

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        self.actor = make_deterministic_actor(*dims, **plain(cfg.actor))
        self.loss = TD3BCLoss(self.actor, make_qvalue_ensemble(*dims, **plain(cfg.qvalue)), **plain(cfg.loss))
        self.loss.make_value_estimator(**plain(cfg.value_estimator))
        actor, critics = self.loss.actor_network_params, self.loss.qvalue_network_params
        self.optims = {
            "qvalue": torch.optim.Adam(critics.parameters(), **plain(cfg.optim)),
            "actor": torch.optim.Adam(actor.parameters(), **plain(cfg.optim)),
        }
        self.finish(cfg)


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, then fine-tune."""
    problem = load_problem(cfg, "td3_bc")
    pretrained = pretrain_stage(cfg, problem, TD3BC)
    finetune_stage(cfg, problem, pretrained, TD3BC)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    main()
