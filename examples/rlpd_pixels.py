"""RLPD from pixels (Ball et al. 2023, arXiv:2302.02948): steering a dot to a target, from images.

Run:  python examples/rlpd_pixels.py                          about two minutes on one core, no renderer
      python examples/rlpd_pixels.py offline_fraction=0       the same learner without data
      python examples/rlpd_pixels.py dataset=FOLDER env=...   episodes of V-D4RL
Every field of Config can be given as field=value. The defaults are a CPU preset made for seeing the effect; comments
give the paper's values.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim import Adam
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import (
    TRANSITION,
    BalancedSampler,
    OnlineWriter,
    RandomShift,
    load_offline,
    load_vd4rl,
    stack_rows,
)
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import Temperature, encoder_width, make_pixel_actor, make_pixel_encoder, make_qvalue_ensemble
from torchrl_o2o.objectives import PixelSACLoss
from torchrl_o2o.trainers import evaluate
from torchrl_o2o.updates import Copy, Descend, MoveTargets, Repeat, Update


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "o2o/DotReach-v0"
    dataset: str = "o2o/dotreach/chase-v0"
    seed: int = 0
    total_frames: int = 2_000  # the paper: 150k agent steps
    init_random_frames: int = 500  # the paper: 5k
    batch_size: int = 64  # the paper: 256
    utd_ratio: int = 1
    offline_fraction: float = 0.5
    features: tuple[int, ...] = (16, 32)  # the paper: (32, 64, 128, 256)
    strides: tuple[int, ...] = (2, 2)  # the paper: (2, 2, 2, 2)
    latent_dim: int = 32  # the paper: 50
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256)
    num_qvalue_nets: int = 5  # the paper: 10
    pad: int = 1  # the paper: 4
    lr: float = 1e-3  # the paper: 3e-4
    gamma: float = 0.95  # the paper: 0.99
    tau: float = 0.01  # the paper: 0.005
    init_alpha: float = 0.1  # the authors' code; the paper's table has 1
    eval_every: int = 500
    eval_episodes: int = 20


def main(cfg: Config) -> PixelSACLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    env = make_gym_env(cfg.env)
    data = load_vd4rl(cfg.dataset) if Path(cfg.dataset).exists() else stack_rows(load_offline(cfg.dataset))
    shape, action_dim = data.stacks(torch.arange(1))["observation"].shape[1:], data.rows["action"].shape[-1]
    encoder = make_pixel_encoder(shape, features=cfg.features, strides=cfg.strides, latent_dim=cfg.latent_dim)
    actor = make_pixel_actor(encoder, action_dim, hidden_sizes=cfg.hidden_sizes)
    heads = make_qvalue_ensemble(  # all on one latent vector of the encoder
        encoder_width(encoder),
        action_dim,
        num_qvalue_nets=cfg.num_qvalue_nets,
        hidden_sizes=cfg.hidden_sizes,
        in_keys=("latent", "action"),
    )
    loss = PixelSACLoss(
        actor,
        encoder,
        heads,
        temperature=Temperature(-0.5 * action_dim, init=cfg.init_alpha),
        sub_sample_len=1,
        entropy_backup=False,
        ensemble_reduction="mean",
    )
    loss.make_value_estimator(gamma=cfg.gamma)
    critics = [*loss.encoder_network_params.parameters(), *loss.qvalue_network_params.parameters()]
    update = Update(
        loss,
        Copy(*PixelSACLoss.LATE_COPY),  # the actor uses the critics' convolutions from before this call
        Repeat(cfg.utd_ratio, Descend("qvalue", Adam(critics, lr=cfg.lr)), MoveTargets(SoftUpdate(loss, tau=cfg.tau))),
        Descend("actor", Adam(loss.actor_network_params.parameters(), lr=cfg.lr)),
        Descend("alpha", Adam(loss.temperature.parameters(), lr=cfg.lr)),
    )
    buffer = TensorDictReplayBuffer(
        storage=data.storage(cfg.total_frames),  # each frame is stored once; stacks are built when rows are drawn
        sampler=BalancedSampler(len(data), cfg.offline_fraction),
        writer=OnlineWriter(len(data)),
        batch_size=cfg.batch_size * cfg.utd_ratio,
        transform=RandomShift(cfg.pad),
    )
    online = StepCollector(
        env, actor, total_frames=cfg.total_frames, init_random_frames=cfg.init_random_frames, seed=cfg.seed
    )
    for step, transition in enumerate(online, 1):
        buffer.extend(transition.select(*TRANSITION))
        if step > cfg.init_random_frames:
            metrics = update(buffer.sample())
            if step % cfg.eval_every == 0:
                result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
                print(f"step {step}: {result}, Q {metrics['qvalue']:.2f}, alpha {metrics['alpha']:.3f}")
    online.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
