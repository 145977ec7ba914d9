# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A storage behind shared offline rows behaves as one of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Storage, TensorDictReplayBuffer

from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.data import BalancedSampler, OnlineWriter, offline_online_storage
from torchrl_o2o.data.shared_rows import SharedRows
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.testing import random_transitions

OFFLINE, ONLINE = 12, 8


def buffer(storage: Storage, seed: int) -> TensorDictReplayBuffer:
    made = TensorDictReplayBuffer(
        storage=storage, sampler=BalancedSampler(OFFLINE), writer=OnlineWriter(OFFLINE), batch_size=8
    )
    made.set_rng(torch.Generator().manual_seed(seed))
    return made


def pairs() -> tuple[list[TensorDictReplayBuffer], list[TensorDictReplayBuffer]]:
    """Three agents' buffers on shared rows, and on storages of their own."""
    offline = random_transitions(OFFLINE, 3, 2, generator=torch.Generator().manual_seed(0))
    shared = SharedRows(3)
    ours = [buffer(shared(offline, ONLINE), seed) for seed in range(3)]
    return ours, [buffer(offline_online_storage(offline, ONLINE), seed) for seed in range(3)]


def equal(first: TensorDict, second: TensorDict) -> bool:
    return bool((first == second).all())


def fill(*buffers: list[TensorDictReplayBuffer], count: int) -> None:
    for agent in range(3):
        for _ in range(count + agent):
            row = random_transitions(1, 3, 2)
            for each in buffers:
                each[agent].extend(row)


@pytest.mark.parametrize("count", [1, 5, 11])  # 11: the ring has turned
def test_equals_storages_of_their_own(count: int) -> None:
    ours, own = pairs()
    fill(ours, own, count=count)
    for first, second in zip(ours, own, strict=True):
        assert len(first) == len(second)
        assert equal(first.storage[:], second.storage[:])
        assert equal(first.storage.get(slice(4, 13)), second.storage.get(slice(4, 13)))
        assert equal(first.storage.get(3), second.storage.get(3))
        assert equal(first.storage.get([2, 12]), second.storage.get([2, 12]))
        assert equal(first.sample(), second.sample())
        first.writer.truncate_last()
        second.writer.truncate_last()
        assert equal(first.storage[:], second.storage[:])


MASK = torch.arange(17) % 3 == 1
INDICES = [-1, -17, torch.tensor([-1, 0, -5]), [12, -2], MASK, MASK.tolist(), torch.tensor(-3), range(10, 14)]
INDICES += [slice(-6, None), slice(2, 17, 3), slice(13, 17), slice(-3, -9), torch.tensor([[0, -1], [13, 2]])]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_any_index_is_that_of_a_storage_of_its_own(index: Any) -> None:
    ours, own = pairs()
    fill(ours, own, count=4)  # agent 1 has 17 rows
    assert equal(ours[1].storage.get(index), own[1].storage.get(index))
    others = [ours[agent].storage[:].clone() for agent in (0, 2)]
    if torch.as_tensor(range(17)[index] if isinstance(index, slice) else index).dtype == torch.bool:
        return  # torchrl's storages write at no mask
    rows = torch.zeros_like(own[1].storage.get(index))
    for each in (ours[1], own[1]):
        each.storage.set(index, rows, set_cursor=False)
    assert equal(ours[1].storage[:], own[1].storage[:])
    for agent, before in zip((0, 2), others, strict=True):
        assert equal(before[OFFLINE:], ours[agent].storage[:][OFFLINE:])


@pytest.mark.parametrize("index", [17, -18, torch.tensor([0, 17]), torch.ones(16, dtype=torch.bool), True, [0.5]])
def test_rows_that_are_not_there_are_refused(index: Any) -> None:
    ours, _ = pairs()
    fill(ours, count=4)
    with pytest.raises(O2OSpecError, match="index"):
        ours[1].storage.get(index)


def test_offline_rows_are_there_once() -> None:
    ours, _ = pairs()
    starts = {each.storage._storage["observation"].data_ptr() for each in ours}
    assert len(starts) == 1
    assert len(ours[0].storage._storage) == OFFLINE + 3 * ONLINE


@pytest.mark.parametrize("count", [5, 11])
def test_saved_and_restored_for_itself(tmp_path: Path, count: int) -> None:
    """Also by a storage of its own: a single run can continue from a checkpoint of many."""
    ours, own = pairs()
    fill(ours, count=count)
    Checkpointer(tmp_path, objects={}, buffer=ours[1]).save(1)
    fresh, _ = pairs()
    for target in (fresh[1], own[1]):
        assert Checkpointer(tmp_path, objects={}, buffer=target).restore() == 1
        assert equal(target.storage[:], ours[1].storage[:])
        assert target.writer.total_written == ours[1].writer.total_written
    assert len(fresh[0]) == len(fresh[2]) == OFFLINE


def test_other_sizes_and_too_many_agents_are_refused() -> None:
    shared, offline = SharedRows(2), random_transitions(OFFLINE, 3, 2)
    shared(offline, ONLINE)
    with pytest.raises(O2OSpecError, match="agent 1 with 12 offline rows and 9"):
        shared(offline, ONLINE + 1)
    shared(offline, ONLINE)
    with pytest.raises(O2OSpecError, match="agents 0 to 1"):
        shared(offline, ONLINE)
