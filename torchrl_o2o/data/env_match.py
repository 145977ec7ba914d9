# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Do the data fit the environment? Dimensions, entries and action bounds, compared without a step."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, GymWrapper, TransformedEnv

from torchrl_o2o.data.findings import Finding
from torchrl_o2o.envs.border import check_continuous
from torchrl_o2o.envs.tasks import observation_keys
from torchrl_o2o.errors import O2OSpecError

__all__ = ["EnvLike", "match_environment"]

#: An environment, or the id of one for :func:`torchrl_o2o.envs.make_gym_env`.
EnvLike = str | gymnasium.Env | EnvBase


def match_environment(data: TensorDictBase, env: EnvLike, action_low: Tensor, action_high: Tensor) -> list[Finding]:
    """Compare transitions with an environment.

    Args:
        data: transitions [N].
        env: a gymnasium or TorchRL environment, or an environment id.
        action_low: lower bound of the data's actions, one for all or [a].
        action_high: upper bound.

    Returns:
        An error for each of observation shape, action dimension and action bounds that differs.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.data.env_match import match_environment
        >>> data = TensorDict({"observation": torch.zeros(4, 5), "action": torch.zeros(4, 1)}, [4])
        >>> print(*match_environment(data, "Pendulum-v1", torch.tensor(-1.0), torch.tensor(1.0)))
        error [observation_shape] the data's observation has the shape [5], Pendulum-v1's [3]...
    """
    name, observation, action, low, high = _facts(env)
    findings = []
    if tuple(data.get("observation").shape[1:]) != observation:
        message = (
            f"the data's observation has the shape {list(data.get('observation').shape[1:])}, {name}'s "
            f"{list(observation)}. Choose the environment that the data were recorded in, or obs_keys that match it."
        )
        findings.append(Finding("observation_shape", "error", message, key="observation"))
    if tuple(data.get("action").shape[1:]) != action:
        message = f"the data's action has the shape {list(data.get('action').shape[1:])}, {name}'s {list(action)}."
        findings.append(Finding("action_shape", "error", message, key="action"))
    elif not (_close(low, action_low) and _close(high, action_high)):
        message = (
            f"the data's actions are in [{_text(action_low)}, {_text(action_high)}], {name}'s in [{_text(low)}, "
            f"{_text(high)}]. Build the environment with torchrl_o2o.envs.make_env, which rescales actions to [-1, 1]."
        )
        findings.append(Finding("action_bounds", "error", message, key="action"))
    return findings


def _facts(env: EnvLike) -> tuple[str, tuple[int, ...], tuple[int, ...], Tensor, Tensor]:
    if isinstance(env, str):
        from torchrl_o2o.envs.make import make_gym_env  # late: environments read the task table of this package

        built = make_gym_env(env)
        try:
            return (env, *_gym_facts(built)[1:])
        finally:
            built.close()
    if isinstance(env, EnvBase):
        return _torchrl_facts(env)
    if isinstance(env, gymnasium.Env):
        return _gym_facts(env)
    raise O2OSpecError(f"env is a {type(env).__name__}; expected a gymnasium or TorchRL environment or an id.")


def _gym_facts(env: gymnasium.Env) -> tuple[str, tuple[int, ...], tuple[int, ...], Tensor, Tensor]:
    name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
    box = env.action_space
    check_continuous(box, name)
    assert isinstance(box, spaces.Box)
    space = env.observation_space
    if isinstance(space, spaces.Dict):
        entries = [space[key] for key in observation_keys(name) if key in space.spaces]
        observation: tuple[int, ...] = (sum(int(np.prod(entry.shape or ())) for entry in entries),)
    else:
        observation = tuple(space.shape or ())
    return name, observation, tuple(box.shape), torch.as_tensor(box.low), torch.as_tensor(box.high)


def _torchrl_facts(env: EnvBase) -> tuple[str, tuple[int, ...], tuple[int, ...], Tensor, Tensor]:
    name, batch = _name(env), len(env.batch_size)
    if "observation" not in env.observation_spec.keys():  # noqa: SIM118  # a spec is no mapping
        raise O2OSpecError(f"{name} observes {sorted(map(str, env.observation_spec.keys()))}; expected 'observation'.")
    observation = tuple(env.observation_spec["observation"].shape[batch:])
    space = env.action_spec.space
    return name, observation, tuple(env.action_spec.shape[batch:]), space.low.cpu(), space.high.cpu()


def _name(env: EnvBase) -> str:
    """The id of the gymnasium environment inside, or the class's name."""
    inner = env
    while isinstance(inner, TransformedEnv):
        inner = inner.base_env
    spec = inner._env.spec if isinstance(inner, GymWrapper) else None
    return type(inner).__name__ if spec is None else spec.id


def _close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(*torch.broadcast_tensors(first.float(), second.float()), atol=1e-5)


def _text(bound: Tensor) -> str:
    values = bound.flatten().unique()
    return ", ".join(f"{value:g}" for value in values[:4].tolist()) + (", ..." if len(values) > 4 else "")
