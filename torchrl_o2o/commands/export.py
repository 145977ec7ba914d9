# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""`o2o export`: write a trained policy for programs without this package."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchrl_o2o.commands.parsers import add_command

__all__ = ["register"]

_ENDINGS = {"torch_export": ".pt2", "onnx": ".onnx"}


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `o2o export`.

    Args:
        subparsers: of the `o2o` parser.
    """
    from torchrl_o2o.commands.policies import add_arguments

    parser = add_command(subparsers, "export", "export a trained policy with torch.export or to ONNX")
    add_arguments(parser, env=False)
    parser.add_argument(
        "--format", choices=sorted(_ENDINGS), default="torch_export", help="file format (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="(default: policy.pt2 or policy.onnx next to the policy)"
    )
    parser.add_argument(
        "--unit-actions", action="store_true", help="output actions in [-1, 1] instead of the environment's own units"
    )
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.deploy import export_policy, read_policy
    from torchrl_o2o.modules.boxes import actor_box

    policy = read_policy(arguments.policy)
    actor = policy.actor(native_actions=not arguments.unit_actions)
    out = arguments.out or policy.path.with_suffix(_ENDINGS[arguments.format])
    export_policy(actor, out, format=arguments.format)
    low, high = (edge.tolist() for edge in actor_box(actor))
    print(f"written to {out}: observations as the environment returns them, actions in {low} to {high}")
    return 0
