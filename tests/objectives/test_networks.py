# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.modules import IndependentNormal, NormalParamExtractor, ProbabilisticActor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.objectives.feed_forward import layers_of
from torchrl_o2o.objectives.networks import (
    call_ensemble,
    call_network,
    inner_module,
    policy_distribution,
    sample_policy,
)
from torchrl_o2o.testing import random_transitions

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
        with pytest.raises(O2OSpecError, match=r"of several modules or of a function, expected"):
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


def test_residual_critics_are_what_each_of_their_modules_is() -> None:
    """One after the other by their layers, and all at once by vmap, as where they are compiled."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_qvalue_nets": 3, "hidden_sizes": (8,), "residual_blocks": 2}
    critics = [critic.double() for critic in make_qvalue_ensemble(3, 2, **shape)]
    params = {
        name: torch.stack([dict(critic.named_parameters())[name].detach() for critic in critics]).requires_grad_()
        for name, _ in critics[0].named_parameters()
    }
    inputs = {"observation": torch.randn(7, 3).double(), "action": torch.randn(7, 2).double()}
    layers = layers_of(critics[0].module)
    assert layers is not None
    assert [type(layer).__name__ for layer in layers].count("_Residual") == 2
    expected = torch.stack([critic(**inputs).squeeze(-1) for critic in critics])
    gradients = []
    for randomness in ("different", "error"):  # the latter is evaluated by vmap everywhere
        values = call_ensemble(critics[0], params, inputs, "state_action_value", randomness)
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
        gradients.append(torch.autograd.grad(values.sin().sum(), list(params.values())))
    for one, other in zip(*gradients, strict=True):
        assert one.any()
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def value_net() -> TensorDictModule:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU()), nn.Linear(8, 1))
    return TensorDictModule(layers, ["observation"], ["state_value"])


def value_of(network: TensorDictModule) -> torch.Tensor:
    inputs = {"observation": torch.linspace(-2.0, 2.0, 12).view(4, 3)}
    return call_network(network, dict(network.named_parameters()), inputs, "state_value")


def direct(network: TensorDictModule) -> torch.Tensor:
    return network.module(torch.linspace(-2.0, 2.0, 12).view(4, 3))


def replace_activation(net: Any) -> None:
    net[0][2] = nn.Tanh()


def widen_epsilon(net: Any) -> None:
    net[0][1].eps = 0.5


def append_layer(net: Any) -> None:
    net.append(nn.Tanh())


def unknown_layer(net: Any) -> None:
    net[0][2] = nn.Softsign()


def parametrize(net: Any) -> None:
    nn.utils.parametrizations.weight_norm(net[1])
    net[1].parametrizations.weight.original0.data.mul_(3.0)


@pytest.mark.parametrize("change", [replace_activation, widen_epsilon, append_layer, unknown_layer, parametrize])
def test_a_network_that_was_changed_after_the_first_call_is_the_one_it_is_now(change: Any) -> None:
    network = value_net()
    before = value_of(network)
    twin = copy.deepcopy(network)
    change(network.module)
    torch.testing.assert_close(value_of(network), direct(network))
    assert not torch.equal(value_of(network), before)
    assert torch.equal(value_of(twin), before)  # the copy has its own layers
    change(twin.module)
    assert torch.equal(value_of(twin), value_of(network))


@pytest.mark.parametrize("part", ["layer", "container", "module", "all"])
def test_hooks_of_critics_run_once_a_member(part: str) -> None:
    torch.manual_seed(0)
    critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=3, hidden_sizes=(8,))
    loss, batch = EnsembleSACLoss(make_actor(3, 2, hidden_sizes=(8,)), critics), random_transitions(12, 3, 2)
    target = torch.zeros(12)
    loss.__dict__["target_value"] = lambda _: target
    expected, calls = loss.qvalue_loss(batch)[0], []
    network = loss.qvalue_network

    def hook(module: nn.Module, *_: Any) -> None:
        calls.append(module)

    if part == "all":
        handle = nn.modules.module.register_module_forward_hook(hook)
    else:
        hooked = {"layer": network.module.head, "container": network.module, "module": network}[part]
        handle = hooked.register_forward_hook(hook)
    try:
        torch.testing.assert_close(loss.qvalue_loss(batch)[0], expected)
    finally:
        handle.remove()
    assert len([module for module in calls if module is network.module.head or part != "all"]) == 3
    calls.clear()
    torch.testing.assert_close(loss.qvalue_loss(batch)[0], expected)
    assert not calls


def test_hooks_of_an_actor_s_body_run() -> None:
    policy, calls = actor(IndependentNormal), []
    expected = policy_distribution(policy, dict(policy.named_parameters()), INPUTS).mean
    policy[0].register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(policy_distribution(policy, dict(policy.named_parameters()), INPUTS).mean, expected)
    assert calls == [1]
