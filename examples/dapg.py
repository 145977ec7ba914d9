"""DAPG (Rajeswaran et al. 2018, arXiv:1709.10087): clone demonstrations, then a policy gradient that keeps them.

Run:  python examples/dapg.py                       HalfCheetah, some minutes on one core
      python examples/dapg.py lam_0=0               cloning and the natural policy gradient alone
      python examples/dapg.py env=AdroitHandDoor-v1 dataset=D4RL/door/human-v2
On-policy: each iteration collects whole episodes and forgets them. The demonstrations are the best episodes of a data
set. Every field of Config can be given as field=value. The defaults are a CPU preset made for seeing the effect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium
import torch
from tensordict import TensorDict, stack
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torchrl.modules import MLP

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

    def __init__(self, observation: Tensor, action: Tensor, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.net = MLP(observation.shape[-1], action.shape[-1], num_cells=hidden_sizes, activation_class=nn.Tanh)
        for parameter in self.net[-1].parameters():
            parameter.data.mul_(1e-2)
        self.log_std = nn.Parameter(action.std(0).log())
        for name, rows in (("in", observation), ("out", action)):
            self.register_buffer(f"{name}_shift", rows.mean(0))
            self.register_buffer(f"{name}_scale", rows.std(0))

    def forward(self, observation: Tensor) -> Tensor:
        """The mean."""
        features = (observation - self.in_shift) / (self.in_scale + 1e-8)
        return self.net(features) * self.out_scale + self.out_shift

    def log_prob(self, rows: TensorDict) -> Tensor:
        """log pi(a|s)."""
        return normal_log_prob(rows["action"], self(rows["observation"]), self.log_std.exp())


def slope(policy: Policy, objective: Tensor, *, create_graph: bool = False) -> Tensor:
    """The gradient of an objective with respect to all parameters, as one vector."""
    parameters = list(policy.parameters())
    return parameters_to_vector(torch.autograd.grad(objective, parameters, create_graph=create_graph))


def dapg_gradient(policy: Policy, rows: TensorDict, demos: TensorDict, weights: tuple[Tensor, Tensor]) -> Tensor:
    """g: of the weighted log-densities of rows and demonstrations, divided by the number of rows."""
    own, recorded = (weight * policy.log_prob(data) for weight, data in zip(weights, (rows, demos), strict=True))
    return slope(policy, (own.sum() + recorded.sum()) / len(rows))


def fisher_product(policy: Policy, observation: Tensor, vector: Tensor, damping: float) -> Tensor:
    """(F + damping) v, where F is the Hessian of the mean KL divergence of the policy from itself."""
    mean, std = policy(observation), policy.log_std.exp()
    fixed_mean, fixed_std = mean.detach(), std.detach()
    distance = ((mean - fixed_mean).square() + fixed_std.square() - std.square()) / (2.0 * std.square() + 1e-8)
    divergence = (distance + policy.log_std - policy.log_std.detach()).sum(-1).mean()
    return slope(policy, slope(policy, divergence, create_graph=True) @ vector) + damping * vector


def natural_step(policy: Policy, observation: Tensor, gradient: Tensor, cfg: Config, cg_iterations: int = 10) -> Tensor:
    """theta += sqrt(2 delta / (g x)) x with F x = g; returns x."""
    product = lambda vector: fisher_product(policy, observation, vector, cfg.damping)  # noqa: E731
    direction = conjugate_gradient(product, gradient, cg_iterations)
    step = normalized_step(gradient, direction, cfg.step_size) * direction
    vector_to_parameters(parameters_to_vector(policy.parameters()).detach() + step, policy.parameters())
    policy.log_std.data.clamp_(min=cfg.min_log_std)
    return direction


def fit(net: nn.Module, optim: torch.optim.Adam, observation: Tensor, target: Tensor, epochs: int, size: int) -> None:
    """Least squares on minibatches drawn with replacement."""
    for _ in range(epochs * math.ceil(len(target) / size)):
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
            row = {"observation": state, "action": action, "reward": float(reward)}
            rows.append(TensorDict({**row, "terminated": bool(terminated), "done": done}))
    return stack(rows)


def main(cfg: Config) -> Policy:
    """Train, printing the evaluations; returns the policy."""
    seed_everything(cfg.seed)
    env = make_gym_env(cfg.env)
    demos = top_episodes(load_offline(cfg.dataset, env=env), cfg.num_demos)
    policy = Policy(demos["observation"], demos["action"], cfg.hidden_sizes)
    clone_optim = torch.optim.Adam(policy.net.parameters(), lr=cfg.lr)
    fit(policy, clone_optim, demos["observation"], demos["action"], cfg.clone_epochs, 32)

    value = MLP(demos["observation"].shape[-1], 1, num_cells=(64, 64), activation_class=nn.ReLU)
    value_optim = torch.optim.Adam(value.parameters(), lr=cfg.lr)
    actor = TensorDictModule(nn.Sequential(policy, nn.Hardtanh()), in_keys=["observation"], out_keys=["action"])
    for iteration in range(cfg.iterations + 1):
        if iteration % cfg.eval_every == 0:
            result = evaluate(actor, cfg.env, num_episodes=cfg.eval_episodes, seed=cfg.seed + 10_000)
            print(f"iteration {iteration}: {result}, std {policy.log_std.exp().mean():.3f}")
        if iteration == cfg.iterations:
            break
        rows = collect(env, policy, cfg.episodes_per_iteration, cfg.seed + 1_000 * iteration)
        reward, terminated, done = (rows.get(key) for key in ("reward", "terminated", "done"))
        baseline = value(rows["observation"]).detach().squeeze(-1)
        advantage = generalized_advantage(reward, baseline, terminated, done, cfg.gamma, cfg.gae_lambda)
        weights = dapg_weights(advantage, len(demos), iteration, lam_0=cfg.lam_0, lam_1=cfg.lam_1)
        natural_step(policy, rows["observation"], dapg_gradient(policy, rows, demos, weights), cfg)
        returns = discounted_sum(reward, cfg.gamma * (~done).float())
        fit(value, value_optim, rows["observation"], returns.unsqueeze(-1), 2, 64)
    return policy


if __name__ == "__main__":
    main(parse_config(Config))
