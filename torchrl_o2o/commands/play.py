# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""`o2o play`: run a trained policy and write a GIF or MP4 video."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchrl_o2o.commands.parsers import add_command
from torchrl_o2o.errors import O2OSpecError

__all__ = ["register"]


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `o2o play`.

    Args:
        subparsers: of the `o2o` parser.
    """
    from torchrl_o2o.commands.policies import add_arguments

    parser = add_command(subparsers, "play", "run a trained policy and write a GIF or MP4 video")
    add_arguments(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=".gif or .mp4 (default: policy.gif next to the policy)"
    )
    parser.add_argument(
        "--episodes", type=int, default=1, metavar="N", help="number of episodes (default: %(default)s)"
    )
    parser.add_argument(
        "--max-steps", type=int, default=1000, metavar="N", help="total number of steps (default: %(default)s)"
    )
    parser.set_defaults(run=_play)


def _play(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.collectors import FastActor, FrameActor
    from torchrl_o2o.commands.policies import env_arguments
    from torchrl_o2o.deploy import read_policy
    from torchrl_o2o.envs import make_gym_env
    from torchrl_o2o.envs.video import check_video, drawing_arguments, drawing_env, film_episode, write_video

    if arguments.episodes < 1 or arguments.max_steps < 1:
        raise O2OSpecError(f"got --episodes {arguments.episodes} --max-steps {arguments.max_steps}, expected 1 or more")
    policy = read_policy(arguments.policy)
    out = check_video(arguments.out or policy.path.with_suffix(".gif"))
    settings = drawing_arguments(env_arguments(policy, arguments))
    actor = (FrameActor if policy.sees else FastActor)(policy.actor(native_actions=False))
    env = drawing_env(lambda: make_gym_env(**settings), settings["env_id"])
    films, left = [], arguments.max_steps
    while left and len(films) < arguments.episodes:
        actor.reset()  # the remaining actions of a chunk
        films.append(film_episode(env, actor, seed=arguments.seed + len(films), max_steps=left))
        left -= films[-1].length
    env.close()
    frames = [frame for film in films for frame in film.frames]
    write_video(out, frames, films[0].fps)
    print(f"written to {out}: {len(frames)} frames, return {', '.join(f'{film.total:.2f}' for film in films)}")
    return 0
