# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The `o2o` command: data, train, report and friends. Imports no torch until a subcommand runs."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from torchrl_o2o import __version__
from torchrl_o2o.errors import O2OError

__all__ = ["main"]

_COMMANDS = ("advise", "continuing", "data", "demo", "evaluate", "export", "play", "report", "reproduce", "train")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="o2o", description="Offline-to-online reinforcement learning on TorchRL.")
    parser.add_argument("--version", action="version", version=f"torchrl_o2o {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in _COMMANDS:
        import_module(f"torchrl_o2o.commands.{name}").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one `o2o` subcommand and return its exit status.

    Args:
        argv: the words after ``o2o``; defaults to the process's own.

    Returns:
        0 on success, 1 if the reader of its output left before the end, and 2 if the input is wrong or a file cannot
        be read or written (the reason goes to standard error).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # some terminals, as on Windows, cannot encode all characters
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    try:
        status = int(arguments.run(arguments) or 0)
        sys.stdout.flush()  # now, because an error while Python exits could not be caught
        return status
    except (O2OError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 1
        print(f"o2o: {error}", file=sys.stderr)
        return 2


def _nobody_reads() -> bool:
    """Whether the reader of the standard output has left, as ``head`` does after ten lines; the rest is discarded."""
    try:
        print(flush=True)  # only writing something shows it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
