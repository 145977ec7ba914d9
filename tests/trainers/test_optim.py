# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Optimizer steps that refuse what is not finite, and weight decay without biases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.optim import descend, weight_decay_groups


def test_descend_is_backward_and_step() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optim = torch.optim.SGD([weight], lr=0.1)
    weight.grad = torch.ones(2)  # cleared first
    descend(optim, weight.square().sum() / 2)
    torch.testing.assert_close(weight.detach(), torch.tensor([2.7, 3.6]))


def test_descend_clips_the_norm_of_all_parameters() -> None:
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    descend(torch.optim.SGD([weight], lr=1.0), weight.square().sum() / 2, max_grad_norm=0.25)
    torch.testing.assert_close(weight.detach(), torch.tensor([3.0, 4.0]) * (1 - 0.05))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_descend_refuses_what_is_not_finite(bad: float) -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(NonFiniteError, match="loss_actor"):
        descend(torch.optim.SGD([weight], lr=1.0), weight * bad, "loss_actor")
    assert weight.item() == 1.0


def test_biases_are_exempt_from_weight_decay() -> None:
    params = TensorDict.from_module(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)))
    decayed, exempt = weight_decay_groups(params, 0.1)
    assert [len(decayed["params"]), len(exempt["params"])] == [2, 2]
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)


def test_statistics_and_frozen_parameters_are_in_no_group() -> None:
    """An update refused the optimizer: a batch normalization's running mean is not trained."""
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net[0].weight.requires_grad_(False)
    decayed, exempt = weight_decay_groups(TensorDict.from_module(net), 0.1)
    assert [value is net[1].weight for value in decayed["params"]] == [True]
    assert len(exempt["params"]) == 2


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    """A loss stacks its critics: an optimizer of those that it was given would step forever and learn nothing."""
    critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,))
    optim = torch.optim.Adam([param for critic in critics for param in critic.parameters()])
    loss = EnsembleSACLoss(make_actor(3, 2, hidden_sizes=(8,)), critics)
    with pytest.raises(O2OSpecError, match="no gradient at any of the 12 parameters"):
        descend(optim, loss.qvalue_loss(random_transitions(4, 3, 2))[0])


def test_a_loss_without_gradient_is_named() -> None:
    weight = torch.nn.Parameter(torch.ones(()))
    optim = torch.optim.SGD([weight], lr=0.5)
    with torch.no_grad():
        value = weight.square()
    with pytest.raises(O2OSpecError, match="loss_actor has no gradient, expected one"):
        descend(optim, value, "loss_actor")


@pytest.mark.parametrize("norm", [-1.0, 0.0, float("nan")])
def test_a_norm_that_erases_the_gradient_or_turns_it_around_is_refused(norm: float) -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(O2OSpecError, match=f"got max_grad_norm={norm}, expected a positive number"):
        descend(torch.optim.SGD([weight], lr=0.5), weight.square(), max_grad_norm=norm)
    assert weight.item() == 1.0


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (torch.optim.SGD, {"maximize": True}, "got maximize=True in SGD of 'loss'"),
        (torch.optim.Adam, {"differentiable": True}, "got differentiable=True in Adam"),
        (torch.optim.LBFGS, {}, "got LBFGS for 'loss', whose step evaluates the loss several times"),
    ],
)
def test_an_optimizer_that_does_not_descend_by_one_gradient_is_refused(kind: Any, options: Any, message: str) -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(O2OSpecError, match=message):
        descend(kind([weight], lr=0.5, **options), weight.square())


def test_a_loss_of_several_rows_is_refused() -> None:
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(
        O2OSpecError, match=r"got loss of shape \[2\], expected one number; build the loss with reduction"
    ):
        descend(torch.optim.SGD([weight], lr=0.5), weight.square())
