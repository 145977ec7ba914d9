# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Collectors act without dropout and by running statistics, and leave the learner's modes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.modules import ProbabilisticActor

from torchrl_o2o.collectors import StepCollector, VectorCollector, make_vector_env
from torchrl_o2o.collectors.acting_policy import ActingPolicy
from torchrl_o2o.envs import make_gym_env
from torchrl_o2o.modules import TanhNormal, make_gaussian_actor


def build() -> Any:
    return make_gym_env("Pendulum-v1")


COLLECT: dict[str, Callable[[Any], Iterable[TensorDict]]] = {
    "step": lambda actor: StepCollector(build(), actor, total_frames=4, seed=0),
    "vector": lambda actor: VectorCollector(make_vector_env(build, 2), actor, total_frames=4, seeds=[0, 1]),
}


def with_dropout() -> ProbabilisticActor:
    torch.manual_seed(0)
    actor = make_gaussian_actor(3, 1, hidden_sizes=(32,), dropout=0.5, initialization="orthogonal")
    actor.module[0].module[-1].log_std.data.fill_(-20.0)  # the action is the mean
    return actor


def with_batch_norm() -> ProbabilisticActor:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2), NormalParamExtractor())
    net[1].running_mean.fill_(0.3)
    body = TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"])
    settings = {"low": -1.0, "high": 1.0}
    return ProbabilisticActor(
        body, in_keys=["loc", "scale"], distribution_class=TanhNormal, distribution_kwargs=settings
    )


@pytest.mark.parametrize("collect", COLLECT)
@pytest.mark.parametrize("make", [with_dropout, with_batch_norm])
def test_actions_are_those_of_evaluation(make: Callable[[], ProbabilisticActor], collect: str) -> None:
    actor, expected = make(), make().eval()
    statistics = {name: value.clone() for name, value in actor.named_buffers()}
    for data in COLLECT[collect](actor):
        with torch.no_grad():
            loc = expected(data.select("observation"))["loc"]
        drawn = data["action"]
        if make is with_dropout:
            assert torch.allclose(drawn, loc, atol=1e-5)
        else:
            assert drawn.shape == loc.shape
    assert all(module.training for module in actor.modules())
    assert all(torch.equal(value, statistics[name]) for name, value in actor.named_buffers())


def test_actors_elsewhere_too() -> None:
    policy = ActingPolicy(with_batch_norm())
    assert not any(isinstance(each, nn.BatchNorm1d) and each.training for each in policy._copy[0].modules())
