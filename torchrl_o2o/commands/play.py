# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""`o2o play`: run a trained policy and write what it does as a GIF."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_o2o.errors import O2OSpecError

if TYPE_CHECKING:
    import gymnasium
    import numpy as np

    from torchrl_o2o.collectors import FastActor

__all__ = ["register"]

_FPS = 25  # most viewers show GIFs no faster


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `o2o play`.

    Args:
        subparsers: of the `o2o` parser.
    """
    from torchrl_o2o.commands.policies import add_arguments

    parser = subparsers.add_parser("play", help="run a trained policy and write a GIF of it")
    add_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="(default: policy.gif beside the policy)")
    parser.add_argument("--episodes", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--max-steps", type=int, default=1000, metavar="N", help="in all (default: %(default)s)")
    parser.set_defaults(run=_play)


def _play(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.collectors import FastActor
    from torchrl_o2o.commands.policies import env_arguments
    from torchrl_o2o.deploy import read_policy

    if arguments.episodes < 1 or arguments.max_steps < 1:
        raise O2OSpecError(f"got --episodes {arguments.episodes} --max-steps {arguments.max_steps}, expected 1 or more")
    policy = read_policy(arguments.policy)
    actor, env = FastActor(policy.actor(native_actions=False)), _rendering(env_arguments(policy, arguments))
    every = max(1, round(env.metadata.get("render_fps", _FPS) / _FPS))
    frames, returns = _episodes(env, actor, arguments.seed, arguments.episodes, arguments.max_steps, every)
    env.close()
    out = arguments.out or policy.path.with_suffix(".gif")
    _write_gif(out, frames)
    print(f"written to {out}: {len(frames)} frames, return {', '.join(f'{value:.2f}' for value in returns)}")
    return 0


def _rendering(arguments: dict[str, Any]) -> gymnasium.Env:
    """The environment, able to draw itself: what cannot is found out before the first step."""
    import os
    import sys

    from torchrl_o2o.envs import make_gym_env

    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # draws without a screen; MuJoCo reads it when it first draws
    settings = {**(arguments.get("env_kwargs") or {}), "render_mode": "rgb_array"}
    try:
        env = make_gym_env(**{**arguments, "env_kwargs": settings})
        env.reset(seed=0)
        _frame(env)
    except Exception as error:  # every renderer fails in its own way
        raise O2OSpecError(
            f"{arguments['env_id']} cannot be drawn here ({type(error).__name__}: {error}); classic control needs "
            "pygame (pip install torchrl_o2o[video]), MuJoCo an OpenGL library (MUJOCO_GL=egl or osmesa says which)"
        ) from error
    return env


def _frame(env: gymnasium.Env) -> np.ndarray:
    frame: Any = env.render()
    if getattr(frame, "ndim", 0) != 3:
        raise TypeError(f"it draws {type(frame).__name__}, expected an image [height, width, 3]")
    return frame


def _episodes(
    env: gymnasium.Env, actor: FastActor, seed: int, episodes: int, max_steps: int, every: int
) -> tuple[list[np.ndarray], list[float]]:
    """Frames of every few steps, and the return of each episode or of what was run of it."""
    frames: list[np.ndarray] = []
    returns: list[float] = []
    step = 0
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        actor.reset()  # what is left of a chunk of actions
        returns.append(0.0)
        over = False
        while not over and step < max_steps:
            if step % every == 0:
                frames.append(_frame(env))
            observation, reward, terminated, truncated, _ = env.step(actor(observation))
            returns[-1] += float(reward)
            over = terminated or truncated
            step += 1
    return [*frames, _frame(env)], returns


def _write_gif(path: Path, frames: Sequence[np.ndarray]) -> None:
    import importlib.util
    import io

    from torchrl_o2o.durable import replace_durably

    if importlib.util.find_spec("PIL") is None:
        raise O2OSpecError("writing a GIF needs pillow; install it with pip install torchrl_o2o[video]")
    from PIL import Image

    images, stream = [Image.fromarray(frame) for frame in frames], io.BytesIO()
    images[0].save(stream, "GIF", save_all=True, append_images=images[1:], duration=1000 // _FPS, loop=0)
    replace_durably(path, stream.getvalue())
