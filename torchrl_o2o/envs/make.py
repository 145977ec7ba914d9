# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Build environments with flat float32 observations, actions in [-1, 1], trusted code and a seed.

The same preparation serves training (:func:`make_env`, a TorchRL environment) and evaluation (:func:`make_gym_env`, a
gymnasium one), so that both use the same environment. An environment id may come from an untrusted source: only
environments with code from an allow-listed module are built, and no id makes Python import anything else.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import multiprocessing
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import DependencyNotInstalled
from gymnasium.wrappers import FilterObservation
from torchrl.envs import EnvBase, GymWrapper

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.envs.checks import check_reset
from torchrl_o2o.envs.flat_observations import chosen_keys, flat_observation, is_vector, sees_images
from torchrl_o2o.envs.outputs import CheckedEnv
from torchrl_o2o.envs.pixels import RenderedFrames, RepeatAction, StackFrames
from torchrl_o2o.envs.tasks import TASKS
from torchrl_o2o.envs.units import unit_actions
from torchrl_o2o.envs.video import drawing_env
from torchrl_o2o.errors import O2OSpecError, check_seed

__all__ = [
    "TRUSTED_MODULES",
    "make_env",
    "make_gym_env",
    "mujoco_warnings",
    "observes_dictionary",
    "own_spec",
    "seed_everything",
]

#: Modules whose environments are trusted.
TRUSTED_MODULES = ("gymnasium", "gymnasium_robotics", "torchrl_o2o")
_OWN_NAMESPACE = "o2o/"
_DM_CONTROL = re.compile(r"dm_control/(?P<domain>[a-zA-Z_]+)-(?P<task>\w+)-v0")


@checked_arguments
def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (every device).

    Args:
        seed: any non-negative integer of Python or numpy below 2**32, numpy's limit.

    Raises:
        O2OSpecError: if the seed is not such an integer.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.envs import seed_everything
        >>> seed_everything(7); first = torch.rand(2)
        >>> seed_everything(7); bool((first == torch.rand(2)).all())
        True
    """
    seed = check_seed(seed, below=2**32)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # third-party environments draw from the global generator
    torch.manual_seed(seed)


@checked_arguments
def make_env(
    env_id: str,
    *,
    seed: int | None = None,
    max_episode_steps: int | None = None,
    observation_keys: Sequence[str] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    allow_modules: Sequence[str] = (),
    device: torch.device | str | None = None,
) -> EnvBase:
    """Build a TorchRL environment whose tensordicts have the keys of TED, including ``observation`` and ``action``.

    It is :class:`torchrl.envs.GymWrapper` around :func:`make_gym_env`. A time limit sets ``truncated`` and not
    ``terminated``, so that a loss bootstraps there. Random actions (``env.rand_action``) come from torch's global
    generator, which you can seed with :func:`seed_everything`.

    Args:
        env_id: as in :func:`make_gym_env`.
        seed: seed of the sequence of resets; ``None`` takes a random one from the operating system.
        max_episode_steps: as in :func:`make_gym_env`.
        observation_keys: as in :func:`make_gym_env`.
        env_kwargs: as in :func:`make_gym_env`.
        allow_modules: as in :func:`make_gym_env`.
        device: device of the tensors; ``None`` means the CPU.

    Returns:
        The environment, whose observations are float32 of shape [o] and whose actions are in [-1, 1]^A. A
        :class:`~torchrl_o2o.envs.CheckedEnv` checks its values.

    Raises:
        O2OSpecError: as :func:`make_gym_env` does.

    Examples:
        >>> from torchrl_o2o.envs import make_env
        >>> env = make_env("Pendulum-v1", seed=0)
        >>> step = env.rand_step(env.reset())
        >>> step["observation"].shape, step["next", "reward"].shape, step["next", "terminated"].dtype
        (torch.Size([3]), torch.Size([1]), torch.bool)
        >>> env.close()
    """
    gym_env = make_gym_env(
        env_id,
        max_episode_steps=max_episode_steps,
        observation_keys=observation_keys,
        env_kwargs=env_kwargs,
        allow_modules=allow_modules,
    )
    env = GymWrapper(CheckedEnv(gym_env), device=device)
    if seed is not None:
        env.set_seed(check_seed(seed))
    return env


@checked_arguments
def make_gym_env(
    env_id: str,
    *,
    seed: int | None = None,
    max_episode_steps: int | None = None,
    observation_keys: Sequence[str] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    allow_modules: Sequence[str] = (),
    num_stack: int = 3,
    action_repeat: int = 1,
    render_size: int | None = None,
    shadows: bool = False,
) -> gymnasium.Env:
    """Build a gymnasium environment with a flat float32 observation, or stacked frames, and actions in ``[-1, 1]``.

    Goal observations (dictionaries) are concatenated in the order of ``observation_keys``. Dictionaries with an image
    are not concatenated: each image is stacked, vectors are float32, and encoders read them by name. Observations are
    copies, which the environment cannot change later. Actions outside ``[-1, 1]`` are clipped, as unsquashed Gaussian
    policies expect, then mapped affinely to the environment's own bounds, never beyond them. Integer actions are
    rounded to the nearest integer. A dimension with a single value keeps it.

    Args:
        env_id: a registered gymnasium id with its version ("HalfCheetah-v5"), or a task of this package
            ("o2o/PointMaze-Medium-v0"), which has its own arguments, or one of dm_control's suite
            ("dm_control/walker-walk-v0").
        seed: seed of the environment, set by one reset, and of its action space. ``None`` seeds neither.
        max_episode_steps: replaces the registered time limit, at least 1; ``None`` keeps it.
        observation_keys: the entries of a dictionary observation to concatenate, in this order. ``None`` takes those of
            ``observation``, ``achieved_goal`` and ``desired_goal`` that exist (PointMaze without ``achieved_goal``,
            which repeats the position). With images, these are the entries to keep, and ``None`` keeps all.
        env_kwargs: further arguments of the environment's constructor, which replace those of its registration.
        allow_modules: trusted modules besides :data:`TRUSTED_MODULES`. The id may also name them
            ("my_package:MyEnv-v0"), which imports them.
        num_stack: number of frames in an observation, if the environment observes images, uint8 [3 num_stack, H, W],
            see :class:`~torchrl_o2o.envs.StackFrames`. Defaults to 3.
        action_repeat: number of times that each action is taken; rewards are summed. Defaults to 1.
        render_size: height and width in pixels of rendered frames that replace the observations. ``None`` (default)
            keeps the environment's own observations.
        shadows: whether MuJoCo renders shadows, reflections and smooth edges, as in V-D4RL's frames. Defaults to
            ``False``, which takes a seventh of the time on a CPU.

    Returns:
        The environment.

    Raises:
        O2OSpecError: if the id is unknown or not trusted, a dependency is missing, ``reset`` takes no seed and options
            (the older gym's interface), the actions are discrete or not a bounded vector, the observation is not a
            vector, a dictionary of vectors or a uint8 image, or rendering does not work here.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> env = make_gym_env("Pendulum-v1", seed=0)
        >>> env.action_space, env.observation_space.dtype, env.spec.max_episode_steps
        (Box(-1.0, 1.0, (1,), float32), dtype('float32'), 200)
        >>> make_gym_env("Pendulun-v1")
        Traceback (most recent call last):
        ...
        torchrl_o2o.errors.O2OSpecError: environment 'Pendulun-v1' is not registered. Close matches: Pendulum-v1...
    """
    kwargs = dict(env_kwargs or {})
    if "max_episode_steps" in kwargs:
        raise O2OSpecError(
            "got max_episode_steps in env_kwargs, expected it as a separate argument; pass max_episode_steps=..."
        )
    if max_episode_steps is not None and max_episode_steps < 1:
        raise O2OSpecError(f"got max_episode_steps={max_episode_steps}, expected at least 1, or None for its own limit")
    if env_id.startswith(_OWN_NAMESPACE):
        task = _own_task(env_id)
        env_id, kwargs = task.env_id, {**task.kwargs, **kwargs}
        observation_keys = task.obs_keys if observation_keys is None else observation_keys
        max_episode_steps = task.max_episode_steps if max_episode_steps is None else max_episode_steps
    spec = own_spec(env_id) or _trusted_spec(env_id, (*TRUSTED_MODULES, *allow_modules))
    if shadows and render_size is None:
        raise O2OSpecError(
            "got shadows=True without render_size, expected the size of rendered frames; pass render_size"
        )
    if render_size is not None:
        kwargs = {"render_mode": "rgb_array", **_frame_arguments(spec, render_size), **kwargs}
    build = partial(_build, spec, max_episode_steps, kwargs)
    env = build() if render_size is None else drawing_env(build, env_id, plainly=not shadows)
    check_reset(env)
    if action_repeat != 1:
        env = RepeatAction(env, action_repeat)
    if render_size is not None:
        if observation_keys is not None or is_vector(env.observation_space):
            env = flat_observation(env, env_id, observation_keys)
        env = RenderedFrames(env, render_size)
        observation_keys = None
    sees = sees_images(env.observation_space)
    if sees and isinstance(env.observation_space, spaces.Dict) and observation_keys is not None:
        keys = chosen_keys(env_id, env.observation_space, observation_keys)
        env = FilterObservation(env, keys)
    env = StackFrames(env, num_stack) if sees else flat_observation(env, env_id, observation_keys)
    env = unit_actions(env, env_id)
    if seed is not None:
        env.reset(seed=check_seed(seed))
        env.action_space.seed(check_seed(seed))
    return env


@contextmanager
def mujoco_warnings() -> Iterator[None]:
    """Turn MuJoCo's warnings while a model is compiled into Python's, without its deprecation notes.

    By default, MuJoCo prints them at every construction and appends them to a file in the working folder. Users of an
    environment cannot fix the deprecated attributes in gymnasium's own models.

    Examples:
        >>> import gymnasium
        >>> from torchrl_o2o.envs import mujoco_warnings
        >>> with mujoco_warnings():
        ...     env = gymnasium.make("Pendulum-v1")
    """
    if importlib.util.find_spec("mujoco") is None:
        yield
        return
    mujoco = importlib.import_module("mujoco")
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: None if "deprecated" in text else warnings.warn(text, stacklevel=2))
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


def _build(spec: EnvSpec, max_episode_steps: int | None, kwargs: Mapping[str, Any]) -> gymnasium.Env:
    try:
        with mujoco_warnings():
            return gymnasium.make(spec, max_episode_steps=max_episode_steps, **kwargs)
    except (DependencyNotInstalled, ImportError) as error:
        raise O2OSpecError(
            f"{spec.id} needs a package that is not installed ({error}); try pip install torchrl_o2o[mujoco], "
            "torchrl_o2o[robotics] or torchrl_o2o[dm_control]."
        ) from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise O2OSpecError(f"{spec.id} does not take env_kwargs={dict(kwargs)}: {error}") from error


def _frame_arguments(spec: EnvSpec, size: int) -> dict[str, int]:
    """Arguments with which MuJoCo renders at that size; frames of other environments are resized."""
    mujoco = str(spec.entry_point).startswith(("gymnasium.envs.mujoco", "torchrl_o2o.envs.dm_control"))
    return {"width": size, "height": size} if mujoco else {}


def own_spec(env_id: str) -> EnvSpec | None:
    """The gymnasium spec of an environment of this package or of dm_control's suite; ``None`` for others.

    Args:
        env_id: for example ``"o2o/DotReach-v0"`` or ``"dm_control/walker-walk-v0"``.

    Examples:
        >>> own_spec("o2o/DotReach-v0").max_episode_steps
        25
    """
    suite = _DM_CONTROL.fullmatch(env_id)
    if suite is not None:
        kwargs = suite.groupdict()
        return EnvSpec(env_id, entry_point="torchrl_o2o.envs.dm_control:DMControlEnv", kwargs=kwargs)
    task = TASKS.get(env_id)
    if task is None or task.entry_point is None:
        return None
    return EnvSpec(task.env_id, entry_point=task.entry_point, max_episode_steps=task.max_episode_steps)


def _own_task(name: str) -> Any:
    if name not in TASKS:
        raise O2OSpecError(_unknown(name, list(TASKS)))
    return TASKS[name]


def _trusted_spec(env_id: str, trusted: tuple[str, ...]) -> EnvSpec:
    module, _, name = env_id.rpartition(":")
    if module:
        _check_trusted(env_id, module, trusted)
        importlib.import_module(module)
    if name not in gymnasium.registry and importlib.util.find_spec("gymnasium_robotics") is not None:
        gymnasium.register_envs(importlib.import_module("gymnasium_robotics"))
    spec = gymnasium.registry.get(name)
    if spec is None:
        hint = "" if module else f" If a module of yours registers it, name the module as well: 'my_module:{name}'."
        raise O2OSpecError(_unknown(name, list(gymnasium.registry)) + hint)
    for entry_point in (spec.entry_point, *(wrapper.entry_point for wrapper in spec.additional_wrappers)):
        source = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "?")
        _check_trusted(env_id, source.partition(":")[0], trusted)
    return spec


def _check_trusted(env_id: str, module: str, trusted: tuple[str, ...]) -> None:
    if not any(module == root or module.startswith(f"{root}.") for root in trusted):
        raise O2OSpecError(
            f"environment {env_id!r} would run code of the module {module!r}; trusted are {', '.join(trusted)}. "
            f"If you trust it, pass allow_modules=({module.partition('.')[0]!r},) to make_gym_env: --allow-modules of "
            "`o2o`, env.allow_modules=[...] of a script with task=custom."
        )


def _unknown(name: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=3)
    hint = f"Close matches: {', '.join(matches)}." if matches else "No registered name is close to it."
    if importlib.util.find_spec("gymnasium_robotics") is None:
        hint += " Mazes and hands need pip install torchrl_o2o[robotics]."
    if multiprocessing.parent_process() is not None:
        hint += " Registrations of another process are unknown here: register it in this process, or name its module."
    return f"environment {name!r} is not registered. {hint} Give the full id with its version."


def observes_dictionary(env_id: str, *, allow_modules: Sequence[str] = ()) -> bool:
    """Whether ``observation_keys`` of :func:`make_gym_env` choose what an environment observes.

    Args:
        env_id: as for :func:`make_gym_env`.
        allow_modules: trusted modules besides :data:`TRUSTED_MODULES`.

    Raises:
        O2OSpecError: if the id is unknown or not trusted, or a dependency is missing.

    Examples:
        >>> observes_dictionary("Pendulum-v1")
        False
    """
    task = _own_task(env_id) if env_id.startswith(_OWN_NAMESPACE) else None
    name, kwargs = (env_id, {}) if task is None else (task.env_id, task.kwargs)
    spec = own_spec(name) or _trusted_spec(name, (*TRUSTED_MODULES, *allow_modules))
    with closing(_build(spec, None, kwargs)) as env:
        return isinstance(env.observation_space, spaces.Dict)
