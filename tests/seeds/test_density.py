# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Density ratios of many agents, fitted at once."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import DensityRatio
from torchrl_o2o.objectives import DensityRatioLoss, join_sources
from torchrl_o2o.seeds import StackedDensityRatio, StackedOptimizer


def make(seed: int, **settings: float) -> DensityRatioLoss:
    torch.manual_seed(seed)
    return DensityRatioLoss(DensityRatio(3, 2, hidden_sizes=(8, 8)), **settings)


def rows(seed: int) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    return TensorDict(
        {
            "observation": torch.randn(3, 16, 3, generator=generator),
            "action": torch.rand(3, 16, 2, generator=generator),
        },
        [3, 16],
    )


@pytest.mark.parametrize("settings", [{}, {"eps": 1e-3, "reduction": "sum"}])
def test_equals_the_single_losses(settings: dict) -> None:
    single, ours = ([make(seed, **settings) for seed in range(3)] for _ in range(2))
    stack = StackedDensityRatio(ours)
    optim = StackedOptimizer([torch.optim.Adam(loss.parameters(), lr=1e-2) for loss in ours], stack.leaves)
    alone = [torch.optim.Adam(loss.parameters(), lr=1e-2) for loss in single]
    for step in range(5):
        offline, online = rows(step), rows(100 + step)
        losses, info = stack.density_ratio_loss(offline, online)
        optim.descend(losses, "loss_density_ratio")
        for position, (loss, each) in enumerate(zip(single, alone, strict=True)):
            value, alone_info = loss.density_ratio_loss(join_sources(offline[position], online[position]))
            each.zero_grad()
            value.backward()
            each.step()
            torch.testing.assert_close(losses[position], value)
            for name, mean in alone_info.items():
                torch.testing.assert_close(info[name][position], mean)
    for first, second in zip(single, ours, strict=True):
        for name, value in first.state_dict().items():
            torch.testing.assert_close(second.state_dict()[name], value, rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            torch.testing.assert_close(second.log_ratio(rows(9)[0]), first.log_ratio(rows(9)[0]), rtol=1e-4, atol=1e-5)


def test_losses_that_differ_are_refused() -> None:
    with pytest.raises(O2OSpecError, match="eps"):
        StackedDensityRatio([make(0), make(1, eps=0.1)])
    with pytest.raises(O2OSpecError, match="none"):
        StackedDensityRatio([make(0, reduction="none"), make(1, reduction="none")])
