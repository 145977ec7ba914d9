# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""`o2o train`: run a script of `sota-implementations/` with Hydra overrides."""

from __future__ import annotations

import argparse
import subprocess

__all__ = ["register"]


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `o2o train`.

    Args:
        subparsers: of the `o2o` parser.
    """
    usage = "o2o train [-h] SCRIPT [KEY=VALUE ...] [HYDRA OPTIONS]"
    parser = subparsers.add_parser("train", usage=usage, help="train by a script of sota-implementations/")
    parser.add_argument("script", metavar="SCRIPT", help="its folder, such as rlpd")
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="KEY=VALUE",
        help="such as task=halfcheetah-linear-mix seed=1; and Hydra's own options, such as --cfg job, which prints the "
        "settings",
    )
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.scripts import script_command

    return subprocess.run(script_command(arguments.script, arguments.overrides), check=False).returncode
