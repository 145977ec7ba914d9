# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import LazyTensorStorage, PrioritizedSampler, TensorDictReplayBuffer
from torchrl.data.replay_buffers import RandomSampler

from tests import golden_vectors as golden
from torchrl_o2o.data import OnlineWriter, offline_online_storage
from torchrl_o2o.data.samplers import BalancedReplaySampler, ChunkSampler, PrioritizedReplaySampler
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.noise import RecordedNoise
from torchrl_o2o.functional.off2on import off2on_priority
from torchrl_o2o.testing import SamplerContract, counting_storage, random_transitions


class TestContract(SamplerContract):
    batch_size = 48

    def make_sampler(self) -> BalancedReplaySampler:
        return BalancedReplaySampler(self.num_offline, self.capacity, first_epoch_frames=self.num_online)

    def expected_frequencies(self) -> Tensor:
        offline = torch.full((self.num_offline,), 0.5 / self.num_offline)
        return torch.cat([offline, torch.full((self.num_online,), 0.5 / self.num_online)])

    def expected_frequencies_of_a_full_ring(self) -> Tensor:
        priority = torch.cat([torch.ones(self.num_offline), torch.full((self.capacity,), 40 / 24)])
        return priority / priority.sum()


class TestContractAfterUpdates(TestContract):
    """Priorities of one half of all rows are tripled; the frequencies follow."""

    def make_buffer(self, seed: int = 0) -> TensorDictReplayBuffer:
        buffer = super().make_buffer(seed)
        buffer.update_priority(torch.arange(0, 64, 2), 3.0)
        return buffer

    def expected_frequencies(self) -> Tensor:
        priority = torch.cat([torch.ones(40), torch.full((24,), 40 / 24)])
        priority[::2] = 3.0
        return priority / priority.sum()

    def expected_frequencies_of_a_full_ring(self) -> Tensor:
        priority = torch.cat([torch.ones(self.num_offline), torch.full((self.capacity,), 3.0)])  # the largest so far
        priority[: self.num_offline : 2] = 3.0
        return priority / priority.sum()


class TestContractRefreshed(TestContract):
    """Offline rows are re-scored before every batch but the first."""

    def make_sampler(self) -> BalancedReplaySampler:
        return BalancedReplaySampler(
            self.num_offline,
            self.capacity,
            first_epoch_frames=self.num_online,
            refresh_every=1,
            refresh_with=lambda rows: torch.ones(len(rows)),
        )


def buffer(
    sampler: BalancedReplaySampler, num_online: int, batch_size: int = 32, seed: int = 0
) -> TensorDictReplayBuffer:
    capacity = sampler.capacity - sampler.num_offline
    replay = TensorDictReplayBuffer(
        storage=counting_storage(sampler.num_offline, 0, capacity),
        sampler=sampler,
        writer=OnlineWriter(sampler.num_offline),
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(seed),
    )
    if num_online:
        replay.extend(TensorDict({"x": torch.arange(num_online)}, [num_online]))
    return replay


def test_golden_priorities_and_running_maximum() -> None:
    """30 offline and 10 online rows, then one update, as the authors' code stores them (Off2OnRL@6f298fa)."""
    tree = golden.load("off2on/buffer_A")
    sampler = BalancedReplaySampler(30, 34, init_online_fraction=golden.hp(tree, "init_online_fraction"))
    assert sampler.default_priority == pytest.approx(float(tree["out/initial_online_priority"]), rel=1e-12)
    replay = buffer(sampler, 10)
    replay.update_priority(tree["update/index"], tree["update/priority"])
    golden.assert_close(sampler.values, tree["out/leaf_priority"], "leaves", rtol=1e-6)
    assert sampler.default_priority == float(tree["out/max_priority_for_new_samples"])


def test_golden_draws() -> None:
    """The whole path from uniform numbers to rows: stratum k of n gets (k + u)/n of the total."""
    tree = golden.load("off2on/buffer_A")
    sampler = BalancedReplaySampler(30, 34, dtype=torch.float32)
    replay = buffer(sampler, 10)
    replay.update_priority(tree["update/index"], tree["update/priority"])
    strata, uniform = sampler.strata(16), tree["query/uniform01"] * 16
    assert torch.equal(uniform.floor().long(), torch.arange(16))
    sampler.noise = RecordedNoise({"within_strata": (uniform - torch.arange(16))[strata]})
    index, info = sampler.sample(replay.storage, 16)
    assert info == {}
    assert torch.equal(index, tree["out/index"][strata])


def test_fresh_rows_weigh_the_stated_share_in_the_first_epoch() -> None:
    sampler = BalancedReplaySampler(500, 1000, init_online_fraction=0.75, first_epoch_frames=1000)
    replay = buffer(sampler, 1000, batch_size=400)
    assert sampler.offline_share == pytest.approx(0.25)
    assert int((replay.sample()["index"] < 500).sum()) == pytest.approx(100, abs=1)


def test_before_anything_is_written_all_rows_are_offline() -> None:
    sampler = BalancedReplaySampler(50, 10)
    assert sampler.offline_share == 1.0
    assert (buffer(sampler, 0).sample()["index"] < 50).all()
    assert sampler.offline_share == 1.0


def test_the_maximum_never_decreases_and_fresh_rows_have_it() -> None:
    sampler = BalancedReplaySampler(50, 10, first_epoch_frames=100)
    replay = buffer(sampler, 4)
    assert sampler.values[50:54].tolist() == [0.5] * 4
    replay.update_priority(torch.tensor([3, 51]), torch.tensor([2.0, 0.1]))
    replay.update_priority(torch.tensor([3]), torch.tensor([0.2]))
    assert sampler.default_priority == 2.0
    replay.extend(TensorDict({"x": torch.arange(1)}, [1]))
    assert sampler.values[50:55].tolist() == pytest.approx([0.5, 0.1, 0.5, 0.5, 2.0])


def test_overwritten_slots_get_the_fresh_priority_again() -> None:
    sampler = BalancedReplaySampler(50, 4, first_epoch_frames=100)
    replay = buffer(sampler, 4)
    replay.update_priority(torch.arange(50, 54), torch.full((4,), 0.01))
    replay.extend(TensorDict({"x": torch.arange(3)}, [3]))
    assert sampler.values[50:].tolist() == pytest.approx([0.5, 0.5, 0.5, 0.01])
    replay.add(TensorDict({"x": torch.tensor(9)}, []))
    assert sampler.values[50:].tolist() == [0.5] * 4


def test_offline_rows_that_the_buffer_itself_writes_start_at_one() -> None:
    sampler = BalancedReplaySampler(50, 10, first_epoch_frames=100)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(60), sampler=sampler, batch_size=4)
    replay.extend(TensorDict({"x": torch.arange(50)}, [50]))
    replay.extend(TensorDict({"x": torch.arange(4)}, [4]))
    assert sampler.values.tolist() == [1.0] * 50 + [0.5] * 4 + [0.0] * 6
    assert sampler.default_priority == 0.5
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(60), sampler=BalancedReplaySampler(50, 10), batch_size=4)
    replay.extend(TensorDict({"x": torch.arange(60)}, [60]))  # both sources at once
    assert replay.sampler.values.tolist() == pytest.approx([1.0] * 50 + [0.05] * 10)


def test_two_buffers_over_one_storage_both_follow_the_writer() -> None:
    first, second = BalancedReplaySampler(50, 4), BalancedReplaySampler(50, 4, init_online_fraction=0.75)
    replay = buffer(first, 0)
    TensorDictReplayBuffer(storage=replay.storage, sampler=second, writer=OnlineWriter(50), batch_size=4)
    replay.extend(TensorDict({"x": torch.arange(2)}, [2]))
    assert first.values[50:].tolist() == [0.05, 0.05, 0.0, 0.0]
    assert second.values[50:].tolist() == pytest.approx([0.15, 0.15, 0.0, 0.0])


def test_equal_priorities_are_uniform_replay() -> None:
    """As the temperature grows all density ratios weigh the same, and balanced replay is uniform replay."""
    generator = torch.Generator().manual_seed(0)
    log_ratio = 3.0 * torch.randn(60, generator=generator, dtype=torch.float64)
    priority = off2on_priority(log_ratio, log_ratio[:50], temperature=1e9)
    torch.testing.assert_close(priority, torch.ones_like(priority))
    sampler = BalancedReplaySampler(50, 10)
    replay = buffer(sampler, 10, batch_size=600)
    replay.update_priority(torch.arange(60), priority)
    counts = sum(torch.bincount(replay.sample()["index"], minlength=60) for _ in range(200))
    uniform = TensorDictReplayBuffer(storage=replay.storage, sampler=RandomSampler(), batch_size=600)
    expected = sum(torch.bincount(uniform.sample()["index"], minlength=60) for _ in range(200))
    assert (counts.double() / 120_000 - 1 / 60).abs().max() < 1e-4  # stratified: far below the multinomial's 4e-4
    assert (expected.double() / 120_000 - 1 / 60).abs().max() < 5 * 4e-4


def test_every_minibatch_of_a_large_batch_is_spread_over_both_sources() -> None:
    sampler = BalancedReplaySampler(1000, 1000, first_epoch_frames=1000)
    batch = buffer(sampler, 1000, batch_size=20 * 256).sample()
    counts = [int((part["index"] < 1000).sum()) for part in batch.split(256)]
    assert max(abs(count - 128) for count in counts) <= 3


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 6, 255, 256, 5120])
def test_each_stratum_is_used_once(batch_size: int) -> None:
    strata = BalancedReplaySampler(5, 5).strata(batch_size)
    assert torch.equal(strata.sort().values, torch.arange(batch_size))


def test_refresh_scores_all_offline_rows_and_only_those() -> None:
    seen: list[int] = []

    def score(rows: TensorDictBase) -> Tensor:
        seen.append(len(rows))
        return rows["x"] / 10.0

    sampler = BalancedReplaySampler(50, 10, first_epoch_frames=100, refresh_every=3, refresh_with=score)
    replay = buffer(sampler, 10)
    for _ in range(8):
        replay.sample()
    assert seen == [50, 50]  # before batches 3 and 6
    torch.testing.assert_close(sampler.values[:50], torch.arange(50) / 10.0, check_dtype=False)
    assert sampler.values[50:].tolist() == [0.5] * 10


def test_refresh_needs_its_function() -> None:
    with pytest.raises(O2OSpecError, match="expected both"):
        BalancedReplaySampler(50, 10, refresh_every=5)
    with pytest.raises(O2OSpecError, match="expected both"):
        BalancedReplaySampler(50, 10, refresh_every=0, refresh_with=len)  # type: ignore[arg-type]
    with pytest.raises(O2OSpecError, match="got a sampler without refresh_with"):
        BalancedReplaySampler(50, 10).refresh(counting_storage(50, 0, 10))


def test_a_run_that_never_sets_priorities_is_told(recwarn: pytest.WarningsRecorder) -> None:
    """update_tensordict_priority is a silent no-op of TorchRL's for this sampler."""
    sampler = BalancedReplaySampler(50, 10)
    replay = buffer(sampler, 10, batch_size=1)
    for _ in range(1000):
        replay.sample()
    replay.update_tensordict_priority(replay.sample().set("td_error", torch.ones(1)))
    assert sampler.num_updates == 0
    assert [str(w.message).split(";")[0] for w in recwarn if "priority" in str(w.message)] == [
        "1000 batches were drawn and no priority was ever set"
    ]


def test_priorities_of_chunks_are_set_where_the_sampler_inside_is_prioritized() -> None:
    """TorchRL's buffer passed over them in silence."""
    inside = PrioritizedReplaySampler(60, alpha=1.0, beta=1.0, eps=0.0, reduction="min")
    storage = offline_online_storage(random_transitions(50, 3, 1), 10)
    sampler, writer = ChunkSampler(inside, 2, gamma=0.9), OnlineWriter(50)
    replay = TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=writer, batch_size=1)
    index = torch.tensor([3, 7, 9])
    errors = torch.tensor([[2.0, 0.5], [4.0, 5.0], [0.0, 1.0]])
    replay.update_tensordict_priority(TensorDict({"index": index, "td_error": errors}, [3]))
    assert inside.values[index].tolist() == [0.5, 4.0, 0.0]
    assert pickle.loads(pickle.dumps(sampler)).reduction == "min"
    assert not isinstance(ChunkSampler(RandomSampler(), 2, gamma=0.9), PrioritizedSampler)


def test_a_run_of_chunks_that_never_sets_priorities_is_told() -> None:
    sampler = ChunkSampler(BalancedReplaySampler(50, 10), 2, gamma=0.9)
    storage, writer = offline_online_storage(random_transitions(50, 3, 1), 10), OnlineWriter(50)
    replay = TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=writer, batch_size=1)
    for _ in range(1000):
        replay.update_tensordict_priority(replay.sample().set("td_error", torch.ones(1)))
    with pytest.warns(UserWarning, match="1000 batches were drawn and no priority was ever set"):
        replay.sample()


def test_emptying_forgets_everything() -> None:
    sampler = BalancedReplaySampler(50, 10, first_epoch_frames=100)
    replay = buffer(sampler, 10)
    replay.update_priority(torch.tensor([3]), torch.tensor([7.0]))
    replay.empty()
    assert sampler.default_priority == 0.5
    assert not sampler.values.any()
    with pytest.raises(O2OSpecError, match="empty storage"):
        sampler.sample(LazyTensorStorage(60), 4)


def test_state_survives_the_disk(tmp_path: Path) -> None:
    sampler = BalancedReplaySampler(50, 10)
    replay = buffer(sampler, 10)
    replay.update_priority(torch.arange(20), torch.rand(20, generator=torch.Generator().manual_seed(0)))
    replay.sample()
    sampler.dumps(tmp_path / "sampler")
    other = buffer(BalancedReplaySampler(50, 10), 10, seed=3)
    other.sampler.loads(tmp_path / "sampler")
    other._rng.set_state(replay._rng.get_state())
    replay.extend(TensorDict({"x": torch.arange(3)}, [3]))
    other.extend(TensorDict({"x": torch.arange(3)}, [3]))
    assert torch.equal(replay.sample()["index"], other.sample()["index"])
    assert other.sampler.num_batches == sampler.num_batches


def test_state_of_another_run_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="saved sampler has 50 offline rows, this one 40"):
        BalancedReplaySampler(40, 20).load_state_dict(BalancedReplaySampler(50, 10).state_dict())
    with pytest.raises(O2OSpecError, match="saved tree has 60 slots, this one 70"):
        BalancedReplaySampler(50, 20).load_state_dict(BalancedReplaySampler(50, 10).state_dict())


@pytest.mark.parametrize(
    ("index", "priority", "message"),
    [
        ([0, 1], [1.0, 2.0, 3.0], "got 3 priorities for 2 rows"),
        ([55], [1.0], "got row 55, but only 54 rows are known"),
        ([3, -2], [1.0, 9.0], "got row -2, expected row numbers from 0, or -1 for no row"),
        ([0], [-1.0], "finite non-negative"),
        ([0], [float("nan")], "finite non-negative"),
        ([0], [1.0 + 2.0j], "got priorities of torch.complex64, expected real numbers"),
    ],
)
def test_unusable_updates_are_refused(index: list[int], priority: list[complex], message: str) -> None:
    replay = buffer(BalancedReplaySampler(50, 10), 4)
    before = replay.sampler.values.clone()
    with pytest.raises(O2OSpecError, match=message):
        replay.update_priority(torch.tensor(index), torch.tensor(priority))
    assert torch.equal(replay.sampler.values, before)


def test_minus_one_stands_for_no_row() -> None:
    sampler = BalancedReplaySampler(50, 10)
    replay = buffer(sampler, 0)
    replay.update_priority(torch.tensor([-1, 2]), torch.tensor([9.0, 3.0]))
    assert sampler.values[2] == 3.0
    assert sampler.default_priority == 3.0
    replay.update_priority(torch.tensor([-1]), torch.tensor([9.0]))
    assert sampler.default_priority == 3.0


def test_storages_that_do_not_fit_are_refused() -> None:
    sampler = BalancedReplaySampler(50, 10)
    with pytest.raises(O2OSpecError, match="got a storage of 70 slots, expected 60"):
        sampler.sample(counting_storage(50, 4, 20), 8)
    flat = LazyTensorStorage(60, ndim=2)
    flat.set(torch.arange(4), TensorDict({"x": torch.zeros(4, 3)}, [4, 3]))
    with pytest.raises(O2OSpecError, match="2 dimensions"):
        sampler.sample(flat, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_offline": 0}, "num_offline=0"),
        ({"online_capacity": 0}, "online_capacity=0"),
        ({"init_online_fraction": 1.0}, "online_fraction=1.0"),
        ({"init_online_fraction": 0.0}, "online_fraction=0.0"),
        ({"first_epoch_frames": 0}, "first_epoch_frames=0"),
    ],
)
def test_arguments(settings: dict[str, float], message: str) -> None:
    with pytest.raises(O2OSpecError, match=message):
        BalancedReplaySampler(**{"num_offline": 50, "online_capacity": 10, **settings})  # type: ignore[arg-type]


def test_repr() -> None:
    assert repr(BalancedReplaySampler(50, 10)) == "BalancedReplaySampler(num_offline=50, capacity=60)"
