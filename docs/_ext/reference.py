# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The reference: one page for each subpackage, with every public name of the package. No name can be forgotten."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import torchrl_o2o

#: Subpackages in the order in which a reader meets them.
SUBPACKAGES = (
    *("data", "modules", "objectives", "updates", "priorities", "envs", "collectors", "trainers"),
    *("record", "checkpoint", "deploy", "functional", "testing", "reproduce", "commands"),
)
BASE = "base layer"
INDEX = """\
Reference
=========

Every public name of the package, by subpackage.
"""


def public_names() -> dict[str, dict[str, list[str]]]:
    """Every public name, once, by the subpackage and the shortest module it can be imported from.

    Returns:
        Subpackage to module to names.
    """
    found: dict[str, dict[str, list[str]]] = {part: {} for part in (*SUBPACKAGES, BASE)}
    seen: set[int] = set()
    modules = sorted(pkgutil.walk_packages(torchrl_o2o.__path__, "torchrl_o2o."), key=lambda info: info.name.count("."))
    for info in modules:
        parts = info.name.split(".")
        if any(part.startswith("_") for part in parts) or parts[1] == "conf":
            continue
        module = importlib.import_module(info.name)
        part = parts[1] if parts[1] in SUBPACKAGES else BASE
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            known = inspect.isclass(value) or inspect.isroutine(value)
            if known and id(value) in seen:
                continue
            if not known and any(name in names for names in found[part].values()):
                continue
            seen.add(id(value))
            found[part].setdefault(info.name, []).append(name)
    return found


def page(module: str, names: dict[str, str]) -> str:
    """The page of one module.

    Args:
        module: where the names are defined.
        names: each with the module it is best imported from.
    """
    title = module.removeprefix("torchrl_o2o.")
    doc = (inspect.getdoc(importlib.import_module(module)) or "").strip()
    lines = [title, "=" * len(title), "", doc, ""]
    for name, home in names.items():
        value = getattr(importlib.import_module(home), name)
        if inspect.isclass(value):
            directive = "autoexception" if issubclass(value, BaseException) else "autoclass"
        else:
            directive = "autofunction" if inspect.isroutine(value) else "autodata"
        lines += [f".. {directive}:: {home}.{name}", ""]
    return "\n".join(lines)


def pages(modules: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    """The names of one subpackage by the module that defines them, each with the module it is best imported from."""
    found: dict[str, dict[str, str]] = {}
    for home, names in modules.items():
        for name in names:
            value = getattr(importlib.import_module(home), name)
            defined = getattr(value, "__module__", home) if callable(value) else home
            defined = defined if defined.startswith("torchrl_o2o.") else home
            found.setdefault(defined, {})[name] = home
    return found


def write(folder: Path) -> None:
    """Write the pages and their index; only what changed, so that a second build is short."""
    (folder / "api").mkdir(parents=True, exist_ok=True)
    entries = []
    for part, modules in public_names().items():
        title = part if part == BASE else f"torchrl_o2o.{part}"
        lines = [title, "=" * len(title), ""]
        if part != BASE:
            lines += [(inspect.getdoc(importlib.import_module(title)) or "").strip(), ""]
        lines += [".. toctree::", "   :maxdepth: 1", ""]
        for module, names in sorted(pages(modules).items()):
            replace(folder / "api" / f"{module}.rst", page(module, names))
            lines.append(f"   api/{module}")
        entries.append("reference-" + part.replace(" ", "-"))
        replace(folder / f"{entries[-1]}.rst", "\n".join([*lines, ""]))
    replace(folder / "reference.rst", "\n".join([INDEX, ".. toctree::", "", *(f"   {part}" for part in entries), ""]))


def replace(path: Path, text: str) -> None:
    """Write a file if its text is another one."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
