# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Fixtures of the script tests: small local data sets in a folder of their own, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_o2o.data import make_local_dataset

SMALL = {  # every set that a test trains on: one that is missing here would be made at its full size
    "o2o/halfcheetah/linear-medium-v0": 4_000,
    "o2o/halfcheetah/linear-mix-v0": 4_000,
    "o2o/pointmaze/umaze-play-v0": 4_000,
    "o2o/pointmaze/medium-play-v0": 4_000,
    "o2o/hopper/linear-mix-v0": 4_000,
}


@pytest.fixture(scope="session")
def small_datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("minari")
    for name, num_steps in SMALL.items():
        make_local_dataset(name, num_steps=num_steps, root=root)
    return root


@pytest.fixture(autouse=True)
def _datasets(small_datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(small_datasets))
