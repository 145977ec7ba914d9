# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""RLPD's update in JAX, built as the authors' is: one jitted function, critics by `vmap`, rounds unrolled.

A contender of `benchmarks/update.py --jax`, which needs `pip install jax optax`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

# JAX is in no extra of this package: this file alone needs it.
import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import numpy as np
import optax  # pyright: ignore[reportMissingImports]
from tensordict import TensorDict
from timing import Update

GAMMA, TAU = 0.99, 0.005
Layers = list[dict[str, jax.Array]]


class Agent(NamedTuple):
    """All that an update changes."""

    actor: Layers
    critics: Layers
    targets: Layers
    log_alpha: jax.Array
    optims: tuple[Any, Any, Any]
    key: jax.Array


class Rows(NamedTuple):
    """Transitions."""

    state: Any
    action: Any
    reward: Any
    following: Any
    mask: Any


def mlp(key: jax.Array, sizes: list[int]) -> Layers:
    """Xavier's weights and biases of 0."""
    draw = jax.nn.initializers.xavier_uniform()
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [
        {"w": draw(k, (i, o)), "b": jnp.zeros(o), "scale": jnp.ones(o), "shift": jnp.zeros(o)} for k, i, o in shapes
    ]


def forward(layers: Layers, x: jax.Array, layer_norm: bool) -> jax.Array:
    """Hidden layers with ReLU, the last without."""
    for layer in layers[:-1]:
        x = x @ layer["w"] + layer["b"]
        if layer_norm:
            centered = x - x.mean(-1, keepdims=True)
            x = centered * jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + 1e-6)
            x = x * layer["scale"] + layer["shift"]
        x = jax.nn.relu(x)
    return x @ layers[-1]["w"] + layers[-1]["b"]


def qvalues(critics: Layers, state: jax.Array, action: jax.Array) -> jax.Array:
    """Of each member, shape [E, B]."""
    inputs = jnp.concatenate([state, action], -1)
    return jax.vmap(lambda layers: forward(layers, inputs, True)[..., 0])(critics)


def sample(actor: Layers, state: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squashed actions and their log-densities."""
    loc, log_std = jnp.split(forward(actor, state, False), 2, -1)
    log_std, noise = jnp.clip(log_std, -20, 2), jax.random.normal(key, loc.shape)
    raw = loc + jnp.exp(log_std) * noise
    density = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi) - 2 * (jnp.log(2) - raw - jax.nn.softplus(-2 * raw))
    return jnp.tanh(raw), density.sum(-1)


adam = optax.adam(3e-4)


def descend(gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """One step of Adam."""
    change, state = adam.update(gradient, state)
    return optax.apply_updates(params, change), state


def critic_step(agent: Agent, rows: Rows, subset: int) -> Agent:
    """One critic step with its averaging."""
    key, noise, choice = jax.random.split(agent.key, 3)
    alpha = jnp.exp(agent.log_alpha)
    action, log_prob = sample(agent.actor, rows.following, noise)
    members = agent.targets[0]["w"].shape[0]
    drawn = jax.random.choice(choice, members, (subset,), replace=False)
    chosen = jax.tree.map(lambda value: value[drawn], agent.targets)
    value = qvalues(chosen, rows.following, action).min(0) - alpha * log_prob
    target = rows.reward + GAMMA * rows.mask * value
    gradient = jax.grad(lambda critics: jnp.square(qvalues(critics, rows.state, rows.action) - target).mean())
    critics, state = descend(gradient(agent.critics), agent.optims[1], agent.critics)
    targets = optax.incremental_update(critics, agent.targets, TAU)
    return agent._replace(critics=critics, targets=targets, optims=(agent.optims[0], state, agent.optims[2]), key=key)


def actor_step(agent: Agent, rows: Rows) -> Agent:
    """One actor and one temperature step."""
    key, noise = jax.random.split(agent.key)
    alpha = jnp.exp(agent.log_alpha)

    def objective(actor: Layers) -> tuple[jax.Array, jax.Array]:
        action, log_prob = sample(actor, rows.state, noise)
        return (alpha * log_prob - qvalues(agent.critics, rows.state, action).mean(0)).mean(), -log_prob.mean()

    gradient, entropy = jax.grad(objective, has_aux=True)(agent.actor)
    actor, actor_state = descend(gradient, agent.optims[0], agent.actor)
    target_entropy = -0.5 * rows.action.shape[-1]
    gradient = jax.grad(lambda log_alpha: jnp.exp(log_alpha) * (entropy - target_entropy))(agent.log_alpha)
    log_alpha, alpha_state = descend(gradient, agent.optims[2], agent.log_alpha)
    return agent._replace(actor=actor, log_alpha=log_alpha, optims=(actor_state, agent.optims[1], alpha_state), key=key)


@partial(jax.jit, static_argnames=("utd_ratio", "subset"))
def whole_update(agent: Agent, batch: Rows, utd_ratio: int, subset: int) -> Agent:
    """`utd_ratio` critic steps, then one of the actor and one of the temperature."""
    size = batch.reward.shape[0] // utd_ratio
    rows = batch
    for number in range(utd_ratio):
        rows = Rows(*(value[number * size : (number + 1) * size] for value in batch))
        agent = critic_step(agent, rows, subset)
    return actor_step(agent, rows)


def rlpd(members: int, width: int, utd_ratio: int, subset: int, observation: int, action: int) -> Update:
    """An update that takes the batches of the other contenders."""
    keys = jax.random.split(jax.random.key(0), 3)
    actor = mlp(keys[0], [observation, width, width, 2 * action])
    critics = jax.vmap(lambda key: mlp(key, [observation + action, width, width, 1]))(
        jax.random.split(keys[1], members)
    )
    log_alpha = jnp.zeros(())
    optims = (adam.init(actor), adam.init(critics), adam.init(log_alpha))
    agents = [Agent(actor, critics, critics, log_alpha, optims, keys[2])]

    def update(batch: TensorDict) -> None:
        reward, mask = batch["next", "reward"], 1 - batch.get(("next", "terminated")).float()
        columns = (batch["observation"], batch["action"], reward, batch["next", "observation"], mask)
        state, taken, reward, following, going_on = (np.asarray(column) for column in columns)
        rows = Rows(state, taken, reward[:, 0], following, going_on[:, 0])
        agents[0] = jax.block_until_ready(whole_update(agents[0], rows, utd_ratio, subset))

    return update
