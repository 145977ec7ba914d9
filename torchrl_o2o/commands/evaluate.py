# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""`o2o evaluate`: run a trained policy for some episodes."""

from __future__ import annotations

import argparse

from torchrl_o2o.commands.parsers import add_command

__all__ = ["register"]


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `o2o evaluate`.

    Args:
        subparsers: of the `o2o` parser.
    """
    from torchrl_o2o.commands.policies import add_arguments

    parser = add_command(subparsers, "evaluate", "run a trained policy and print its returns")
    add_arguments(parser)
    parser.add_argument(
        "--episodes", type=int, default=10, metavar="N", help="number of episodes (default: %(default)s)"
    )
    parser.add_argument(
        "--video",
        metavar="FILE",
        help="write videos of the best, median and worst episode: x.gif or x.mp4 gives x-best.gif, ...",
    )
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.commands.policies import env_arguments
    from torchrl_o2o.deploy import read_policy
    from torchrl_o2o.envs import find_reference, make_gym_env
    from torchrl_o2o.envs.video import drawing_arguments
    from torchrl_o2o.trainers import evaluate

    policy = read_policy(arguments.policy)
    env = env_arguments(policy, arguments)
    env = env if arguments.video is None else drawing_arguments(env)
    result = evaluate(
        policy.actor(native_actions=False),
        lambda: make_gym_env(**env),
        num_episodes=arguments.episodes,
        seed=arguments.seed,
        reference=find_reference(env["env_id"]),
        video=arguments.video,
    )
    print(f"{policy.path} in {env['env_id']}, {arguments.episodes} episodes from seed {arguments.seed}")
    spread = f"+- {result.returns.std():.2f}, {result.returns.min():.2f} to {result.returns.max():.2f}"
    print(f"  return            {result.returns.mean():9.2f} {spread}")
    print(f"  length            {result.lengths.mean():9.2f}")
    if result.success is not None:
        print(f"  success           {result.success.mean():9.2f}")
    if result.normalized_score is not None:
        print(f"  normalized score  {result.normalized_score.mean():9.2f}")
    for name, file in result.videos.items():
        print(f"  {name:<16}  {file}")
    return 0
