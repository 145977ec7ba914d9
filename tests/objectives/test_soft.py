# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the losses with a temperature share with all losses whose critics regress on one target."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from torchrl_o2o.modules import ConservativePenalty, make_actor, make_baselines, make_qvalue_ensemble
from torchrl_o2o.objectives import ACALoss, BRACLoss, CQLLoss, EnsembleSACLoss, PessimisticEnsembleLoss, SACMLLoss
from torchrl_o2o.objectives.critic import CriticLoss
from torchrl_o2o.objectives.soft import SoftLoss
from torchrl_o2o.testing import random_transitions


def _parts(num_qvalue_nets: int = 2) -> tuple:
    critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=num_qvalue_nets, hidden_sizes=(8,))
    return make_actor(3, 2, hidden_sizes=(8,)), critics


BUILD: dict[str, Callable[[], SoftLoss]] = {
    "aca": lambda: ACALoss(*_parts(), make_actor(3, 2, hidden_sizes=(8,))),
    "brac": lambda: BRACLoss(*_parts(), make_actor(3, 2, hidden_sizes=(8,))),
    "cql": lambda: CQLLoss(*_parts(), penalty=ConservativePenalty(num_actions=2)),
    "off2on": lambda: PessimisticEnsembleLoss(*_parts(4)),
    "sac": lambda: EnsembleSACLoss(*_parts()),
    "sac_ml": lambda: SACMLLoss(*_parts(), make_baselines(3, hidden_sizes=(8,))),
}


@pytest.mark.parametrize("name", BUILD)
def test_a_target_computed_before_gives_the_same_loss(name: str) -> None:
    """As `IQLLoss` and all others, so that one may freeze y, or mix it, between the steps of an update."""
    torch.manual_seed(0)
    loss, batch = BUILD[name](), random_transitions(6, 3, 2)
    assert isinstance(loss, CriticLoss)
    torch.manual_seed(1)
    expected, _ = loss.qvalue_loss(batch)
    torch.manual_seed(1)
    target = loss.target_value(batch)  # the first draws of an update, so what CQL proposes next stays the same
    value, _ = loss.qvalue_loss(batch, target_value=target)
    assert torch.equal(value, expected)
    other, info = loss.qvalue_loss(batch, target_value=target + 1.0)
    torch.testing.assert_close(info["target_value"], target + 1.0)
    assert other.isfinite()
    assert not torch.equal(other, value)
