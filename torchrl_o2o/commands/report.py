# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""`o2o report`: learning curves and a table over the seeds of runs."""

from __future__ import annotations

import argparse

from torchrl_o2o.commands.parsers import add_command

__all__ = ["register"]


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of `o2o report`.

    Args:
        subparsers: of the `o2o` parser.
    """
    parser = add_command(subparsers, "report", "draw learning curves and tabulate results over seeds")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders of run folders")
    parser.add_argument("--out", default="report", metavar="DIR", help="output folder (default: %(default)s)")
    parser.add_argument(
        "--metric",
        default="evaluation/return",
        help="evaluation/return, evaluation/normalized_score or evaluation/success (default: %(default)s)",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KEY",
        help="a setting, in addition to seed, in which runs of one group may differ",
    )
    parser.add_argument("--peers", metavar="FILE.npz", help="published curves to overlay (normalized scores)")
    parser.add_argument("--peers-task", metavar="NAME", help="the task's name in that file, if it differs")
    parser.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from torchrl_o2o.record.report import write_report

    path = write_report(
        arguments.runs,
        arguments.out,
        metric=arguments.metric,
        peers=arguments.peers,
        peers_task=arguments.peers_task,
        ignore=arguments.ignore,
    )
    print(path.read_text(encoding="utf-8"))
    print(f"written to {path}; to read in a browser, with the figures: {path.with_name('report.html')}")
    return 0
