# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Baselines are looked at as critics are; those are in ``test_actor_critic.py``."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_baselines, make_qvalue_ensemble
from torchrl_o2o.objectives import BaselineLoss, SACMLLoss

SMALL: dict[str, Any] = {"hidden_sizes": (8,)}


def refused(baselines: Any, message: str) -> None:
    actor = make_actor(3, 2, **SMALL)
    with pytest.raises(O2OSpecError, match=message):
        BaselineLoss(actor, baselines)
    with pytest.raises(O2OSpecError, match=message):
        SACMLLoss(actor, make_qvalue_ensemble(3, 2, num_qvalue_nets=2, **SMALL), baselines)


def test_copies_of_one_baseline() -> None:
    one = make_baselines(3, **SMALL)[0]
    for baselines in ([one, one], [one, copy.deepcopy(one)]):
        refused(baselines, "got one baseline several times.*make_baselines")


def test_baselines_with_a_layer_in_common() -> None:
    one, other = make_baselines(3, **SMALL)
    other.module[0] = one.module[0]
    refused([one, other], "got baselines that share parameters")


def test_baselines_of_two_shapes() -> None:
    refused([make_baselines(3, **SMALL)[0], make_baselines(3, hidden_sizes=(16,))[0]], "number 1 has other layers")


def test_no_list() -> None:
    refused(make_baselines(3, **SMALL)[0], "got one ValueOperator, expected a list")
    refused([], "got no baseline")


def test_a_list_of_one_baseline_is_trained() -> None:
    loss = BaselineLoss(make_actor(3, 2, **SMALL), make_baselines(3, **SMALL)[:1])
    params = list(loss.baseline_network_params.parameters())
    assert [tuple(param.shape) for param in params] == [(1, 8, 3), (1, 8), (1, 1, 8), (1, 1)]
    assert all(param.is_leaf and param.requires_grad for param in params)
