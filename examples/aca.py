"""ACA (Yu & Zhang 2023): align the critic with the offline policy, so that the switch to online data does not spoil it.

Run:  python examples/aca.py                              HalfCheetah, several minutes on one core
      python examples/aca.py align_critic=false           the same offline phase, then plain SAC on its critics
Steps up to zero are offline (SAC+ML). Every field of Config can be given as field=value. The defaults are a CPU preset
for seeing the effect; the paper's own settings are in sota-implementations/aca.
"""

from dataclasses import dataclass

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, load_offline
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.functional import interpolation_weight
from torchrl_o2o.modules import make_actor, make_baselines, make_qvalue_ensemble
from torchrl_o2o.objectives import ACALoss, SACMLLoss
from torchrl_o2o.trainers import align, carry_over, evaluate, starting_buffer


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/medium-replay-v1"
    seed: int = 0
    offline_steps: int = 10_000  # the paper: 500k
    total_frames: int = 10_000  # the paper: 100k
    batch_size: int = 256
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256)
    align_critic: bool = True  # false is the paper's baseline SAC+ML -> SAC
    ml_weight: float = 30.0
    beta: float = 7.0
    horizon: float = 4.0  # thousands of updates; the paper: 40 of 100
    floor: float = 0.5
    num_top_episodes: int = 0
    lr: float = 1e-3  # the paper: 3e-4
    max_grad_norm: float = 0.25  # of the online actor
    gamma: float = 0.99
    tau: float = 0.005
    eval_every: int = 2_500
    eval_episodes: int = 5


def make_optims(loss: SACMLLoss | ACALoss, cfg: Config) -> dict[str, torch.optim.Optimizer]:
    """One optimizer per network."""
    parts = {"actor": loss.actor_network_params, "qvalue": loss.qvalue_network_params, "alpha": loss.temperature}
    if isinstance(loss, SACMLLoss):
        parts["baseline"] = loss.baseline_network_params
    return {name: torch.optim.Adam(part.parameters(), lr=cfg.lr, fused=True) for name, part in parts.items()}


def descend(optim: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float | None = None) -> None:
    """One optimizer step."""
    optim.zero_grad()
    loss.backward()
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(optim.param_groups[0]["params"], max_grad_norm)
    optim.step()


def report(step: int, actor: TensorDictModuleBase, cfg: Config) -> None:
    """Print an evaluation."""
    result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
    print(f"step {step}: return {result.returns.mean():.1f}")


def main(cfg: Config) -> ACALoss:
    """Train, printing the evaluations; returns the online loss module."""
    seed_everything(cfg.seed)
    offline = load_offline(cfg.dataset, env=cfg.env)
    dims, hidden = (offline["observation"].shape[-1], offline["action"].shape[-1]), cfg.hidden_sizes
    actor = make_actor(*dims, initialization="torch", hidden_sizes=hidden)
    critic = {"num_qvalue_nets": 2, "layer_norm": False, "initialization": "torch", "hidden_sizes": hidden}
    baselines = make_baselines(dims[0], hidden_sizes=hidden)
    sac_ml = SACMLLoss(actor, make_qvalue_ensemble(*dims, **critic), baselines, ml_weight=cfg.ml_weight)
    sac_ml.make_value_estimator(gamma=cfg.gamma)
    target_updater, optims = SoftUpdate(sac_ml, tau=cfg.tau), make_optims(sac_ml, cfg)
    buffer = starting_buffer(offline, 1, data="all")
    for step in range(-cfg.offline_steps, 0):
        batch = buffer.sample(cfg.batch_size)
        descend(optims["alpha"], sac_ml.alpha_loss(batch)[0])
        descend(optims["qvalue"], sac_ml.qvalue_loss(batch)[0])
        descend(optims["baseline"], sac_ml.baseline_loss(batch)[0])
        descend(optims["actor"], sac_ml.actor_loss(batch)[0])
        target_updater.step()
        if (step + 1) % cfg.eval_every == 0:
            report(step + 1, actor, cfg)

    # The hand-over: Q becomes log pi_0 + Z, the offline critics and all optimizers are dropped, the buffer is empty.
    loss = align(sac_ml, actor, make_qvalue_ensemble(*dims, **critic), beta=cfg.beta)
    loss.make_value_estimator(gamma=cfg.gamma)
    target_updater, optims = SoftUpdate(loss, tau=cfg.tau), make_optims(loss, cfg)
    if not cfg.align_critic:  # without its share of log pi_0, ACA is SAC, here on the offline critics
        carry_over(sac_ml, loss, ("qvalue_network", "temperature"))
    buffer = starting_buffer(offline, cfg.total_frames, data="top", num_top_episodes=cfg.num_top_episodes)
    env, updates = make_gym_env(cfg.env), 0
    for step, data in enumerate(StepCollector(env, actor, total_frames=cfg.total_frames, seed=cfg.seed), 1):
        buffer.extend(data.select(*TRANSITION))
        if len(buffer) > cfg.batch_size:
            loss.interpolation = cfg.align_critic * interpolation_weight(updates, horizon=cfg.horizon, floor=cfg.floor)
            batch = buffer.sample(cfg.batch_size)
            descend(optims["alpha"], loss.alpha_loss(batch)[0])
            descend(optims["qvalue"], loss.qvalue_loss(batch)[0])
            descend(optims["actor"], loss.actor_loss(batch)[0], cfg.max_grad_norm)
            target_updater.step()
            updates += 1
        if step % cfg.eval_every == 0:
            report(step, actor, cfg)
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
