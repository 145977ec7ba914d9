# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.updates import NaturalGradient

METRIC = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
SLOPE = torch.tensor([1.0, -3.0], dtype=torch.float64)


def problem() -> tuple[list[nn.Parameter], Tensor]:
    """Two parameters, and the loss's slope as their gradients."""
    parts = [nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2)]
    (torch.cat(parts) @ SLOPE).backward()
    return parts, torch.linalg.solve(METRIC, -SLOPE)


def divergence(parts: list[nn.Parameter]) -> Tensor:
    moved = torch.cat(parts) - torch.cat(parts).detach()
    return 0.5 * moved @ METRIC @ moved


def test_the_step_is_the_natural_gradient_of_the_stated_divergence() -> None:
    parts, natural = problem()
    optim = NaturalGradient(parts, step_size=0.02, damping=0.0)
    direction = optim.step(lambda: divergence(parts))
    torch.testing.assert_close(direction, natural)
    step = torch.cat(parts).detach()
    torch.testing.assert_close(step, (0.02 / (-SLOPE @ natural)).sqrt() * natural)
    torch.testing.assert_close(0.5 * step @ METRIC @ step, torch.tensor(0.01, dtype=torch.float64))


def test_damping_is_added_to_the_metric() -> None:
    parts, _ = problem()
    direction = NaturalGradient(parts, damping=0.5).step(lambda: divergence(parts))
    torch.testing.assert_close((METRIC + 0.5 * torch.eye(2, dtype=torch.float64)) @ direction, -SLOPE)


def test_the_state_keeps_the_settings() -> None:
    parts, _ = problem()
    optim = NaturalGradient(parts, step_size=0.1)
    other = NaturalGradient(parts)
    other.load_state_dict(optim.state_dict())
    assert other.param_groups[0]["step_size"] == 0.1


def test_what_allows_no_step_is_refused() -> None:
    parts, _ = problem()
    with pytest.raises(O2OSpecError, match="got step_size=0, expected a finite number above 0"):
        NaturalGradient(parts, step_size=0)
    with pytest.raises(O2OSpecError, match="got 2 groups of parameters, expected one"):
        NaturalGradient([{"params": [part]} for part in parts])  # type: ignore[list-item]
    parts[1].grad = None
    with pytest.raises(O2OSpecError, match=r"1 of 2 parameters have no gradient; call loss.backward\(\)"):
        NaturalGradient(parts).step(lambda: divergence(parts))
