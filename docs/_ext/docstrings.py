# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Docstrings as they are written in the code, made into what reStructuredText reads."""

from __future__ import annotations

import re
from typing import Any

from links import PAPER

_LITERAL = re.compile(r"(``.*?``|:\w+:`.*?`)")
_PAPER = re.compile(r"arXiv:(\d{4}\.\d{5})")
_SHAPE = re.compile(r"(?<=[\[(, ])\*(?=[\w.])")


def fix(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's `autodoc-process-docstring`: shapes such as ``[*B, A]`` are no emphasis, bars no names, papers
    links; a constant has no docstring of its type."""
    if what in ("data", "attribute") and "\n".join(lines).strip() == str(type(value).__doc__).strip():
        lines[:] = []
    indent = None  # of a block that is kept as it is
    for number, line in enumerate(lines):
        depth = len(line) - len(line.lstrip())
        if indent is not None and line.strip() and depth <= indent:
            indent = None
        if indent is None and (line.rstrip().endswith("::") or line.lstrip().startswith((".. math", ".. code"))):
            indent = depth
        elif indent is None and not line.lstrip().startswith((">>>", "...")):
            parts = _LITERAL.split(line)
            lines[number] = "".join(part if n % 2 else _escaped(part) for n, part in enumerate(parts))


def _escaped(text: str) -> str:
    text = _SHAPE.sub(r"\\*", text).replace("|", r"\|")
    return _PAPER.sub(rf"`arXiv:\1 <{PAPER}\1>`__", text)
