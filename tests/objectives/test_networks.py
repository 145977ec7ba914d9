# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.modules import IndependentNormal, NormalParamExtractor, ProbabilisticActor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives.networks import policy_distribution, sample_policy

INPUTS = {"observation": torch.zeros(4, 3)}


def actor(distribution: type) -> ProbabilisticActor:
    body = TensorDictModule(nn.Sequential(nn.Linear(3, 4), NormalParamExtractor()), ["observation"], ["loc", "scale"])
    return ProbabilisticActor(body, in_keys=["loc", "scale"], distribution_class=distribution)


def test_one_density_for_the_whole_action() -> None:
    policy = actor(IndependentNormal)
    dist = policy_distribution(policy, dict(policy.named_parameters()), INPUTS)
    action, log_prob = sample_policy(dist, None)
    assert (action.shape, log_prob.shape) == ((4, 2), (4,))


def test_one_density_for_each_dimension_is_refused() -> None:
    policy = actor(torch.distributions.Normal)
    with pytest.raises(O2OSpecError, match=r"got Normal, .*IndependentNormal"):
        policy_distribution(policy, dict(policy.named_parameters()), INPUTS)


def test_discrete_actions_are_refused() -> None:
    with pytest.raises(O2OSpecError, match=r"got OneHotCategorical, .*continuous"):
        sample_policy(torch.distributions.OneHotCategorical(logits=torch.zeros(4, 2)), None)
