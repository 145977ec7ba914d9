# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the documentation site is generated from; the site itself is built by `make docs`."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The modules that generate pages."""
    monkeypatch.syspath_prepend(str(ROOT / "docs/_ext"))
    names = ("reference", "links", "gallery", "docstrings")
    for name in names:
        sys.modules.pop(name, None)
    return {name: importlib.import_module(name) for name in names}


def test_every_public_name_has_its_place_in_the_reference(site: dict) -> None:
    listed = {
        name for modules in site["reference"].public_names().values() for names in modules.values() for name in names
    }
    declared: set[str] = set()
    for path in (ROOT / "torchrl_o2o").rglob("*.py"):
        if any(part.startswith("_") and part != "__init__.py" for part in path.parts):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                declared |= set(ast.literal_eval(node.value))
    assert declared - listed == {"__version__"}


def test_an_examples_docstring_becomes_a_page(site: dict) -> None:
    head = "RLPD: half of each batch\nis data.\n\nRun:  python x.py     minutes\n      python x.py a=1\nThe rest.\n"
    assert site["gallery"].as_page("x.py", head).splitlines() == [
        *("x.py", "====", "", "RLPD: half of each batch", "is data.", "", "::", ""),
        *("    python x.py     minutes", "    python x.py a=1", "", "The rest.", ""),
    ][:12]  # fmt: skip


def test_the_gallery_cuts_the_steps_that_an_example_has(site: dict) -> None:
    words = site["gallery"].words_of(None, {"src_file": str(ROOT / "examples/rlpd.py")})
    assert "total_frames=200" in words
    assert not any(word.startswith("offline_steps") for word in words)


def test_links_that_leave_the_pages_become_pages_or_names(site: dict) -> None:
    source = [
        "[code](../../torchrl_o2o/objectives/awac.py) [script](../../sota-implementations/awac) [a](../data.md#forms)"
    ]
    site["links"].fix(None, "algorithms/awac", source)
    assert source == ["code [script](../generated/script-awac.md) [a](../data.md#forms)"]
    with pytest.raises(FileNotFoundError, match=r"docs/nothing\.md"):
        site["links"].fix(None, "algorithms/awac", ["[x](../nothing.md)"])


def test_shapes_are_escaped_outside_of_code(site: dict) -> None:
    lines = ["shape [*B, A] of |Q|, ``[*B]``", "", ".. math::", "    |x| * [*B]", ">>> f(*args)"]
    site["docstrings"].fix(None, "function", "f", None, None, lines)
    assert lines == [r"shape [\*B, A] of \|Q\|, ``[*B]``", "", ".. math::", "    |x| * [*B]", ">>> f(*args)"]
