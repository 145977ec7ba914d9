# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, PrioritizedSampler, TensorDictReplayBuffer
from torchrl.data.replay_buffers.scheduler import LinearScheduler

from torchrl_o2o.data import OnlineWriter
from torchrl_o2o.data.samplers import PrioritizedReplaySampler
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.testing import SamplerContract, counting_storage


class TestContract(SamplerContract):
    """Priorities 1 and 4 at alpha 0.5: weights 1 and 2."""

    batch_size = 48

    def make_sampler(self) -> PrioritizedReplaySampler:
        return PrioritizedReplaySampler(self.num_offline + self.capacity, alpha=0.5, beta=0.4, eps=0.0)

    def make_buffer(self, seed: int = 0) -> TensorDictReplayBuffer:
        buffer = super().make_buffer(seed)
        buffer.update_priority(torch.arange(0, 64, 2), 4.0)
        return buffer

    def expected_frequencies(self) -> Tensor:
        priority = torch.ones(64)
        priority[::2] = 2.0
        return priority / priority.sum()

    def expected_frequencies_of_a_full_ring(self) -> Tensor:
        weight = torch.full((self.num_offline + self.capacity,), 2.0)  # written over: the largest priority so far
        weight[1 : self.num_offline : 2] = 1.0
        return weight / weight.sum()


class TestContractUniform(TestContract):
    def make_sampler(self) -> PrioritizedReplaySampler:
        return PrioritizedReplaySampler(self.num_offline + self.capacity, alpha=0.0, beta=1.0)

    def expected_frequencies(self) -> Tensor:
        return torch.full((64,), 1 / 64)

    def expected_frequencies_of_a_full_ring(self) -> Tensor:
        return torch.full((self.num_offline + self.capacity,), 1 / (self.num_offline + self.capacity))


def filled(sampler: PrioritizedReplaySampler, size: int, batch_size: int = 32) -> TensorDictReplayBuffer:
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(sampler.capacity),
        sampler=sampler,
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(0),
    )
    buffer.extend(TensorDict({"x": torch.arange(size)}, [size]))
    return buffer


def test_torchrl_takes_it_for_its_own() -> None:
    """The isinstance check on which TensorDictReplayBuffer decides, without a word, whether to pass priorities on."""
    assert isinstance(PrioritizedReplaySampler(4, 1.0, 1.0), PrioritizedSampler)


@pytest.mark.parametrize("way", ["tensordict", "index", "one number", "column"])
def test_every_way_to_set_priorities_works(way: str) -> None:
    sampler = PrioritizedReplaySampler(8, alpha=1.0, beta=0.0, eps=0.0)
    buffer = filled(sampler, 8)
    index, priority = torch.tensor([2, 5]), torch.tensor([3.0, 0.25])
    if way == "tensordict":
        buffer.update_tensordict_priority(TensorDict({"index": index, "td_error": priority}, [2]))
    elif way == "index":
        buffer.update_priority(index, priority)
    elif way == "one number":
        buffer.update_priority(2, 3.0)
        buffer.update_priority(torch.tensor(5), torch.tensor(0.25))
    else:
        buffer.update_tensordict_priority(TensorDict({"index": index, "td_error": priority.unsqueeze(-1)}, [2]))
    assert sampler.values.tolist() == [1.0, 1.0, 3.0, 1.0, 1.0, 0.25, 1.0, 1.0]


def test_priorities_written_along_with_the_rows() -> None:
    sampler = PrioritizedReplaySampler(8, alpha=1.0, beta=0.0, eps=0.0)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(8), sampler=sampler, batch_size=2)
    buffer.extend(TensorDict({"x": torch.arange(3), "td_error": torch.tensor([1.0, 2.0, 4.0])}, [3]))
    buffer.add(TensorDict({"x": torch.tensor(3), "td_error": torch.tensor(0.5)}, []))
    assert sampler.values.tolist() == [1.0, 2.0, 4.0, 0.5, 0.0, 0.0, 0.0, 0.0]


def test_probabilities_and_weights_are_those_of_the_paper() -> None:
    sampler = PrioritizedReplaySampler(10, alpha=0.6, beta=0.4, eps=1e-2, normalization="none")
    buffer = filled(sampler, 5)
    priority = torch.tensor([0.0, 0.5, 1.0, 2.0, 8.0], dtype=torch.float64)
    buffer.update_priority(torch.arange(5), priority)
    expected = (priority + 1e-2) ** 0.6
    probability = expected / expected.sum()
    torch.testing.assert_close(sampler.values[:5] / sampler.values.sum(), probability)
    batch = buffer.sample()
    weight = (5 * probability[batch["index"]]) ** -0.4
    torch.testing.assert_close(batch["priority_weight"], weight.float())
    sampler.normalization = "max"
    batch = buffer.sample()
    weight = (5 * probability[batch["index"]]) ** -0.4
    torch.testing.assert_close(batch["priority_weight"], (weight / weight.max()).float())
    sampler.normalization = "mean"
    assert float(buffer.sample()["priority_weight"].mean()) == pytest.approx(1.0)


def test_weights_undo_the_priorities_at_beta_one() -> None:
    """E_P[u f] = E_uniform[f]."""
    sampler = PrioritizedReplaySampler(50, alpha=0.8, beta=1.0, normalization="none")
    buffer = filled(sampler, 50, batch_size=5000)
    generator = torch.Generator().manual_seed(0)
    buffer.update_priority(torch.arange(50), torch.rand(50, generator=generator) * 5.0)
    f = torch.randn(50, generator=generator)
    means = []
    for _ in range(20):
        batch = buffer.sample()
        means.append((batch["priority_weight"] * f[batch["index"]]).mean())
    assert float(torch.stack(means).mean()) == pytest.approx(float(f.mean()), abs=2e-3)


def test_new_and_overwritten_rows_have_the_largest_priority_so_far() -> None:
    sampler = PrioritizedReplaySampler(60, alpha=1.0, beta=0.0, eps=0.0)
    buffer = TensorDictReplayBuffer(
        storage=counting_storage(50, 0, 10), sampler=sampler, writer=OnlineWriter(50), batch_size=8
    )
    assert sampler.values[:50].tolist() == [1.0] * 50
    buffer.extend(TensorDict({"x": torch.arange(10)}, [10]))
    buffer.update_priority(torch.arange(60), torch.linspace(0.0, 5.9, 60))
    buffer.extend(TensorDict({"x": torch.arange(2)}, [2]))
    assert sampler.default_priority == pytest.approx(5.9)
    assert sampler.values[50:53].tolist() == pytest.approx([5.9, 5.9, 5.2])


@pytest.mark.parametrize("start", [0.0, 0.6])
def test_alpha_can_be_annealed_without_loss(start: float) -> None:
    """Through alpha = 0, where all values are one, the priorities themselves are kept."""
    sampler = PrioritizedReplaySampler(8, alpha=start, beta=0.0, eps=0.0)
    buffer = filled(sampler, 4)
    buffer.update_priority(torch.arange(4), torch.tensor([0.5, 1.0, 2.0, 4.0]))
    assert sampler.values[:4].tolist() == pytest.approx([p**start for p in (0.5, 1.0, 2.0, 4.0)])
    sampler.alpha = 0.0
    assert sampler.values.tolist() == [1.0] * 4 + [0.0] * 4
    sampler.alpha = 2.0
    assert sampler.values[:4].tolist() == [0.25, 1.0, 4.0, 16.0]


def test_a_changed_constant_counts_for_all_rows() -> None:
    """Rows that were scored before kept the old one."""
    sampler = PrioritizedReplaySampler(4, alpha=1.0, beta=0.0, eps=0.0)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(4), sampler=sampler, batch_size=4)
    buffer.extend(TensorDict({"x": torch.arange(4.0)}, [4]))
    buffer.update_priority(torch.arange(4), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    sampler.eps = 0.5
    buffer.update_priority(torch.tensor([3]), torch.tensor([4.0]))
    assert sampler.values.tolist() == [0.5, 1.5, 2.5, 4.5]
    with pytest.raises(O2OSpecError, match="got eps=-1"):
        sampler.eps = -1
    assert sampler.eps == 0.5


def test_torchrl_schedulers_anneal_beta() -> None:
    sampler = PrioritizedReplaySampler(8, alpha=0.5, beta=0.4)
    scheduler = LinearScheduler(sampler, param_name="beta", final_value=1.0, num_steps=3)
    for _ in range(3):
        scheduler.step()
    assert sampler.beta == pytest.approx(1.0)


def test_state_survives_the_disk(tmp_path: Path) -> None:
    sampler = PrioritizedReplaySampler(8, alpha=0.5, beta=0.4)
    buffer = filled(sampler, 6)
    buffer.update_priority(torch.arange(4), torch.tensor([0.5, 1.0, 2.0, 4.0]))
    sampler.beta = 0.9
    sampler.dumps(tmp_path / "sampler")
    other = PrioritizedReplaySampler(8, alpha=1.0, beta=1.0)
    other.loads(tmp_path / "sampler")
    assert (other.alpha, other.beta, other.default_priority) == (0.5, 0.9, 4.0)
    other.alpha = sampler.alpha = 1.5
    assert torch.equal(other.values, sampler.values)


def test_what_is_added_to_priorities_is_part_of_the_state() -> None:
    """Values of before and after the resumption would have different summands."""
    sampler = PrioritizedReplaySampler(8, alpha=1.0, beta=0.4, eps=0.5)
    filled(sampler, 6).update_priority(torch.arange(6), 2.0)
    other = PrioritizedReplaySampler(8, alpha=1.0, beta=0.4, eps=100.0)
    other.load_state_dict(sampler.state_dict())
    other.update_priority(0, 3.0)
    assert other.values[:2].tolist() == [3.5, 2.5]


def test_no_rows_are_written() -> None:
    """A collector may return none; torch said that it cannot compute aminmax."""
    sampler = PrioritizedReplaySampler(8, alpha=0.5, beta=0.4)
    buffer = filled(sampler, 6)
    before = sampler.values.clone()
    buffer.extend(TensorDict({"x": torch.arange(0)}, [0]))
    assert len(buffer) == 6
    assert torch.equal(sampler.values, before)


def test_emptying_forgets_everything() -> None:
    sampler = PrioritizedReplaySampler(8, alpha=0.5, beta=0.4)
    buffer = filled(sampler, 6)
    buffer.update_priority(torch.arange(4), 9.0)
    buffer.empty()
    assert sampler.default_priority == 1.0
    buffer.extend(TensorDict({"x": torch.arange(2)}, [2]))
    assert sampler.values.tolist() == pytest.approx([1.0, 1.0] + [0.0] * 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"eps": -1e-3}, "eps=-0.001"),
        ({"normalization": "sum"}, "normalization='sum'"),
    ],
)
def test_arguments(settings: dict[str, object], message: str) -> None:
    with pytest.raises(O2OSpecError, match=message):
        PrioritizedReplaySampler(**{"max_capacity": 8, "alpha": 0.5, "beta": 0.5, **settings})  # type: ignore[arg-type]


def test_signed_errors_are_refused() -> None:
    buffer = filled(PrioritizedReplaySampler(8, alpha=0.5, beta=0.5), 4)
    with pytest.raises(O2OSpecError, match=r"got values such as \[-2.0\]"):
        buffer.update_priority(torch.tensor([0]), torch.tensor([-2.0]))


def test_repr() -> None:
    assert repr(PrioritizedReplaySampler(8, 0.5, 1.0)) == "PrioritizedReplaySampler(capacity=8, alpha=0.5, beta=1.0)"


def test_unknown_reductions_are_refused() -> None:
    with pytest.raises(O2OSpecError, match="reduction='median_of_means', expected one of 'max'"):
        PrioritizedReplaySampler(8, 0.6, 0.4, reduction="median_of_means")  # type: ignore[arg-type]


@pytest.mark.parametrize("capacity", [4, 5000])
@pytest.mark.parametrize("normalization", ["max", "mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_priorities_whose_sum_is_not_finite(capacity: int, normalization: Any, dtype: torch.dtype) -> None:
    """Two rows of half the largest number and two of a quarter: N P is 4/3 and 2/3, whatever the sum."""
    sampler = PrioritizedReplaySampler(capacity, alpha=1.0, beta=1.0, dtype=dtype, normalization=normalization)
    replay = filled(sampler, 4, batch_size=3000)
    largest = torch.finfo(dtype).max
    replay.update_priority(torch.arange(4), largest * torch.tensor([1.0, 1.0, 0.5, 0.5], dtype=dtype))
    batch = replay.sample()
    assert torch.bincount(batch["index"]).tolist() == pytest.approx([1000, 1000, 500, 500], abs=1)
    expected = torch.where(batch["index"] < 2, 0.75, 1.5)
    expected = expected / {"max": 1.5, "mean": 1.0, "none": 1.0}[normalization]
    torch.testing.assert_close(batch["priority_weight"], expected, rtol=2e-3, atol=0)


def test_a_power_that_is_not_finite_is_refused_and_changes_nothing() -> None:
    sampler = PrioritizedReplaySampler(4, alpha=1.0, beta=1.0, eps=0.0)
    replay = filled(sampler, 4)
    replay.update_priority(torch.arange(4), torch.full((4,), 1e200, dtype=torch.float64))
    with pytest.raises(O2OSpecError, match=r"got a priority of 1e\+200, expected a finite .* alpha=2.0"):
        sampler.alpha = 2.0
    assert sampler.alpha == 1.0
    assert replay.sample()["priority_weight"].eq(1.0).all()
