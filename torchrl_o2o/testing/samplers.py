# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The contract of all samplers over an offline-online storage."""

from __future__ import annotations

import tempfile

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import Sampler

from torchrl_o2o.data.writers import OnlineWriter

__all__ = ["SamplerContract", "counting_storage"]


def counting_storage(num_offline: int, num_online: int, capacity: int) -> LazyTensorStorage:
    """Storage whose entry ``"x"`` is each row's number, for tests.

    Args:
        num_offline: offline rows.
        num_online: online rows present.
        capacity: online slots.

    Returns:
        A storage of ``num_offline + capacity`` slots.

    Examples:
        >>> len(counting_storage(4, 2, 8))
        6
    """
    storage = LazyTensorStorage(num_offline + capacity)
    rows = torch.arange(num_offline + num_online)
    storage.set(slice(0, len(rows)), TensorDict({"x": rows.clone()}, [len(rows)]))
    return storage


class SamplerContract:
    """Tests that hold for any sampler; subclasses provide :meth:`make_sampler` and :meth:`expected_frequencies`.

    A row has one entry, its number ``"x"``, so a score has to be computed from this entry. The rows of
    :meth:`make_buffer` are in the storage before the sampler is, like a data set: it gets no ``extend`` for them. To
    test other priorities, override :meth:`make_buffer` and set them there.

    Examples:
        >>> from torchrl_o2o.data import BalancedSampler
        >>> class TestBalanced(SamplerContract):
        ...     def make_sampler(self):
        ...         return BalancedSampler(self.num_offline, offline_fraction=0.5)
        ...
        ...     def expected_frequencies(self):
        ...         offline = torch.full((self.num_offline,), 0.5 / self.num_offline)
        ...         return torch.cat([offline, torch.full((self.num_online,), 0.5 / self.num_online)])
        >>> TestBalanced().test_draws_follow_the_generator()  # pytest runs all that begin with test
    """

    num_offline = 40
    num_online = 24
    capacity = 64
    batch_size = 64

    def make_sampler(self) -> Sampler:
        """Build the sampler for ``num_offline`` offline rows; called again in every test."""
        raise AssertionError(f"{type(self).__name__} must implement make_sampler")

    def expected_frequencies(self) -> Tensor:
        """Probability of each row of :meth:`make_buffer`'s storage in one draw, shape [num_offline + num_online]."""
        raise AssertionError(f"{type(self).__name__} must implement expected_frequencies")

    def expected_frequencies_of_a_full_ring(self) -> Tensor:
        """Probability of each row in one draw once every online slot was written, and some of them several times.

        By default these are :meth:`expected_frequencies` with as many online rows as slots. Override it if overwritten
        rows differ from others.

        Returns:
            Shape [num_offline + capacity].
        """
        before, self.num_online = self.num_online, self.capacity
        try:
            expected = self.expected_frequencies()
        finally:
            self.num_online = before
        assert len(expected) == self.num_offline + self.capacity, (
            "expected_frequencies must depend on self.num_online; otherwise override "
            "expected_frequencies_of_a_full_ring"
        )
        return expected

    def make_buffer(self, seed: int = 0) -> TensorDictReplayBuffer:
        """A replay buffer over :func:`counting_storage` with the sampler under test."""
        writer = OnlineWriter(self.num_offline)
        buffer = TensorDictReplayBuffer(
            storage=counting_storage(self.num_offline, self.num_online, self.capacity),
            sampler=self.make_sampler(),
            writer=writer,
            batch_size=self.batch_size,
            generator=torch.Generator().manual_seed(seed),
        )
        writer.total_written = self.num_online
        return buffer

    def test_indices_are_rows_of_the_storage(self) -> None:
        """Every index is in range, and the batch contains exactly the rows of its indices."""
        batch = self.make_buffer().sample()
        assert len(batch) == self.batch_size
        assert int(batch["index"].min()) >= 0
        assert int(batch["index"].max()) < self.num_offline + self.num_online
        assert torch.equal(batch["x"], batch["index"])

    def test_draws_follow_the_generator(self) -> None:
        """Equal seeds draw equal rows, different seeds different rows, whatever the global generator's state."""
        torch.manual_seed(0)
        first = self.make_buffer(3).sample()["index"]
        torch.manual_seed(1)
        assert torch.equal(self.make_buffer(3).sample()["index"], first)
        assert not torch.equal(self.make_buffer(4).sample()["index"], first)

    def test_state_round_trip(self) -> None:
        """A restored buffer continues exactly where the saved one stopped."""
        buffer = self.make_buffer()
        buffer.sample()
        other = self.make_buffer(7)
        other.sampler.load_state_dict(buffer.sampler.state_dict())
        other._rng.set_state(buffer._rng.get_state())
        assert torch.equal(other.sample()["index"], buffer.sample()["index"])

    def test_dumps_and_loads(self) -> None:
        """A state that is written to a folder is read back unchanged."""
        sampler, other = self.make_sampler(), self.make_sampler()
        with tempfile.TemporaryDirectory() as folder:
            sampler.dumps(folder)
            other.loads(folder)
        assert str(other.state_dict()) == str(sampler.state_dict())

    def test_offline_rows_survive_three_wraps(self) -> None:
        """Online writes cycle only over their own slots, and every batch contains the current rows."""
        buffer = self.make_buffer()
        for start in range(1000, 1000 + 3 * self.capacity, 8):
            buffer.extend(TensorDict({"x": torch.arange(start, start + 8)}, [8]))
            batch = buffer.sample()
            assert int(batch["index"].max()) < len(buffer)
            assert torch.equal(batch["x"], buffer.storage[:]["x"][batch["index"]])
        rows = buffer.storage[:]["x"]
        assert torch.equal(rows[: self.num_offline], torch.arange(self.num_offline))
        assert sorted(rows[self.num_offline :].tolist()) == list(
            range(1000 + 2 * self.capacity, 1000 + 3 * self.capacity)
        )

    def test_empirical_frequencies(self) -> None:
        """Rows are drawn as often as expected (chi-square test, five standard deviations)."""
        self._check_frequencies(self.make_buffer(), self.expected_frequencies())

    def test_empirical_frequencies_after_the_ring_wrapped(self) -> None:
        """The same after the writer has wrapped around and is in the middle of the ring: every row is still drawn."""
        buffer = self.make_buffer()
        for start in range(0, self.capacity + self.capacity // 2, 8):
            buffer.extend(TensorDict({"x": torch.arange(start, start + 8)}, [8]))
            buffer.sample()
        self._check_frequencies(buffer, self.expected_frequencies_of_a_full_ring())

    def _check_frequencies(self, buffer: TensorDictReplayBuffer, frequencies: Tensor) -> None:
        draws, counts = 400, torch.zeros(len(frequencies))
        for _ in range(draws):
            counts += torch.bincount(buffer.sample()["index"], minlength=len(counts))
        expected = frequencies * draws * self.batch_size
        drawn = expected > 0
        never = counts.masked_fill(drawn, 0)
        assert not never.any(), f"row {int(never.argmax())} was drawn, and its expected frequency is 0"
        deviation = ((counts - expected).square() / expected).masked_fill(~drawn, 0)
        statistic, freedom, row = deviation.sum(), int(drawn.sum()) - 1, int(deviation.argmax())
        assert statistic < freedom + 5 * (2 * freedom) ** 0.5, (
            f"chi-square {statistic:.1f} at {freedom} degrees of freedom; the largest part is row {row}: drawn "
            f"{int(counts[row])} times, expected {expected[row]:.1f}"
        )
