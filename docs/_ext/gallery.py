# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Sphinx-Gallery over `examples/` and `docs/tutorials/`: what is shown was run."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reference import replace

#: What the steps of an example are cut to here, so that its output is there within seconds; its defaults take minutes.
SHORT = {
    "batch_size": 32,
    "offline_steps": 100,
    "total_frames": 200,
    "eval_every": 100,
    "eval_episodes": 1,
    "vae_steps": 50,
    "clone_steps": 50,
    "num_agents": 2,
    "init_random_frames": 50,
    "init_frames": 50,
    "frames_per_epoch": 100,
    "warmup_steps": 50,
    "warm_start": 50,
    "phase_every": 100,
    "max_updates": 50,
    "check_every": 25,
    "patience": 25,
}
#: What counts in iterations or rollouts.
ITERATED = {
    "eval_every": 1,
    "iterations": 1,
    "offline_iterations": 1,
    "online_iterations": 1,
    "frames_per_iteration": 1_000,
    "episodes_per_iteration": 1,
    "critic_steps": 20,
    "actor_steps": 20,
    "clone_epochs": 1,
    "offline_updates": 20,
    "rollouts": 1,
    "updates_per_rollout": 5,
}
INTRODUCTION = """\
Examples
========

One file for each method: settings, networks, loss, buffer and loop in plain sight. Here each was run with a few hundred
steps, so the returns are those of a beginner. Run them yourself with their defaults to see the effect.
"""


def write_examples(root: Path, folder: Path) -> None:
    """Copy `examples/` for the gallery, each docstring as a page's head; the code stays as it is."""
    folder.mkdir(exist_ok=True)
    replace(folder / "GALLERY_HEADER.rst", INTRODUCTION)
    for path in sorted((root / "examples").glob("*.py")):
        _, head, code = re.split(r'^r?"""|^"""$', path.read_text(), maxsplit=2, flags=re.M)
        replace(folder / path.name, f'r"""\n{as_page(path.name, head)}"""\n{code}')


def as_page(name: str, head: str) -> str:
    """A docstring with its commands as a literal block, under the file's name."""
    summary, _, rest = head.partition("\nRun:")
    lines = rest.splitlines()
    number = next((n for n, line in enumerate(lines) if n and line and not line.startswith(" ")), len(lines))
    commands = ["    " + line.strip() for line in lines[:number] if line.strip()]
    return "\n".join([name, "=" * len(name), "", summary.strip(), "", "::", "", *commands, "", *lines[number:], ""])


def words_of(_: Any, script: dict[str, Any]) -> list[str]:
    """Settings of an example of the gallery, as its arguments; tutorials have none."""
    path = Path(script["src_file"])
    if path.parent.name != "examples":
        return []
    fields = re.findall(r"^    (\w+): int = ", path.read_text(), flags=re.M)
    iterated = ITERATED if {"iterations", "online_iterations", "rollouts"} & set(fields) else {}
    return [f"{name}={value}" for name, value in {**SHORT, **iterated}.items() if name in fields]


def configuration(root: Path, *, execute: bool) -> dict[str, Any]:
    """Settings of Sphinx-Gallery."""
    return {
        "examples_dirs": ["generated/examples", "tutorials"],
        "gallery_dirs": ["gallery", "lessons"],
        # Shown without being run where its extra is not installed.
        "filename_pattern": r"\.py$" if find_spec("transformers") else r"(?<!odt)\.py$",
        "plot_gallery": execute,
        "abort_on_example_error": True,
        "parallel": 2,
        "reset_argv": words_of,
        "download_all_examples": False,
        "within_subsection_order": "FileNameSortKey",
        "capture_repr": (),
        "first_notebook_cell": "# In a notebook of your own, first: %pip install torchrl_o2o[all]",
    }
