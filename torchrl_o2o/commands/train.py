# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""`o2o train`: run a training script with Hydra overrides, in place of this process."""

from __future__ import annotations

import argparse
import os
import sys

from torchrl_o2o.commands.parsers import add_command
from torchrl_o2o.scripts import script_names

__all__ = ["register"]


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `o2o train`.

    Args:
        subparsers: of the `o2o` parser.
    """
    usage = "o2o train [-h] SCRIPT [KEY=VALUE ...] [HYDRA OPTIONS]"
    parser = add_command(subparsers, "train", "train with one of the papers' scripts", usage=usage)
    parser.add_argument("script", metavar="SCRIPT", help=f"one of {', '.join(script_names())}")
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="KEY=VALUE",
        help="settings, for example task=hopper preset=cpu seed=1 (for a script of many seeds 'seeds=[0,1,2]', in "
        "quotes), and Hydra's own options, for example --cfg job, which prints all settings",
    )
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.scripts import script_command

    command = script_command(arguments.script, arguments.overrides)
    sys.stdout.flush()
    sys.stderr.flush()
    # The script replaces this process, so that a signal to `o2o train` reaches the training.
    os.execv(command[0], command)
