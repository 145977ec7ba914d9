# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What pyproject.toml cannot say: a wheel carries the training scripts, which live beside the package in a checkout."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SCRIPTS = Path(__file__).parent / "sota-implementations"


class BuildWithScripts(build_py):
    """Copies scripts and settings to ``torchrl_o2o/_scripts``; an editable install finds them in the checkout."""

    def run(self) -> None:
        """Build as always, then copy."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "torchrl_o2o" / "_scripts"
        shutil.rmtree(target, ignore_errors=True)
        for file in sorted(path for path in SCRIPTS.rglob("*") if path.suffix in (".py", ".yaml")):
            copy = target / file.relative_to(SCRIPTS)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


setup(cmdclass={"build_py": BuildWithScripts})
