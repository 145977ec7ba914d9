# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the pages tell a reader to paste: Python that compiles and imports what it uses, commands that exist."""

from __future__ import annotations

import ast
import builtins
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from torchrl_o2o.commands import cli
from torchrl_o2o.scripts import find_script

ROOT = Path(__file__).parents[2]
PAGES = [
    str(page.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "docs/algorithms/*.md", "benchmarks/*.md", "sota-implementations/*/*.md")
    for page in sorted(ROOT.glob(pattern))
    if page.name != "CHANGELOG.md"
]
#: Words that scripts of many seeds and of actors accept beside their configuration; Hydra has its own.
ACCEPTED = ("seeds=", "actors=", "fleet.", "hydra")


def blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of these languages."""
    fenced = re.findall(r"^```([^\n`]*)\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return [code for language, code in fenced if language.strip() in languages]


@cache
def public(source: Path) -> frozenset[str]:
    """``__all__`` of a file."""
    found = re.search(r"^__all__ = (\[.*?\])", source.read_text(), flags=re.DOTALL | re.MULTILINE)
    return frozenset(ast.literal_eval(found[1]) if found else ())


@cache
def reference() -> frozenset[str]:
    """Every name that the package exports."""
    return frozenset().union(*map(public, (ROOT / "torchrl_o2o").rglob("*.py")))


def exports(module: str) -> set[str]:
    """What can be imported from a module of the package, without importing it."""
    path = ROOT / module.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return set(public(source)) | {each.stem for each in path.glob("*")}


@pytest.mark.parametrize("page", PAGES)
def test_python_on_the_pages_imports_what_it_uses(page: str) -> None:
    """A block may leave the reader's own `loss` and `buffer` out, but no class or function that has to be imported."""
    bound: set[str] = set(dir(builtins))
    for code in blocks(page, "python"):
        tree = list(ast.walk(ast.parse(code, page)))
        for node in tree:
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("torchrl_o2o"):
                assert {each.name for each in node.names} <= exports(str(node.module)), ast.unparse(node)
            if isinstance(node, ast.Import | ast.ImportFrom):
                bound |= {(each.asname or each.name).partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ClassDef | ast.FunctionDef):
                bound.add(node.name)
        names = [node for node in tree if isinstance(node, ast.Name)]
        bound |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
        called = {node.func.id for node in tree if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        needed = {node.id for node in names if node.id[0].isupper() or node.id in ("torch", "np")}
        assert (needed | called & reference()) <= bound


def commands(page: str) -> Iterator[list[str]]:
    """The command lines of a page: in its blocks, in indented lines and in the text."""
    text = (ROOT / page).read_text()
    lines = "\n".join([*blocks(page, "bash", ""), *re.findall(r"^    (.*)", text, flags=re.MULTILINE)])
    joined = re.sub(r"\\\n\s*", " ", lines).splitlines()
    for line in [*joined, *re.findall(r"`([^`\n]+)`", text)]:
        for part in re.split(r"; do |; done|^srun ", line):
            if re.match(r"(o2o|python (sota-implementations|benchmarks|examples)/\S+) ", part.strip()):
                yield shlex.split(part, comments=True)


parser = cache(cli._parser)


@cache
def settings(folder: Path) -> tuple[frozenset[str], frozenset[str]]:
    """The keys of a script and the choices of its groups, as ``group=option``."""
    keys, choices = set[str](), set[str]()
    for root in (ROOT / "torchrl_o2o/conf", folder):
        for path in root.rglob("*.yaml"):
            group = path.parent.relative_to(root)
            choices.add(f"{group}={path.stem}")
            own = list(dotted(yaml.load(path.read_text(), yaml.CSafeLoader)))
            keys |= {*own, *(f"{group}.{key}" for key in own)}
    return frozenset(keys), frozenset(choices)


def dotted(tree: object) -> Iterator[str]:
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield key
        yield from (f"{key}.{inner}" for inner in dotted(value))


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for path in re.findall(r"`((?:tests|examples|docs|torchrl_o2o|sota-implementations|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / path).exists() or path.endswith(("/_build/html", "history.jsonl", "CLAIM.csv")), path


@pytest.mark.parametrize("page", PAGES)
def test_links_between_files_lead_somewhere_in_the_repository(page: str) -> None:
    """Pages are read there too, where nothing is generated."""
    for link in re.findall(r"\]\(([^)\s#]+)", (ROOT / page).read_text()):
        assert "://" in link or link.startswith("mailto:") or (ROOT / page).parent.joinpath(link).exists(), link


def check_script(path: Path, words: list[str]) -> None:
    keys, choices = settings(path.parent)
    choices |= {"task=arm"} if "--config-dir" in words else set()  # the reader's own
    groups = {choice.partition("=")[0] for choice in choices}
    for before, word in pairwise(["", *words]):
        key, equals, value = word.lstrip("+~").partition("=")
        if key in groups and not re.search(r"\.\.\.|\$", value):
            assert {f"{key}={each}" for each in value.split(",")} <= choices, word
        elif equals and not word.startswith(("+", *ACCEPTED)):
            assert key in groups or any(key == each or key.startswith(f"{each}.") for each in keys), word
        else:
            assert equals or word.startswith(("...", "-")) or before.startswith("--"), word


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_the_pages_exist(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts, their settings, subcommands and options; what a value means is for the scripts' own tests."""
    for command, name, *words in commands(page):
        if command == "python" and name.startswith("sota"):
            check_script(ROOT / name, words)
        elif command == "python":
            text = (ROOT / name).read_text()
            assert all(re.sub(r"=.*", "", word) in text for word in words if re.match(r"--|\w+=", word)), words
        elif name == "train" and words:
            check_script(find_script(words[0]), words[1:])
        elif not any("|" in word for word in words):
            try:
                parser().parse_args([name, *words])
            except SystemExit:
                message = capsys.readouterr().err
                assert "the following arguments are required" in message, message  # the text speaks of the command
