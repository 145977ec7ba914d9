# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A3RL (Liu et al. 2025) and its ablations, with the paper's settings, logs and resume.

    python sota-implementations/a3rl/a3rl.py task=halfcheetah-linear-mix seed=0
    python sota-implementations/a3rl/a3rl.py -m priority=advantage_density,td,uniform seed=0,1,2

The learner, its update and the run's outer shape are those of ../rlpd/rlpd.py; here are the density ratio, the score,
the sampler and the order of the two updates. A test runs this and examples/a3rl.py and compares every parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer

from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.data import (
    BalancedSampler,
    OnlineWriter,
    PoolSampler,
    load_offline,
    offline_online_storage,
)
from torchrl_o2o.data.transforms import AffineReward
from torchrl_o2o.envs import GuardedEnv, make_gym_env, seed_everything
from torchrl_o2o.functional import annealed_beta
from torchrl_o2o.modules import DensityRatio
from torchrl_o2o.objectives import DensityRatioLoss, EnsembleSACLoss, join_sources
from torchrl_o2o.priorities import Advantage, DensityRatioScore, LogPriority, Sum, TDError
from torchrl_o2o.record import Recorder
from torchrl_o2o.trainers import load_script

rlpd = load_script("rlpd")
plain = rlpd.plain


@dataclass
class Density:
    """The density ratio's loss and optimizer, and the rows it learns from."""

    loss: DensityRatioLoss
    optim: torch.optim.Optimizer
    rows: BalancedSampler

    def update(self, buffer: TensorDictReplayBuffer, updates: int, batch_size: int) -> dict[str, Tensor]:
        """Steps on uniform rows, half of either source; nothing while there are no online rows or none wanted."""
        info: dict[str, Tensor] = {}
        if len(buffer) == self.rows.num_offline:
            return info
        for _ in range(updates):
            rows = self.draw(buffer, batch_size)
            value, info = self.loss.density_ratio_loss(join_sources(rows[0::2], rows[1::2]))  # even rows are offline
            rlpd.step(self.optim, value, "loss_density_ratio")
            info = {**info, "loss_density_ratio": value.detach()}
        return info

    def draw(self, buffer: TensorDictReplayBuffer, batch_size: int) -> TensorDictBase:
        """Uniform rows, by turns offline and online."""
        return buffer.storage.get(self.rows.sample(buffer.storage, batch_size)[0])


def make_density(cfg: DictConfig, observation_dim: int, action_dim: int, num_offline: int) -> Density:
    """The density ratio from its sections."""
    loss = DensityRatioLoss(
        DensityRatio(observation_dim, action_dim, **plain(cfg.density_ratio)), **plain(cfg.density_loss)
    )
    if cfg.compile:
        loss.compile()
    return Density(loss, torch.optim.Adam(loss.parameters(), **plain(cfg.density_optim)), BalancedSampler(num_offline))


def make_score(cfg: DictConfig, loss: EnsembleSACLoss, ratio: DensityRatio) -> LogPriority:
    """The sum of the terms that the configuration names; adv_temp multiplies what stands beside the density ratio."""
    critics = {"advantage": Advantage(loss, **plain(cfg.advantage)), "td_error": TDError(loss, **plain(cfg.td_error))}
    if cfg.compile:
        for score in critics.values():
            score.compile()
    known: dict[str, LogPriority] = {"density": DensityRatioScore(ratio, **plain(cfg.density_score)), **critics}
    factors = tuple(1.0 if name == "density" else cfg.adv_temp for name in cfg.terms)
    return Sum(*(known[name] for name in cfg.terms), factors=factors)


def make_buffer(
    cfg: DictConfig,
    offline: TensorDictBase,
    score: LogPriority,
    make_storage: rlpd.MakeStorage = offline_online_storage,
) -> TensorDictReplayBuffer:
    """One storage for both sources, replayed by score."""
    storage = make_storage(offline, cfg.collector.total_frames)
    batch_size = cfg.training.utd_ratio * cfg.training.batch_size
    pool_size = None if cfg.pool_multiplier is None else cfg.pool_multiplier * cfg.training.batch_size
    sampler = PoolSampler(score, len(offline), pool_size=pool_size, **plain(cfg.pool))
    sampler.check_capacity(storage, batch_size)
    writer = OnlineWriter(len(offline))
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=writer, batch_size=batch_size)


@dataclass
class Run(rlpd.Run):
    """RLPD's run with a density ratio and a scored pool."""

    density: Density | None = None

    def replay(self, at: int) -> dict[str, Tensor]:
        """One environment step's updates: density ratio, pool, learner, in the configured order."""
        cfg, size = self.cfg, self.cfg.training.batch_size
        self.anneal(at)
        info: dict[str, Tensor] = {}
        if cfg.density_update == "before":
            info = self.density.update(self.buffer, cfg.density_updates, size)
        batch = self.buffer.sample()
        metrics = self.update(batch)
        if cfg.density_update == "after":
            info = self.density.update(self.buffer, cfg.density_updates, size)
        return metrics | info | self.sampled(at, batch)

    def anneal(self, at: int) -> None:
        """Set the sampler's exponents for this step."""
        cfg, sampler = self.cfg, self.buffer.sampler
        sampler.alpha = cfg.pool.alpha if at > cfg.priority_from else 0.0
        sampler.beta = annealed_beta(cfg.beta_start, (at - 1) / cfg.collector.total_frames)

    def sampled(self, at: int, batch: TensorDictBase) -> dict[str, Tensor]:
        """What the batch looked like, where that is logged."""
        return super().sampled(at, batch) | (self.buffer.sampler.metrics() if at % self.cfg.log_every == 0 else {})


def make_run(
    cfg: DictConfig,
    load: Callable[..., TensorDictBase] = load_offline,
    make_storage: rlpd.MakeStorage = offline_online_storage,
) -> Run:
    """Build everything in a fixed order, so that one seed gives one run; runs of one process may share their data."""
    seed_everything(cfg.seed)
    env = GuardedEnv(lambda: make_gym_env(**plain(cfg.env)), **plain(cfg.env_guard))
    (observation_dim,), (action_dim,) = env.observation_space.shape, env.action_space.shape
    actor, learner = rlpd.make_learner(cfg, observation_dim, action_dim)
    offline = AffineReward(**plain(cfg.reward))(load(**plain(cfg.dataset), env=env))
    density = make_density(cfg, observation_dim, action_dim, len(offline))
    ratio = density.loss.density_ratio_network
    buffer = make_buffer(cfg, offline, make_score(cfg, learner.loss, ratio), make_storage)
    collector = StepCollector(env, actor, seed=cfg.seed, **plain(cfg.collector))
    collector.on_cut = buffer.writer.truncate_last
    recorder = Recorder(
        cfg.run_dir,
        config=rlpd.compared(cfg),
        resume=cfg.resume,
        progress_total=cfg.collector.total_frames,
        **plain(cfg.recorder),
    )
    return Run(cfg, actor, learner, buffer, collector, recorder, len(offline), density=density)


def make_checkpointer(run: Run) -> Checkpointer:
    """Everything that changes while training."""
    learner = run.learner
    objects = {
        "loss": learner.loss,
        "critic_optim": learner.critic_optim,
        "actor_optim": learner.actor_optim,
        "alpha_optim": learner.alpha_optim,
        "density_loss": run.density.loss,
        "density_optim": run.density.optim,
        "collector": run.collector,
        "recorder": run.recorder,
        "counters": run.counters,
    }
    folder = Path(run.cfg.run_dir) / "checkpoints"
    return Checkpointer(folder, objects=objects, buffer=run.buffer, config=rlpd.compared(run.cfg))


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> None:
    """Train one seed into one run folder."""
    rlpd.launch(cfg, make_run, make_checkpointer)


if __name__ == "__main__":
    main()
