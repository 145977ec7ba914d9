# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""`o2o continue`: append new recordings to a run's data and learn on from all of them."""

from __future__ import annotations

import argparse
import sys

from torchrl_o2o.commands.parsers import add_command

__all__ = ["register"]


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `o2o continue`.

    Args:
        subparsers: of the `o2o` parser.
    """
    from torchrl_o2o.commands.data import add_actions, add_reading

    parser = add_command(
        subparsers, "continue", "continue training on new recordings; needs no environment (--without-env)"
    )
    parser.add_argument("folder", metavar="RUN", help="a finished run; its offline phase is RUN/offline")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="NEW",
        help="new recordings: names or path:FILE, as for `o2o data show`",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="number of updates")
    parser.add_argument("--resume", action="store_true", help="resume a round that was stopped")
    parser.add_argument(
        "--without-env", action="store_true", help="build no environment: skips evaluation and part of the audit"
    )
    add_reading(parser, of_run=True)
    add_actions(parser, of_run=True)
    for name, what, default in (
        ("eval", "evaluations", 5_000),
        ("log", "rows of metrics", 1_000),
        ("checkpoint", "checkpoints", 25_000),
    ):
        help_text = f"updates between {what} (default: %(default)s)"
        parser.add_argument(f"--{name}-every", type=int, default=default, metavar="N", help=help_text)
    parser.add_argument(
        "--num-threads", type=int, default=1, metavar="N", help="threads of torch (default: %(default)s)"
    )
    parser.set_defaults(run=_continue)


def _continue(arguments: argparse.Namespace) -> int:
    import torch

    from torchrl_o2o.commands.data import actions, reading
    from torchrl_o2o.errors import check_count
    from torchrl_o2o.functional.diagnostics import NonFiniteError
    from torchrl_o2o.trainers import Schedule, continue_run

    torch.set_num_threads(check_count("--num-threads", arguments.num_threads, least=1))
    try:
        lineage = continue_run(
            arguments.folder,
            arguments.data,
            num_steps=arguments.steps,
            resume=arguments.resume,
            with_env=not arguments.without_env,
            reading={**reading(arguments), **actions(arguments)},
            schedule=Schedule(arguments.eval_every, arguments.log_every, arguments.checkpoint_every),
        )
    except NonFiniteError as error:
        sys.exit(f"NonFiniteError: {error}")
    for entry in lineage:
        made = f"{entry['updates']} updates" if entry["round"] else "the run's own training"
        print(f"round {entry['round']}: {entry['rows']} rows of {entry['source']}, {made}")
    return 0
