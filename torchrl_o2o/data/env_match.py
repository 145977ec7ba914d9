# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Check that data fit an environment: compare dimensions, entries and action bounds without a step."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import FlattenObservation
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data.tensor_specs import ContinuousBox
from torchrl.envs import EnvBase, GymWrapper, TransformedEnv

from torchrl_o2o.data.findings import Finding
from torchrl_o2o.envs.checks import check_continuous
from torchrl_o2o.envs.tasks import observation_keys
from torchrl_o2o.errors import O2OSpecError

__all__ = [
    "EnvFacts",
    "EnvLike",
    "described",
    "env_facts",
    "match_environment",
    "match_keys",
    "match_settings",
    "match_units",
]

#: Arguments that only affect rendering, and wrappers that do not change observations, actions or rewards.
_DRAWING = re.compile(r"render|width$|height$|camera|default_camera|visual|disable_env_checker|max_episode_steps")
_HARMLESS = {"TimeLimit", "OrderEnforcing", "PassiveEnvChecker", "RecordEpisodeStatistics", "FlattenObservation"}
_HARMLESS |= {"RecordVideo", "HumanRendering", "RenderCollection", "AddRenderObservation", "DataCollector"}
#: Wrappers that this package adds to an environment.
_OWN_WRAPPERS = ("TransformObservation", "TransformAction", "StackFrames")
#: An environment, or the id of one for :func:`torchrl_o2o.envs.make_gym_env`.
EnvLike = str | gymnasium.Env | EnvBase


@dataclass(frozen=True)
class EnvFacts:
    """The properties of an environment with which data are compared.

    Args:
        name: its id, or its class.
        observation: shape of an observation.
        action: shape of an action.
        low: lower bounds of its actions.
        high: upper bounds.
        own_low: lower bounds of the environment inside, before its actions are mapped to [-1, 1].
        own_high: upper bounds.
        max_episode_steps: its time limit.
        moves: whether it changes by small steps in time, like physics. Defaults to ``False``, unknown.
        spec: its id, arguments and wrappers, as :func:`described` gives them; empty where it has none.
        keys: entries of its dictionary observation that are joined, in order; empty where nothing is joined.
        entries: all entries of that dictionary.
    """

    name: str
    observation: tuple[int, ...]
    action: tuple[int, ...]
    low: Tensor
    high: Tensor
    own_low: Tensor
    own_high: Tensor
    max_episode_steps: int | None
    moves: bool = False
    spec: Mapping[str, Any] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    entries: frozenset[str] = frozenset()


def match_environment(
    data: TensorDictBase, env: EnvLike | EnvFacts, action_low: Tensor, action_high: Tensor
) -> list[Finding]:
    """Compare transitions with an environment.

    Args:
        data: transitions [N].
        env: a gymnasium or TorchRL environment, an environment id, or :class:`EnvFacts`.
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
    facts = env if isinstance(env, EnvFacts) else env_facts(env)
    name, observation, action, low, high = facts.name, facts.observation, facts.action, facts.low, facts.high
    findings = []
    stored = tuple(data.get("observation").shape[1:])
    if stored != observation and not _is_stack(observation, stored):
        message = (
            f"the data's observation has the shape {list(stored)}, {name}'s {list(observation)}. Choose the "
            "environment that the data were recorded in, or obs_keys that match it."
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


def _is_stack(observed: tuple[int, ...], stored: tuple[int, ...]) -> bool:
    """Whether an environment observes stacks [k * 3, H, W] of the frames [3, H, W] that the data hold."""
    return len(observed) == len(stored) == 3 and observed[1:] == stored[1:] and observed[0] % stored[0] == 0


def match_units(data: TensorDictBase, env: EnvFacts) -> list[Finding]:
    """Compare actions in [-1, 1] with the environment's own box, if the source states no box.

    Args:
        data: transitions [N], actions as stored.
        env: what is known of the environment.

    Returns:
        An error if the environment's box is another one and all actions lie in it, because they could be shares of the
        box or in the environment's units. A warning if some lie outside it, which only shares can.
    """
    mapped = _close(env.low, torch.tensor(-1.0)) and _close(env.high, torch.tensor(1.0))
    action = data.get("action")
    if (
        not mapped
        or tuple(action.shape[1:]) != env.action
        or any(bool((part.abs() > 1 + 2e-6).any()) for part in action.split(2**20))
    ):
        return []
    if _close(env.own_low, env.low) and _close(env.own_high, env.high):
        return []
    own_units = bool(((action >= env.own_low) & (action <= env.own_high)).all())
    span, own = f"[{action.min():.4g}, {action.max():.4g}]", f"[{_text(env.own_low)}, {_text(env.own_high)}]"
    message = (
        f"the actions span {span} from row 0 on and {env.name}'s own box is {own}: the data do not say in which units "
        f"they are{'' if own_units else ', and are taken for shares of the box'}. If they are the environment's units, "
        "pass action_bounds=(low, high) of that box; if they are shares, action_bounds=(-1, 1) says so."
    )
    return [Finding("action_units", "error" if own_units else "warning", message, count=len(action), key="action")]


def described(env_id: str, kwargs: Mapping[str, Any], wrappers: Sequence[str]) -> dict[str, Any]:
    """The parts of an environment's spec that determine its behavior, as JSON values.

    Args:
        env_id: of the registered environment.
        kwargs: its arguments; those that only affect rendering are left out.
        wrappers: names of its wrappers; those that change nothing are left out.

    Examples:
        >>> described("Hopper-v5", {"render_mode": "human", "ctrl_cost_weight": 0}, ["OrderEnforcing"])
        {'id': 'Hopper-v5', 'kwargs': {'ctrl_cost_weight': 0}, 'wrappers': []}
    """
    kept = {name: value for name, value in kwargs.items() if not _DRAWING.match(name)}
    plain = json.loads(json.dumps(kept, default=str))
    return {"id": env_id, "kwargs": plain, "wrappers": [name for name in wrappers if name not in _HARMLESS]}


def match_keys(keys: Sequence[str], env: EnvFacts) -> list[Finding]:
    """Compare the entries of a dictionary observation that were joined with those that the environment joins.

    Args:
        keys: of the data, in order; empty where nothing was joined.
        env: what is known of the environment.

    Returns:
        An error if they are other entries of the same dictionary, or in another order. Shapes cannot show this: desired
        and achieved goals have the same width.

    Examples:
        >>> import torch
        >>> edge, keys = torch.ones(1), ("observation", "desired_goal")
        >>> facts = EnvFacts("Maze", (6,), (1,), -edge, edge, -edge, edge, None, keys=keys, entries=frozenset(keys))
        >>> print(*match_keys(("desired_goal", "observation"), facts))
        error [observation_keys] the data's observation joins ['desired_goal', 'observation'], and Maze's...
    """
    if not keys or not env.keys or tuple(keys) == env.keys or not set(keys) <= env.entries:
        return []
    message = (
        f"the data's observation joins {list(keys)}, and {env.name}'s {list(env.keys)}. Pass "
        f"obs_keys={list(env.keys)}, or build the environment with observation_keys={list(keys)}."
    )
    return [Finding("observation_keys", "error", message, key="observation")]


def match_settings(recorded: Sequence[Mapping[str, Any]], env: EnvFacts) -> list[Finding]:
    """Compare the environment that data were recorded in with the one that they are for.

    Args:
        recorded: the environment of the data and the one for evaluation, in the form of :func:`described`; may be
            empty.
        env: what is known of the other.

    Returns:
        A warning if it is another one: rewards, ends and observations may have another meaning despite equal shapes.

    Examples:
        >>> import torch
        >>> edge = torch.ones(1)
        >>> spec = described("AntMaze_UMaze-v5", {}, [])
        >>> facts = EnvFacts("AntMaze_UMaze-v5", (3,), (1,), -edge, edge, -edge, edge, None, spec=spec)
        >>> print(*match_settings([described("AntMaze_Large-v5", {"continuing_task": True}, [])], facts))
        warning [other_environment] the data were recorded in AntMaze_Large-v5 with continuing_task=True, and the...
    """
    own = dict(env.spec)
    if not recorded or not own or any(_same_settings(other, own) for other in recorded):
        return []
    was, now = _settings(recorded[0], own), _settings(own, recorded[0])
    message = (
        f"the data were recorded in {was}, and the environment is {now}: rewards, ends of episodes and observations "
        "may differ even if their shapes agree. Build the environment with the recorded settings (env_kwargs=...), or "
        "make sure that they agree."
    )
    return [Finding("other_environment", "warning", message)]


def _same_settings(recorded: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    same = recorded["id"] == own["id"] and recorded["kwargs"] == own["kwargs"]
    return same and set(recorded["wrappers"]) <= set(own["wrappers"])


def _settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The id of the environment ``one``, and the arguments and wrappers in which it differs from ``other``."""
    absent = object()
    differing = [name for name, value in one["kwargs"].items() if other["kwargs"].get(name, absent) != value]
    short = [
        f"{name}={text}" if len(text := repr(one["kwargs"][name])) < 40 else f"another {name}" for name in differing
    ]
    inside = [f"the wrapper {name}" for name in one["wrappers"] if name not in (*other["wrappers"], *_OWN_WRAPPERS)]
    said = [*short, *inside]
    return f"{one['id']} with {', '.join(said)}" if said else str(one["id"])


def env_facts(env: EnvLike, frame_size: int | None = None) -> EnvFacts:
    """Read the properties of an environment without a step.

    Args:
        env: a gymnasium or TorchRL environment, or an environment id.
        frame_size: size of the data's frames. An environment given by its id that observes no frames is built to render
            them.

    Raises:
        O2OSpecError: if it is not an environment, or its actions are discrete.
    """
    if isinstance(env, str):
        from torchrl_o2o.envs.make import make_gym_env  # imported late, because environments read this package's tasks

        with closing(make_gym_env(env)) as built:
            facts = replace(_gym_facts(built), name=env)
        if frame_size is None or len(facts.observation) == 3:
            return facts
        with closing(make_gym_env(env, render_size=frame_size)) as built:
            return replace(_gym_facts(built), name=env)
    if isinstance(env, EnvBase):
        return _torchrl_facts(env)
    if isinstance(env, gymnasium.Env):
        return _gym_facts(env)
    raise O2OSpecError(f"env is a {type(env).__name__}; expected a gymnasium or TorchRL environment or an id.")


def _gym_facts(env: gymnasium.Env) -> EnvFacts:
    name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
    box = env.action_space
    check_continuous(box, name)
    assert isinstance(box, spaces.Box)
    space = env.observation_space
    if isinstance(space, spaces.Dict):
        keys, names = tuple(key for key in observation_keys(name) if key in space.spaces), frozenset(space.spaces)
        observation: tuple[int, ...] = (sum(int(np.prod(space[key].shape or ())) for key in keys),)
    else:
        observation, (keys, names) = tuple(space.shape or ()), _joined(env)
    low, high = torch.as_tensor(box.low), torch.as_tensor(box.high)
    own_low, own_high = _own_box(env, low, high)
    limit = None if env.spec is None else env.spec.max_episode_steps
    moves = hasattr(env.unwrapped, "dt")
    spec, shape = _described(env.spec), tuple(box.shape)
    return EnvFacts(name, observation, shape, low, high, own_low, own_high, limit, moves, spec, keys, names)


def _joined(env: gymnasium.Env) -> tuple[tuple[str, ...], frozenset[str]]:
    """The entries that a wrapper joins into one vector, in order, and all entries; empty without such a wrapper."""
    from torchrl_o2o.envs.flat_observations import concatenated_keys  # imported late, as above

    while isinstance(env, gymnasium.Wrapper):
        inner = env.env.observation_space
        if isinstance(inner, spaces.Dict):
            if isinstance(env, FlattenObservation):
                return tuple(inner.spaces), frozenset(inner.spaces)
            if keys := concatenated_keys(env):
                return keys, frozenset(inner.spaces)
        env = env.env
    return (), frozenset()


def _described(spec: EnvSpec | None) -> dict[str, Any]:
    if spec is None:
        return {}
    return described(spec.id, spec.kwargs, [wrapper.name for wrapper in spec.additional_wrappers])


def _own_box(env: Any, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The action box of the unwrapped environment, if it has one of the same shape."""
    own = env.unwrapped.action_space
    if not isinstance(own, spaces.Box) or own.shape != tuple(low.shape):
        return low, high
    return torch.as_tensor(own.low), torch.as_tensor(own.high)


def _torchrl_facts(env: EnvBase) -> EnvFacts:
    inner, batch = _inner(env), len(env.batch_size)
    spec = inner._env.spec if isinstance(inner, GymWrapper) else None
    name = type(inner).__name__ if spec is None else spec.id
    if "observation" not in env.observation_spec.keys():  # noqa: SIM118  # a spec is not a mapping
        raise O2OSpecError(f"{name} observes {sorted(map(str, env.observation_spec.keys()))}; expected 'observation'.")
    observation = tuple(env.observation_spec["observation"].shape[batch:])
    box = env.action_spec.space
    if not isinstance(box, ContinuousBox):
        raise O2OSpecError(
            f"the actions of {name} are {type(env.action_spec).__name__}, expected a continuous box; pass the "
            "environment of the data"
        )
    low, high = box.low.cpu(), box.high.cpu()
    own_low, own_high = _own_box(inner._env, low, high) if isinstance(inner, GymWrapper) else (low, high)
    limit = None if spec is None else spec.max_episode_steps
    moves = isinstance(inner, GymWrapper) and hasattr(inner._env.unwrapped, "dt")
    shape = tuple(env.action_spec.shape[batch:])
    keys, names = _joined(inner._env) if isinstance(inner, GymWrapper) else ((), frozenset())
    return EnvFacts(name, observation, shape, low, high, own_low, own_high, limit, moves, _described(spec), keys, names)


def _inner(env: EnvBase) -> EnvBase:
    """The environment inside TorchRL's transforms."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env


def _close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(*torch.broadcast_tensors(first.float(), second.float()), atol=1e-5)


def _text(bound: Tensor) -> str:
    values = bound.flatten().unique()
    return ", ".join(f"{value:g}" for value in values[:4].tolist()) + (", ..." if len(values) > 4 else "")
