# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SPOT (Wu et al. 2022): fit a VAE to the data, pre-train inside its support, hand over, loosen the constraint online.

    python sota-implementations/spot/spot.py task=locomotion-cpu seed=0
    python sota-implementations/spot/spot.py task=locomotion-cpu pretrained=runs/spot/.../seed0/offline

The first `vae_steps` updates of the offline phase are the VAE's, the others are those of examples/spot.py: TD3's, as in
../td3_bc/td3_bc.py, on SPOT's loss.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional import spot_cooling
from torchrl_o2o.modules import make_action_vae, make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import SPOTLoss, VAELoss
from torchrl_o2o.trainers import (
    Learner,
    descend,
    finetune_stage,
    launch,
    load_problem,
    load_script,
    plain,
    pretrain_stage,
    product_dtype,
)

td3_bc = load_script("td3_bc")


class Density(Learner):
    """The VAE's own fit to the data."""

    loss: VAELoss

    def __init__(self, cfg: DictConfig, vae: TensorDictModule) -> None:
        self.loss = VAELoss(vae, beta=cfg.loss.vae_beta)
        self.optims = {"vae": torch.optim.Adam(self.loss.vae_network_params.parameters(), **plain(cfg.vae_optim))}
        if cfg.compile:
            self.compile(matmul_dtype=product_dtype(cfg.matmul_dtype))

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One step of the VAE."""
        loss_vae, info = self.loss.vae_loss(batch)
        descend(self.optims["vae"], loss_vae, "loss_vae")
        return {name: value.detach().mean() for name, value in {"loss_vae": loss_vae, **info}.items()}


class SPOT(td3_bc.TD3):
    """TD3 whose actor pays for actions that a VAE of the data finds unlikely.

    Args:
        cfg: the configuration.
        dims: observation and action dimension.
        online: the VAE is left as it was carried over, gamma is the online one and the constraint is cooled.
    """

    loss: SPOTLoss

    def __init__(self, cfg: DictConfig, dims: tuple[int, int], online: bool = False) -> None:
        vae = make_action_vae(*dims, **plain(cfg.vae))
        self.actor = make_deterministic_actor(*dims, **plain(cfg.actor))
        qvalues = make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
        self.density = Density(cfg, vae)  # trains the module that the next line's loss reads
        self.loss = SPOTLoss(self.actor, qvalues, vae, **plain(cfg.loss))
        self.loss.make_value_estimator(gamma=cfg.gamma_online if online else cfg.gamma)
        self.optims = {
            "qvalue": torch.optim.Adam(self.loss.qvalue_network_params.parameters(), **plain(cfg.qvalue_optim)),
            "actor": torch.optim.Adam(self.loss.actor_network_params.parameters(), **plain(cfg.actor_optim)),
        }
        self.finish(cfg)
        self.vae_steps, self.cooling_steps = (0, cfg.online.total_frames) if online else (cfg.vae_steps, None)
        self.cfg, self.counters["vae"] = cfg, 0

    def step(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """The VAE until it has had its steps; then TD3, online under a constraint that is cooled before each step."""
        if self.counters["vae"] < self.vae_steps:
            self.counters["vae"] += 1
            return self.density.step(batch)
        if self.cooling_steps is not None:
            step, floor = self.counters["updates"] + 1, self.cfg.cooling_floor
            self.loss.density_weight.fill_(spot_cooling(self.cfg.loss.density_weight, step, self.cooling_steps, floor))
        metrics = super().step(batch)
        return metrics | ({"penalty_of_data": self.loss.data_penalty(batch).mean()} if self.moves_actor else {})

    def objects(self) -> dict[str, Any]:
        """The VAE's optimizer, too; the counts are those that phase, delay and cooling go by."""
        return super().objects() | {"vae_optim": self.density.optims["vae"]}


def train(cfg: DictConfig) -> None:
    """Pre-train or read a pre-training, then fine-tune; the optimizers are made anew at the hand-over."""
    if cfg.offline.num_steps < cfg.vae_steps:
        raise O2OSpecError(
            f"got offline.num_steps={cfg.offline.num_steps}, which counts the {cfg.vae_steps} of vae_steps, too; "
            f"expected at least as many"
        )
    problem = load_problem(cfg, "spot")
    pretrained = pretrain_stage(cfg, problem, SPOT)
    finetune_stage(cfg, problem, pretrained, partial(SPOT, online=True))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    main()
