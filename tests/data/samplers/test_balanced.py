# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer

from torchrl_o2o.data import BalancedSampler, OnlineWriter
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.testing import SamplerContract, counting_storage


class TestContractBalanced(SamplerContract):
    fraction = 0.5

    def make_sampler(self) -> BalancedSampler:
        return BalancedSampler(self.num_offline, self.fraction)

    def expected_frequencies(self) -> Tensor:
        offline = torch.full((self.num_offline,), self.fraction / self.num_offline)
        online = torch.full((self.num_online,), (1 - self.fraction) / self.num_online)
        return torch.cat([offline, online])


class TestContractQuarter(TestContractBalanced):
    fraction = 0.25


class TestContractOfflineOnly(TestContractBalanced):
    fraction = 1.0


class TestContractOnlineOnly(TestContractBalanced):
    fraction = 0.0


def buffer(sampler: BalancedSampler, num_online: int, capacity: int, batch_size: int) -> TensorDictReplayBuffer:
    storage = counting_storage(sampler.num_offline, num_online, capacity)
    return TensorDictReplayBuffer(
        storage=storage, sampler=sampler, writer=OnlineWriter(sampler.num_offline), batch_size=batch_size
    )


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("utd_ratio", [1, 20])
def test_every_minibatch_has_the_exact_fraction(fraction: float, utd_ratio: int) -> None:
    size = 40
    batch = buffer(BalancedSampler(100, fraction), 50, 1000, utd_ratio * size).sample()
    counts = {int((part["index"] < 100).sum()) for part in batch.split(size)}
    assert counts == {round(fraction * size)}


@pytest.mark.parametrize("fraction", [0.3, 1 / 3, 0.123])
def test_uneven_fractions_differ_by_one_row_at_most(fraction: float) -> None:
    pattern = BalancedSampler(10, fraction).is_offline_row(5120)
    counts = pattern.reshape(20, 256).sum(1)
    assert int(counts.max() - counts.min()) <= 1
    assert abs(int(pattern.sum()) - 5120 * fraction) < 1


def test_half_is_offline_on_even_rows_as_in_the_authors_code() -> None:
    assert BalancedSampler(10, 0.5).is_offline_row(6).tolist() == [True, False] * 3


def test_fraction_may_change_between_batches() -> None:
    sampler = BalancedSampler(100, 1.0)
    replay = buffer(sampler, 10, 50, 20)
    assert int((replay.sample()["index"] < 100).sum()) == 20
    sampler.offline_fraction = 0.5
    assert int((replay.sample()["index"] < 100).sum()) == 10


def test_an_empty_online_region_is_said_and_counted() -> None:
    sampler = BalancedSampler(100, 0.5)
    replay = buffer(sampler, 0, 50, 20)
    with pytest.warns(UserWarning, match="no online transitions yet"):
        assert (replay.sample()["index"] < 100).all()
    replay.sample()
    assert sampler.num_offline_only_batches == 2


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(O2OSpecError, match=r"expected a number in \[0, 1\]"):
        BalancedSampler(10, fraction)


def test_fraction_without_offline_data() -> None:
    with pytest.raises(O2OSpecError, match="num_offline=0"):
        BalancedSampler(0, 0.5)


def test_capacity_below_the_online_rows_of_a_batch() -> None:
    with pytest.raises(O2OSpecError, match="needs 10 online rows, but the storage has 4 online slots"):
        buffer(BalancedSampler(100, 0.5), 2, 4, 20).sample()


def test_nothing_to_draw_from() -> None:
    sampler = BalancedSampler(0, 0.0)
    with pytest.raises(O2OSpecError, match="empty storage"):
        sampler.sample(counting_storage(0, 1, 4).__class__(4), 2)


@pytest.mark.parametrize("written", [0, 2, 14])
def test_a_data_set_that_was_emptied_away_is_missed(written: int) -> None:
    writer = OnlineWriter(10)
    replay = TensorDictReplayBuffer(
        storage=counting_storage(10, 0, 20), sampler=BalancedSampler(10), writer=writer, batch_size=4
    )
    replay.sample()
    replay.empty()
    for _ in range(written // 2):
        replay.extend(TensorDict({"x": torch.arange(2)}, [2]))
    with pytest.raises(O2OSpecError, match=r"expected 10 offline ones .* removes the data set, too"):
        replay.sample()
