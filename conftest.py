# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What pytest needs in order to run the doctests of a single file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent


def pytest_collect_file(file_path: Path) -> None:
    """Import a module of the package before pytest does.

    In the import mode "importlib", pytest first imports the module's package, which imports the module, and then
    executes the module's file again. The doctests would then see classes other than those of the package.
    """
    if file_path.suffix == ".py" and file_path.is_relative_to(ROOT / "torchrl_o2o"):
        parts = file_path.relative_to(ROOT).with_suffix("").parts
        import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
