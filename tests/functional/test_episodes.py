# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch

from tests import golden_vectors as golden
from torchrl_o2o import functional as F
from torchrl_o2o.errors import O2OSpecError


def test_golden_generalized_advantage() -> None:
    tree = golden.load("dapg/gae_A")
    ends = torch.cumsum(tree["in/path_length"], 0) - 1
    done = torch.zeros(len(tree["in/reward"]), dtype=torch.bool)
    terminated = done.clone()
    done[ends], terminated[ends] = True, tree["in/terminated"].bool()
    discounts = golden.hp(tree, "discount"), golden.hp(tree, "gae_lambda")
    advantage = F.generalized_advantage(tree["in/reward"], tree["in/baseline"], terminated, done, *discounts)
    golden.assert_close(advantage, tree["out/advantage"], "advantage")
    weight = (~done).double() * discounts[0]
    golden.assert_close(F.discounted_sum(tree["in/reward"], weight), tree["out/return"], "return")


def test_the_last_row_ends_an_episode() -> None:
    goes_on = torch.tensor([False, False])
    value = F.lambda_return(torch.zeros(2), torch.tensor([4.0, 8.0]), goes_on, goes_on, 0.5, 1.0)
    assert value.tolist() == [2.0, 4.0]


def test_conjugate_gradient_solves() -> None:
    root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix, expected = root @ root.T + torch.eye(6), torch.arange(6.0, dtype=torch.float64)
    got = F.conjugate_gradient(lambda x: matrix @ x, matrix @ expected, 50, 1e-24)
    torch.testing.assert_close(got, expected)


def test_a_step_uphill_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="damping"):
        F.normalized_step(torch.ones(1), -torch.ones(1))


def test_an_unfinished_last_row_does_not_look_at_the_first_one() -> None:
    nothing = torch.zeros(2, dtype=torch.bool)
    advantage = F.generalized_advantage(torch.zeros(2), torch.tensor([100.0, 3.0]), nothing, nothing, 1.0, 0.0)
    torch.testing.assert_close(advantage, torch.tensor([-97.0, 0.0]))


def test_whole_numbers_are_not_cut_off() -> None:
    sums = F.discounted_sum(torch.ones(3, dtype=torch.int64), torch.tensor([0.5, 0.5, 0.0]))
    assert sums.tolist() == [1.75, 1.5, 1.0]


def test_columns_and_flags_of_numbers_are_refused() -> None:
    """[N, 1] beside [N] would broadcast, and ``~1`` is -2."""
    one, ends = torch.ones(2), torch.tensor([False, True])
    for of in (F.lambda_return, F.generalized_advantage):
        with pytest.raises(O2OSpecError, match=r"got the shapes .* expected \[N\] for each"):
            of(one.unsqueeze(-1), one, ends, ends, 0.5, 0.5)
        for flags in ((ends.long(), ends), (ends, ends.float())):
            with pytest.raises(O2OSpecError, match=r"got flags of the types .* expected bool"):
                of(one, one, *flags, 0.5, 0.5)
    with pytest.raises(O2OSpecError, match="got the shapes"):
        F.discounted_sum(one, torch.ones(3))


def test_arrays_are_refused_by_name() -> None:
    rows = torch.ones(2)
    with pytest.raises(O2OSpecError, match=r"got the types \{'discount': 'ndarray'\}, expected tensors"):
        F.discounted_sum(rows, rows.numpy())  # type: ignore[arg-type]
