# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Small losses, rows and one of every priority, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict

from torchrl_o2o.modules import DensityRatio, Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.priorities import Advantage, AdvantageAligned, DensityRatioScore, LogPriority, Sum, TDError
from torchrl_o2o.testing import random_transitions

OBSERVATION, ACTION, ROWS = 5, 3, 24


def make_loss(**settings: Any) -> EnsembleSACLoss:
    torch.manual_seed(0)
    actor = make_actor(OBSERVATION, ACTION, hidden_sizes=(16,))
    critics = make_qvalue_ensemble(OBSERVATION, ACTION, num_qvalue_nets=4, hidden_sizes=(16,))
    settings.setdefault("temperature", Temperature(-1.5, init=0.3))
    return EnsembleSACLoss(actor, critics, sub_sample_len=2, **settings)


def make_rows() -> TensorDict:
    data = random_transitions(ROWS, OBSERVATION, ACTION, generator=torch.Generator().manual_seed(1))
    return data.set("is_offline", torch.arange(ROWS) % 2 == 0)


def make_score() -> DensityRatioScore:
    torch.manual_seed(2)
    return DensityRatioScore(DensityRatio(OBSERVATION, ACTION, hidden_sizes=(16,)))


def every_priority() -> dict[str, LogPriority]:
    loss = make_loss()
    return {
        "advantage": Advantage(loss),
        "advantage_std": Advantage(loss, normalize="std"),
        "advantage_rank": Advantage(loss, normalize="rank", entropy=True, critics="online"),
        "td_absolute": TDError(loss),
        "td_signed": TDError(loss, form="signed", entropy=True),
        "density": make_score(),
        "density_relu": DensityRatioScore(
            DensityRatio(OBSERVATION, ACTION, hidden_sizes=(16,), parametrization="relu"), normalize=False
        ),
        "aligned": AdvantageAligned(Advantage(loss), make_score(), adv_temp=0.5),
        "td_density": TDError(loss, form="signed") + make_score(),
    }


def double(priority: LogPriority) -> None:
    for term in priority.terms if isinstance(priority, Sum) else (priority,):
        (term.density_ratio if isinstance(term, DensityRatioScore) else term.loss).double()  # type: ignore[attr-defined]
