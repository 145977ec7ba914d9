"""TD3+BC (Fujimoto & Gu 2021, arXiv:2106.06860), continued online with the same loss and exploration noise.

Run:  python examples/td3_bc.py                     HalfCheetah, about two minutes on one core
      python examples/td3_bc.py alpha=0             behavior cloning
Steps up to zero are offline. Every field of Config can be given as field=value. The defaults are a CPU preset made for
seeing the effect. The paper is offline only; this online continuation is the usual baseline.
"""

from dataclasses import dataclass
from itertools import chain, repeat

import torch
from tensordict.nn import TensorDictSequential
from torchrl.data import TensorDictReplayBuffer
from torchrl.modules import AdditiveGaussianModule
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, OnlineWriter, load_offline, offline_online_storage
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import TD3BCLoss
from torchrl_o2o.trainers import evaluate


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/medium-replay-v1"
    seed: int = 0
    offline_steps: int = 10_000  # the paper: 1M
    total_frames: int = 10_000
    batch_size: int = 256
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256)
    alpha: float = 0.5  # the paper: 2.5; after so few steps values should not count more
    policy_noise: float = 0.2
    noise_clip: float = 0.5
    exploration_noise: float = 0.1
    policy_delay: int = 2
    lr: float = 1e-3  # the paper: 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    eval_every: int = 5_000
    eval_episodes: int = 5


def main(cfg: Config) -> TD3BCLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    env = make_gym_env(cfg.env)
    offline = load_offline(cfg.dataset, env=env)
    observation_dim, action_dim = offline["observation"].shape[-1], offline["action"].shape[-1]
    actor = make_deterministic_actor(observation_dim, action_dim, hidden_sizes=cfg.hidden_sizes)
    qvalues = make_qvalue_ensemble(
        observation_dim,
        action_dim,
        num_qvalue_nets=2,
        hidden_sizes=cfg.hidden_sizes,
        layer_norm=True,  # the paper: none
        initialization="torch",
    )
    loss = TD3BCLoss(actor, qvalues, alpha=cfg.alpha, policy_noise=cfg.policy_noise, noise_clip=cfg.noise_clip)
    loss.make_value_estimator(gamma=cfg.gamma)
    target_updater = SoftUpdate(loss, tau=cfg.tau)
    critic_optim = torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=cfg.lr, fused=True)
    actor_optim = torch.optim.Adam(loss.actor_network_params.parameters(), lr=cfg.lr, fused=True)

    # One buffer for both phases, drawn from uniformly: the data set first, then the data set and all that is new.
    buffer = TensorDictReplayBuffer(
        storage=offline_online_storage(offline, cfg.total_frames),
        writer=OnlineWriter(len(offline)),
        batch_size=cfg.batch_size,
    )
    noise = {"sigma_init": cfg.exploration_noise, "sigma_end": cfg.exploration_noise, "safe": True}
    explorer = TensorDictSequential([actor, AdditiveGaussianModule(actor.spec, **noise)])
    online = StepCollector(env, explorer, total_frames=cfg.total_frames, seed=cfg.seed)
    info = {"bc_error": torch.tensor(torch.nan)}  # of the actor's newest step
    for step, data in enumerate(chain(repeat(None, cfg.offline_steps), online), 1 - cfg.offline_steps):
        if data is not None:
            buffer.extend(data.select(*TRANSITION))
        batch = buffer.sample()
        loss_qvalue, critic_info = loss.qvalue_loss(batch)
        critic_optim.zero_grad()
        loss_qvalue.backward()
        critic_optim.step()
        if step % cfg.policy_delay == 0:  # the actor and all targets change at every second critic step
            loss_actor, info = loss.actor_loss(batch)
            actor_optim.zero_grad()
            loss_actor.backward()
            actor_optim.step()
            target_updater.step()
        if step % cfg.eval_every == 0:
            result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            distance, qvalue = info["bc_error"].mean(), critic_info["qvalue"].mean()
            print(f"step {step}: {result}, Q {qvalue:.1f}, squared distance to the data {distance:.3f}")
    online.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
