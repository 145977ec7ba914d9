# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The measured claims of a method, at the end of its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchrl_o2o.reproduce import find_claims, load_claim, read_results
from torchrl_o2o.reproduce.page import section

ROOT = Path(__file__).parents[2]


def append(app: Any, docname: str, source: list[str]) -> None:
    """Sphinx's `source-read`: claims whose runs are of this page's script, if there are any."""
    folder, _, method = docname.partition("/")
    if folder != "algorithms":
        return
    claims = [claim for claim in map(load_claim, find_claims()) if claim.script == method]
    sections = []
    for claim in claims:
        results = read_results(ROOT / "benchmarks" / "claims" / f"{claim.name}.csv")
        figure = f"../figures/{claim.name}.png"
        shown = figure in source[0] or not (ROOT / "docs" / figure[3:]).exists()
        if results:
            sections.append("#" + section(claim, results, None if shown else figure))
    if sections:
        head = "## What was measured\n\nClaims of the paper, put to the test here ([all of them](../results.md)).\n\n"
        source[0] += "\n" + head + "\n".join(sections)
