# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What a tutorial shows but does not run; building the site runs the rest."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_loss_of_the_tutorial_passes_the_contract_that_the_tutorial_shows(tmp_path: Path) -> None:
    text = (ROOT / "docs/tutorials/4_add_a_method.py").read_text()
    loss, rest = text.split("# %%\n# Train it", 1)
    block = rest.split("# .. code-block:: python\n#\n", 1)[1].split("# For samplers", 1)[0]
    shown = textwrap.dedent("\n".join(line.removeprefix("#") for line in block.splitlines()))
    file = tmp_path / "test_own.py"
    file.write_text(f"{loss}\n{shown}")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stdout
    assert " passed" in ran.stdout
