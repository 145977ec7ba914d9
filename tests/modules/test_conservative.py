# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import math

import pytest
import torch

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import ConservativePenalty, make_actor


def test_without_a_gap_the_penalty_is_the_weighted_sum_over_members() -> None:
    penalty = ConservativePenalty(2.0)
    gap = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert penalty.apply_to(gap).tolist() == [8.0, 12.0]
    assert penalty.objective(gap).tolist() == [0.0, 0.0]
    assert not list(penalty.parameters())


def test_with_a_gap_the_multiplier_scales_and_is_trained() -> None:
    penalty = ConservativePenalty(2.0, target_gap=1.0, init_log_multiplier=math.log(3.0))
    gap = torch.tensor([[1.0], [4.0]], requires_grad=True)
    torch.testing.assert_close(penalty.apply_to(gap), torch.tensor([18.0]))  # 3 * 2 * (0 + 3)
    torch.testing.assert_close(penalty.objective(gap), torch.tensor([-9.0]))  # -(0 + 18) / 2
    penalty.apply_to(gap).backward()
    assert penalty.log_multiplier.grad is None, "the critic loss does not move the multiplier"
    penalty.objective(gap).backward()
    torch.testing.assert_close(penalty.log_multiplier.grad, torch.tensor(-9.0))


@pytest.mark.parametrize(
    "settings", [{"weight": -1.0}, {"num_actions": 0}, {"softmax_temperature": 0.0}, {"gap_bounds": (1.0, 1.0)}]
)
def test_numbers_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(O2OSpecError, match=f"got {next(iter(settings))}="):
        ConservativePenalty(**settings)


def test_affine_log_std_starts_at_one_and_minus_one_and_is_trained() -> None:
    torch.manual_seed(0)
    plain = make_actor(4, 2, hidden_sizes=(8,))
    affine = make_actor(4, 2, hidden_sizes=(8,), affine_log_std=True)
    affine.load_state_dict(plain.state_dict(), strict=False)
    observation = torch.randn(5, 4)
    _, scale = plain[0].module(observation)
    _, shifted = affine[0].module(observation)
    torch.testing.assert_close(shifted, scale * math.exp(-1.0))
    shifted.sum().backward()
    head = affine[0].module[1]
    assert head.log_std_multiplier.grad is not None
    torch.testing.assert_close(head.log_std_offset.grad, shifted.sum())
