"""Off2On (Lee et al. 2021, arXiv:2107.00591): agents trained offline by CQL go online as one pessimistic ensemble, on
batches whose rows are sampled by how much they resemble the current policy's own.

Run:  python examples/balanced_replay.py num_agents=1            every field of Config can be given as field=value
The defaults are a CPU preset whose offline phase is far too short for the paper's effect: docs/algorithms/off2on.md.
"""

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import LossModule, SoftUpdate

from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, BalancedReplaySampler, BalancedSampler, OnlineWriter, load_offline
from torchrl_o2o.data.storage import offline_online_storage
from torchrl_o2o.envs import make_env, seed_everything
from torchrl_o2o.functional import off2on_priority
from torchrl_o2o.modules import DensityRatio, Temperature, average_actors, make_actor, make_qvalue_ensemble
from torchrl_o2o.modules.conservative import ConservativePenalty
from torchrl_o2o.objectives import CQLLoss, DensityRatioLoss, PessimisticEnsembleLoss, join_sources
from torchrl_o2o.trainers import evaluate


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/linear-mix-v0"
    seed: int = 0
    num_agents: int = 2  # the paper: 5
    offline_steps: int = 2_000  # per agent; the paper: 1 000 000
    total_frames: int = 10_000  # the paper: 250 000
    frames_per_epoch: int = 1_000  # one epoch: this number of frames, then as many updates
    first_epoch_factor: int = 5  # times as many updates in the first epoch
    batch_size: int = 256
    init_online_fraction: float = 0.5  # share of online rows in the first batches of the first epoch
    cql_alpha: float = 5.0
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256)
    lr: float = 1e-3  # the paper: 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    init_alpha: float = 0.1  # of the ensemble; the paper: 1
    eval_every: int = 2_000
    eval_episodes: int = 5


def step(loss: LossModule, batch: TensorDictBase, optim: torch.optim.Optimizer, target_updater: SoftUpdate) -> None:
    """All losses at the old parameters, then one step; no parameter is in two losses, so one optimizer serves all."""
    losses = loss(batch)
    optim.zero_grad()
    sum((value for key, value in losses.items() if key.startswith("loss_")), torch.zeros(())).backward()
    optim.step()
    target_updater.step()


def main(cfg: Config) -> PessimisticEnsembleLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    env = make_env(cfg.env, seed=cfg.seed)
    specs = env.observation_spec["observation"], env.action_spec
    offline = load_offline(cfg.dataset, env=env)
    settings = {"init_online_fraction": cfg.init_online_fraction, "first_epoch_frames": cfg.frames_per_epoch}
    sampler = BalancedReplaySampler(len(offline), cfg.total_frames, **settings)
    shared = {"storage": offline_online_storage(offline, cfg.total_frames), "writer": OnlineWriter(len(offline))}
    recorded = TensorDictReplayBuffer(sampler=BalancedSampler(len(offline), 1.0), batch_size=cfg.batch_size, **shared)
    halves = TensorDictReplayBuffer(sampler=BalancedSampler(len(offline), 0.5), batch_size=2 * cfg.batch_size, **shared)
    buffer = TensorDictReplayBuffer(sampler=sampler, batch_size=cfg.batch_size, **shared)

    def setup(loss: LossModule) -> tuple[torch.optim.Optimizer, SoftUpdate]:
        loss.make_value_estimator(gamma=cfg.gamma)
        return torch.optim.Adam(loss.parameters(), lr=cfg.lr, fused=True), SoftUpdate(loss, tau=cfg.tau)

    def report(actor: TensorDictModuleBase, when: str) -> None:
        result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
        print(f"{when}: return {result.returns.mean():.1f}")

    actors, critics, networks = [], [], {"hidden_sizes": cfg.hidden_sizes, "initialization": "fanin"}
    for agent in range(cfg.num_agents):  # offline: agents that differ only in their initialization and batches
        actors.append(make_actor(*specs, **networks))
        critics += make_qvalue_ensemble(*specs, num_qvalue_nets=2, layer_norm=False, **networks)
        loss = CQLLoss(actors[-1], critics[-2:], penalty=ConservativePenalty(cfg.cql_alpha, num_actions=4))  # paper: 10
        optim, target_updater = setup(loss)
        for _ in range(cfg.offline_steps):
            step(loss, recorded.sample(), optim, target_updater)
        report(actors[-1], f"agent {agent}, offline")

    actor = average_actors(actors)
    temperature = Temperature(-specs[1].shape[-1], init=cfg.init_alpha, form="log_alpha")
    loss = PessimisticEnsembleLoss(actor, critics, temperature=temperature)
    optim, target_updater = setup(loss)
    density = DensityRatioLoss(DensityRatio(*specs, hidden_sizes=cfg.hidden_sizes))
    density_optim = torch.optim.Adam(density.parameters(), lr=cfg.lr, fused=True)
    report(actor, "ensemble, offline")
    collector = Collector(env, actor, frames_per_batch=cfg.frames_per_epoch, total_frames=cfg.total_frames)
    for epoch, data in enumerate(collector):
        buffer.extend(data.select(*TRANSITION))
        for _ in range(len(data) * (cfg.first_epoch_factor if epoch == 0 else 1)):
            batch, rows = buffer.sample(), halves.sample()
            offline_rows, online_rows = rows[::2], rows[1::2]
            loss_ratio, _ = density.density_ratio_loss(join_sources(offline_rows, online_rows))
            with torch.no_grad():
                ratios = density.log_ratio(batch), density.log_ratio(offline_rows)
            step(loss, batch, optim, target_updater)
            density_optim.zero_grad()
            loss_ratio.backward()
            density_optim.step()
            buffer.update_priority(batch["index"], off2on_priority(*ratios))
        if (epoch + 1) * cfg.frames_per_epoch % cfg.eval_every == 0:
            report(actor, f"step {(epoch + 1) * cfg.frames_per_epoch}, offline share {sampler.offline_share:.2f}")
    collector.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
