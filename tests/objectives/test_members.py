# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Baselines are looked at as critics are; those are in ``test_actor_critic.py``."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torchrl.modules import ValueOperator

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_baselines, make_qvalue_ensemble
from torchrl_o2o.objectives import BaselineLoss, SACMLLoss
from torchrl_o2o.objectives.members import check_members

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


class TestLayers:
    """Members that differ in what is no parameter were all evaluated with the first one's layers."""

    @staticmethod
    def critic(act: nn.Module, keys: tuple[str, ...] = ("observation", "action"), scale: float = 1.0) -> ValueOperator:
        net = Joined(nn.Sequential(nn.Linear(5, 8), act, nn.Linear(8, 1)))
        net.scale, net.name = scale, f"critic {scale}"
        return ValueOperator(net, in_keys=list(keys), out_keys=["state_action_value"])

    @pytest.mark.parametrize(
        ("odd", "told"),
        [
            ({"act": nn.Tanh()}, r"number 1 has Tanh\(.*at 'module.net.1' and the first ReLU"),
            ({"act": nn.ReLU(), "scale": 2.0}, r"number 1 has Joined\(scale=2.0\) at 'module' and .*scale=1.0"),
            (
                {"act": nn.ReLU(), "keys": ("pixels", "action")},
                r"number 1 has .*'pixels'.* the first .*observation",
            ),
        ],
    )
    def test_other_layers_settings_and_keys_are_refused(self, odd: dict[str, Any], told: str) -> None:
        with pytest.raises(O2OSpecError, match=rf"got critics of which {told}.* differ only in their parameters"):
            check_members([self.critic(nn.ReLU()), self.critic(**odd)])

    def test_names_may_differ(self) -> None:
        pair = [self.critic(nn.ReLU()) for _ in range(2)]
        pair[1].module.name = "second"
        assert check_members(pair) == pair


class Joined(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return self.scale * self.net(torch.cat([observation, action], -1))
