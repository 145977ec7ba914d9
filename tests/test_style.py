# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The house's measure: no long functions, no long scripts, everything public typed and documented."""

from __future__ import annotations

import ast
import doctest
import inspect
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "torchrl_o2o"
FILES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = sorted(".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py"))
SCRIPTS = sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "sota-implementations").rglob("*.py")])
HEADER = (PACKAGE / "errors.py").read_text().splitlines()[:4]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def docstring_lines(node: ast.AST) -> set[int]:
    body = getattr(node, "body", [])
    first = body[0] if isinstance(body, list) and body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return set()


def numbers_of_code(source: str, tree: ast.AST) -> list[int]:
    """Numbers of the lines that are neither blank, comment nor docstring."""
    prose = set().union(*(docstring_lines(node) for node in ast.walk(tree)))
    rows = enumerate(source.splitlines(), 1)
    return [number for number, row in rows if number not in prose and row.strip() and not row.strip().startswith("#")]


def code_lines(source: str, tree: ast.AST) -> int:
    return len(numbers_of_code(source, tree))


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def lengths() -> list[tuple[int, str]]:
    out = []
    for path in FILES:
        source = path.read_text()
        tree = ast.parse(source)
        code = numbers_of_code(source, tree)
        for node in functions(tree):
            count = sum(node.body[0].lineno <= number <= (node.end_lineno or number) for number in code)
            out.append((count, f"{path.relative_to(ROOT)}:{node.name}"))
    return out


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    assert source.splitlines()[:4] == HEADER, "the copyright header"
    assert ast.get_docstring(tree), "a module docstring"
    assert code_lines(source, tree) <= 600, "a file is one idea"
    for name, node in public(tree):
        assert ast.get_docstring(node), f"{name} is public and undocumented"
        for function in functions(node) if isinstance(node, ast.ClassDef) else [node]:
            if not function.name.startswith("_") or function.name == "__init__":
                assert function.returns is not None, f"{name}.{function.name}: no return type"
                arguments = [*function.args.args, *function.args.kwonlyargs]
                untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
                assert not untyped, f"{name}.{function.name}: {untyped} have no type"


def exported(package: str) -> dict[str, Any]:
    """The classes and functions that a package exports, by name."""
    module = import_module(package)
    named = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    return {name: each for name, each in named.items() if inspect.isclass(each) or inspect.isfunction(each)}


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_exports_has_an_example(package: str) -> None:
    """In the docstring of the class or function itself; the doctests run it."""
    parser = doctest.DocTestParser()
    lacking = [name for name, each in exported(package).items() if not parser.get_examples(each.__doc__ or "")]
    assert not lacking, f"{package} exports without an example: {lacking}"


def public(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node.name, node
            for child in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(child, Function) and not child.name.startswith("_") and not is_setter(child):
                    yield f"{node.name}.{child.name}", child


def is_setter(node: Function) -> bool:
    return any(isinstance(mark, ast.Attribute) and mark.attr == "setter" for mark in node.decorator_list)


def test_a_class_has_a_name_of_its_own() -> None:
    """Two public classes of one name cannot be told apart in a message or in the documentation's index."""
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_functions_are_short() -> None:
    count, name = max(lengths())
    assert count <= 60, name


def test_types_are_checked_with_the_libraries() -> None:
    """Without torch everything is unknown to pyright, and it finds nothing."""
    recipe = (ROOT / "Makefile").read_text().partition("\ntypes: setup\n")[2].splitlines()[0]
    assert recipe.split() == ["$(BIN)/pyright", "--pythonpath", "$(BIN)/python"]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    assert settings["reportMissingImports"] == "error"
    assert {"torchrl_o2o", "examples", "sota-implementations", "benchmarks"} <= set(settings["include"])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_stay_short(path: Path) -> None:
    source = path.read_text()
    if path.parent.name == "examples":
        assert len(source.splitlines()) <= 120
    assert code_lines(source, ast.parse(source)) <= 300
