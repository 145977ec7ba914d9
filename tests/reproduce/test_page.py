# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""docs/results.md is what the claims and their results say today."""

from __future__ import annotations

from pathlib import Path

from torchrl_o2o.reproduce import find_claims, load_claim, read_results
from torchrl_o2o.reproduce.page import page
from torchrl_o2o.reproduce.results import collect

ROOT = Path(__file__).parents[2]


def test_the_results_page_is_that_of_the_claims_and_their_results() -> None:
    claims = [load_claim(path) for path in find_claims()]
    rows = {claim.name: read_results(ROOT / "benchmarks/claims" / f"{claim.name}.csv") for claim in claims}
    results = {claim.name: collect(claim, Path("/nowhere"), rows[claim.name]) for claim in claims}
    figures = {name: f"figures/{name}.png" for name, own in results.items() if own}
    assert all((ROOT / "docs" / figure).exists() for figure in figures.values())
    again = "o2o reproduce show --page docs/results.md --figures docs/figures"
    assert page(claims, results, figures) == (ROOT / "docs/results.md").read_text(), f"write it again: {again}"
    assert [len(results[name]) for name in rows] == [len(own) for own in rows.values()], "rows that no claim asks for"
