# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Add a subcommand's parser, with the same summary in the list of commands and in its own help."""

from __future__ import annotations

import argparse

__all__ = ["add_command"]


def add_command(
    subparsers: argparse._SubParsersAction, name: str, summary: str, *, usage: str | None = None
) -> argparse.ArgumentParser:
    """Add the parser of a subcommand.

    Args:
        subparsers: of the command above it.
        name: the subcommand.
        summary: what it does, in one line without a full stop.

    Keyword Args:
        usage: replaces the usage that argparse writes. Defaults to ``None``.

    Returns:
        The parser.

    Examples:
        >>> parser = argparse.ArgumentParser(prog="o2o")
        >>> add_command(parser.add_subparsers(), "demo", "train RLPD").description
        'Train RLPD.'
    """
    return subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", usage=usage)
