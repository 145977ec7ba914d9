# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The package's layers: functional <- modules <- objectives <- scripts; data and the leaves know nothing of losses."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "torchrl_o2o"

# Layer -> layers of the package it must not import, at the top of a file or inside a function.
FORBIDDEN = {
    "functional": {"modules", "objectives", "data", "envs", "evaluation", "record", "checkpoint", "priorities"},
    "modules": {"objectives", "data", "envs", "evaluation", "record", "checkpoint", "priorities"},
    "objectives": {"data", "envs", "evaluation", "record", "checkpoint", "priorities", "collect"},
    "data": {"objectives", "modules", "evaluation", "record", "checkpoint", "priorities", "collect"},
    "envs": {"objectives", "modules", "evaluation", "record", "checkpoint"},
    "evaluation": {"objectives", "modules", "record", "checkpoint", "collect"},
    "record": {"objectives", "modules", "data", "envs", "evaluation", "checkpoint"},
    "checkpoint": {"objectives", "modules", "envs", "evaluation"},
    "diagnostics": {"objectives", "modules", "data", "envs"},
}
# Third parties that must not be imported when a module of the package is: they are optional or slow.
LAZY = {"hydra", "wandb", "minari", "h5py", "mujoco", "gymnasium_robotics", "matplotlib", "tensorboard", "sklearn"}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "functional" if first.startswith("functional") else first


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers(path: Path) -> None:
    tree = ast.parse(path.read_text())
    own = {name.split(".")[1] for name in imported(tree) if name.startswith("torchrl_o2o.")}
    own = {"functional" if name.startswith("functional") else name for name in own}
    assert not own & FORBIDDEN.get(layer(path), set())
    top = {name.split(".")[0] for node in tree.body for name in imported_here(node)}
    assert not top & LAZY, "optional libraries are imported where they are used"
    if layer(path) in ("cli", "commands", "errors") or path == PACKAGE / "__init__.py":
        assert not top & {"torch", "torchrl", "tensordict", "numpy", "gymnasium"}, "`o2o --help` has to be quick"


def imported_here(node: ast.stmt) -> set[str]:
    """Names a top-level statement imports; blocks for type checkers only do not count."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return imported(ast.Module([node], []))
    return set()
