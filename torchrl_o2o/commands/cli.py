# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The `o2o` command: data, train, report and friends. Imports no torch until a subcommand runs."""

from __future__ import annotations

import argparse
import io
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
        0 on success, 2 if the input is wrong or a file cannot be read or written (the reason goes to standard error).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # some terminals, as on Windows, cannot encode all characters
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except (O2OError, OSError) as error:
        print(f"o2o: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
