# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/{rlpd_pixels,drqv2}.py: a few steps on the task that needs no renderer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.scripts.running import load_script

pytestmark = [
    pytest.mark.filterwarnings("ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore:.*gamma.*"),
]
SHORT: dict[str, Any] = {
    "batch_size": 8,
    "features": (4, 4),
    "latent_dim": 5,
    "hidden_sizes": (8,),
    "eval_every": 20,
    "eval_episodes": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in V-D4RL's form, of the task's size."""
    path, rng = tmp_path_factory.mktemp("vd4rl"), np.random.default_rng(0)
    for number in range(3):
        first = np.arange(13) == 0
        rows = {"image": rng.integers(0, 256, (13, 16, 16, 3), dtype=np.uint8), "is_first": first}
        action, reward = rng.uniform(-1, 1, (13, 2)).astype(np.float32), np.ones(13, np.float32)
        np.savez(path / f"2024010{number}T000000-{number}-13.npz", action=action, reward=reward, **rows)
    return path


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    found = (re.match(r"step (-?\d+): return -?\d+\.\d, ", line) for line in capsys.readouterr().out.splitlines())
    return [match.group(1) for match in found if match]


def test_rlpd_pixels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("examples/rlpd_pixels.py")
    settings = {"dataset": str(folder), "total_frames": 60, "init_random_frames": 20, "num_qvalue_nets": 2}
    loss = script.main(script.Config(**SHORT, **settings, utd_ratio=2))
    assert all(value.isfinite().all() for value in loss.parameters())
    assert lines(capsys) == ["40", "60"]


def test_drqv2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("examples/drqv2.py")
    loss = script.main(script.Config(**SHORT, dataset=str(folder), offline_steps=20, total_frames=60))
    assert all(value.isfinite().all() for value in loss.parameters())
    assert float(loss.std) < 1.0
    assert lines(capsys) == ["0", "20", "40", "60"]
