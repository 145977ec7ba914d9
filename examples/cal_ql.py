"""Cal-QL (Nakamoto et al. 2023, arXiv:2303.05479): conservative Q-learning whose values never fall below the data's.

Run:  python examples/cal_ql.py                           PointMaze, sparse reward, one to two minutes on one core
      python examples/cal_ql.py calibrate=false           CQL, whose values must first recover online
Steps up to zero are offline. Every field of Config can be given as field=value. The defaults are a CPU preset for
seeing the effect; the paper's own settings are in sota-implementations/cql.
"""

from dataclasses import dataclass
from functools import partial

import torch
from tensordict import TensorDictBase, cat
from tensordict.nn import TensorDictModuleBase
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, load_offline
from torchrl_o2o.data.transforms import AffineReward, add_mc_return
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import ConservativePenalty, Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import CalQLLoss
from torchrl_o2o.trainers import evaluate, starting_buffer

KEYS = (*TRANSITION, "mc_return")


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "o2o/PointMaze-UMaze-v0"
    dataset: str = "o2o/pointmaze/umaze-play-v0"
    seed: int = 0
    offline_steps: int = 5_000  # the paper: 1M
    total_frames: int = 5_000
    utd_ratio: int = 1
    batch_size: int = 128  # the paper: 256
    offline_fraction: float = 0.5
    hidden_sizes: tuple[int, ...] = (64, 64)  # the paper: (256, 256), critics (256, 256, 256, 256)
    reward_scale: float = 10.0
    reward_shift: float = -5.0  # so that a step without success costs 5
    cql_alpha: float = 5.0
    num_actions: int = 4  # the paper: 10
    target_gap: float = 0.8
    calibrate: bool = True
    max_target_backup: bool = True
    actor_lr: float = 1e-3  # the paper: 1e-4
    critic_lr: float = 1e-3  # the paper: 3e-4
    gamma: float = 0.99
    tau: float = 0.02  # the paper: 0.005; a fast one passes rewards on within few steps
    eval_every: int = 2_500
    eval_episodes: int = 10


def update(loss: CalQLLoss, optim: torch.optim.Adam, target_updater: SoftUpdate, batch: TensorDictBase) -> dict:
    """All gradients at the same parameters, then all steps, then the targets: the authors' order."""
    out = loss(batch)
    optim.zero_grad()
    (out["loss_qvalue"] + out["loss_actor"] + out["loss_alpha"] + out["loss_alpha_prime"]).backward()
    optim.step()
    target_updater.step()
    return {name: round(out[name].item(), 2) for name in ("qvalue", "gap", "bound_rate")}


def report(step: int, actor: TensorDictModuleBase, cfg: Config, info: dict) -> None:
    """Print an evaluation."""
    result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
    print(f"step {step}: return {result.returns.mean():.1f}, {info}")


def main(cfg: Config) -> CalQLLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    reward = AffineReward(cfg.reward_scale, cfg.reward_shift)
    add_return = partial(add_mc_return, gamma=cfg.gamma, failure_reward=cfg.reward_shift)
    offline = add_return(reward(load_offline(cfg.dataset, env=cfg.env)))
    dims = offline["observation"].shape[-1], offline["action"].shape[-1]
    networks = {"hidden_sizes": cfg.hidden_sizes, "initialization": "orthogonal_small_last"}
    actor = make_actor(*dims, affine_log_std=True, **networks)
    qvalues = make_qvalue_ensemble(*dims, num_qvalue_nets=2, layer_norm=False, **networks)
    penalty = ConservativePenalty(cfg.cql_alpha, num_actions=cfg.num_actions, target_gap=cfg.target_gap)
    temperature = Temperature(-dims[1], form="log_alpha")
    settings = {"penalty": penalty, "calibrate": cfg.calibrate, "max_target_backup": cfg.max_target_backup}
    loss = CalQLLoss(actor, qvalues, temperature=temperature, **settings)
    loss.make_value_estimator(gamma=cfg.gamma)
    target_updater = SoftUpdate(loss, tau=cfg.tau)
    slow = [*loss.actor_network_params.parameters(), *temperature.parameters()]
    fast = [*loss.qvalue_network_params.parameters(), *penalty.parameters()]
    optim = torch.optim.Adam([{"params": slow, "lr": cfg.actor_lr}, {"params": fast, "lr": cfg.critic_lr}], fused=True)

    info = {}
    buffer = starting_buffer(offline, 1, data="all", batch_size=cfg.batch_size, keys=KEYS)
    for step in range(-cfg.offline_steps, 0):
        info = update(loss, optim, target_updater, buffer.sample())
        if (step + 1) % cfg.eval_every == 0:
            report(step + 1, actor, cfg, info)

    # The hand-over: loss, optimizers and targets continue, and half of each batch stays offline.
    online = {"data": "symmetric", "offline_fraction": cfg.offline_fraction, "keys": KEYS}
    buffer = starting_buffer(offline, cfg.total_frames, batch_size=cfg.batch_size, **online)
    trajectory: list[TensorDictBase] = []
    collector = StepCollector(make_gym_env(cfg.env), actor, total_frames=cfg.total_frames, seed=cfg.seed)
    for step, data in enumerate(collector, 1):
        trajectory.append(data.select(*TRANSITION))
        if data["next", "done"].item():  # the return of a step is known once its trajectory is over
            rows = reward(cat(trajectory))
            rows["episode"] = torch.zeros(len(rows), dtype=torch.long)
            buffer.extend(add_return(rows).select(*KEYS))
            for _ in range(len(trajectory) * cfg.utd_ratio):
                info = update(loss, optim, target_updater, buffer.sample())
            trajectory.clear()
        if step % cfg.eval_every == 0:
            report(step, actor, cfg, info)
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
