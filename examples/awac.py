"""AWAC (Nair et al. 2020, arXiv:2006.09359): the same weighted maximum-likelihood update offline and online.

Run:  python examples/awac.py                       HalfCheetah, about two minutes on one core
      python examples/awac.py weight=softmax        the authors' weights
      python examples/awac.py env=Hopper-v5 dataset=o2o/hopper/linear-medium-v0
Steps up to zero are offline. Every field of Config can be given as field=value. The defaults are a CPU preset made for
seeing the effect; docs/algorithms/awac.md lists the settings of the paper and of the reference codes.
"""

from dataclasses import dataclass
from itertools import chain, repeat

import torch
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, OnlineWriter, load_offline, offline_online_storage
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import AWACLoss
from torchrl_o2o.trainers import evaluate


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/medium-replay-v1"
    seed: int = 0
    offline_steps: int = 10_000  # the paper: 25k
    total_frames: int = 10_000  # the paper: 500k
    batch_size: int = 256  # the paper: 1024
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256, 256, 256)
    awac_lambda: float = 1.0
    weight: str = "exp_clip"
    lr: float = 1e-3  # the paper: 3e-4
    weight_decay: float = 1e-4
    gamma: float = 0.99
    tau: float = 0.005
    eval_every: int = 5_000
    eval_episodes: int = 5


def main(cfg: Config) -> AWACLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    env = make_gym_env(cfg.env)
    offline = load_offline(cfg.dataset, env=env)
    observation_dim, action_dim = offline["observation"].shape[-1], offline["action"].shape[-1]
    actor = make_gaussian_actor(
        observation_dim, action_dim, hidden_sizes=cfg.hidden_sizes, std="sigmoid", log_std_bounds=(-6.0, 0.0)
    )
    critics = {"hidden_sizes": cfg.hidden_sizes, "layer_norm": False, "initialization": "torch"}
    qvalues = make_qvalue_ensemble(observation_dim, action_dim, num_qvalue_nets=2, **critics)
    rule = {"awac_lambda": cfg.awac_lambda, "weight": cfg.weight}
    loss = AWACLoss(actor, qvalues, **rule)
    loss.make_value_estimator(gamma=cfg.gamma)
    target_updater = SoftUpdate(loss, tau=cfg.tau)
    critic_optim = torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=cfg.lr, fused=True)
    actor_optim = torch.optim.Adam(
        loss.actor_network_params.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True
    )

    # One buffer for both phases, drawn from uniformly: the data set first, then the data set and all that is new.
    buffer = TensorDictReplayBuffer(
        storage=offline_online_storage(offline, cfg.total_frames),
        writer=OnlineWriter(len(offline)),
        batch_size=cfg.batch_size,
    )
    online = StepCollector(env, actor, total_frames=cfg.total_frames, seed=cfg.seed)
    for step, data in enumerate(chain(repeat(None, cfg.offline_steps), online), 1 - cfg.offline_steps):
        if data is not None:
            buffer.extend(data.select(*TRANSITION))
        batch = buffer.sample()
        loss_qvalue, _ = loss.qvalue_loss(batch)
        critic_optim.zero_grad()
        loss_qvalue.backward()
        critic_optim.step()
        loss_actor, info = loss.actor_loss(batch)
        actor_optim.zero_grad()
        loss_actor.backward()
        actor_optim.step()
        target_updater.step()
        if step % cfg.eval_every == 0:
            result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            clipped, advantage = info["clipped"].mean(), info["advantage"].mean()
            print(f"step {step}: {result}, advantage {advantage:.2f}, weights clipped {clipped:.2f}")
    online.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
