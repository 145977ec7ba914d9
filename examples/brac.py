"""BRAC (Wu et al. 2019, arXiv:1911.11361): soft actor-critic with a penalty on divergence from the data.

Run:  python examples/brac.py                       HalfCheetah, about three minutes on one core
      python examples/brac.py value_penalty=false   BRAC-p: only the policy is penalized
Steps up to zero are offline. Every field of Config can be given as field=value. The defaults are a CPU preset made for
seeing the effect; docs/algorithms/brac.md lists the settings of the paper.
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
from torchrl_o2o.modules import Multiplier, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import BCLoss, BestAction, BRACLoss
from torchrl_o2o.trainers import evaluate


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/medium-replay-v1"
    seed: int = 0
    clone_steps: int = 3_000  # the paper: 300k
    warm_start: int = 1_000  # steps only on the divergence; the authors: 20k
    offline_steps: int = 10_000  # the paper: 1M
    total_frames: int = 10_000
    batch_size: int = 256
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (200, 200), critics (300, 300)
    value_penalty: bool = True
    divergence: str = "kl"
    alpha: float = 1.0  # the paper: 0.1 to 100
    learn_alpha: bool = False
    lr: float = 1e-3
    gamma: float = 0.99
    tau: float = 0.005
    eval_every: int = 5_000
    eval_episodes: int = 5


def descend(optim: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One optimizer step."""
    optim.zero_grad()
    loss.backward()
    optim.step()


def main(cfg: Config) -> BRACLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    env = make_gym_env(cfg.env)
    offline = load_offline(cfg.dataset, env=env)
    # One buffer for both phases, drawn from uniformly: the data set first, then the data set and all that is new.
    buffer = TensorDictReplayBuffer(
        storage=offline_online_storage(offline, cfg.total_frames),
        writer=OnlineWriter(len(offline)),
        batch_size=cfg.batch_size,
    )
    dims, hidden = (offline["observation"].shape[-1], offline["action"].shape[-1]), cfg.hidden_sizes
    # The paper's policies are squashed (make_actor). They clone the local data badly, a quarter of which is at the
    # box's edge.
    behavior, actor = (make_gaussian_actor(*dims, hidden_sizes=hidden, log_std_bounds=(-5.0, 2.0)) for _ in range(2))
    clone = BCLoss(behavior, action_clip=1.0 - 1e-3)
    clone_optim = torch.optim.Adam(behavior.parameters(), lr=cfg.lr, fused=True)
    for _ in range(cfg.clone_steps):
        descend(clone_optim, clone.actor_loss(buffer.sample())[0])

    qvalues = make_qvalue_ensemble(*dims, num_qvalue_nets=2, hidden_sizes=hidden)
    multiplier = Multiplier(cfg.alpha, target=0.0 if cfg.learn_alpha else None)
    kind = {"value_penalty": cfg.value_penalty, "divergence": cfg.divergence}
    loss = BRACLoss(actor, qvalues, behavior, multiplier=multiplier, **kind)
    loss.make_value_estimator(gamma=cfg.gamma)
    target_updater = SoftUpdate(loss, tau=cfg.tau)
    critic_optim = torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=cfg.lr, fused=True)
    actor_optim = torch.optim.Adam(loss.actor_network_params.parameters(), lr=cfg.lr, fused=True)
    weight_optim = torch.optim.Adam(multiplier.parameters(), lr=1e-3) if cfg.learn_alpha else None

    online = StepCollector(env, actor, total_frames=cfg.total_frames, seed=cfg.seed)
    for step, data in enumerate(chain(repeat(None, cfg.offline_steps), online), 1 - cfg.offline_steps):
        if data is not None:
            buffer.extend(data.select(*TRANSITION))
        loss.q_weight.fill_(float(step + cfg.offline_steps > cfg.warm_start))
        batch = buffer.sample()
        target_updater.step()
        descend(critic_optim, loss.qvalue_loss(batch)[0])
        loss_actor, info = loss.actor_loss(batch)
        descend(actor_optim, loss_actor)
        if weight_optim is not None:
            descend(weight_optim, loss.multiplier_loss(batch, divergence=info["divergence"])[0])
        if step % cfg.eval_every == 0:
            policies, seed = (actor, BestAction(loss, num_actions=10)), cfg.seed + 10_000
            result, best = (evaluate(each, cfg.env, num_episodes=cfg.eval_episodes, seed=seed) for each in policies)
            print(f"step {step}: {result}, best of ten {best}, divergence {info['divergence'].mean():.2f}")
    online.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
