"""DAPG (Rajeswaran et al. 2018, arXiv:1709.10087): clone demonstrations, then a policy gradient that keeps them.

Run:  python examples/dapg.py                       HalfCheetah, some minutes on one core
      python examples/dapg.py lam_0=0               cloning and the natural policy gradient alone
      python examples/dapg.py env=AdroitHandDoor-v1 dataset=D4RL/door/human-v2
On-policy: each iteration collects whole episodes and forgets them. The demonstrations are the best episodes of a data
set. Every field of Config can be given as field=value. The defaults are a CPU preset made for seeing the effect.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import gymnasium
import torch
from tensordict import TensorDict, stack
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from torchrl_o2o.config import parse_config
from torchrl_o2o.data import load_offline
from torchrl_o2o.envs import make_gym_env, seed_everything
from torchrl_o2o.functional import (
    conjugate_gradient,
    dapg_weights,
    discounted_sum,
    generalized_advantage,
    normal_log_prob,
    normalized_step,
)
from torchrl_o2o.trainers import evaluate, top_episodes


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


class Policy(nn.Module):
    """A Gaussian around an MLP of standardized observations, rescaled to the demonstrations' actions."""

    in_shift: Tensor
    in_scale: Tensor
    out_shift: Tensor
    out_scale: Tensor

    def __init__(self, observation: Tensor, action: Tensor, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        widths = [observation.shape[-1], *hidden_sizes]
        layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.Tanh())]
        last = nn.Linear(widths[-1], action.shape[-1])
        last.weight.data.mul_(1e-2)
        last.bias.data.mul_(1e-2)
        self.net = nn.Sequential(*layers, last)
        self.log_std = nn.Parameter(action.std(0).log())
        for name, rows in (("in", observation), ("out", action)):
            self.register_buffer(f"{name}_shift", rows.mean(0))
            self.register_buffer(f"{name}_scale", rows.std(0))

    def forward(self, observation: Tensor) -> Tensor:
        """The mean."""
        features = (observation - self.in_shift) / (self.in_scale + 1e-8)
        return self.net(features) * self.out_scale + self.out_shift

    def log_prob(self, observation: Tensor, action: Tensor) -> Tensor:
        """log pi(a|s)."""
        return normal_log_prob(action, self(observation), self.log_std.exp())


def flat(tensors: Iterator[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """One vector of all."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def dapg_gradient(policy: Policy, rows: TensorDict, demos: TensorDict, weights: tuple[Tensor, Tensor]) -> Tensor:
    """g: weighted log-densities of the policy's rows and of the demonstrations, over the number of the former."""
    parts = [
        (weight * policy.log_prob(data["observation"], data["action"])).sum()
        for weight, data in zip(weights, (rows, demos), strict=True)
    ]
    return flat(torch.autograd.grad(torch.stack(parts).sum() / len(rows), list(policy.parameters())))


def divergence_product(policy: Policy, observation: Tensor, vector: Tensor, damping: float) -> Tensor:
    """(F + damping) v, with F the Hessian of the mean KL divergence of the policy from itself."""
    mean, std = policy(observation), policy.log_std.exp()
    fixed_mean, fixed_std = mean.detach(), std.detach()
    distance = ((mean - fixed_mean).square() + fixed_std.square() - std.square()) / (2.0 * std.square() + 1e-8)
    divergence = (distance + policy.log_std - policy.log_std.detach()).sum(-1).mean()
    parameters = list(policy.parameters())
    slope = flat(torch.autograd.grad(divergence, parameters, create_graph=True))
    return flat(torch.autograd.grad(slope @ vector, parameters)) + damping * vector


def natural_step(policy: Policy, observation: Tensor, gradient: Tensor, cfg: Config, cg_iterations: int = 10) -> Tensor:
    """theta += sqrt(2 delta / (g x)) x with F x = g; returns x."""
    product = lambda vector: divergence_product(policy, observation, vector, cfg.damping)  # noqa: E731
    direction = conjugate_gradient(product, gradient, cg_iterations)
    step = normalized_step(gradient, direction, cfg.step_size) * direction
    parameters = list(policy.parameters())
    with torch.no_grad():
        for parameter, change in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
            parameter.add_(change.view_as(parameter))
        policy.log_std.clamp_(min=cfg.min_log_std)
    return direction


def fit(
    net: nn.Module, observation: Tensor, target: Tensor, optim: torch.optim.Optimizer, steps: int, size: int
) -> None:
    """Squared error on minibatches drawn with replacement."""
    for _ in range(steps):
        index = torch.randint(len(target), (size,))
        loss = (net(observation[index]) - target[index]).square().mean()
        optim.zero_grad()
        loss.backward()
        optim.step()


@torch.no_grad()
def collect(env: gymnasium.Env, policy: Policy, episodes: int, seed: int) -> TensorDict:
    """Whole episodes; actions are kept as drawn, and clipped for the environment."""
    rows = []
    for episode in range(episodes):
        observation, done = env.reset(seed=seed + episode)[0], False
        while not done:
            state = torch.as_tensor(observation, dtype=torch.float32)
            action = policy(state) + policy.log_std.exp() * torch.randn_like(policy.log_std)
            observation, reward, terminated, truncated, _ = env.step(action.clamp(-1.0, 1.0).numpy())
            done = bool(terminated or truncated)
            row = {"observation": state, "action": action, "reward": torch.tensor(float(reward))}
            rows.append(TensorDict({**row, "terminated": torch.tensor(bool(terminated)), "done": torch.tensor(done)}))
    return stack(rows)


def main(cfg: Config) -> Policy:
    """Train, printing the evaluations; returns the policy."""
    seed_everything(cfg.seed)
    env = make_gym_env(cfg.env)
    demos = top_episodes(load_offline(cfg.dataset, env=env), cfg.num_demos)
    policy = Policy(demos["observation"], demos["action"], cfg.hidden_sizes)
    clone_optim = torch.optim.Adam(policy.net.parameters(), lr=cfg.lr)
    steps = cfg.clone_epochs * math.ceil(len(demos) / 32)
    fit(policy, demos["observation"], demos["action"], clone_optim, steps, 32)

    widths = [demos["observation"].shape[-1], 64, 64]
    layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
    value = nn.Sequential(*layers, nn.Linear(64, 1), nn.Flatten(0))
    value_optim = torch.optim.Adam(value.parameters(), lr=cfg.lr)
    actor = TensorDictModule(nn.Sequential(policy, nn.Hardtanh()), in_keys=["observation"], out_keys=["action"])
    for iteration in range(cfg.iterations + 1):
        if iteration % cfg.eval_every == 0:
            result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            print(f"iteration {iteration}: {result}, std {policy.log_std.exp().mean():.3f}")
        if iteration == cfg.iterations:
            break
        rows = collect(env, policy, cfg.episodes_per_iteration, cfg.seed + 1_000 * iteration)
        terminated, done = rows.get("terminated"), rows.get("done")
        baseline = value(rows["observation"]).detach()
        discounts = cfg.gamma, cfg.gae_lambda
        advantage = generalized_advantage(rows["reward"], baseline, terminated, done, *discounts)
        weights = dapg_weights(advantage, len(demos), iteration, lam_0=cfg.lam_0, lam_1=cfg.lam_1)
        gradient = dapg_gradient(policy, rows, demos, weights)
        natural_step(policy, rows["observation"], gradient, cfg)
        returns = discounted_sum(rows["reward"], cfg.gamma * (~done).float())
        fit(value, rows["observation"], returns, value_optim, 2 * math.ceil(len(rows) / 64), 64)
    return policy


if __name__ == "__main__":
    main(parse_config(Config))
