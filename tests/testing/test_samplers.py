# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Samplers that are wrong, each in its own way: the contract finds every one of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchrl.data import Storage

from torchrl_o2o.data import BalancedSampler, PrioritizedReplaySampler
from torchrl_o2o.testing import SamplerContract

NUM_OFFLINE, CAPACITY = 40, 64


class OnlyThisRound(BalancedSampler):
    """Draws online rows up to where the writer stands, also after it has come round."""

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        index, info = super().sample(storage, batch_size)
        written = next(iter(storage._attached_entities_iter()))._writer.total_written
        online = index >= NUM_OFFLINE
        stop = NUM_OFFLINE + ((written - 1) % CAPACITY) + 1
        index[online] = torch.randint(NUM_OFFLINE, stop, (int(online.sum()),), generator=self._rng)
        return index, info


class FirstRowsOnly(BalancedSampler):
    """Takes the length of the storage when it is first used."""

    size: int | None = None

    def _uniform(self, name: str, low: int, high: int, size: int) -> Tensor:
        if name == "online_rows":
            self.size = high = self.size or high
        return super()._uniform(name, low, high, size)


class CountsRowsEverWritten(BalancedSampler):
    """Row numbers grow beyond the storage once the ring is full."""

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        written = next(iter(storage._attached_entities_iter()))._writer.total_written
        index, info = super().sample(storage, batch_size)
        online = index >= NUM_OFFLINE
        index[online] = torch.randint(NUM_OFFLINE, NUM_OFFLINE + written, (int(online.sum()),), generator=self._rng)
        return index, info


class StalePriorities(PrioritizedReplaySampler):
    """Rows that are written over keep the priority of what was there."""

    def mark_update(self, index: int | Tensor, *, storage: Storage | None = None) -> None:
        if storage is not None:
            self._meet(storage)


class Balanced(SamplerContract):
    def __init__(self, kind: type[BalancedSampler] = BalancedSampler) -> None:
        self.kind = kind

    def make_sampler(self) -> BalancedSampler:
        return self.kind(self.num_offline)

    def expected_frequencies(self) -> Tensor:
        return torch.cat([torch.full((size,), 0.5 / size) for size in (self.num_offline, self.num_online)])


class Prioritized(SamplerContract):
    def __init__(self, kind: type[PrioritizedReplaySampler] = PrioritizedReplaySampler) -> None:
        self.kind = kind

    def make_sampler(self) -> PrioritizedReplaySampler:
        return self.kind(self.num_offline + self.capacity, alpha=1.0, beta=1.0)

    def make_buffer(self, seed: int = 0) -> Any:
        buffer = super().make_buffer(seed)
        buffer.update_priority(torch.arange(NUM_OFFLINE, NUM_OFFLINE + self.num_online), 0.01)
        return buffer

    def expected_frequencies_of_a_full_ring(self) -> Tensor:
        return torch.full((NUM_OFFLINE + CAPACITY,), 1 / (NUM_OFFLINE + CAPACITY))


@pytest.mark.parametrize("contract", [Balanced(), Prioritized()], ids=["balanced", "prioritized"])
def test_right_ones_pass(contract: SamplerContract) -> None:
    contract.test_empirical_frequencies_after_the_ring_wrapped()


@pytest.mark.parametrize(
    "contract",
    [Balanced(OnlyThisRound), Balanced(FirstRowsOnly), Balanced(CountsRowsEverWritten), Prioritized(StalePriorities)],
    ids=lambda contract: contract.kind.__name__,
)
def test_wrong_ones_fail(contract: SamplerContract) -> None:
    if isinstance(contract, Balanced):
        contract.test_empirical_frequencies()  # nothing is wrong with them before
    with pytest.raises((AssertionError, IndexError)):
        contract.test_empirical_frequencies_after_the_ring_wrapped()


def test_frequencies_of_a_fixed_size_are_told() -> None:
    class Fixed(Balanced):
        def expected_frequencies(self) -> Tensor:
            return torch.full((64,), 1 / 64)

    with pytest.raises(AssertionError, match=r"must depend on self\.num_online"):
        Fixed().test_empirical_frequencies_after_the_ring_wrapped()
