# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Draws that were written down are replayed, by the same noise source that losses take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_o2o.data import (
    BalancedReplaySampler,
    BalancedSampler,
    ChunkSampler,
    OnlineWriter,
    PoolSampler,
    PrioritizedReplaySampler,
)
from torchrl_o2o.data.samplers.drawing import DrawingSampler
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives import RecordedNoise
from torchrl_o2o.testing import counting_storage


def buffer(sampler: DrawingSampler) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(
        storage=counting_storage(6, 4, 10), sampler=sampler, writer=OnlineWriter(6), batch_size=4
    )


OFFLINE, ONLINE = torch.tensor([5, 0]), torch.tensor([9, 6])


def test_balanced() -> None:
    sampler = BalancedSampler(6)
    sampler.noise = RecordedNoise({"offline_rows": OFFLINE, "online_rows": ONLINE})
    assert buffer(sampler).sample()["index"].tolist() == [5, 9, 0, 6]


def test_pool() -> None:
    sampler = PoolSampler(lambda rows: rows["x"].double(), 6, pool_size=4, alpha=1.0)
    sampler.noise = RecordedNoise({"offline_rows": OFFLINE, "online_rows": ONLINE, "drawn": torch.tensor([1, 1, 2, 0])})
    assert buffer(sampler).sample()["index"].tolist() == [9, 9, 0, 5]


@pytest.mark.parametrize("kind", ["prioritized", "balanced"])
def test_stored(kind: str) -> None:
    """Ten rows of priority 1 and four strata of 2.5 rows each, drawn from at their beginnings and ends."""
    sampler = (
        PrioritizedReplaySampler(16, 0.6, 0.4)
        if kind == "prioritized"
        else BalancedReplaySampler(6, 10, init_online_fraction=0.4, first_epoch_frames=4)
    )
    within = torch.tensor([0.01, 0.99, 0.01, 0.99], dtype=torch.float64)
    sampler.noise = RecordedNoise({"within_strata": within})
    expected = ((sampler.strata(4) + within) * 2.5).floor().long()
    assert torch.equal(buffer(sampler).sample()["index"], expected)


def test_without_a_source_the_replay_buffers_generator_draws() -> None:
    draws = []
    for noise in (None, RecordedNoise({"offline_rows": OFFLINE, "online_rows": ONLINE}), None):
        sampler = BalancedSampler(6)
        replay = buffer(sampler)
        replay._rng = sampler._rng = torch.Generator().manual_seed(0)
        sampler.noise = noise
        draws.append(replay.sample()["index"].tolist())
    assert draws[0] == draws[2]
    assert draws[0] != draws[1]


def test_rows_that_are_not_there_are_refused() -> None:
    sampler = BalancedSampler(6)
    sampler.noise = RecordedNoise({"offline_rows": OFFLINE, "online_rows": torch.tensor([9, 12])})
    with pytest.raises(O2OSpecError, match=r"in 9\.\.12 for 'online_rows', expected 6\.\.9"):
        buffer(sampler).sample()


NUMBER = np.int64(40)
BUILDS: dict[str, Callable[[], Any]] = {
    "balanced": lambda: BalancedSampler(NUMBER, np.float32(0.5)),  # type: ignore[arg-type]
    "pool": lambda: PoolSampler(lambda rows: rows["x"], NUMBER, pool_size=NUMBER, alpha=np.float32(0.3)),  # type: ignore[arg-type]
    "balanced replay": lambda: BalancedReplaySampler(NUMBER, NUMBER, init_online_fraction=np.float64(0.5)),  # type: ignore[arg-type]
    "prioritized": lambda: PrioritizedReplaySampler(NUMBER, np.float64(0.6), np.float32(0.4)),  # type: ignore[arg-type]
    "writer": lambda: OnlineWriter(NUMBER),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", list(BUILDS))
def test_numbers_of_numpy_are_numbers_and_can_be_saved(name: str, tmp_path: Path) -> None:
    saved, other = BUILDS[name](), BUILDS[name]()
    saved.dumps(tmp_path)
    other.loads(tmp_path)
    assert str(other.state_dict()) == str(saved.state_dict())


@pytest.mark.parametrize("bad", [-1, 1.5, "40", None, True])
def test_what_is_no_number_of_rows_is_refused(bad: Any) -> None:
    for build in (BalancedSampler, OnlineWriter, lambda number: BalancedReplaySampler(number, 10)):
        with pytest.raises(O2OSpecError, match="got num_offline="):
            build(bad)


@pytest.mark.parametrize("kind", ["pool", "prioritized", "balanced replay"])
def test_sizes_rows_and_storages_that_do_not_fit_are_named(kind: str) -> None:
    make = {
        "pool": lambda: PoolSampler(lambda rows: rows["x"].double(), 6, pool_size=4),
        "prioritized": lambda: PrioritizedReplaySampler(16, 0.6, 0.4),
        "balanced replay": lambda: BalancedReplaySampler(6, 10, first_epoch_frames=4),
    }[kind]
    replay = buffer(make())
    for size in (-1, 2.5, True):
        with pytest.raises(O2OSpecError, match=f"batch_size={size}, expected a whole number"):
            replay.sample(size)
    if kind != "pool":
        for rows in (torch.tensor([0.5, 1.0]), torch.tensor([True, False])):
            with pytest.raises(O2OSpecError, match=f"got rows as {rows.dtype}, expected row numbers"):
                replay.update_priority(rows, torch.ones(2))
    square = LazyTensorStorage(16, ndim=2)
    square.set(range(4), TensorDict({"x": torch.zeros(4, 2)}, [4, 2]))
    with pytest.raises(O2OSpecError, match="storage of 2 dimensions, expected flat"):
        make().sample(square, 4)


def test_a_pool_within_chunks_is_not_scored_by_a_thread() -> None:
    sampler = ChunkSampler(PoolSampler(lambda rows: rows["x"].double(), 6, pool_size=4), 2, gamma=0.9)
    storage = counting_storage(6, 4, 10)
    replay = TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=OnlineWriter(6), batch_size=4, prefetch=2)
    with pytest.raises(O2OSpecError, match="without prefetch"):
        replay.sample()
