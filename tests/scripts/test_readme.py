# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the README promises: its code runs, its commands exist, CI is its second command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.scripts.running import ROOT

README = (ROOT / "README.md").read_text()
PAGES = [
    str(page.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "docs/algorithms/*.md", "benchmarks/*.md", "sota-implementations/*/*.md")
    for page in ROOT.glob(pattern)
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore")
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    scope: dict[str, object] = {}
    exec(compile(code.replace("total_frames=50", "total_frames=3"), "README.md", "exec"), scope)
    assert len(scope["buffer"]) == len(scope["offline"]) + 3  # type: ignore[arg-type]


def test_the_commands_of_the_readme_are_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (shell, *_) = blocks("bash")
    targets = re.findall(r"^make (\w+)", shell, flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_ci_is_the_second_command() -> None:
    lines = [row for row in (ROOT / ".ci/run").read_text().splitlines() if row and not row.startswith("#")]
    assert lines[-1] == "make test"
    assert len([row for row in lines if row.startswith("make")]) == 1


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    text = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in text}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path, built = ROOT / page, ("http", "lessons/", "gallery/", "generated/")  # the site's generated pages
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        if target.startswith(built):
            continue
        assert (path.parent / file).exists(), target
        if anchor:
            assert anchor in anchors(path.parent / file if file else path), target
