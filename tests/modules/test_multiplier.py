# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import math

import pytest
import torch

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import Multiplier


def step(multiplier: Multiplier, penalty: float, lr: float = 1.0) -> None:
    optim = torch.optim.SGD(multiplier.parameters(), lr=lr)
    optim.zero_grad()
    multiplier.objective(torch.full((4,), penalty)).mean().backward()
    optim.step()


def test_the_weight_follows_its_target() -> None:
    multiplier = Multiplier(1.0, target=0.5)
    step(multiplier, 0.75)
    assert multiplier.value.item() == 1.25
    step(multiplier, 0.0)
    assert multiplier.value.item() == 0.75


def test_the_logarithm_follows_its_target() -> None:
    multiplier = Multiplier(2.0, target=0.5, form="log", bounds=(-5.0, 10.0))
    step(multiplier, 1.5)  # d/dlog of -2 (1.5 - 0.5) is -2
    assert math.log(multiplier.value.item()) == pytest.approx(math.log(2.0) + 2.0)


@pytest.mark.parametrize(("penalty", "bound"), [(900.0, 3.0), (-900.0, 0.0)])
def test_it_stops_at_a_bound_and_comes_back(penalty: float, bound: float) -> None:
    multiplier = Multiplier(1.0, target=0.0, bounds=(0.0, 3.0))
    step(multiplier, penalty, lr=0.01)
    assert multiplier.value.item() == bound
    before = multiplier.raw.item()
    step(multiplier, penalty, lr=0.01)
    assert multiplier.raw.item() == before
    step(multiplier, -penalty, lr=0.01)
    assert multiplier.value.item() != bound


def test_a_fixed_weight_has_nothing_to_train() -> None:
    multiplier = Multiplier(0.1)
    assert not list(multiplier.parameters())
    assert multiplier.objective(torch.ones(3)).tolist() == [0.0] * 3


@pytest.mark.parametrize("settings", [{"init": -1.0}, {"init": 600.0}, {"init": 0.0, "form": "log"}])
def test_a_weight_outside_its_bounds_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(O2OSpecError, match="init="):
        Multiplier(**settings)  # type: ignore[arg-type]
