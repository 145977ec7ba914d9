r"""RLPD (Ball et al. 2023, arXiv:2302.02948): online soft actor-critic on batches that are half recorded data.

Run:  python examples/rlpd.py                                   HalfCheetah, about two minutes on one core
      python examples/rlpd.py env=o2o/PointMaze-Medium-v0 dataset=o2o/pointmaze/medium-play-v0 utd_ratio=5 \
          total_frames=7500 entropy_backup=false reward_shift=-1
Every field of Config can be given as field=value. The defaults are a CPU preset for seeing the effect; the paper's own
settings are in sota-implementations/rlpd.
"""

from dataclasses import dataclass

import torch
from torchrl.collectors import Collector
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, BalancedSampler, OnlineWriter, load_offline, offline_online_storage
from torchrl_o2o.data.transforms import AffineReward
from torchrl_o2o.envs import make_env, seed_everything
from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
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
    offline_fraction: float = 0.5  # 0 is SAC from scratch
    num_qvalue_nets: int = 2  # the paper: 10
    sub_sample_len: int = 2
    entropy_backup: bool = True  # the paper: off on AntMaze and Adroit
    reward_shift: float = 0.0  # the paper: -1 on AntMaze
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256)
    residual_blocks: int = 0  # of the critics; 1 is the authors' use_critic_resnet
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
        observation_spec,
        action_spec,
        num_qvalue_nets=cfg.num_qvalue_nets,
        hidden_sizes=cfg.hidden_sizes,
        residual_blocks=cfg.residual_blocks,
    )
    temperature = Temperature(-action_spec.shape[-1] / 2, init=cfg.init_alpha)
    loss = EnsembleSACLoss(
        actor, qvalues, temperature=temperature, sub_sample_len=cfg.sub_sample_len, entropy_backup=cfg.entropy_backup
    )
    loss.make_value_estimator(gamma=cfg.gamma)
    target_updater = SoftUpdate(loss, tau=cfg.tau)
    critic_optim = torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=cfg.lr, fused=True)
    actor_optim = torch.optim.Adam(loss.actor_network_params.parameters(), lr=cfg.lr, fused=True)
    alpha_optim = torch.optim.Adam(loss.temperature.parameters(), lr=cfg.lr, fused=True)

    reward = AffineReward(shift=cfg.reward_shift)
    offline = reward(load_offline(cfg.dataset, env=env))
    buffer = TensorDictReplayBuffer(
        storage=offline_online_storage(offline, cfg.total_frames),
        sampler=BalancedSampler(len(offline), cfg.offline_fraction),
        writer=OnlineWriter(len(offline)),
        batch_size=cfg.utd_ratio * cfg.batch_size,
    )
    collector = Collector(
        env,
        actor,
        frames_per_batch=1,
        total_frames=cfg.total_frames,
        init_random_frames=cfg.init_random_frames,
        auto_register_policy_transforms=False,  # TorchRL 0.15 turns it on; this policy needs none
    )
    for step, data in enumerate(collector):
        buffer.extend(reward(data).select(*TRANSITION))
        if step >= cfg.init_random_frames:
            minibatches = buffer.sample().split(cfg.batch_size)
            for minibatch in minibatches:  # Algorithm 1: utd_ratio critic updates ...
                loss_qvalue, _ = loss.qvalue_loss(minibatch)
                critic_optim.zero_grad()
                loss_qvalue.backward()
                critic_optim.step()
                target_updater.step()
            last = minibatches[-1]  # ... then one of the actor, on the last minibatch
            loss_actor, actor_info = loss.actor_loss(last)
            actor_optim.zero_grad()
            loss_actor.backward()
            actor_optim.step()
            log_prob = actor_info["log_prob"]  # ... and one of the temperature
            loss_alpha, _ = loss.alpha_loss(last, log_prob=log_prob)
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
