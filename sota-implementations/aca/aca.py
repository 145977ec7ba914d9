# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""ACA (Yu & Zhang 2023): pre-train by SAC+ML, align the critic with the policy, fine-tune; or fine-tune by plain SAC.

    python sota-implementations/aca/aca.py task=locomotion-cpu seed=0
    python sota-implementations/aca/aca.py task=locomotion-cpu seed=0 learner=sac pretrained=runs/aca-aca/.../offline
    python sota-implementations/aca/aca.py task=locomotion level=random policy=runs/cql/.../seed0/offline

The updates are those of examples/aca.py, in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential
from torch import Tensor
from torchrl.objectives import SoftUpdate

from torchrl_o2o.envs import seed_everything
from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.functional import interpolation_weight
from torchrl_o2o.modules import Temperature, make_actor, make_baselines, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import ACALoss, BaselineLoss, EnsembleSACLoss, SACMLLoss
from torchrl_o2o.trainers import (
    HandOver,
    Learner,
    Pretrained,
    Problem,
    align,
    descend,
    finetune,
    hand_over,
    launch,
    load_problem,
    plain,
    pretrain_stage,
    product_dtype,
    run_options,
)

#: Sections that only the online phase reads.
ONLINE_ONLY = ("learner", "level", "alignment", "interpolation", "max_grad_norm")
FAMILIES = {"tanh": make_actor, "gaussian": make_gaussian_actor}


def make_policy(cfg: DictConfig, dims: tuple[int, int]) -> ProbabilisticTensorDictSequential:
    """The stochastic policy: squashed, or on AntMaze not."""
    check_option("policy_family", cfg.policy_family, tuple(FAMILIES))
    return FAMILIES[cfg.policy_family](*dims, **plain(cfg.actor))


def make_temperature(cfg: DictConfig, dims: tuple[int, int]) -> Temperature:
    """The temperature, starting at one."""
    return Temperature(cfg.target_entropy_per_dim * dims[1], form="log_alpha")


def means(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Batch means for the log."""
    return {name: value.detach().mean() for name, value in values.items()}


class Soft(Learner):
    """Soft actor-critic in the authors' order, which is that of the optimizers; what is learned, the subclasses say."""

    loss: SACMLLoss | ACALoss | EnsembleSACLoss

    def finish(self, cfg: DictConfig, *networks: str, max_grad_norm: float | None = None) -> None:
        """What follows the loss: optimizers of the temperature and then of the networks named; the actor's bound."""
        self.max_grad_norm = max_grad_norm
        self.loss.make_value_estimator(**plain(cfg.value_estimator))
        self.target_updater = SoftUpdate(self.loss, **plain(cfg.target))
        parts = {"alpha": self.loss.temperature}
        parts |= {name: getattr(self.loss, f"{name}_network_params") for name in networks}
        self.optims = {name: torch.optim.Adam(part.parameters(), **plain(cfg.optim)) for name, part in parts.items()}
        if cfg.compile:
            bounds = {} if max_grad_norm is None else {"actor": max_grad_norm}
            self.compile(max_grad_norm=bounds, matmul_dtype=product_dtype(cfg.matmul_dtype))

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Temperature, critics, baselines where there are any, and actor, one after the other; then the targets."""
        metrics: dict[str, Tensor] = {}
        for name, optim in self.optims.items():
            value, info = getattr(self.loss, f"{name}_loss")(batch)
            descend(optim, value, f"loss_{name}", max_grad_norm=self.max_grad_norm if name == "actor" else None)
            metrics |= {f"loss_{name}": value, **info}
        self.target_updater.step()
        return means(metrics)


class SACML(Soft):
    """Offline: soft actor-critic with a likelihood term, and the baseline that the alignment needs."""

    loss: SACMLLoss

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        self.actor, critics = make_policy(cfg, dims), make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
        baselines, temperature = make_baselines(dims[0], **plain(cfg.baseline)), make_temperature(cfg, dims)
        self.loss = SACMLLoss(self.actor, critics, baselines, temperature=temperature, **plain(cfg.sac_ml))
        self.finish(cfg, "qvalue", "baseline", "actor")


class Baselines(Learner):
    """Offline, for the policy of another learner: baselines on top of it; the policy stays as it is."""

    loss: BaselineLoss

    def __init__(self, cfg: DictConfig, dims: tuple[int, int], *, policy: Mapping[str, Tensor]) -> None:
        self.actor, baselines = make_policy(cfg, dims), make_baselines(dims[0], **plain(cfg.baseline))
        self.actor.load_state_dict(policy)
        self.loss = BaselineLoss(self.actor, baselines, **plain(cfg.policy_baseline))
        self.loss.make_value_estimator(**plain(cfg.value_estimator))
        parameters = self.loss.baseline_network_params.parameters()
        self.optims = {"baseline": torch.optim.Adam(parameters, **plain(cfg.optim))}
        if cfg.compile:
            self.compile(matmul_dtype=product_dtype(cfg.matmul_dtype))

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One step of the baselines."""
        out = self.loss(batch)
        descend(self.optims["baseline"], out["loss_baseline"], "loss_baseline")
        return means(dict(out.items()))


class ACA(Soft):
    """Online: the critic is k log pi_0 + R, where R starts as the baseline and k falls with the updates."""

    loss: ACALoss

    def __init__(self, cfg: DictConfig, dims: tuple[int, int], source: Mapping[str, Tensor]) -> None:
        self.actor, residuals = make_policy(cfg, dims), make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
        temperature = make_temperature(cfg, dims)
        self.loss = align(source, self.actor, residuals, temperature=temperature, **plain(cfg.alignment))
        self.finish(cfg, "qvalue", "actor", max_grad_norm=cfg.max_grad_norm)
        self.counter, self.schedule = {"updates": 0}, plain(cfg.interpolation)
        self.loss.interpolation = interpolation_weight(0, **self.schedule)

    def objects(self) -> dict[str, Any]:
        """With the number of updates, from which k is computed: a resumed run has the same k."""
        return super().objects() | {"counter": self.counter}

    def step(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """And at the end k."""
        info = super().step(batch) | {"interpolation": self.loss.interpolation.clone()}
        self.counter["updates"] += 1
        self.loss.interpolation = interpolation_weight(self.counter["updates"], **self.schedule)
        return info


class SAC(Soft):
    """The paper's comparison: plain soft actor-critic on the offline critics."""

    loss: EnsembleSACLoss

    def __init__(self, cfg: DictConfig, dims: tuple[int, int], source: Mapping[str, Tensor]) -> None:
        self.actor, critics = make_policy(cfg, dims), make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
        self.loss = EnsembleSACLoss(self.actor, critics, temperature=make_temperature(cfg, dims), actor_q="min")
        self.finish(cfg, "qvalue", "actor", max_grad_norm=cfg.max_grad_norm)


ONLINE = {"aca": ACA, "sac": SAC}


def policy_of(cfg: DictConfig, problem: Problem) -> tuple[DictConfig, dict[str, Tensor]]:
    """The policy that `policy` names, and the configuration with the sections that build it."""
    source = Pretrained.read(cfg.policy)
    source.check(problem)
    prefix = "actor_network_params."
    state = {key.removeprefix(prefix): value for key, value in source.states["loss"].items() if key.startswith(prefix)}
    if not any("log_std" in key for key in state):
        raise O2OSpecError(
            f"the policy of {source.folder} ({source.config['algorithm']}) is deterministic: it has no log-density "
            f"that a critic could be aligned with; name a pre-training with a Gaussian policy (CQL, AWAC, IQL)"
        )
    cfg = copy.deepcopy(cfg)
    cfg.policy_family = "gaussian" if any(key.endswith(".log_std") for key in state) else "tanh"
    cfg.actor = source.config["actor"]
    return cfg, state


def train(cfg: DictConfig) -> None:
    """Pre-train, or read a pre-training, or train baselines on another learner's policy; then fine-tune."""
    check_option("learner", cfg.learner, tuple(ONLINE))
    problem, make_offline = load_problem(cfg, "aca"), SACML
    if cfg.policy is not None:
        cfg, policy = policy_of(cfg, problem)
        make_offline = partial(Baselines, policy=policy)
    pretrained = pretrain_stage(cfg, problem, make_offline, online_only=ONLINE_ONLY)
    seed_everything(cfg.seed)
    learner, how = ONLINE[cfg.learner](cfg, problem.dims, pretrained.states["loss"]), HandOver(**plain(cfg.handover))
    hand_over(pretrained, learner, how)
    finetune(problem, learner, run_options(cfg, cfg.run_dir), handover=how, **plain(cfg.online))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    main()
