# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import Sampler

from torchrl_o2o.data import (
    TRANSITION,
    BalancedReplaySampler,
    BalancedSampler,
    OnlineWriter,
    PoolSampler,
    PrioritizedReplaySampler,
    offline_online_storage,
)
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.testing import random_transitions


def rows(*values: int) -> TensorDict:
    return TensorDict({"x": torch.tensor(values)}, [len(values)])


def written(num_offline: int, capacity: int) -> tuple[TensorDictReplayBuffer, OnlineWriter]:
    storage, writer = LazyTensorStorage(num_offline + capacity), OnlineWriter(num_offline)
    storage.set(torch.arange(num_offline), rows(*range(num_offline)))
    return TensorDictReplayBuffer(storage=storage, writer=writer, batch_size=1), writer


class TestStorage:
    def test_offline_rows_come_first_and_only_the_transition_is_kept(self) -> None:
        data = random_transitions(6, 3, 2).set("episode", torch.arange(6))
        storage = offline_online_storage(data, 4)
        assert (len(storage), storage.max_size) == (6, 10)
        stored = storage[:]
        assert set(stored.keys(True, True)) == set(TRANSITION)
        for key in TRANSITION:
            assert torch.equal(stored[key], data[key])

    def test_storage_owns_its_rows(self) -> None:
        data = random_transitions(6, 3, 2)
        storage = offline_online_storage(data, 4)
        data["observation"].zero_()
        assert storage[:]["observation"].any()

    def test_empty_data(self) -> None:
        with pytest.raises(O2ODataError, match="N >= 1"):
            offline_online_storage(random_transitions(3, 3, 2)[:0], 4)

    def test_missing_entries_are_named(self) -> None:
        with pytest.raises(O2ODataError, match=r"\('next', 'truncated'\)"):
            offline_online_storage(random_transitions(3, 3, 2).exclude(("next", "truncated")), 4)

    def test_no_online_slot(self) -> None:
        with pytest.raises(O2OSpecError, match="online_capacity=0"):
            offline_online_storage(random_transitions(3, 3, 2), 0)


class TestWriter:
    def test_wraps_over_its_own_slots(self) -> None:
        buffer, writer = written(3, 2)
        assert buffer.extend(rows(10)).tolist() == [3]
        assert buffer.extend(rows(11, 12)).tolist() == [4, 3]
        assert buffer.storage[:]["x"].tolist() == [0, 1, 2, 12, 11]
        assert writer.total_written == 3

    def test_add_single_rows(self) -> None:
        buffer, _ = written(2, 2)
        for value in (7, 8, 9):
            buffer.add(TensorDict({"x": torch.tensor(value)}))
        assert buffer.storage[:]["x"].tolist() == [0, 1, 9, 8]

    def test_state_round_trip(self, tmp_path) -> None:
        buffer, writer = written(3, 4)
        buffer.extend(rows(10, 11, 12))
        other = OnlineWriter(3)
        other.load_state_dict(writer.state_dict())
        assert other.total_written == 3
        writer.dumps(tmp_path / "writer")
        third = OnlineWriter(3)
        third.loads(tmp_path / "writer")
        assert third.state_dict() == writer.state_dict()

    def test_state_of_another_data_set(self) -> None:
        with pytest.raises(O2OSpecError, match="left 3 offline slots alone, this one 5"):
            OnlineWriter(5).load_state_dict({"num_offline": 3, "total_written": 0})

    def test_batch_larger_than_the_region(self) -> None:
        buffer, _ = written(3, 2)
        with pytest.raises(O2OSpecError, match="3 transitions at once for 2 online slots"):
            buffer.extend(rows(1, 2, 3))
        assert buffer.storage[:]["x"].tolist() == [0, 1, 2]

    def test_no_online_slot_left(self) -> None:
        buffer, _ = written(3, 0)
        with pytest.raises(O2OSpecError, match="leaves no online slot"):
            buffer.extend(rows(1))

    def test_negative(self) -> None:
        with pytest.raises(O2OSpecError, match="num_offline=-1"):
            OnlineWriter(-1)

    def test_empty_starts_over(self) -> None:
        buffer, writer = written(3, 2)
        buffer.extend(rows(10))
        writer._empty()
        assert buffer.extend(rows(11)).tolist() == [3]


def samplers() -> dict[str, Sampler]:
    return {
        "balanced": BalancedSampler(60, 0.5),
        "pool": PoolSampler(lambda rows: torch.zeros(len(rows)), 60, pool_size=32),
        "balanced replay": BalancedReplaySampler(60, 100),
        "prioritised": PrioritizedReplaySampler(160, alpha=0.6, beta=0.4),
    }


def on_device(name: str, device: str) -> TensorDict:
    torch.manual_seed(0)
    data = random_transitions(100, 3, 2).select(*TRANSITION)
    buffer = TensorDictReplayBuffer(
        storage=offline_online_storage(data[:60], 100, device=device),
        sampler=samplers()[name],
        writer=OnlineWriter(60),
        batch_size=16,
        generator=torch.Generator().manual_seed(0),
    )
    buffer.extend(data[60:])
    buffer.writer.truncate_last()
    return buffer.sample()


@pytest.mark.parametrize("name", ["balanced", "pool", "balanced replay"])
def test_batches_come_from_the_storages_device(name: str) -> None:
    """The meta device holds no numbers, so whatever fetched some to the CPU would fail."""
    batch = on_device(name, "meta")
    assert {value.device.type for value in batch.values(include_nested=True, leaves_only=True)} == {"meta"}
    assert batch["index"].shape == (16,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", list(samplers()))
def test_a_seed_draws_the_same_rows_on_every_device(name: str) -> None:
    batch, expected = on_device(name, "cuda"), on_device(name, "cpu")
    assert batch.device.type == "cuda"
    assert (batch.cpu() == expected).all()
