# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Markdown that is also read in the repository: its links to files become links to the site's pages, or plain names.

Papers become links to arXiv.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from reference import replace

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: Markdown outside `docs/` and its page on the site.
PAGES = {
    "CHANGELOG.md": "generated/changelog.md",
    "CONTRIBUTING.md": "generated/contributing.md",
    "benchmarks/README.md": "generated/benchmarks.md",
    **{
        f"sota-implementations/{path.parent.name}/README.md": f"generated/script-{path.parent.name}.md"
        for path in sorted((ROOT / "sota-implementations").glob("*/README.md"))
    },
}
_ORIGIN = {page: source for source, page in PAGES.items()}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
_CODE_OR_PAPER = re.compile(r"```.*?```|`[^`\n]+`|arXiv:(\d{4}\.\d{5})", re.S)
PAPER = "https://arxiv.org/abs/"


def write_pages(root: Path, folder: Path) -> None:
    """Copy the Markdown that lies elsewhere into the site, and an index of the scripts."""
    for source, page in PAGES.items():
        replace(DOCS / page, (root / source).read_text())
    names = sorted(Path(page).stem for page in PAGES.values() if "script-" in page)
    lines = [
        "# Scripts of the papers",
        "",
        "One folder for each paper below `sota-implementations/`: its settings, runs and results.",
        "",
    ]
    replace(folder / "scripts.md", "\n".join([*lines, "```{toctree}", *names, "```", ""]))


def fix(app: Any, docname: str, source: list[str]) -> None:
    """Sphinx's `source-read`: replace the links of one Markdown page."""
    page = Path(f"{docname}.md")
    if not (DOCS / page).exists():
        return
    origin = ROOT / _ORIGIN[str(page)] if str(page) in _ORIGIN else DOCS / page

    def target(match: re.Match[str]) -> str:
        text, link = match.groups()
        path, _, anchor = link.partition("#")
        if "://" in link or not path:
            return match.group(0)
        where = (origin.parent / path).resolve()
        found = _page_of(where)
        if found is None:
            return text  # a file of the repository that has no page; its name is enough
        relative = os.path.relpath(found, (DOCS / page).parent)
        return f"[{text}]({relative}{'#' + anchor if anchor else ''})"

    def paper(match: re.Match[str]) -> str:
        return f"[{match.group()}]({PAPER}{match.group(1)})" if match.group(1) else match.group()

    source[0] = _CODE_OR_PAPER.sub(paper, _LINK.sub(target, source[0]))


def _page_of(path: Path) -> Path | None:
    """The page of a file or folder of the repository."""
    if not path.exists():
        raise FileNotFoundError(f"a page links to {path.relative_to(ROOT)}, which does not exist")
    name = str(path.relative_to(ROOT))
    if name in PAGES or f"{name}/README.md" in PAGES:
        return DOCS / (PAGES.get(name) or PAGES[f"{name}/README.md"])
    if path.parent == DOCS / "tutorials":
        return DOCS / "lessons" / f"{path.stem}.rst"
    if path.is_relative_to(DOCS) and path.is_file():
        return path
    if path.parent == ROOT / "examples":
        return DOCS / "gallery" / f"{path.stem}.rst"
    if path == ROOT / "examples":
        return DOCS / "gallery" / "index.rst"
    return None
