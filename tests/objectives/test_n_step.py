# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Rows over several steps: every loss that bootstraps discounts by gamma to the power of ``steps_to_next_obs``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives.common import LossModule

from torchrl_o2o.data import n_step
from torchrl_o2o.modules import (
    ConstantConfidence,
    make_actor,
    make_deterministic_actor,
    make_gaussian_actor,
    make_qvalue_ensemble,
    make_value_network,
)
from torchrl_o2o.objectives import (
    ACALoss,
    AWACLoss,
    CalQLLoss,
    CQLLoss,
    EnsembleSACLoss,
    GeneratorNoise,
    IQLLoss,
    PessimisticEnsembleLoss,
    SACMLLoss,
    SAMGEstimator,
    TD3BCLoss,
)
from torchrl_o2o.testing import random_transitions

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

ROWS, GAMMA = 12, 0.9
SMALL: dict[str, Any] = {"hidden_sizes": (16,)}


def build(kind: str) -> LossModule:
    torch.manual_seed(0)
    actor, critics = make_actor(5, 3, **SMALL), make_qvalue_ensemble(5, 3, num_qvalue_nets=2, **SMALL)
    losses: dict[str, Any] = {
        "ensemble_sac": lambda: EnsembleSACLoss(actor, critics),
        "cql": lambda: CQLLoss(actor, critics),
        "cal_ql": lambda: CalQLLoss(actor, critics),
        "off2on": lambda: PessimisticEnsembleLoss(actor, critics),
        "aca": lambda: ACALoss(actor, critics, make_actor(5, 3, **SMALL)),
        "sac_ml": lambda: SACMLLoss(actor, critics, [make_value_network(5, **SMALL) for _ in range(2)]),
        "awac": lambda: AWACLoss(make_gaussian_actor(5, 3, **SMALL), critics),
        "samg": lambda: EnsembleSACLoss(actor, critics),
        "iql": lambda: IQLLoss(make_gaussian_actor(5, 3, **SMALL), critics, make_value_network(5, **SMALL)),
        "td3_bc": lambda: TD3BCLoss(make_deterministic_actor(5, 3, **SMALL), critics),
    }
    loss = losses[kind]()
    if kind == "samg":
        loss.make_value_estimator(SAMGEstimator.from_loss(loss, gamma=GAMMA))
    else:
        loss.make_value_estimator(gamma=GAMMA)
    return loss


def target(loss: Any, batch: TensorDict) -> Tensor:
    loss.noise = GeneratorNoise(torch.Generator().manual_seed(0))
    return loss.target_value(batch)


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1)])
@pytest.mark.parametrize(
    "kind",
    ["ensemble_sac", "cql", "cal_ql", "off2on", "aca", "sac_ml", "awac", "samg", "iql", "td3_bc"],
)
def test_targets_are_discounted_by_gamma_to_the_n(kind: str, shape: tuple[int, ...]) -> None:
    loss, batch = build(kind), random_transitions(ROWS, 5, 3).set("mc_return", torch.zeros(ROWS, 1))
    batch = ConstantConfidence(0.5)(batch)
    steps = torch.arange(ROWS) % 4 + 1
    reward = batch["next", "reward"].squeeze(-1)
    bootstrap = (target(loss, batch) - reward) / GAMMA
    got = target(loss, batch.copy().set("steps_to_next_obs", steps.reshape(shape)))
    assert bootstrap[..., ~batch["next", "terminated"].squeeze(-1)].abs().min() > 0
    torch.testing.assert_close(got, reward + GAMMA**steps * bootstrap, rtol=1e-4, atol=1e-5)


def test_the_baseline_of_sac_ml_too() -> None:
    loss, batch, steps = build("sac_ml"), random_transitions(ROWS, 5, 3), torch.arange(ROWS) % 4 + 1
    targets = []
    for rows in (batch, batch.copy().set("steps_to_next_obs", steps)):
        loss.noise = GeneratorNoise(torch.Generator().manual_seed(0))
        targets.append(loss.baseline_target(rows))  # type: ignore[operator]
    reward = batch["next", "reward"].squeeze(-1)
    expected = reward + GAMMA ** (steps - 1) * (targets[0] - reward)
    torch.testing.assert_close(targets[1], expected, rtol=1e-4, atol=1e-5)


def test_an_n_step_target_by_hand() -> None:
    """Three rewards and the value of the state after them, discounted three times; V is 10 everywhere."""
    loss = build("iql")
    for value in loss.target_value_network_params.values(True, True):  # type: ignore[union-attr]
        value.data.zero_()
    last_bias = [value for name, value in loss.target_value_network_params.items(True, True) if name[-1] == "bias"][-1]  # type: ignore[union-attr]
    last_bias.data.fill_(10.0)
    data = random_transitions(4, 5, 3).set("episode", torch.zeros(4, dtype=torch.long))
    for name in ("terminated", "truncated", "done"):
        data["next", name] = torch.zeros(4, 1, dtype=torch.bool)
    data["next", "reward"] = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    rows = n_step(data, n=3, gamma=GAMMA)
    expected = [1 + 1.8 + 3.24 + 7.29, 2 + 3.6 + 6.48 + 7.29, 4 + 7.2 + 8.1, 8 + 9.0]
    torch.testing.assert_close(target(loss, rows), torch.tensor(expected))
