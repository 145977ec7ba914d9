# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, SliceSampler, TensorDictReplayBuffer
from torchrl.data.postprocs import MultiStep
from torchrl.data.replay_buffers.samplers import RandomSampler, Sampler

from torchrl_o2o.data import (
    TRANSITION,
    BalancedReplaySampler,
    BalancedSampler,
    OnlineWriter,
    PoolSampler,
    PrioritizedReplaySampler,
    n_step,
    offline_online_storage,
    stored_keys,
)
from torchrl_o2o.data.buffers import offline_buffer, starting_buffer
from torchrl_o2o.data.shared_rows import AgentStorage
from torchrl_o2o.data.storage import MappedStorage
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

    def test_data_on_a_graph(self) -> None:
        """Every batch would have been part of it; the writer refuses such rows too."""
        data = random_transitions(6, 3, 2)
        data["observation"].requires_grad_()
        for store in (offline_online_storage, starting_buffer):
            with pytest.raises(O2ODataError, match="'observation' of the data requires gradients"):
                store(data, 4)

    def test_empty_data(self) -> None:
        with pytest.raises(O2ODataError, match="N >= 1"):
            offline_online_storage(random_transitions(3, 3, 2)[:0], 4)

    def test_missing_entries_are_named(self) -> None:
        with pytest.raises(O2ODataError, match=r"\('next', 'truncated'\)"):
            offline_online_storage(random_transitions(3, 3, 2).exclude(("next", "truncated")), 4)

    def test_no_online_slot(self) -> None:
        with pytest.raises(O2OSpecError, match="online_capacity=0"):
            offline_online_storage(random_transitions(3, 3, 2), 0)


class TestMappedStorage:
    def test_files_hold_what_memory_would(self, tmp_path: Path) -> None:
        data = random_transitions(6, 3, 2).set("episode", torch.arange(6))
        mapped, plain = (
            offline_online_storage(data, 4, scratch_dir=tmp_path / "new" / "rows"),
            offline_online_storage(data, 4),
        )
        assert (len(mapped), mapped.max_size) == (6, 10)
        assert isinstance(mapped, LazyMemmapStorage)
        assert bool((mapped[:] == plain[:]).all())
        for index in (torch.tensor([5, 0]), torch.tensor([[-1], [2]]), torch.tensor(3), 4, [1, 2], torch.arange(6) > 3):
            assert bool((mapped[index] == plain[index]).all())
        with pytest.raises(IndexError):
            mapped[torch.tensor([6])]  # a slot that is not filled yet
        assert (tmp_path / "new" / "rows" / "observation.memmap").stat().st_size == 10 * 12

    @pytest.mark.parametrize("left", ["folder", "file"])
    def test_a_folder_in_use(self, tmp_path: Path, left: str) -> None:
        path = tmp_path / "rows"
        path.write_text("mine") if left == "file" else offline_online_storage(
            random_transitions(6, 3, 2), 4, scratch_dir=path
        )
        with pytest.raises(O2OSpecError, match="empty or absent; pass another one"):
            offline_online_storage(random_transitions(6, 3, 2), 4, scratch_dir=path)

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(O2OSpecError, match=r"got scratch_dir='/proc/rows', in which no file can be made"):
            MappedStorage(6, 4, "/proc/rows")
        MappedStorage(6, 4, tmp_path / "new" / "folder")
        assert not (tmp_path / "new").exists(), "only the first rows make files"

    def test_another_device(self, tmp_path: Path) -> None:
        with pytest.raises(O2OSpecError, match="scratch_dir with device='meta', expected 'cpu'"):
            offline_online_storage(random_transitions(6, 3, 2), 4, device="meta", scratch_dir=tmp_path)

    def test_no_room_on_the_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(O2ODataError, match=r"GB are free; make room"):
            offline_online_storage(random_transitions(6, 3, 2), 10**15, scratch_dir=tmp_path / "rows")

        def full(path: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("torchrl_o2o.data.storage.reserve", full)
        with pytest.raises(O2ODataError, match="No space left on device"):
            offline_online_storage(random_transitions(6, 3, 2), 4, scratch_dir=tmp_path / "rows")
        assert not (tmp_path / "rows").exists()


class TestWriter:
    def test_wraps_over_its_own_slots(self) -> None:
        buffer, writer = written(3, 2)
        assert buffer.extend(rows(10)).tolist() == [3]
        assert buffer.extend(rows(11, 12)).tolist() == [4, 3]
        assert buffer.storage[:]["x"].tolist() == [0, 1, 2, 12, 11]
        assert writer.total_written == buffer.write_count == 3

    def test_a_buffer_that_takes_slots_from_the_count_is_refused(self) -> None:
        buffer, _ = written(3, 2)
        buffer._sync = False  # as torchrl.data.PrioritizedReplayBuffer(sync=False) has it
        with pytest.raises(O2OSpecError, match="sync=False, expected sync=True"):
            _ = buffer.write_count

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
        with pytest.raises(O2OSpecError, match="had 3 offline slots, this one 5"):
            OnlineWriter(5).load_state_dict({"num_offline": 3, "total_written": 0})

    def test_batch_larger_than_the_region(self) -> None:
        buffer, _ = written(3, 2)
        with pytest.raises(O2OSpecError, match="3 transitions at once for 2 online slots"):
            buffer.extend(rows(1, 2, 3))
        assert buffer.storage[:]["x"].tolist() == [0, 1, 2]

    def test_no_online_slot_left(self) -> None:
        buffer, _ = written(3, 0)
        with pytest.raises(O2OSpecError, match="expected at least one online slot"):
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
        "prioritized": PrioritizedReplaySampler(160, alpha=0.6, beta=0.4),
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


class TestRowsThatDoNotFit:
    """What torch would fill with zeros, broadcast or cast in silence."""

    @pytest.fixture
    def buffer(self) -> TensorDictReplayBuffer:
        storage = offline_online_storage(random_transitions(6, 3, 2), 4)
        return TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(6), batch_size=2)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda rows: rows.exclude(("next", "truncated")), r"\('next', 'truncated'\) is missing"),
            (lambda rows: rows.set("p_off", torch.zeros(2, 1)), "'p_off' is not stored"),
            (lambda rows: rows.set("action", torch.zeros(2, 1)), r"'action' has shape \[1\] in place of \[2\]"),
            (lambda rows: rows.set("action", rows["action"].double()), "'action' is torch.float64 in place of"),
            (lambda rows: rows.unsqueeze(0), r"batch shape \[1, 2\], expected \['N'\]"),
        ],
    )
    def test_are_refused_before_anything_is_written(
        self, buffer: TensorDictReplayBuffer, change: Callable[[TensorDict], TensorDict], message: str
    ) -> None:
        for _ in range(2):  # a second attempt is no better
            with pytest.raises(O2OSpecError, match=message):
                buffer.extend(change(random_transitions(2, 3, 2)))
        assert len(buffer) == 6

    def test_a_single_one(self, buffer: TensorDictReplayBuffer) -> None:
        buffer.add(random_transitions(1, 3, 2)[0])
        assert len(buffer) == 7
        with pytest.raises(O2OSpecError, match=r"batch shape \[1\], expected \[\]"):
            buffer.add(random_transitions(1, 3, 2))

    def test_index_and_priority_may_come_along(self) -> None:
        storage = offline_online_storage(random_transitions(6, 3, 2), 4)
        sampler = PrioritizedReplaySampler(10, 0.6, 0.4)
        buffer = TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(6), sampler=sampler, batch_size=2)
        rows = random_transitions(2, 3, 2).set("td_error", torch.tensor([1.0, 2.0])).set("index", torch.arange(2))
        assert buffer.extend(rows).tolist() == [6, 7]


@pytest.mark.parametrize("make", [lambda n: BalancedSampler(n, 0.5), lambda n: BalancedReplaySampler(n, 10 - n)])
class TestOfflineRowsStay:
    """Samplers notice that the rows they take for offline are not."""

    def test_a_forgotten_writer(self, make: Callable[[int], Sampler]) -> None:
        storage = offline_online_storage(random_transitions(6, 3, 2), 4)
        buffer = TensorDictReplayBuffer(storage=storage, sampler=make(6), batch_size=2)
        buffer.extend(random_transitions(2, 3, 2))
        with pytest.raises(O2OSpecError, match=r"RoundRobinWriter has overwritten .*OnlineWriter\(6\)"):
            buffer.sample()

    def test_another_number(self, make: Callable[[int], Sampler]) -> None:
        storage = offline_online_storage(random_transitions(6, 3, 2), 4)
        buffer = TensorDictReplayBuffer(storage=storage, sampler=make(5), writer=OnlineWriter(6), batch_size=2)
        with pytest.raises(O2OSpecError, match="num_offline=5 and a writer with num_offline=6"):
            buffer.sample()

    def test_the_default_writer_may_write_the_data_set_too(self, make: Callable[[int], Sampler]) -> None:
        buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(10), sampler=make(6), batch_size=2)
        buffer.extend(random_transitions(6, 3, 2))
        buffer.extend(random_transitions(4, 3, 2))
        assert len(buffer.sample()) == 2
        buffer.extend(random_transitions(1, 3, 2))  # full: the first row of the data set is gone
        with pytest.raises(O2OSpecError, match="RoundRobinWriter has overwritten"):
            buffer.sample()


def n_step_rows(count: int, n: int = 3) -> TensorDict:
    """Rows over up to n steps; every third one-step row is terminal."""
    data = random_transitions(count, 3, 1, generator=torch.Generator().manual_seed(count))
    data["next", "truncated"], data["next", "done"] = torch.zeros(count, 1).bool(), data["next", "terminated"]
    return n_step(data.set("episode", torch.zeros(count, dtype=torch.long)), n=n, gamma=0.9)


def n_step_buffer(offline: TensorDict) -> TensorDictReplayBuffer:
    storage = offline_online_storage(offline, 30)
    return TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(len(offline)), batch_size=64)


@pytest.mark.parametrize("ends", [True, False])
def test_torchrls_slices_never_join_offline_and_online_rows(ends: bool) -> None:
    """They take the storage for one ring: after the last online slot came the first offline row."""
    offline = random_transitions(6, 2, 1)
    for flag in ("terminated", "truncated", "done"):
        offline["next", flag] = torch.tensor([[False]] * 5 + [[ends and flag != "terminated"]])
    sampler = SliceSampler(slice_len=2, end_key=("next", "done"), truncated_key=None)
    storage, writer = offline_online_storage(offline, 4), OnlineWriter(6)
    buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=writer, batch_size=64)
    online = offline[:5]
    if not ends:
        with pytest.raises(O2OSpecError, match="the last offline row does not end its episode"):
            buffer.extend(online[:1])
        return
    buffer.extend(online[:3])
    buffer.add(online[3])
    first, second = buffer.sample()["index"].reshape(-1, 2).unbind(-1)
    assert (second == first + 1).all()
    assert not ((first == 5) & (second == 6)).any()
    with pytest.raises(O2OSpecError, match="5 online rows for 4 slots and a SliceSampler"):
        buffer.extend(online[4:])
    assert writer.total_written == 4


def test_steps_are_stored_written_and_sampled() -> None:
    offline, online = n_step_rows(20), n_step_rows(10)
    buffer = n_step_buffer(offline)
    buffer.extend(online.select(*stored_keys(online)))
    batch = buffer.sample()
    steps = torch.cat([offline["steps_to_next_obs"], online["steps_to_next_obs"]])
    assert torch.equal(batch["steps_to_next_obs"], steps[batch["index"]])


@pytest.mark.parametrize("steps", [torch.tensor([1, 0, 2, 1]), torch.tensor([1, 1.5, 1, 1]), torch.ones(4).bool()])
def test_rows_over_less_than_a_step_are_refused(steps: torch.Tensor) -> None:
    rows, told = random_transitions(4, 3, 2).set("steps_to_next_obs", steps), "expected whole numbers of at least 1"
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(8), writer=OnlineWriter(0), batch_size=2)
    for store in (
        lambda: offline_online_storage(rows, 5),
        lambda: starting_buffer(rows, 5),
        lambda: offline_buffer(rows),
        lambda: AgentStorage(rows, 2, 2, agent=0),
        lambda: buffer.extend(rows),
        lambda: buffer.add(rows[1]),
    ):
        with pytest.raises(O2ODataError, match=told):
            store()


def test_rows_over_several_steps_among_one_step_rows_are_refused() -> None:
    online = n_step_rows(10)
    buffer = n_step_buffer(random_transitions(20, 3, 1))
    with pytest.raises(O2OSpecError, match=r"losses need a stored 'steps_to_next_obs': apply n_step"):
        buffer.extend(online.select(*stored_keys(online)))
    with pytest.raises(
        O2OSpecError, match=r"apply n_step.* to the new rows, too, or set their 'steps_to_next_obs' to ones"
    ):
        n_step_buffer(n_step_rows(20)).extend(random_transitions(10, 3, 1))


@pytest.mark.parametrize("number", [1, 3])
def test_rows_over_a_single_step_are_stored_among_those_over_several(number: int) -> None:
    """Such are the rows of an episode of one step, and rows whose steps were set to ones."""
    buffer = n_step_buffer(n_step_rows(20))
    rows = random_transitions(number, 3, 1).set("steps_to_next_obs", torch.ones(number, dtype=torch.long))
    slots = buffer.extend(rows)
    assert buffer.storage[slots]["steps_to_next_obs"].tolist() == [1] * number


def test_multisteps_terminals_are_refused_and_the_rest_of_it_is_taken() -> None:
    data = random_transitions(9, 3, 1)
    for name in ("terminated", "truncated", "done"):
        data["next", name] = torch.zeros(9, 1, dtype=torch.bool)
    buffer = n_step_buffer(n_step_rows(20))
    rows = MultiStep(gamma=0.9, n_steps=3)(data.unsqueeze(0))[0]
    with pytest.raises(O2OSpecError, match=r"'gamma' is not stored.*data.select\(\*stored_keys\(data\)\)"):
        buffer.extend(rows)
    buffer.extend(rows.select(*stored_keys(rows)))
    assert torch.equal(buffer.storage[20:29]["steps_to_next_obs"], rows["steps_to_next_obs"])
    data["next", "terminated"][4] = data["next", "done"][4] = True
    rows = MultiStep(gamma=0.9, n_steps=3)(data.unsqueeze(0))[0]
    with pytest.raises(O2OSpecError, match="row 2 spans several steps to the terminal of row 4"):
        buffer.extend(rows.select(*stored_keys(rows)))
    assert buffer._writer.total_written == 9


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda row: row.exclude("action"), "'action' is missing"),
        (lambda row: row.set("action", torch.zeros(1, 1)), r"'action' has shape \[1\] in place of \[2\]"),
        (lambda row: row.set("action", torch.zeros(1, 2, dtype=torch.float64)), "float64 in place of"),
        (lambda row: row.set("action", torch.zeros(1, 2).requires_grad_()), "requires gradients"),
    ],
    ids=["missing", "broadcast", "type", "graph"],
)
def test_rows_that_change_in_the_course_of_a_run_are_told(change: Callable, told: str) -> None:
    rows = random_transitions(6, 3, 2).select(*TRANSITION)
    buffer = TensorDictReplayBuffer(storage=offline_online_storage(rows, 4), writer=OnlineWriter(6), batch_size=2)
    buffer.extend(rows[:1])
    with pytest.raises(O2OSpecError, match=told):
        buffer.extend(change(rows[:1].clone()))
    assert len(buffer) == 7


def test_less_rows_than_the_sampler_was_told() -> None:
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(9), sampler=BalancedSampler(8), batch_size=2)
    buffer.extend(random_transitions(5, 3, 2))
    with pytest.raises(O2OSpecError, match="got a storage of 5 rows, expected at least the sampler's num_offline=8"):
        buffer.sample()
    for size in (-1, 2.5):
        with pytest.raises(O2OSpecError, match="got batch_size="):
            buffer._sampler.sample(offline_online_storage(random_transitions(8, 3, 2), 4), size)


def test_online_rows_of_an_emptied_buffer_are_warned_of() -> None:
    """They lie behind the storage's end, and the rows that were emptied away are drawn in their place."""
    data = random_transitions(10, 3, 1)
    storage, writer = offline_online_storage(data, 10), OnlineWriter(10)
    buffer = TensorDictReplayBuffer(storage=storage, writer=writer, sampler=RandomSampler(), batch_size=4)
    buffer.extend(random_transitions(4, 3, 1))
    for write in (lambda: buffer.extend(data), lambda: buffer.add(data[0])):
        buffer.empty()
        with pytest.warns(UserWarning, match=r"holds 0 of 10 offline rows: buffer\.empty\(\) removes the data set"):
            write()


@pytest.mark.parametrize("held", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_transition_that_is_not_finite_is_not_written(held: int, dtype: torch.dtype, bad: float) -> None:
    data = random_transitions(held + 3, 3, 1).apply(lambda x: x.to(dtype) if x.is_floating_point() else x)
    storage = offline_online_storage(data[:held], 8) if held else LazyTensorStorage(8)
    buffer = TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(held), batch_size=2)
    rows = data[held:].clone()
    rows["next", "reward"][1] = bad
    with pytest.raises(O2OSpecError, match=r"\('next', 'reward'\) of the transitions is not finite in row 1 of 3"):
        buffer.extend(rows)
    with pytest.raises(O2OSpecError, match="is not finite in a row"):
        buffer.add(rows[1])
    assert (len(buffer), buffer._writer.total_written) == (held, 0)
    rows["next", "reward"][1] = 1e30  # squares of which are infinite
    assert len(buffer.extend(rows)) == 3
