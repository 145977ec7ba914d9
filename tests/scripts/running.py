# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Running the scripts of `examples/` and `sota-implementations/` inside the tests."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from omegaconf import DictConfig

from torchrl_o2o.scripts import script_config

ROOT = Path(__file__).parents[2]
#: Tasks of the package; `custom` needs words of its own.
TASKS = sorted(
    path.stem
    for path in (ROOT / "torchrl_o2o/conf/task").glob("*.yaml")
    if path.stem not in ("custom", "dotreach")  # yours; in pixels, for their own scripts
)
#: One of each domain; the others differ by what `torchrl_o2o/conf/task` says, which RLPD's and A3RL's tests compose.
DOMAIN_TASKS = ["halfcheetah", "pointmaze-medium", "antmaze-medium", "adroit-door", "adroit-pen-dense"]


def load_script(path: str) -> ModuleType:
    """Import a script by its path relative to the repository's root."""
    spec = importlib.util.spec_from_file_location(f"script_{Path(path).stem}_{abs(hash(path))}", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


def script_of(name: str) -> ModuleType:
    """A script of `sota-implementations`, imported once: its folder, or folder and file."""
    path = name if "/" in name else f"{name}/{name}"
    key = f"script_{path.replace('/', '_')}"
    if key not in sys.modules:
        module = load_script(f"sota-implementations/{path}.py")
        sys.modules[key] = module
    return sys.modules[key]


def compose(folder: str, *overrides: str) -> DictConfig:
    """Compose `config.yaml` of a folder below `sota-implementations`."""
    return script_config(folder, overrides)


def run_script(path: str, *words: str, cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a script as a user would."""
    command = [sys.executable, str(ROOT / path), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False)
