# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Stored priorities through the package's checkpoint: a resumed buffer draws what the uninterrupted one draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_o2o.checkpoint.buffer import BufferArchive
from torchrl_o2o.data import (
    TRANSITION,
    BalancedReplaySampler,
    OnlineWriter,
    PrioritizedReplaySampler,
    offline_online_storage,
)
from torchrl_o2o.data.samplers.stored import StoredPrioritySampler
from torchrl_o2o.testing import random_transitions

Make = Callable[[], StoredPrioritySampler]
SAMPLERS = {
    "balanced replay": lambda: BalancedReplaySampler(50, 20),
    "prioritized": lambda: PrioritizedReplaySampler(70, alpha=0.6, beta=0.4),
}


def transitions(size: int, seed: int) -> TensorDict:
    return random_transitions(size, 3, 2, generator=torch.Generator().manual_seed(seed)).select(*TRANSITION)


def build(make: Make, seed: int) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(
        storage=offline_online_storage(transitions(50, 0), 20),
        sampler=make(),
        writer=OnlineWriter(50),
        batch_size=16,
        generator=torch.Generator().manual_seed(seed),
    )


def train(buffer: TensorDictReplayBuffer, steps: range) -> list[TensorDict]:
    """Write, draw and re-prioritize; the online region wraps on the way."""
    batches = []
    for step in steps:
        buffer.extend(transitions(5, step))
        batches.append(buffer.sample())
        buffer.update_priority(batches[-1]["index"], batches[-1]["observation"].abs().mean(-1))
    return batches


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_resume_is_exact(make: Make, tmp_path: Path) -> None:
    whole, first, second = build(make, 1), build(make, 1), build(make, 2)
    expected = train(whole, range(1, 9))[4:]
    train(first, range(1, 5))
    archive = BufferArchive(first, tmp_path)
    saved = archive.save_rows()
    torch.save(archive.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    BufferArchive(second, tmp_path).restore(saved, state, lambda entry: (tmp_path / entry["file"]).read_bytes())
    for got, batch in zip(train(second, range(5, 9)), expected, strict=True):
        assert (got == batch).all()
    assert torch.equal(second.sampler.values, whole.sampler.values)


def test_rows_that_another_buffer_emptied_are_not_drawn() -> None:
    """Two buffers share a storage; one empties and refills it, the other draws what is there, at its priority."""
    storage = LazyTensorStorage(10)
    first, second = (PrioritizedReplaySampler(10, 1.0, 1.0, eps=0.0) for _ in range(2))
    writing, reading = (
        TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=OnlineWriter(0), batch_size=6)
        for sampler in (first, second)
    )
    writing.extend(TensorDict({"x": torch.arange(8)}, [8]))
    reading.update_priority(torch.arange(8), torch.tensor([0.0] * 7 + [5.0]))
    writing.empty()
    writing.extend(TensorDict({"x": torch.arange(3)}, [3]))
    assert second.values.tolist() == [5.0] * 3 + [0.0] * 7
    assert reading.sample()["x"].sort().values.tolist() == [0, 0, 1, 1, 2, 2]
