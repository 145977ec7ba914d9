"""DrQ-v2+BC on recorded images (V-D4RL, arXiv:2206.04779), continued online by DrQ-v2 (arXiv:2107.09645).

Run:  python examples/drqv2.py                     about two minutes on one core, no renderer
      python examples/drqv2.py dataset=FOLDER env=...   episodes of V-D4RL
Steps up to zero are offline; online, an update is made every second agent step. Every field of Config can be given
as field=value. The defaults are a CPU preset made for seeing the effect; comments give the papers' values.
"""

from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path

import torch
from tensordict import cat
from tensordict.nn import TensorDictSequential
from torch.optim import Adam
from torchrl.data import TensorDictReplayBuffer
from torchrl.modules import AdditiveGaussianModule
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import BalancedSampler, OnlineWriter, RandomShift, load_offline, load_vd4rl, n_step, stack_rows
from torchrl_o2o.data.keys import stored_keys
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.functional import linear_schedule
from torchrl_o2o.modules import make_bottleneck, make_latent_actor, make_pixel_encoder, make_qvalue_ensemble
from torchrl_o2o.modules.pixels import encoder_width
from torchrl_o2o.objectives import DrQV2BCLoss
from torchrl_o2o.trainers import evaluate
from torchrl_o2o.updates import Descend, MoveTargets, Update


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "o2o/DotReach-v0"
    dataset: str = "o2o/dotreach/chase-v0"
    seed: int = 0
    offline_steps: int = 1_000  # V-D4RL: 550k
    total_frames: int = 1_000
    batch_size: int = 64  # the papers: 256
    features: tuple[int, ...] = (16, 32)  # the papers: (32, 32, 32, 32)
    strides: tuple[int, ...] = (2, 1)  # the papers: (2, 1, 1, 1)
    latent_dim: int = 32  # the papers: 50
    hidden_sizes: tuple[int, ...] = (64, 64)  # the papers: (1024, 1024)
    pad: int = 1  # the papers: 4
    n_step: int = 3
    bc_weight: float = 2.5
    std_start: float = 1.0
    std_end: float = 0.1
    std_duration: int = 500  # counted steps; the papers: 100k to 2M
    online_bc: bool = True  # DrQ-v2 itself has no cloning, starts at std_start, and needs more steps than these
    lr: float = 1e-3  # the papers: 1e-4, offline 3e-4
    gamma: float = 0.95  # the papers: 0.99
    tau: float = 0.01
    eval_every: int = 500
    eval_episodes: int = 20


def main(cfg: Config) -> DrQV2BCLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    env = make_gym_env(cfg.env)
    data = load_vd4rl(cfg.dataset) if Path(cfg.dataset).exists() else stack_rows(load_offline(cfg.dataset))
    data = replace(data, rows=n_step(data.rows, n=cfg.n_step, gamma=cfg.gamma))  # sums end with the episodes
    shape, action_dim = data.stacks(torch.arange(1))["observation"].shape[1:], data.rows["action"].shape[-1]
    conv = {"features": cfg.features, "strides": cfg.strides, "offset": 0.5, "initialization": "orthogonal"}
    encoder = make_pixel_encoder(shape, latent_dim=None, out_key="features", **conv)
    width = encoder_width(encoder)
    actor = make_latent_actor(width, action_dim, latent_dim=cfg.latent_dim, hidden_sizes=cfg.hidden_sizes)
    heads = {"hidden_sizes": cfg.hidden_sizes, "layer_norm": False, "in_keys": ("latent", "action")}
    heads["initialization"] = "orthogonal_unit"
    critics = make_qvalue_ensemble(cfg.latent_dim, action_dim, num_qvalue_nets=2, **heads)
    loss = DrQV2BCLoss(encoder, actor, make_bottleneck(width, cfg.latent_dim), critics, bc_weight=cfg.bc_weight)
    loss.make_value_estimator(gamma=cfg.gamma)
    trained = loss.encoder_network_params, loss.latent_network_params, loss.qvalue_network_params
    update = Update(
        loss,
        Descend("qvalue", Adam([param for part in trained for param in part.parameters()], lr=cfg.lr)),
        Descend("actor", Adam(loss.actor_network_params.parameters(), lr=cfg.lr)),  # reads the old features
        MoveTargets(SoftUpdate(loss, tau=cfg.tau)),
    )
    sampler = BalancedSampler(len(data), 1.0)
    parts = {"sampler": sampler, "writer": OnlineWriter(len(data)), "transform": RandomShift(cfg.pad)}
    buffer = TensorDictReplayBuffer(storage=data.storage(cfg.total_frames), batch_size=cfg.batch_size, **parts)
    policy, schedule = TensorDictSequential([encoder, actor]), (cfg.std_start, cfg.std_end, cfg.std_duration)
    noise = AdditiveGaussianModule(actor.spec, cfg.std_end, cfg.std_end)
    online = StepCollector(env, TensorDictSequential([policy, noise]), total_frames=cfg.total_frames, seed=cfg.seed)
    episode, metrics = [], dict[str, torch.Tensor]()
    for step, row in enumerate(chain(repeat(None, cfg.offline_steps), online), 1 - cfg.offline_steps):
        if row is not None:
            loss.use_bc, sampler.offline_fraction = cfg.online_bc, 0.5
            episode.append(row)
            if row["next", "done"].item():  # its n-step sums are complete now
                rows = cat(episode).set("episode", torch.zeros(len(episode), dtype=torch.long))
                rows = n_step(rows, n=cfg.n_step, gamma=cfg.gamma)
                buffer.extend(rows.select(*stored_keys(rows)))
                episode.clear()
        if row is None or (step % 2 == 0 and len(buffer) > len(data)):
            loss.std.fill_(linear_schedule(step + cfg.offline_steps, *schedule))
            metrics = update(buffer.sample())
        if step % cfg.eval_every == 0:
            result = evaluate(policy, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            learned = [f"{name} {metrics[name]:.3f}" for name in ("qvalue", "bc_error") if name in metrics]
            print(f"step {step}:", ", ".join([str(result), *learned]))
    online.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
