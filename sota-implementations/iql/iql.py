# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""IQL (Kostrikov et al. 2022): pre-train, hand over, fine-tune, with one update for both phases.

    python sota-implementations/iql/iql.py task=locomotion-cpu seed=0
    python sota-implementations/iql/iql.py task=locomotion-cpu seed=0 pretrained=runs/iql/.../seed0/offline
    python sota-implementations/iql/iql.py task=antmaze reference=corl

The authors' update is that of examples/iql.py, in the same order.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives import SoftUpdate

from torchrl_o2o.errors import check_option
from torchrl_o2o.modules import make_gaussian_actor, make_qvalue_ensemble, make_value_network
from torchrl_o2o.objectives import IQLLoss
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


class IQL(Learner):
    """V by expectile regression, the actor by weighted likelihood, critics on V.

    Args:
        cfg: the configuration.
        dims: observation and action dimension.
        decay_steps: length of the cosine by which the actor's learning rate falls to 0; ``None`` keeps it.
    """

    loss: IQLLoss

    def __init__(self, cfg: DictConfig, dims: tuple[int, int], decay_steps: int | None = None) -> None:
        check_option("order", cfg.order, ("authors", "corl"))
        self.actor = make_gaussian_actor(*dims, **plain(cfg.actor))
        qvalues, value = (
            make_qvalue_ensemble(*dims, **plain(cfg.qvalue)),
            make_value_network(dims[0], **plain(cfg.value)),
        )
        self.loss = IQLLoss(self.actor, qvalues, value, **plain(cfg.loss))
        self.loss.make_value_estimator(**plain(cfg.value_estimator))
        self.actor.eval()  # it acts without dropout and is in training mode only while it trains
        self.target_updater = SoftUpdate(self.loss, **plain(cfg.target))
        self.optims = {
            name: torch.optim.Adam(getattr(self.loss, f"{name}_network_params").parameters(), **plain(cfg.optim))
            for name in ("value", "actor", "qvalue")
        }
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR
        self.schedule = None if decay_steps is None else cosine(self.optims["actor"], max(decay_steps, 1))
        self.update_all = self.authors_order if cfg.order == "authors" else self.corl_order
        if cfg.compile and not cfg.actor.get("dropout"):  # its random numbers are not the loss's
            self.compile(joint=cfg.order == "corl", matmul_dtype=product_dtype(cfg.matmul_dtype))

    def step(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One update, and where the phase has one the next learning rate of the actor."""
        metrics = super().step(batch)
        if self.schedule is not None:
            self.schedule.step()
        return {**metrics, "lr_actor": torch.tensor(self.optims["actor"].param_groups[0]["lr"])}

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One step of each network, in the order that the configuration names."""
        return {name: value.detach().mean() for name, value in self.update_all(batch).items()}

    def authors_order(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """V; then the actor and the critics, both on the new V; then the targets."""
        loss_value, info = self.loss.value_loss(batch)
        descend(self.optims["value"], loss_value, "loss_value")
        loss_actor, actor_info = self.step_actor(batch)
        loss_qvalue, critic_info = self.loss.qvalue_loss(batch)
        descend(self.optims["qvalue"], loss_qvalue, "loss_qvalue")
        self.target_updater.step()
        losses = {"loss_value": loss_value, "loss_actor": loss_actor, "loss_qvalue": loss_qvalue}
        return {**losses, **info, **actor_info, **critic_info}

    def corl_order(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """CORL's and PEX's: advantage and V(s') from the *old* V, the actor last."""
        target = self.loss.target_value(batch)
        loss_value, info = self.loss.value_loss(batch)
        descend(self.optims["value"], loss_value, "loss_value")
        loss_qvalue, critic_info = self.loss.qvalue_loss(batch, target_value=target)
        descend(self.optims["qvalue"], loss_qvalue, "loss_qvalue")
        self.target_updater.step()
        loss_actor, actor_info = self.step_actor(batch, info["advantage"])
        losses = {"loss_value": loss_value, "loss_actor": loss_actor, "loss_qvalue": loss_qvalue}
        return {**losses, **info, **actor_info, **critic_info}

    def step_actor(self, batch: TensorDictBase, advantage: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The actor, with dropout if it has any."""
        self.actor.train()
        loss_actor, info = self.loss.actor_loss(batch, old_advantage=advantage)
        self.actor.eval()
        descend(self.optims["actor"], loss_actor, "loss_actor")
        return loss_actor, info

    def objects(self) -> dict[str, Any]:
        """The schedule, too, where there is one."""
        return super().objects() | ({} if self.schedule is None else {"actor_schedule": self.schedule})


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, then fine-tune; the learning rate decays offline only."""
    problem = load_problem(cfg, cfg.convention_of)
    decay_steps = cfg.offline.num_steps if cfg.decay_actor_lr else None
    pretrained = pretrain_stage(cfg, problem, partial(IQL, decay_steps=decay_steps))
    finetune_stage(cfg, problem, pretrained, IQL)


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    main()
