# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch

from tests import golden_vectors as golden
from torchrl_o2o.data.samplers.sum_tree import SumTree, last_of_each
from torchrl_o2o.errors import O2OSpecError

CAPACITIES = [1, 7, 64, 2048, 2049, 70_000, 100_000]  # one, two and three levels, with and without padding


def filled(capacity: int, dtype: torch.dtype = torch.float64) -> SumTree:
    tree = SumTree(capacity, dtype=dtype)
    generator = torch.Generator().manual_seed(capacity)
    # Quarters: every sum is exact, so the expected slots are known without rounding.
    tree.fill(0, capacity, torch.randint(0, 9, (capacity,), generator=generator) / 4.0)
    tree.update(torch.tensor([0]), 0.5)
    return tree


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_search_is_the_first_slot_whose_cumulative_sum_reaches_the_position(capacity: int, dtype: torch.dtype) -> None:
    tree = filled(capacity, dtype)
    cumulative = tree.values.cumsum(0)
    assert torch.equal(tree.total, cumulative[-1])
    generator = torch.Generator().manual_seed(0)
    position = torch.rand(500, generator=generator, dtype=dtype) * tree.total
    position = torch.cat([position, cumulative[cumulative > 0][:500]])  # on the edges too: "reaches" includes equality
    assert torch.equal(tree.search(position), torch.searchsorted(cumulative, position))


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_updates_leave_the_tree_that_filling_would_have_built(capacity: int) -> None:
    tree, other = filled(capacity), SumTree(capacity)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        index = torch.randint(capacity, (300,), generator=generator)
        tree.update(index, torch.rand(300, generator=generator, dtype=torch.float64))
    other.fill(0, capacity, tree.values)
    for level, expected in zip(tree.state_dict()["levels"], other.state_dict()["levels"], strict=True):
        assert torch.equal(level, expected)


def test_filling_in_parts_is_filling_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = filled(70_000)
    monkeypatch.setattr("torchrl_o2o.data.samplers.sum_tree._BLOCKS_AT_ONCE", 7)
    torch.testing.assert_close(filled(70_000).state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_partial_fill_changes_nothing_else() -> None:
    tree = filled(70_000)
    expected = tree.values.clone()
    expected[33:5000] = 2.0
    tree.fill(33, 5000, 2.0)
    tree.fill(10, 10, 7.0)
    assert torch.equal(tree.values, expected)
    assert torch.equal(tree.total, expected.sum())


def test_values_at_an_index() -> None:
    tree = SumTree(4)
    tree.update(torch.tensor([3, 1]), torch.tensor([1.0, 2.0]))
    assert tree[torch.tensor([1, 3, 0])].tolist() == [2.0, 1.0, 0.0]


def test_the_last_value_of_a_repeated_slot_holds() -> None:
    tree = SumTree(5000)
    tree.update(torch.tensor([4000, 7, 4000, 7]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert tree[torch.tensor([4000, 7])].tolist() == [3.0, 4.0]
    assert tree.total == 7.0
    index, value = last_of_each(torch.tensor([5]), torch.tensor([1.0]))
    assert (index.tolist(), value.tolist()) == ([5], [1.0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_empty_slots_are_never_found(dtype: torch.dtype) -> None:
    """Neither at the ends nor where rounding carries a position past the last positive slot of a block."""
    tree = SumTree(100_000, dtype=dtype)
    slots = torch.arange(17, 90_000, 97)
    generator = torch.Generator().manual_seed(0)
    magnitude = 10.0 ** torch.randint(-6, 6, (len(slots),), generator=generator)
    tree.update(slots, torch.rand(len(slots), generator=generator) * magnitude)
    edges = torch.tensor([0.0, -1.0, float(tree.total), 2.0 * float(tree.total), 1e-300], dtype=torch.float64)
    cumulative = tree.values.double().cumsum(0)[slots]
    near = torch.cat([cumulative * (1 + sign * torch.finfo(dtype).eps) for sign in (-2, -1, 0, 1, 2)])
    found = tree.search(torch.cat([edges, near]))
    assert (tree[found] > 0).all()
    assert found[[0, 1, 4]].tolist() == [17, 17, 17]
    assert (cumulative[-1] - cumulative[torch.searchsorted(slots, found[2:4])] <= 1e-6 * cumulative[-1]).all()


def test_sums_do_not_drift() -> None:
    """A tree corrected by differences would be left with the rounding error of the large values."""
    tree = SumTree(10_000, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        tree.update(torch.randint(10_000, (64,), generator=generator), 1e6 * torch.rand(64, generator=generator))
    tree.fill(0, 10_000, 1e-3)
    assert float(tree.total) == pytest.approx(10.0, rel=1e-5)


def test_draws_are_proportional() -> None:
    tree = SumTree(6000)
    tree.update(torch.tensor([5, 3000, 5999]), torch.tensor([1.0, 2.0, 5.0]))
    position = torch.rand(80_000, generator=torch.Generator().manual_seed(0)) * tree.total
    counts = torch.bincount(tree.search(position), minlength=6000)
    assert counts.sum() == counts[[5, 3000, 5999]].sum()
    assert (counts[[5, 3000, 5999]] / 10_000 - torch.tensor([1.0, 2.0, 5.0])).abs().max() < 0.06


def test_state_round_trip() -> None:
    tree, other = filled(70_000), SumTree(70_000)
    state = tree.state_dict()
    other.load_state_dict(state)
    tree.update(torch.tensor([1]), 9.0)  # the state is a copy
    assert torch.equal(other.values, filled(70_000).values)
    assert torch.equal(other.total, filled(70_000).total)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        ([0, 5], [1.0, 1.0], "got slots 0 to 5, expected 0 to 4"),
        ([-1], [1.0], "got slots -1 to -1"),
        ([0], [-1.0], r"got values such as \[-1.0\], expected finite non-negative ones"),
        ([0], [float("nan")], "nan"),
        ([0], [float("inf")], "inf"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(index: list[int], value: list[float], message: str) -> None:
    tree = filled(5)
    before = tree.values.clone()
    with pytest.raises(O2OSpecError, match=message):
        tree.update(torch.tensor(index), torch.tensor(value))
    assert torch.equal(tree.values, before)


def test_nothing_to_draw() -> None:
    with pytest.raises(O2OSpecError, match="got only values of zero"):
        SumTree(3).search(torch.zeros(1))


def test_arguments() -> None:
    with pytest.raises(O2OSpecError, match="capacity=0"):
        SumTree(0)
    with pytest.raises(O2OSpecError, match=r"dtype=torch.int64"):
        SumTree(3, dtype=torch.int64)
    with pytest.raises(O2OSpecError, match="saved tree has 3 slots, this one 4"):
        SumTree(4).load_state_dict(SumTree(3).state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_draws(dtype: torch.dtype) -> None:
    """Tree and draws of the authors' code (shlee94/Off2OnRL@6f298fa), whose sums are in float32."""
    tree = golden.load("off2on/buffer_A")
    ours = SumTree(64, dtype=dtype)
    ours.update(torch.arange(40), tree["out/leaf_priority"][:40])
    golden.assert_close(ours.total.double(), tree["out/total"], "total", rtol=1e-6)
    index = ours.search(tree["query/uniform01"] * float(tree["out/total"]))
    assert torch.equal(index, tree["out/index"])
    golden.assert_close(ours[index].double(), tree["out/index_priority"], "priority", rtol=1e-6)


@pytest.mark.parametrize("capacity", [3, 4096, 70_000])
def test_sums_beyond_the_type_still_draw_in_proportion(capacity: int) -> None:
    tree, largest = SumTree(capacity, dtype=torch.float32), torch.finfo(torch.float32).max
    tree.update(torch.tensor([0, 2]), torch.tensor([largest, largest / 3]))
    assert tree.total.isinf()
    assert tree.draw(torch.tensor([0.0, 0.74, 0.76, 1.0])).tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("capacity", [7, 2049, 70_000])
def test_shares_of_the_total_are_positions(capacity: int) -> None:
    tree = filled(capacity)
    share = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(tree.draw(share), tree.search(share * tree.total))


def test_a_state_of_the_first_edition_is_read() -> None:
    """It kept the sums as they are, without a unit."""
    tree, other = filled(70_000), SumTree(70_000)
    state = tree.state_dict()
    state["levels"][1:] = [level / state.pop("unit", tree.unit) for level in state["levels"][1:]]
    other.load_state_dict(state)
    for level, expected in zip(other.state_dict()["levels"], tree.state_dict()["levels"], strict=True):
        assert torch.equal(level, expected)
