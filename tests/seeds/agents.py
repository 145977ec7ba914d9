# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Small agents for the tests of torchrl_o2o/seeds: equal but for their seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch.optim import AdamW
from torchrl.objectives import SoftUpdate

from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.objectives.noise import GeneratorNoise
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.optim import weight_decay_groups

OBSERVATION, ACTION, BATCH, TAU = 5, 2, 16, 0.01


@dataclass
class Agent:
    """What one agent learns with."""

    loss: EnsembleSACLoss
    critic_optim: AdamW
    actor_optim: AdamW
    alpha_optim: AdamW
    updater: SoftUpdate

    def update(self, batch: TensorDict) -> dict[str, torch.Tensor]:
        """The update of sota-implementations/rlpd/rlpd.py."""
        for minibatch in batch.split(BATCH):
            loss_qvalue, info = self.loss.qvalue_loss(minibatch)
            descend(self.critic_optim, loss_qvalue)
            self.updater.step()
        loss_actor, actor_info = self.loss.actor_loss(minibatch)
        descend(self.actor_optim, loss_actor)
        loss_alpha, alpha_info = self.loss.alpha_loss(minibatch, log_prob=actor_info["log_prob"])
        descend(self.alpha_optim, loss_alpha)
        losses = {"loss_qvalue": loss_qvalue, "loss_actor": loss_actor, "loss_alpha": loss_alpha}
        means = {"qvalue": info["qvalue"].mean(), "target_value": info["target_value"].mean()}
        return losses | alpha_info | means


def descend(optim: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optim.zero_grad()
    loss.backward()
    optim.step()


def make_agent(
    seed: int, *, members: int = 4, dropout: float | None = None, form: Any = "alpha", **settings: Any
) -> Agent:
    torch.manual_seed(seed)
    critics = make_qvalue_ensemble(OBSERVATION, ACTION, num_qvalue_nets=members, hidden_sizes=(16, 16), dropout=dropout)
    settings = {"sub_sample_len": 2, "temperature": Temperature(-1.0, init=0.3, form=form)} | settings
    loss = EnsembleSACLoss(make_actor(OBSERVATION, ACTION, hidden_sizes=(16, 16)), critics, **settings)
    loss.noise = GeneratorNoise(torch.Generator().manual_seed(100 + seed))
    updater = SoftUpdate(loss, tau=TAU)
    groups = weight_decay_groups(loss.qvalue_network_params, 0.01)
    return Agent(
        loss,
        AdamW(groups, lr=1e-2, fused=True),
        AdamW(loss.actor_network_params.parameters(), lr=1e-2, weight_decay=0.0),
        AdamW(loss.temperature.parameters(), lr=1e-2, weight_decay=0.0),
        updater,
    )


def make_batches(agents: int, updates: int, *, utd_ratio: int = 3, weighted: bool = False) -> TensorDict:
    """Transitions of shape [updates, agents, utd_ratio * BATCH] in torch's default type."""
    rows = random_transitions(updates * agents * utd_ratio * BATCH, OBSERVATION, ACTION)
    rows = rows.apply(lambda value: value.to(torch.get_default_dtype()) if value.is_floating_point() else value)
    if weighted:
        rows.set("priority_weight", torch.rand(len(rows)) + 0.5)
    return rows.reshape(updates, agents, utd_ratio * BATCH)
