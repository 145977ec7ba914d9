# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Behavior cloning, of all episodes or of the best, and what may follow it: nothing, more cloning, or SAC.

python sota-implementations/bc/bc.py task=locomotion-cpu seed=0
python sota-implementations/bc/bc.py task=locomotion-cpu learner=none best_episodes=0.1       # 10 % BC, offline only
python sota-implementations/bc/bc.py task=locomotion-cpu policy=tanh_gaussian learner=sac     # SAC with a BC start
"""

from __future__ import annotations

from dataclasses import replace

import hydra
import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torchrl.objectives import SoftUpdate

from torchrl_o2o.data.transforms import AffineReward, episode_returns
from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.modules import (
    Temperature,
    make_actor,
    make_deterministic_actor,
    make_gaussian_actor,
    make_qvalue_ensemble,
)
from torchrl_o2o.objectives import BCLoss, EnsembleSACLoss
from torchrl_o2o.trainers import (
    Learner,
    Problem,
    descend,
    finetune_stage,
    launch,
    load_problem,
    load_script,
    plain,
    pretrain_stage,
    product_dtype,
    top_episodes,
)

POLICIES = {
    "deterministic": make_deterministic_actor,
    "gaussian": make_gaussian_actor,
    "tanh_gaussian": make_actor,
}


def make_policy(cfg: DictConfig, dims: tuple[int, int]) -> ProbabilisticTensorDictSequential | TensorDictModule:
    """The policy that the configuration names, the same for both phases."""
    check_option("policy", cfg.policy, tuple(POLICIES))
    return POLICIES[cfg.policy](*dims, **plain(cfg.actor))


class BC(Learner):
    """Squared error of a deterministic policy, negative log-likelihood of a stochastic one."""

    loss: BCLoss

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        self.actor = make_policy(cfg, dims)
        self.loss = BCLoss(self.actor)
        self.optims = {"actor": torch.optim.Adam(self.loss.actor_network_params.parameters(), **plain(cfg.optim))}
        if cfg.compile:
            self.compile(matmul_dtype=product_dtype(cfg.matmul_dtype))

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """One step of cloning."""
        loss_actor, _ = self.loss.actor_loss(batch)
        descend(self.optims["actor"], loss_actor, "loss_actor")
        return {"loss_actor": loss_actor.detach()}


class SAC(Learner):
    """SAC from the cloned policy, with critics and temperature of its own (section ``sac``)."""

    loss: EnsembleSACLoss

    def __init__(self, cfg: DictConfig, dims: tuple[int, int]) -> None:
        settings, (_, action_dim) = cfg.sac, dims
        self.actor = make_policy(cfg, dims)
        temperature = Temperature(settings.target_entropy_per_dim * action_dim, **plain(settings.temperature))
        qvalues = make_qvalue_ensemble(*dims, **plain(settings.qvalue))
        self.loss = EnsembleSACLoss(self.actor, qvalues, temperature=temperature, **plain(settings.loss))
        self.loss.make_value_estimator(**plain(settings.value_estimator))
        parts = {
            "qvalue": self.loss.qvalue_network_params,
            "actor": self.loss.actor_network_params,
            "alpha": self.loss.temperature,
        }
        self.optims = {
            name: torch.optim.Adam(part.parameters(), **plain(settings.optim)) for name, part in parts.items()
        }
        updater, self.minibatch = SoftUpdate(self.loss, **plain(settings.target)), settings.batch_size
        optims, dtype = self.optims.values(), product_dtype(cfg.matmul_dtype)
        self.inner = load_script("rlpd").Learner(self.loss, *optims, updater, cfg.compile, dtype)

    def update(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """RLPD's update: a critic step on each minibatch, then one of actor and temperature."""
        return self.inner.update(batch, self.minibatch)


def best_only(problem: Problem, share: float) -> Problem:
    """The same problem with only the best episodes, at least one, by the environment's own undiscounted return."""
    if not 0.0 < share <= 1.0:
        raise O2OSpecError(f"got best_episodes={share}, expected a share in (0, 1]; 0.1 is the usual 10 % BC")
    if share == 1.0:
        return problem
    number = max(1, int(share * len(episode_returns(problem.offline))))
    reward = problem.convention.reward
    recorded = AffineReward(1.0 / reward.scale, -reward.shift / reward.scale)(problem.offline)
    best = top_episodes(recorded, number)["episode"]
    return replace(problem, offline=problem.offline[torch.isin(problem.offline["episode"], best)])


def train(cfg: DictConfig) -> None:
    """Clone, or read what was cloned; go on as ``learner`` says."""
    learners = {"none": None, "bc": BC, "sac": SAC}
    check_option("learner", cfg.learner, tuple(learners))
    if cfg.learner == "sac" and cfg.policy == "deterministic":
        raise O2OSpecError("learner=sac needs a stochastic policy; clone policy=tanh_gaussian or policy=gaussian")
    problem = load_problem(cfg, "bc")
    pretrained = pretrain_stage(cfg, best_only(problem, cfg.best_episodes), BC)
    if learners[cfg.learner] is not None:
        finetune_stage(cfg, problem, pretrained, learners[cfg.learner])


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    launch(cfg, train)


if __name__ == "__main__":
    main()
