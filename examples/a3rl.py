"""A3RL (Liu et al. 2025): RLPD on rows sampled by their density ratio and their advantage.

Run:  python examples/a3rl.py                                   HalfCheetah
      python examples/a3rl.py env=o2o/PointMaze-Medium-v0 dataset=o2o/pointmaze/medium-play-v0 utd_ratio=5 lr=1e-3
Every field of Config can be given as field=value. The differences from examples/rlpd.py are the density ratio, the
score, the sampler and beta; prio_alpha=0 is RLPD. The paper's own settings are in sota-implementations/a3rl.
"""

from dataclasses import dataclass

import torch
from torchrl.collectors import Collector
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, OnlineWriter, load_offline, offline_online_storage
from torchrl_o2o.data.samplers import BalancedSampler, PoolSampler
from torchrl_o2o.envs import make_env, seed_everything
from torchrl_o2o.functional import annealed_beta
from torchrl_o2o.modules import DensityRatio, Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import DensityRatioLoss, EnsembleSACLoss
from torchrl_o2o.priorities import Advantage, AdvantageAligned, DensityRatioScore
from torchrl_o2o.trainers import evaluate


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/linear-mix-v0"
    seed: int = 0
    total_frames: int = 15_000
    init_random_frames: int = 1_000
    utd_ratio: int = 2  # the paper: 20
    batch_size: int = 256
    pool_multiplier: int = 4  # k, pool rows over batch_size
    prio_alpha: float = 0.3  # 0 is RLPD
    adv_temp: float = 1.0
    is_beta: float = 0.4  # rises to 1
    num_samples: int = 10  # actions in the advantage's value; the authors' code: 100
    num_qvalue_nets: int = 2  # the paper: 10
    sub_sample_len: int = 2
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256)
    lr: float = 1e-3  # the paper: 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    init_alpha: float = 0.1  # the paper: 1
    eval_every: int = 5_000
    eval_episodes: int = 5


def main(cfg: Config) -> EnsembleSACLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    env = make_env(cfg.env, seed=cfg.seed)
    observation_spec, action_spec = env.observation_spec["observation"], env.action_spec
    actor = make_actor(observation_spec, action_spec, hidden_sizes=cfg.hidden_sizes)
    qvalues = make_qvalue_ensemble(
        observation_spec, action_spec, num_qvalue_nets=cfg.num_qvalue_nets, hidden_sizes=cfg.hidden_sizes
    )
    temperature = Temperature(-action_spec.shape[-1] / 2, init=cfg.init_alpha)
    loss = EnsembleSACLoss(actor, qvalues, temperature=temperature, sub_sample_len=cfg.sub_sample_len)
    loss.make_value_estimator(gamma=cfg.gamma)
    target_updater = SoftUpdate(loss, tau=cfg.tau)
    critic_optim = torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=cfg.lr, fused=True)
    actor_optim = torch.optim.Adam(loss.actor_network_params.parameters(), lr=cfg.lr, fused=True)
    alpha_optim = torch.optim.Adam(loss.temperature.parameters(), lr=cfg.lr, fused=True)

    ratio = DensityRatio(observation_spec, action_spec, hidden_sizes=cfg.hidden_sizes)
    ratio_loss = DensityRatioLoss(ratio)
    ratio_optim = torch.optim.Adam(ratio_loss.parameters(), lr=cfg.lr, fused=True)
    advantage = Advantage(loss, num_samples=cfg.num_samples)
    score = AdvantageAligned(advantage, DensityRatioScore(ratio), adv_temp=cfg.adv_temp)  # Eq. 5

    offline = load_offline(cfg.dataset, env=env)
    storage = offline_online_storage(offline, cfg.total_frames)
    pool_size = cfg.pool_multiplier * cfg.batch_size
    sampler = PoolSampler(score, len(offline), pool_size=pool_size, alpha=cfg.prio_alpha)
    uniform = BalancedSampler(len(offline))
    writer, rows_drawn = OnlineWriter(len(offline)), cfg.utd_ratio * cfg.batch_size
    buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=writer, batch_size=rows_drawn)
    settings = {"init_random_frames": cfg.init_random_frames, "auto_register_policy_transforms": False}
    collector = Collector(env, actor, frames_per_batch=1, total_frames=cfg.total_frames, **settings)
    for step, data in enumerate(collector):
        buffer.extend(data.select(*TRANSITION))
        if step >= cfg.init_random_frames:
            index, _ = uniform.sample(storage, cfg.batch_size)
            rows = storage[index].set("is_offline", index < len(offline))
            loss_ratio, _ = ratio_loss.density_ratio_loss(rows)  # Algorithm 1: first the ratio, ...
            ratio_optim.zero_grad()
            loss_ratio.backward()
            ratio_optim.step()
            sampler.beta = annealed_beta(cfg.is_beta, step / cfg.total_frames)
            minibatches = buffer.sample().split(cfg.batch_size)  # ... then RLPD's updates
            for minibatch in minibatches:
                loss_qvalue, _ = loss.qvalue_loss(minibatch)
                critic_optim.zero_grad()
                loss_qvalue.backward()
                critic_optim.step()
                target_updater.step()
            loss_actor, actor_info = loss.actor_loss(minibatches[-1])
            actor_optim.zero_grad()
            loss_actor.backward()
            actor_optim.step()
            loss_alpha, _ = loss.alpha_loss(minibatches[-1], log_prob=actor_info["log_prob"])
            alpha_optim.zero_grad()
            loss_alpha.backward()
            alpha_optim.step()
        if (step + 1) % cfg.eval_every == 0:
            result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            success = "" if result.success is None else f", success {result.success.mean():.2f}"
            print(f"step {step + 1}: return {result.returns.mean():.1f}{success}")
    collector.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
