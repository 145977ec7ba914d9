# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""docs/results.md is what the claims and their results say today."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.reproduce import find_claims, load_claim, read_results
from torchrl_o2o.reproduce.page import page, read_note, section
from torchrl_o2o.reproduce.results import collect

ROOT = Path(__file__).parents[2]


def test_the_results_page_is_that_of_the_claims_and_their_results() -> None:
    claims = [load_claim(path) for path in find_claims()]
    rows = {claim.name: read_results(ROOT / "benchmarks/claims" / f"{claim.name}.csv") for claim in claims}
    results = {claim.name: collect(claim, Path("/nowhere"), rows[claim.name]) for claim in claims}
    figures = {name: f"figures/{name}.png" for name, own in results.items() if own}
    notes = {path.stem: read_note(path, ROOT / "docs") for path in (ROOT / "benchmarks/claims").glob("*.md")}
    assert all(results[name] for name in notes), "a note explains results"
    assert all((ROOT / "docs" / figure).exists() for figure in figures.values())
    again = "o2o reproduce show --page docs/results.md --figures docs/figures"
    assert page(claims, results, figures, notes) == (ROOT / "docs/results.md").read_text(), f"write it again: {again}"
    assert [len(results[name]) for name in rows] == [len(own) for own in rows.values()], "rows that no claim asks for"


def test_a_note_follows_the_table_and_its_links_lead_to_the_same_files(tmp_path: Path) -> None:
    notes = tmp_path / "benchmarks/claims"
    notes.mkdir(parents=True)
    (notes / "mine.md").write_text("See [a](../README.md#part), [b](mine.csv), [c](https://x.org/y) and [d](#here).\n")
    note = read_note(notes / "mine.md", tmp_path / "docs")
    assert note is not None
    assert "[a](../benchmarks/README.md#part), [b](../benchmarks/claims/mine.csv)" in note
    assert "[c](https://x.org/y) and [d](#here)." in note
    claim = load_claim("rlpd-sparse")
    lines = section(claim, [], "figure.png", note).splitlines()
    assert lines[-3:] == [note.strip(), "", "![Learning curves of rlpd-sparse](figure.png)"]
    assert lines[-5].startswith("| rlpd")


def test_without_a_note_there_is_none_and_an_unreadable_one_is_told(tmp_path: Path) -> None:
    assert read_note(tmp_path / "none.md", tmp_path) is None
    (tmp_path / "bad.md").write_bytes(b"\xff\xfe")
    with pytest.raises(O2OSpecError, match=r"bad\.md cannot be read as text in UTF-8"):
        read_note(tmp_path / "bad.md", tmp_path)


def test_a_comparison_waits_while_a_group_has_no_run() -> None:
    claim = load_claim("rlpd-sparse")
    group = claim.comparisons[0].group
    rows = [row for row in read_results(ROOT / "benchmarks/claims/rlpd-sparse.csv") if row.group == group]
    lines = [line for line in section(claim, rows).splitlines() if line.startswith(f"| {group} - ")]
    assert lines
    assert all("| – |" in line and "nan" not in line for line in lines)
