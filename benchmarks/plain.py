# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Offline learners as one would write them in plain eager torch: two critics one after the other, autograd, stock Adam.

They are what benchmarks/update_offline.py compares with, and do the arithmetic of the losses of the same name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain

import torch
from tensordict import TensorDict
from timing import Update
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

OBSERVATION, ACTION, GAMMA, TAU = 17, 6, 0.99, 0.005
Step = Callable[[Tensor], None]
Draws = list[tuple[Tensor, Tensor]]


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of 256."""
    return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs))


def stepper(*modules: nn.Module) -> Step:
    """Gradient descent on what the modules hold."""
    optim = torch.optim.Adam(chain(*(module.parameters() for module in modules)), lr=3e-4)

    def step(loss: Tensor) -> None:
        optim.zero_grad()
        loss.backward()
        optim.step()

    return step


class Critics:
    """Two critics with targets."""

    def __init__(self) -> None:
        self.first, self.second = mlp(OBSERVATION + ACTION, 1), mlp(OBSERVATION + ACTION, 1)
        self.target_first, self.target_second = copy.deepcopy(self.first), copy.deepcopy(self.second)
        self.step = stepper(self.first, self.second)

    def both(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Q of both."""
        inputs = torch.cat([state, action], -1)
        return self.first(inputs).squeeze(-1), self.second(inputs).squeeze(-1)

    def target(self, state: Tensor, action: Tensor) -> Tensor:
        """The smaller target Q."""
        inputs = torch.cat([state, action], -1)
        return torch.min(self.target_first(inputs), self.target_second(inputs)).squeeze(-1)

    def error(self, state: Tensor, action: Tensor, target: Tensor) -> Tensor:
        """Squared Bellman errors."""
        first, second = self.both(state, action)
        return F.mse_loss(first, target) + F.mse_loss(second, target)

    def average(self) -> None:
        """Move the targets."""
        pairs = [(self.first, self.target_first), (self.second, self.target_second)]
        with torch.no_grad():
            for net, target in pairs:
                for source, old in zip(net.parameters(), target.parameters(), strict=True):
                    old.mul_(1 - TAU).add_(TAU * source)


class Squashed(nn.Module):
    """Tanh-Gaussian policy."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(OBSERVATION, 2 * ACTION)

    def sample(self, state: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Actions and their log-densities, perhaps several for each state."""
        loc, log_std = self.net(state).chunk(2, -1)
        dist = Normal(loc, log_std.clamp(-20, 2).exp())
        raw = dist.rsample() if count is None else dist.rsample((count,))
        return raw.tanh(), self.score(dist, raw)

    def log_prob(self, state: Tensor, action: Tensor) -> Tensor:
        """Log-density of recorded actions."""
        loc, log_std = self.net(state).chunk(2, -1)
        return self.score(Normal(loc, log_std.clamp(-20, 2).exp()), action.clamp(-1 + 1e-6, 1 - 1e-6).atanh())

    @staticmethod
    def score(dist: Normal, raw: Tensor) -> Tensor:
        """Log-density after tanh."""
        return (dist.log_prob(raw) - 2 * (0.6931471805599453 - raw - F.softplus(-2 * raw))).sum(-1)


class Gaussian(nn.Module):
    """Gaussian policy with one standard deviation per action dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.log_std = mlp(OBSERVATION, ACTION), nn.Parameter(torch.zeros(ACTION))

    def forward(self, state: Tensor) -> Normal:
        """Its distribution."""
        return Normal(self.net(state).tanh(), self.log_std.clamp(-5, 2).exp())


def unpack(batch: TensorDict) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """State, action, reward, next state, discount."""
    discount = GAMMA * (1 - batch.get(("next", "terminated")).float()).squeeze(-1)
    reward = batch["next", "reward"].squeeze(-1)
    return batch["observation"], batch["action"], reward, batch["next", "observation"], discount


def awac() -> Update:
    """Advantage-weighted actor-critic."""
    critics, actor = Critics(), Gaussian()
    actor_step = stepper(actor)

    def update(batch: TensorDict) -> None:
        state, action, reward, following, discount = unpack(batch)
        with torch.no_grad():
            target = reward + discount * critics.target(following, actor(following).sample().clamp(-1, 1))
        critics.step(critics.error(state, action, target))
        with torch.no_grad():
            value = torch.min(*critics.both(state, actor(state).sample().clamp(-1, 1)))
            weight = (torch.min(*critics.both(state, action)) - value).exp().clamp(max=100.0)
        actor_step(-(weight * actor(state).log_prob(action).sum(-1)).mean())
        critics.average()

    return update


def iql() -> Update:
    """Implicit Q-learning."""
    critics, actor, values = Critics(), Gaussian(), mlp(OBSERVATION, 1)
    actor_step, value_step = stepper(actor), stepper(values)

    def update(batch: TensorDict) -> None:
        state, action, reward, following, discount = unpack(batch)
        with torch.no_grad():
            minimum = critics.target(state, action)
        advantage = minimum - values(state).squeeze(-1)
        value_step(((0.7 - (advantage.detach() < 0).float()).abs() * advantage.square()).mean())
        with torch.no_grad():
            weight = (3.0 * (minimum - values(state).squeeze(-1))).exp().clamp(max=100.0)
            target = reward + discount * values(following).squeeze(-1)
        actor_step(-(weight * actor(state).log_prob(action).sum(-1)).mean())
        critics.step(critics.error(state, action, target))
        critics.average()

    return update


def td3_bc() -> Update:
    """TD3 with behavior cloning, the actor in every step."""
    critics, actor = Critics(), mlp(OBSERVATION, ACTION)
    target_actor, actor_step = copy.deepcopy(actor), stepper(actor)

    def update(batch: TensorDict) -> None:
        state, action, reward, following, discount = unpack(batch)
        with torch.no_grad():
            noise = (0.2 * torch.randn_like(action)).clamp(-0.5, 0.5)
            chosen = (target_actor(following).tanh() + noise).clamp(-1, 1)
            target = reward + discount * critics.target(following, chosen)
        critics.step(critics.error(state, action, target))
        chosen = actor(state).tanh()
        value = critics.first(torch.cat([state, chosen], -1)).squeeze(-1)
        actor_step(F.mse_loss(chosen, action) - 2.5 / value.abs().mean().detach() * value.mean())
        critics.average()
        with torch.no_grad():
            for source, old in zip(actor.parameters(), target_actor.parameters(), strict=True):
                old.mul_(1 - TAU).add_(TAU * source)

    return update


class Soft:
    """What the soft learners share."""

    def __init__(self) -> None:
        self.critics, self.actor = Critics(), Squashed()
        self.actor_step = stepper(self.actor)
        self.log_alpha = nn.ParameterList([nn.Parameter(torch.zeros(()))])
        self.alpha_step = stepper(self.log_alpha)

    @property
    def alpha(self) -> Tensor:
        """The temperature."""
        return self.log_alpha[0].exp().detach()

    def climb(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The actor's loss, its log-density and the value of its actions."""
        action, log_prob = self.actor.sample(state)
        value = torch.min(*self.critics.both(state, action))
        return (self.alpha * log_prob - value).mean(), log_prob, value

    def temper(self, log_prob: Tensor) -> None:
        """Step the temperature."""
        self.alpha_step(-(self.log_alpha[0] * (log_prob.detach() - ACTION)).mean())

    def target(self, reward: Tensor, following: Tensor, discount: Tensor, entropy: bool = True) -> Tensor:
        """The Bellman target."""
        with torch.no_grad():
            action, log_prob = self.actor.sample(following)
            value = self.critics.target(following, action)
            return reward + discount * (value - self.alpha * log_prob if entropy else value)


def cql(calibrated: bool = False) -> Update:
    """Conservative Q-learning, and its calibrated form."""
    soft, count = Soft(), 10
    critics, actor = soft.critics, soft.actor

    def penalty(
        net: nn.Module, state: Tensor, draws: list[tuple[Tensor, Tensor]], data: Tensor, bound: Tensor
    ) -> Tensor:
        repeated = state.expand(count, *state.shape)
        values = [net(torch.cat([repeated, action], -1)).squeeze(-1) for action, _ in draws]
        if calibrated:
            values[1:] = [torch.max(value, bound) for value in values[1:]]
        scored = torch.cat([value - density for value, (_, density) in zip(values, draws, strict=True)])
        return (torch.logsumexp(scored, 0) - data).mean()

    def update(batch: TensorDict) -> None:
        state, action, reward, following, discount = unpack(batch)
        actor_loss, log_prob, _ = soft.climb(state)
        target = soft.target(reward, following, discount, entropy=False)
        first, second = critics.both(state, action)
        with torch.no_grad():
            uniform = torch.rand(count, *action.shape) * 2 - 1
            draws = [(uniform, torch.full(uniform.shape[:-1], -ACTION * 0.6931471805599453))]
            draws += [actor.sample(following, count), actor.sample(state, count)]
            bound = batch["mc_return"].squeeze(-1)
        loss = F.mse_loss(first, target) + F.mse_loss(second, target)
        for net, data in ((critics.first, first), (critics.second, second)):
            loss = loss + 5.0 * penalty(net, state, draws, data, bound)
        soft.temper(log_prob)
        soft.actor_step(actor_loss)
        critics.step(loss)
        critics.average()

    return update


def sac_ml() -> Update:
    """Soft actor-critic with maximum likelihood and baselines."""
    soft = Soft()
    baselines = nn.ModuleList([mlp(OBSERVATION, 1), mlp(OBSERVATION, 1)])
    baseline_step = stepper(baselines)

    def update(batch: TensorDict) -> None:
        state, action, reward, following, discount = unpack(batch)
        with torch.no_grad():
            fresh = soft.actor.sample(state)[1]
        soft.temper(fresh)
        soft.critics.step(soft.critics.error(state, action, soft.target(reward, following, discount)))
        with torch.no_grad():
            density = soft.actor.log_prob(state, action)
            log_prob = soft.actor.sample(following)[1]
            smaller = torch.min(*(net(following).squeeze(-1) for net in baselines))
            target = reward + discount * (log_prob + smaller - soft.alpha * log_prob)
        baseline_step(sum(F.mse_loss(density + net(state).squeeze(-1), target) for net in baselines))  # type: ignore[arg-type]
        loss, _, value = soft.climb(state)
        soft.actor_step(30.0 / value.abs().mean().detach() * loss - soft.actor.log_prob(state, action).mean())
        soft.critics.average()

    return update


def aca() -> Update:
    """Actor-critic alignment: the critics are residuals on a frozen policy's clipped log-density."""
    soft = Soft()
    frozen = copy.deepcopy(soft.actor).requires_grad_(False)

    def density(state: Tensor, action: Tensor) -> Tensor:
        loc, log_std = frozen.net(state).chunk(2, -1)
        dist = Normal(loc, log_std.clamp(-20, 2).exp())
        edges = [Squashed.score(dist, loc + sign * 7.0 * dist.scale) for sign in (-1, 1)]
        lowest = torch.min(*edges).detach()
        scored = Squashed.score(dist, action.clamp(-1 + 1e-6, 1 - 1e-6).atanh())
        return F.softplus(scored - lowest) + lowest

    def update(batch: TensorDict) -> None:
        state, action, reward, following, discount = unpack(batch)
        with torch.no_grad():
            chosen, log_prob = soft.actor.sample(following)
            value = soft.critics.target(following, chosen) + density(following, chosen)
            target = reward + discount * (value - soft.alpha * log_prob)
            offset, fresh = density(state, action), soft.actor.sample(state)[1]
        soft.temper(fresh)
        soft.critics.step(soft.critics.error(state, action, target - offset))
        chosen, log_prob = soft.actor.sample(state)
        value = torch.min(*soft.critics.both(state, chosen)) + density(state, chosen)
        soft.actor_step((soft.alpha * log_prob - value).mean())
        soft.critics.average()

    return update
