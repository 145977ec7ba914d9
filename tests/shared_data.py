# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Optional data that is too large or not ours to commit; tests that need it skip where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE_THE_CHECKOUT = Path(__file__).parents[2] / "shared" / "data"


def shared_file(name: str) -> Path:
    """Path of a file in ``$O2O_SHARED_DATA`` or ``../shared/data``; skips the test where there is none."""
    path = Path(os.environ.get("O2O_SHARED_DATA", _BESIDE_THE_CHECKOUT)) / name
    if not path.exists():
        pytest.skip(f"{path} is absent; set O2O_SHARED_DATA to the folder that has {name}")
    return path
