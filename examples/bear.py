"""BEAR (Kumar et al. 2019, arXiv:1906.00949): actor-critic that stays within the support of the data.

Run:  python examples/bear.py                       HalfCheetah, some minutes on one core
      python examples/bear.py kernel=laplacian
Steps up to zero are offline. Every field of Config can be given as field=value. The defaults are a CPU preset made for
seeing the effect; docs/algorithms/bear.md lists the settings of the paper.
"""

from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import torch
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, OnlineWriter, load_offline, offline_online_storage
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import make_action_vae, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import BEARLoss, BestAction
from torchrl_o2o.trainers import evaluate


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/linear-medium-v0"
    seed: int = 0
    warm_start: int = 1_000  # steps only on the discrepancy; the authors: 20k
    offline_steps: int = 10_000  # the paper: 1M
    total_frames: int = 10_000
    batch_size: int = 256  # the paper: 100
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (400, 300), VAE (750, 750)
    kernel: str = "gaussian"
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


def main(cfg: Config) -> BEARLoss:
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
    actor, vae = make_actor(*dims, hidden_sizes=hidden), make_action_vae(*dims, hidden_sizes=hidden)
    qvalues = make_qvalue_ensemble(*dims, num_qvalue_nets=2, hidden_sizes=hidden)
    settings: dict[str, Any] = {"kernel": cfg.kernel}
    loss = BEARLoss(actor, qvalues, vae, **settings)
    loss.make_value_estimator(gamma=cfg.gamma)
    target_updater = SoftUpdate(loss, tau=cfg.tau)
    trained = {"vae": loss.vae_network_params, "qvalue": loss.qvalue_network_params, "actor": loss.actor_network_params}
    optims = {name: torch.optim.Adam(params.parameters(), lr=cfg.lr, fused=True) for name, params in trained.items()}
    weight_optim = torch.optim.Adam(loss.multiplier.parameters(), lr=1e-3)

    online = StepCollector(env, actor, total_frames=cfg.total_frames, seed=cfg.seed)
    for step, data in enumerate(chain(repeat(None, cfg.offline_steps), online), 1 - cfg.offline_steps):
        if data is not None:
            buffer.extend(data.select(*TRANSITION))
        loss.q_weight.fill_(float(step + cfg.offline_steps > cfg.warm_start))
        batch = buffer.sample()
        descend(optims["vae"], loss.vae_loss(batch)[0])
        descend(optims["qvalue"], loss.qvalue_loss(batch)[0])
        loss_actor, info = loss.actor_loss(batch)
        descend(optims["actor"], loss_actor)
        descend(weight_optim, loss.multiplier_loss(batch, divergence=info["divergence"])[0])
        target_updater.step()
        if step % cfg.eval_every == 0:
            tested = BestAction(loss, num_actions=10)  # the authors' test policy
            result = evaluate(tested, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            eta, divergence = loss.multiplier.value, info["divergence"].mean()
            print(f"step {step}: {result}, discrepancy {divergence:.3f}, its weight {eta:.2f}")
    online.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
