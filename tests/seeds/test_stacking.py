# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Slices of one tensor and one optimizer in the place of many."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchrl_o2o.errors import O2OCheckpointError, O2OSpecError
from torchrl_o2o.seeds import StackedOptimizer, stack_leaves

OPTIMIZERS: dict[str, Any] = {
    "adam": lambda params: torch.optim.Adam(params, lr=0.1, amsgrad=True),
    "adamw, fused": lambda params: torch.optim.AdamW(params, lr=0.1, weight_decay=0.1, fused=True),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.1, centered=True),
}


def nets(count: int = 3) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(3, 2) for _ in range(count)]


def stack(modules: list[nn.Linear]) -> dict[str, torch.Tensor]:
    return stack_leaves([dict(net.named_parameters()) for net in modules])


def losses(leaves: dict[str, torch.Tensor], power: int) -> torch.Tensor:
    return (leaves["weight"] ** power).flatten(1).sum(1) + (leaves["bias"] - 1.0).square().sum(1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_the_single_optimizers(name: str) -> None:
    single, ours = nets(), nets()
    leaves = stack(ours)
    alone = [OPTIMIZERS[name](net.parameters()) for net in single]
    optim = StackedOptimizer([OPTIMIZERS[name](net.parameters()) for net in ours], leaves.values())
    for _ in range(4):
        optim.descend(losses(leaves, 2), "loss")
        for net, each in zip(single, alone, strict=True):
            each.zero_grad()
            losses({key: value.unsqueeze(0) for key, value in net.named_parameters()}, 2).sum().backward()
            each.step()
    for net, theirs in zip(single, ours, strict=True):
        torch.testing.assert_close(theirs.weight, net.weight)
        torch.testing.assert_close(theirs.bias, net.bias)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_go_through_the_single_optimizers(name: str) -> None:
    """Saved and loaded by the agents' own state_dict, the stack goes on bit for bit."""
    ours, copies = nets(), nets()
    leaves, others = stack(ours), stack(copies)
    first = StackedOptimizer([OPTIMIZERS[name](net.parameters()) for net in ours], leaves.values())
    second = StackedOptimizer([OPTIMIZERS[name](net.parameters()) for net in copies], others.values())
    first.share()
    second.adopt()
    assert not second.optim.state
    for _ in range(3):
        first.descend(losses(leaves, 2), "loss")
    first.share()
    for source, target, net, copy in zip(first.agents, second.agents, ours, copies, strict=True):
        target.load_state_dict(source.state_dict())
        copy.load_state_dict(net.state_dict())
    second.adopt()
    for optim, each in ((first, leaves), (second, others)):
        optim.descend(losses(each, 4), "loss")
    assert all(torch.equal(leaves[key], others[key]) for key in leaves)


def test_agents_at_different_steps_are_refused() -> None:
    ours = nets(2)
    leaves = stack(ours)
    agents = [torch.optim.Adam(net.parameters()) for net in ours]
    optim = StackedOptimizer(agents, leaves.values())
    ours[0].weight.grad = torch.ones(2, 3)
    agents[0].step()
    with pytest.raises(O2OCheckpointError, match=r"\[0.0, 1.0\]"):
        optim.adopt()


def test_what_does_not_stack_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="bias"):
        stack_leaves([dict(nn.Linear(2, 1, bias=bias).named_parameters()) for bias in (True, False)])
    with pytest.raises(O2OSpecError, match="weight"):
        stack_leaves([dict(nn.Linear(size, 1).named_parameters()) for size in (2, 3)])
    ours = nets(2)
    leaves = stack(ours)
    with pytest.raises(O2OSpecError, match="elementwise"):
        StackedOptimizer([torch.optim.LBFGS(net.parameters()) for net in ours], leaves.values())
    with pytest.raises(O2OSpecError, match="different settings"):
        StackedOptimizer([torch.optim.Adam(net.parameters(), lr=i + 1.0) for i, net in enumerate(ours)], [])
    with pytest.raises(O2OSpecError, match="no slice"):
        StackedOptimizer([torch.optim.Adam(net.parameters()) for net in nets(2)], leaves.values())
