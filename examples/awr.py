"""AWR (Peng et al. 2019, arXiv:1910.00177): regress the policy on recorded actions, weighted by their advantages.

Run:  python examples/awr.py                       HalfCheetah, some minutes on one core
      python examples/awr.py lmbda=1 temperature=0.5
Iterations up to zero are offline; each later one first collects. Every field of Config can be given as field=value. The
defaults are a CPU preset made for seeing the effect; docs/algorithms/awr.md lists the settings of the paper.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import cast

import torch
from tensordict import TensorDictBase, cat
from torch import Tensor
from torchrl.modules import ProbabilisticActor

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import TRANSITION, get_convention, load_offline
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.modules import GaussianVectorHead, make_gaussian_actor, make_value_network
from torchrl_o2o.objectives import AWRLoss
from torchrl_o2o.trainers import evaluate


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/linear-medium-v0"
    seed: int = 0
    offline_iterations: int = 10
    online_iterations: int = 5
    frames_per_iteration: int = 2_048
    critic_steps: int = 200
    actor_steps: int = 1_000
    batch_size: int = 256
    capacity: int = 150_000  # the paper: 50k
    hidden_sizes: tuple[int, ...] = (128, 64)
    std: float = 0.4  # fixed, in half-widths of the action box; the paper: 0.2 to 0.4 of its range
    temperature: float = 1.0
    lmbda: float = 0.95
    gamma: float = 0.99
    critic_lr: float = 1e-2
    actor_lr: float = 1e-3  # the paper: 5e-5, 1e-4 on Hopper
    reward_scale: float = 0.01  # for values near one; the authors standardize them
    eval_every: int = 5
    eval_episodes: int = 5


def make_policy(observation_dim: int, action_dim: int, cfg: Config) -> ProbabilisticActor:
    """A Gaussian policy with a fixed standard deviation."""
    actor = make_gaussian_actor(observation_dim, action_dim, hidden_sizes=cfg.hidden_sizes, mean="linear")
    for head in actor.modules():
        if isinstance(head, GaussianVectorHead):
            head.log_std.data.fill_(math.log(cfg.std))
            head.log_std.requires_grad_(False)
    return actor


LossOf = Callable[[TensorDictBase], tuple[Tensor, dict[str, Tensor]]]


def regress(
    cfg: Config, optim: torch.optim.Optimizer, loss_of: LossOf, rows: TensorDictBase, steps: int
) -> dict[str, Tensor]:
    """Make steps of one loss on minibatches of all rows; returns the metrics of the last one."""
    info: dict[str, Tensor] = {}
    for _ in range(steps):
        value, info = loss_of(rows[torch.randint(len(rows), (cfg.batch_size,))])
        optim.zero_grad()
        value.backward()
        optim.step()
    return info


def main(cfg: Config) -> AWRLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    raw = load_offline(cfg.dataset, env=make_gym_env(cfg.env))
    convention = get_convention("awac", "locomotion").fit(raw)  # standardized observations, in the environment as well
    rows = convention.data(raw).select(*TRANSITION).clone()
    actor = make_policy(rows["observation"].shape[-1], rows["action"].shape[-1], cfg)
    value = make_value_network(rows["observation"].shape[-1], hidden_sizes=cfg.hidden_sizes)
    loss = AWRLoss(actor, value, temperature=cfg.temperature, lmbda=cfg.lmbda)
    loss.make_value_estimator(gamma=cfg.gamma)
    critic_optim = torch.optim.SGD(loss.value_network_params.parameters(), lr=cfg.critic_lr, momentum=0.9)
    actor_optim = torch.optim.SGD(loss.actor_network_params.parameters(), lr=cfg.actor_lr, momentum=0.9)
    rows["next", "reward"] *= cfg.reward_scale

    frames = cfg.frames_per_iteration
    env = convention.env(make_gym_env(cfg.env))
    online = StepCollector(env, actor, total_frames=max(1, cfg.online_iterations * frames), seed=cfg.seed)
    collected = iter(online)
    for iteration in range(1 - cfg.offline_iterations, cfg.online_iterations + 1):
        if iteration > 0:
            fresh = cat([data.select(*TRANSITION).clone() for data in islice(collected, frames)])
            fresh["next", "reward"] *= cfg.reward_scale
            newest = cat([rows.select(*TRANSITION), fresh])[-cfg.capacity :]
            rows = cast(TensorDictBase, newest)  # its annotation leaves open what an index gives
        regress(cfg, critic_optim, loss.value_loss, loss.label(rows), cfg.critic_steps)
        info = regress(cfg, actor_optim, loss.actor_loss, loss.label(rows), cfg.actor_steps)
        if iteration % cfg.eval_every == 0:
            make_env = lambda: convention.env(make_gym_env(cfg.env))  # noqa: E731
            result = evaluate(actor, make_env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            weight = info["weight"]
            print(f"iteration {iteration}: {result}, weight {weight.mean():.2f}, at most {weight.max():.1f}")
    online.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
