"""SPOT (Wu et al. 2022, arXiv:2202.06239): TD3 with a penalty on actions outside the data's support.

Run:  python examples/spot.py                       HalfCheetah, about three minutes on one core
      python examples/spot.py iwae=true num_samples=4
Steps up to zero are offline. Every field of Config can be given as field=value. The defaults are a CPU preset made for
seeing the effect; docs/algorithms/spot.md lists the settings of the paper.
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
from torchrl_o2o.functional import spot_cooling
from torchrl_o2o.modules import make_action_vae, make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import SPOTLoss, VAELoss
from torchrl_o2o.trainers import evaluate


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/medium-replay-v1"
    seed: int = 0
    vae_steps: int = 5_000  # the paper: 100k
    offline_steps: int = 10_000  # the paper: 1M
    total_frames: int = 10_000  # the paper: 1M
    batch_size: int = 256
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256), VAE (750, 750)
    density_weight: float = 5.0  # the paper: 0.025 to 1; after so few steps values should not count more
    cooling_floor: float = 0.2
    vae_beta: float = 0.5
    num_samples: int = 1
    iwae: bool = False
    exploration_noise: float = 0.1
    policy_delay: int = 2
    lr: float = 1e-3  # the paper: 3e-4, actor 1e-4
    gamma: float = 0.99
    tau: float = 0.005
    eval_every: int = 5_000
    eval_episodes: int = 5


def descend(optim: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One optimizer step."""
    optim.zero_grad()
    loss.backward()
    optim.step()


def main(cfg: Config) -> SPOTLoss:
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
    vae = make_action_vae(*dims, hidden_sizes=hidden)
    vae_loss = VAELoss(vae, beta=cfg.vae_beta)
    vae_optim = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)
    for _ in range(cfg.vae_steps):
        descend(vae_optim, vae_loss.vae_loss(buffer.sample())[0])

    networks = {"hidden_sizes": hidden, "initialization": "uniform_small_last"}
    actor = make_deterministic_actor(*dims, **networks)
    qvalues = make_qvalue_ensemble(*dims, num_qvalue_nets=2, layer_norm=False, **networks)
    density = {"density_weight": cfg.density_weight, "vae_beta": cfg.vae_beta, "iwae": cfg.iwae}
    loss = SPOTLoss(actor, qvalues, vae, num_samples=cfg.num_samples, **density)
    loss.make_value_estimator(gamma=cfg.gamma)
    target_updater = SoftUpdate(loss, tau=cfg.tau)
    critic_optim = torch.optim.Adam(loss.qvalue_network_params.parameters(), lr=cfg.lr, fused=True)
    actor_optim = torch.optim.Adam(loss.actor_network_params.parameters(), lr=cfg.lr, fused=True)

    noise = {"sigma_init": cfg.exploration_noise, "sigma_end": cfg.exploration_noise, "safe": True}
    explorer = TensorDictSequential([actor, AdditiveGaussianModule(actor.spec, **noise)])
    online = StepCollector(env, explorer, total_frames=cfg.total_frames, seed=cfg.seed)
    info = dict.fromkeys(("penalty", "qvalue_policy"), torch.tensor(torch.nan))  # of the actor's newest step
    for step, data in enumerate(chain(repeat(None, cfg.offline_steps), online), 1 - cfg.offline_steps):
        if data is not None:
            buffer.extend(data.select(*TRANSITION))
            weight = spot_cooling(cfg.density_weight, step, cfg.total_frames, cfg.cooling_floor)
            loss.density_weight.fill_(weight)
        batch = buffer.sample()
        descend(critic_optim, loss.qvalue_loss(batch)[0])
        if step % cfg.policy_delay == 0:  # the actor and all targets change at every second critic step
            loss_actor, info = loss.actor_loss(batch)
            descend(actor_optim, loss_actor)
            target_updater.step()
        if step % cfg.eval_every == 0:
            result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            penalty, of_data = info["penalty"].mean(), loss.data_penalty(batch).mean()
            print(f"step {step}: {result}, Q {info['qvalue_policy'].mean():.1f}, penalty {penalty:.3f} ({of_data:.3f})")
    online.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
