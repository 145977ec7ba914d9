"""IQL (Kostrikov et al. 2022, arXiv:2110.06169): values by expectile regression, the actor by weighted likelihood.

Run:  python examples/iql.py                        HalfCheetah, about two minutes on one core
      python examples/iql.py env=o2o/PointMaze-Medium-v0 dataset=o2o/pointmaze/medium-play-v0 expectile=0.9 beta=10 \
            reward_shift=-1
Steps up to zero are offline. Every field of Config can be given as field=value. The defaults are a CPU preset made for
seeing the effect; docs/algorithms/iql.md lists the settings of the paper.
"""

from dataclasses import dataclass
from itertools import chain, repeat

import torch
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, OnlineWriter, load_offline, offline_online_storage
from torchrl_o2o.data.transforms import AffineReward
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import make_gaussian_actor, make_qvalue_ensemble, make_value_network
from torchrl_o2o.objectives import IQLLoss
from torchrl_o2o.trainers import evaluate


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/medium-v1"
    seed: int = 0
    offline_steps: int = 10_000  # the paper: 1M
    total_frames: int = 10_000  # the paper: 1M
    batch_size: int = 256
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256)
    expectile: float = 0.7
    beta: float = 0.5  # the paper: 3; after so few steps values should not count more
    reward_scale: float = 1.0
    reward_shift: float = 0.0
    lr: float = 3e-4  # the paper decays the actor's by a cosine while offline
    gamma: float = 0.99
    tau: float = 0.005
    eval_every: int = 5_000
    eval_episodes: int = 5


def main(cfg: Config) -> IQLLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    env = make_gym_env(cfg.env)
    reward = AffineReward(cfg.reward_scale, cfg.reward_shift)
    offline = reward(load_offline(cfg.dataset, env=env))
    observation_dim, action_dim = offline["observation"].shape[-1], offline["action"].shape[-1]
    networks = {"hidden_sizes": cfg.hidden_sizes, "initialization": "orthogonal"}
    small = {**networks, "initialization": "orthogonal_small_last"}  # the authors' own last layer saturates the tanh
    actor = make_gaussian_actor(observation_dim, action_dim, log_std_bounds=(-5.0, 2.0), **small)
    qvalues = make_qvalue_ensemble(observation_dim, action_dim, num_qvalue_nets=2, layer_norm=False, **networks)
    value = make_value_network(observation_dim, **networks)
    loss = IQLLoss(actor, qvalues, value, expectile=cfg.expectile, beta=cfg.beta)
    loss.make_value_estimator(gamma=cfg.gamma)
    target_updater = SoftUpdate(loss, tau=cfg.tau)
    value_optim = torch.optim.Adam(loss.value_network_params.parameters(), lr=cfg.lr, fused=True)
    actor_optim = torch.optim.Adam(loss.actor_network_params.parameters(), lr=cfg.lr, fused=True)
    critic_optim = torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=cfg.lr, fused=True)

    # One buffer for both phases, drawn from uniformly: the data set first, then the data set and all that is new.
    buffer = TensorDictReplayBuffer(
        storage=offline_online_storage(offline, cfg.total_frames),
        writer=OnlineWriter(len(offline)),
        batch_size=cfg.batch_size,
    )
    online = StepCollector(env, actor, total_frames=cfg.total_frames, seed=cfg.seed)
    for step, data in enumerate(chain(repeat(None, cfg.offline_steps), online), 1 - cfg.offline_steps):
        if data is not None:
            buffer.extend(reward(data.select(*TRANSITION)))
        batch = buffer.sample()
        loss_value, value_info = loss.value_loss(batch)
        value_optim.zero_grad()
        loss_value.backward()
        value_optim.step()
        loss_actor, actor_info = loss.actor_loss(batch)  # uses the new value function ...
        actor_optim.zero_grad()
        loss_actor.backward()
        actor_optim.step()
        loss_qvalue, _ = loss.qvalue_loss(batch)  # ... and so do the critics
        critic_optim.zero_grad()
        loss_qvalue.backward()
        critic_optim.step()
        target_updater.step()
        if step % cfg.eval_every == 0:
            result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            clipped, mean_value = actor_info["clipped"].mean(), value_info["value"].mean()
            print(f"step {step}: {result}, value {mean_value:.1f}, weights clipped {clipped:.2f}")
    online.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
