"""DAPG (Rajeswaran et al. 2018, arXiv:1709.10087): clone demonstrations, then keep them in a policy gradient.

Run:  python examples/dapg.py                       HalfCheetah, some minutes on one core
      python examples/dapg.py lam_0=0               cloning, then only the natural policy gradient
      python examples/dapg.py env=AdroitHandDoor-v1 dataset=D4RL/door/human-v2
This method is on-policy: an iteration collects whole episodes and discards them. The demonstrations are the data's best
episodes. Every field of Config can be given as field=value. The defaults are a CPU preset made for seeing the effect.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import torch
from tensordict import TensorDict, TensorDictBase, cat
from torch import Tensor
from torchrl.modules import MLP

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.config import parse_config
from torchrl_o2o.data import load_offline
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.functional import discounted_sum, generalized_advantage
from torchrl_o2o.modules import RescaledGaussian, make_rescaled_actor
from torchrl_o2o.objectives import DAPGLoss, join_sources
from torchrl_o2o.trainers import evaluate, top_episodes
from torchrl_o2o.updates import NaturalGradient


@dataclass
class Config:
    """What can be set from the command line."""

    env: str = "HalfCheetah-v5"
    dataset: str = "o2o/halfcheetah/linear-medium-v0"
    seed: int = 0
    num_demos: int = 25
    clone_epochs: int = 5
    iterations: int = 10  # the paper: 100
    episodes_per_iteration: int = 4  # the paper: 200
    hidden_sizes: tuple[int, ...] = (32, 32)
    lam_0: float = 0.01  # the authors' configuration; their paper: 0.1
    lam_1: float = 0.95
    step_size: float = 0.05  # twice the divergence that a step may make
    gamma: float = 0.995
    gae_lambda: float = 0.97
    damping: float = 1e-4
    min_log_std: float = -3.0
    lr: float = 1e-3  # of cloning and of the value
    eval_every: int = 5
    eval_episodes: int = 5


def fit(
    net: Callable[[Tensor], Tensor], optim: torch.optim.Adam, inputs: Tensor, target: Tensor, epochs: int, size: int
) -> None:
    """Least squares on minibatches drawn with replacement."""
    for _ in range(epochs * math.ceil(len(target) / size)):
        index = torch.randint(len(target), (size,))
        loss = (net(inputs[index]) - target[index]).square().mean()
        optim.zero_grad()
        loss.backward()
        optim.step()


def collect(collected: Iterator[TensorDict], num_episodes: int) -> TensorDictBase:
    """Collect whole episodes, in order."""
    rows, done = [], 0
    while done < num_episodes:
        rows.append(next(collected))
        done += int(rows[-1]["next", "done"])
    return cat(rows)


def main(cfg: Config) -> DAPGLoss:
    """Train, printing the evaluations; returns the trained loss module."""
    seed_everything(cfg.seed)
    env = make_gym_env(cfg.env)
    demos = top_episodes(load_offline(cfg.dataset, env=env), cfg.num_demos).select("observation", "action").clone()
    demos["advantage"] = torch.zeros(len(demos))  # not read
    sizes = {"hidden_sizes": cfg.hidden_sizes, "min_log_std": cfg.min_log_std}
    actor = make_rescaled_actor(demos["observation"], demos["action"], **sizes)
    (policy,) = (part for part in actor.modules() if isinstance(part, RescaledGaussian))
    clone_optim = torch.optim.Adam(policy.net.parameters(), lr=cfg.lr)
    fit(policy.mean, clone_optim, demos["observation"], demos["action"], cfg.clone_epochs, 32)

    loss = DAPGLoss(actor, lam_0=cfg.lam_0, lam_1=cfg.lam_1)
    natural = NaturalGradient(loss.actor_network_params.parameters(), step_size=cfg.step_size, damping=cfg.damping)
    value = MLP(demos["observation"].shape[-1], 1, num_cells=(64, 64), activation_class=torch.nn.ReLU)
    value_optim = torch.optim.Adam(value.parameters(), lr=cfg.lr)
    collector = StepCollector(env, actor, total_frames=2**62, seed=cfg.seed)  # as many as the episodes need
    collected = iter(collector)
    own_return = math.nan  # of the noisy policy, whose return the policy gradient increases
    for iteration in count():
        if iteration % cfg.eval_every == 0:
            result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            std = policy.log_std.exp().mean()
            print(f"iteration {iteration}: {result}, with its noise {own_return:.0f}, std {std:.3f}")
        if iteration == cfg.iterations:
            break
        rows = collect(collected, cfg.episodes_per_iteration)
        reward, terminated, done = (rows.get(("next", key)).squeeze(-1) for key in ("reward", "terminated", "done"))
        own_return = float(reward.sum()) / cfg.episodes_per_iteration
        baseline = value(rows["observation"]).detach().squeeze(-1)
        rows["advantage"] = generalized_advantage(reward, baseline, terminated, done, cfg.gamma, cfg.gae_lambda)
        loss_actor, _ = loss.actor_loss(join_sources(demos, rows.select(*demos.keys())))
        natural.zero_grad()
        loss_actor.backward()
        natural.step(lambda rows=rows: loss.divergence(rows))
        policy.log_std.data.clamp_(min=cfg.min_log_std)
        loss.iteration += 1
        returns = discounted_sum(reward, cfg.gamma * (~done).float())
        fit(value, value_optim, rows["observation"], returns.unsqueeze(-1), 2, 64)
    collector.shutdown()
    return loss


if __name__ == "__main__":
    main(parse_config(Config))
