# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.modules import IndependentNormal, NormalParamExtractor, ProbabilisticActor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives.networks import call_ensemble, inner_module, policy_distribution, sample_policy

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


def test_a_deterministic_actor_has_no_distribution() -> None:
    policy = make_deterministic_actor(3, 2, hidden_sizes=(8,))
    with pytest.raises(O2OSpecError, match=r"got the deterministic actor Actor, expected a stochastic one"):
        policy_distribution(policy, dict(policy.named_parameters()), INPUTS)


def test_a_network_of_several_parts_has_no_one_module_inside() -> None:
    parts = [TensorDictModule(nn.Linear(3, 3), ["observation"], ["observation"]) for _ in range(2)]
    assert inner_module(parts[0]) is parts[0].module
    for network in (TensorDictSequential(*parts), TensorDictModule(torch.relu, ["observation"], ["action"])):
        with pytest.raises(O2OSpecError, match=r"of several parts or of a function, expected"):
            inner_module(network)


def test_discrete_actions_are_refused() -> None:
    with pytest.raises(O2OSpecError, match=r"got OneHotCategorical, .*continuous"):
        sample_policy(torch.distributions.OneHotCategorical(logits=torch.zeros(4, 2)), None)


def test_many_rows_are_what_each_of_them_is_alone() -> None:
    """CQL's dozens of actions a state are evaluated some rows at a time; shapes, values and gradients stay."""
    critics = [critic.double() for critic in make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,))]
    params = {
        name: torch.stack([dict(critic.named_parameters())[name].detach() for critic in critics]).requires_grad_()
        for name, _ in critics[0].named_parameters()
    }
    inputs = {"observation": torch.randn(31, 60, 3).double(), "action": torch.randn(31, 60, 2).double()}
    whole = call_ensemble(critics[0], params, inputs, "state_action_value")
    assert whole.shape == (2, 31, 60)
    each = [
        call_ensemble(critics[0], params, {key: value[k] for key, value in inputs.items()}, "state_action_value")
        for k in range(31)
    ]
    torch.testing.assert_close(whole, torch.stack(each, 1), rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(whole.sin().sum(), list(params.values()))
    theirs = torch.autograd.grad(torch.stack(each, 1).sin().sum(), list(params.values()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
