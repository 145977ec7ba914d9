# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Fixtures of the data tests: a data set folder of their own, and small data sets with known numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def dataset_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "datasets"
    root.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


@pytest.fixture
def flat() -> dict[str, np.ndarray]:
    """Three episodes of 4 (terminal), 5 (timeout) and 3 rows (unfinished), D4RL's layout with next observations."""
    rng = np.random.default_rng(0)
    observations = rng.standard_normal((12, 3)).astype(np.float32)
    following = np.concatenate([observations[1:], observations[:1]])
    following[[3, 8, 11]] = rng.standard_normal((3, 3))
    terminals, timeouts = np.zeros(12, dtype=bool), np.zeros(12, dtype=bool)
    terminals[3] = timeouts[8] = True
    return {
        "observations": observations,
        "actions": rng.uniform(-1, 1, (12, 2)).astype(np.float32),
        "rewards": rng.standard_normal(12).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": following,
    }


@pytest.fixture
def episodes() -> list[dict[str, Any]]:
    """Two episodes of 3 and 2 transitions with T+1 observations; observation t of episode e is 10 e + t."""
    out = []
    for number, steps in enumerate((3, 2)):
        terminations = np.zeros(steps, dtype=bool)
        terminations[-1] = number == 0
        out.append(
            {
                "observations": 10.0 * number + np.arange(steps + 1.0)[:, None] * np.ones(2),
                "actions": np.linspace(-1, 1, steps)[:, None],
                "rewards": np.arange(steps, dtype=float),
                "terminations": terminations,
                "truncations": np.zeros(steps, dtype=bool),
            }
        )
    return out
