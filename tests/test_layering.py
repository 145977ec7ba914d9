# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The package's subpackages, from the base layer up, and what each of them may import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "torchrl_o2o"

BASE = {"arguments", "errors", "durable", "provenance", "config", "scripts", "pictures", "_moved"}
# Subpackage -> subpackages that it may import, at the top of a file or inside a function. There is no cycle.
ALLOWED: dict[str, set[str]] = dict.fromkeys((*BASE, "__init__", "conf"), BASE)
ALLOWED |= {
    "functional": set(),
    "envs": set(),
    "checkpoint": set(),
    "modules": {"functional"},
    "record": {"functional"},
    "data": {"functional", "envs"},
    "objectives": {"functional", "modules"},
    "priorities": {"functional", "modules", "objectives"},
    "collectors": {"functional", "envs", "modules", "data"},
    "updates": {"functional", "modules", "objectives"},
    "deploy": {"functional", "envs", "checkpoint", "modules", "data", "collectors"},
}
ALLOWED["trainers"] = set(ALLOWED) - BASE
ALLOWED["testing"] = {"data", "envs", "objectives"}
ALLOWED["reproduce"] = {"record"}
ALLOWED["commands"] = {*ALLOWED["trainers"], "trainers", "reproduce"}
# Third parties that must not be imported when a module of the package is: they are optional or slow.
LAZY = {"hydra", "wandb", "minari", "h5py", "mujoco", "gymnasium_robotics", "matplotlib", "tensorboard", "sklearn"}
FILES = sorted(PACKAGE.rglob("*.py"))


def subpackage(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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
    upward = own - {subpackage(path)} - BASE - ALLOWED[subpackage(path)]
    assert not upward, f"{subpackage(path)} must not import {sorted(upward)}"
    top = {name.split(".")[0] for node in tree.body for name in imported_here(node)}
    assert not top & LAZY, "optional libraries are imported where they are used"
    if subpackage(path) in ("commands", "errors", "_moved", "__init__"):
        assert not top & {"torch", "torchrl", "tensordict", "numpy", "gymnasium"}, "`o2o --help` has to be quick"
    if subpackage(path) in BASE:
        assert not top & {"torch", "torchrl", "tensordict", "gymnasium"}, "the base layer imports no torch"


def imported_here(node: ast.stmt) -> set[str]:
    """Names a top-level statement imports; blocks for type checkers only do not count."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return imported(ast.Module([node], []))
    return set()
