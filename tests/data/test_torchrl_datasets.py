# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""TorchRL's own front doors read the package's data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchrl.data import OfflineToOnlineReplayBuffer
from torchrl.data.datasets import load_dataset

from torchrl_o2o.data import TRANSITION, load_offline, offline_replay_buffer, register_with_torchrl
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.testing import random_transitions


@pytest.fixture
def source(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    rows = {"observations": rng.normal(size=(40, 3)), "next_observations": rng.normal(size=(40, 3))}
    ends = {"terminals": np.arange(40) % 10 == 9, "timeouts": np.zeros(40, bool)}
    np.savez(tmp_path / "log.npz", actions=rng.uniform(-1, 1, (40, 2)), rewards=rng.normal(size=40), **rows, **ends)
    return f"path:{tmp_path / 'log.npz'}"


def test_the_buffer_holds_the_loaded_rows_and_no_others(source: str) -> None:
    buffer, data = offline_replay_buffer(source, batch_size=16), load_offline(source)
    torch.testing.assert_close(buffer[:].select(*TRANSITION), data.select(*TRANSITION))
    assert buffer.sample().batch_size == (16,)
    with pytest.raises(RuntimeError):
        buffer.extend(data)
    with pytest.raises(O2OSpecError, match="batch_size=0"):
        offline_replay_buffer(source, batch_size=0)


def test_torchrl_loads_it_by_a_string(source: str) -> None:
    register_with_torchrl()
    register_with_torchrl()
    assert len(load_dataset(f"o2o:{source}", batch_size=8)) == 40


def test_torchrls_offline_to_online_buffer_takes_it(source: str) -> None:
    register_with_torchrl()
    buffer = OfflineToOnlineReplayBuffer(f"o2o:{source}", online_capacity=20, batch_size=8)
    buffer.extend(random_transitions(10, 3, 2).select(*TRANSITION))
    batch = buffer.sample()
    assert batch.batch_size == (8,)
    assert set(TRANSITION) <= set(batch.keys(True, True))
