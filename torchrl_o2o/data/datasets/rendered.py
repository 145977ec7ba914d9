# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Record data sets of rendered images from an environment, and store them as Minari data sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data.datasets.actors import EpisodeActors, gaussian_noise, uniform_policy
from torchrl_o2o.data.datasets.cache import dataset_root
from torchrl_o2o.data.datasets.functions import function_fingerprint
from torchrl_o2o.data.datasets.local import check_same, store_trajectories
from torchrl_o2o.data.datasets.minari import check_dataset_id
from torchrl_o2o.data.datasets.optional import require
from torchrl_o2o.data.datasets.recipes import LOCAL_DATASETS
from torchrl_o2o.data.datasets.rollout import roll_out
from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.envs.video import draw
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.provenance import package_versions, plain_config

__all__ = ["record_frames"]


@checked_arguments
def record_frames(
    name: str,
    env: str | Mapping[str, Any],
    *,
    act: Callable[[np.ndarray], np.ndarray] | None = None,
    sees_frames: bool = False,
    policy: str | None = None,
    noise: float = 0.0,
    num_steps: int = 10_000,
    seed: int = 0,
    root: str | Path | None = None,
) -> Path:
    """Record the rendered images of an environment as a data set, unless the data set already exists.

    The result is a Minari data set, which :func:`~torchrl_o2o.data.load_offline` loads by its name and
    :func:`~torchrl_o2o.data.stack_rows` stacks. It has one frame per step and one more per episode, uint8, channels
    first, and actions in [-1, 1]. Under ``"o2o"``, its metadata hold the arguments of the environment, which training
    also needs, the policy, the seed, versions, and the rendering settings.

    Args:
        name: its id, such as ``"walker/random-v0"``.
        env: the environment's id, or arguments of :func:`~torchrl_o2o.envs.make_gym_env`; ``render_size`` defaults to
            64.

    Keyword Args:
        act: a function from an observation to an action in [-1, 1]. If it has a ``reset``, this is called before each
            episode. ``None`` (default) draws actions uniformly.
        sees_frames: whether ``act`` gets the recorded frames, [H, W, 3], one by one. With ``False`` (default) it gets
            the environment's own observations.
        policy: name of ``act`` in the metadata, which identifies it. Defaults to ``None``: its own name and a hash of
            its code. An ``act`` without a hash (see :func:`~torchrl_o2o.data.datasets.functions.function_fingerprint`)
            only records new data sets.
        noise: standard deviation of normal noise on its actions, which are clipped. Defaults to 0.
        num_steps: number of steps of the agent. Defaults to 10 000.
        seed: of the environment, the actions and the noise. Defaults to 0.
        root: folder for it. Defaults to ``None``: Minari's data set folder.

    Returns:
        The data set's folder.

    Raises:
        O2ODataError: if the name is not valid, or a data set of that name exists that was made differently.
        O2OSpecError: if the name belongs to another data set of this package, a number is out of range, the environment
            cannot be rendered here, or a library is not installed.

    Examples:
        >>> import tempfile
        >>> from torchrl_o2o.data import load_offline, stack_rows
        >>> env = {"env_id": "o2o/DotReach-v0", "render_size": 12}
        >>> folder = record_frames("dot/random-v0", env, num_steps=50, root=Path(tempfile.mkdtemp()))
        >>> stack_rows(load_offline(folder, cache=False)).frames["observation"].shape
        torch.Size([52, 3, 12, 12])
    """
    check_dataset_id(name)
    if name in LOCAL_DATASETS or num_steps < 2 or seed < 0 or noise < 0 or (noise > 0 and act is None):
        raise O2OSpecError(
            f"got name={name!r}, num_steps={num_steps}, seed={seed}, noise={noise}; expected a name of your own, at "
            "least 2 steps, a seed and noise of at least 0, and noise only with a policy"
        )
    arguments = {"render_size": 64, **({"env_id": env} if isinstance(env, str) else plain_config(env))}
    made = {
        "generator": "torchrl_o2o",
        "recipe": "frames",
        "task": arguments["env_id"],
        "env": arguments,
        "seed": seed,
        "num_steps": num_steps,
        "policy": None if act is None else policy or function_fingerprint(act),
        "noise": noise,
        "versions": package_versions(),
    }
    target = (dataset_root() if root is None else Path(root)) / name
    if target.exists():
        check_same(target, made)
        return target
    require("minari", "minari")
    built = make_gym_env(**{**arguments, "num_stack": 1})
    made["rendering"] = _rendering(built)
    trajectories = roll_out(
        built, _actors(built, act, sees_frames, noise), num_steps=num_steps, seed=seed, wrapped=True
    )
    who = "uniform actions" if act is None else f"{made['policy']}, action noise {noise:g}"
    store_trajectories(target, name, f"{who}, rendered, {arguments['env_id']}", built, trajectories, made)
    built.close()
    return target


def _rendering(env: gymnasium.Env) -> dict[str, Any]:
    """The rendering settings of an environment of :func:`~torchrl_o2o.envs.make_gym_env`."""
    rendered = np.asarray(draw(env))
    quality = getattr(getattr(getattr(env.unwrapped, "model", None), "vis", None), "quality", None)
    if quality is None:
        return {"rendered": list(rendered.shape[:2])}
    flags = {key: int(getattr(quality, key)) for key in ("shadowsize", "offsamples")}
    flags |= getattr(env.unwrapped, "picture", {})
    return {"rendered": list(rendered.shape[:2]), **flags, "MUJOCO_GL": os.environ.get("MUJOCO_GL")}


def _actors(
    env: gymnasium.Env, act: Callable[[np.ndarray], np.ndarray] | None, sees_frames: bool, noise: float
) -> EpisodeActors:
    box: Any = env.action_space
    if act is None:
        return uniform_policy(box)

    def begin(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
        getattr(act, "reset", lambda: None)()
        if sees_frames:
            return lambda frame: act(np.moveaxis(frame, 0, -1))
        return lambda frame: act(env.get_wrapper_attr("original"))

    return gaussian_noise(begin, box, low=noise)
