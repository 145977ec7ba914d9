# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""`o2o advise`: which family of methods suits a data set and a pre-trained policy."""

from __future__ import annotations

import argparse
from typing import Any

from torchrl_o2o.commands.parsers import add_command

__all__ = ["register"]


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `o2o advise`.

    Args:
        subparsers: of the `o2o` parser.
    """
    from torchrl_o2o.commands.data import add_reading

    parser = add_command(
        subparsers, "advise", "suggest methods for a data set, and optionally for a policy pre-trained on it"
    )
    parser.add_argument("source", metavar="SOURCE", help="a data set's name or path:FILE, as for `o2o data show`")
    add_reading(parser)
    parser.add_argument("--policy", metavar="RUN", help="run folder or policy file of a pre-training")
    parser.add_argument(
        "--episodes", type=int, default=20, metavar="N", help="episodes to evaluate the policy (default: %(default)s)"
    )
    parser.add_argument("--env", metavar="ID", help="the environment, if neither data nor policy name it")
    parser.add_argument("--allow-modules", nargs="+", default=[], metavar="MODULE", help="as in `o2o evaluate`")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode (default: %(default)s)")
    parser.set_defaults(run=_advise)


def _advise(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.commands.data import reading
    from torchrl_o2o.data.load import describe_returns
    from torchrl_o2o.envs import find_reference
    from torchrl_o2o.trainers.advice import advise

    info, returns = describe_returns(arguments.source, **reading(arguments))
    task = arguments.env or info.env_id
    reference = None if task is None else find_reference(task)
    ends = f"{info.terminated} of them end by themselves" if info.terminated else "all of them end by a time limit"
    print(f"{arguments.source}: {info.transitions} transitions in {info.episodes} episodes; {ends}.")
    acted = None
    if arguments.policy is not None:
        acted = _returns_of_policy(arguments)
        mean = f"mean return {acted.mean():.4g} +- {acted.std():.4g}"
        print(f"{arguments.policy}: {arguments.episodes} episodes, {mean}.")
    for line in advise(returns.numpy(), policy_returns=acted, reference=reference):
        print(line)
    print(
        "The returns alone do not show how far the policy's states lie from the recorded ones, or whether rewards are "
        "sparse by design. `o2o data coverage` compares data sets. To decide, run each candidate over three seeds."
    )
    return 0


def _returns_of_policy(arguments: argparse.Namespace) -> Any:
    from torchrl_o2o.commands.policies import env_arguments
    from torchrl_o2o.deploy import read_policy
    from torchrl_o2o.envs import make_gym_env
    from torchrl_o2o.trainers import evaluate

    policy = read_policy(arguments.policy)
    env = env_arguments(policy, arguments)
    actor = policy.actor(native_actions=False)
    return evaluate(actor, lambda: make_gym_env(**env), num_episodes=arguments.episodes, seed=arguments.seed).returns
