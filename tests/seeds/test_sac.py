# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What a stack of losses accepts, returns and shares with the single ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict

from tests.seeds.agents import ACTION, BATCH, OBSERVATION, make_agent, make_batches
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.seeds import stack_losses

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def losses(count: int = 3, **settings: Any) -> list[EnsembleSACLoss]:
    return [make_agent(seed, **settings).loss for seed in range(count)]


def test_shapes() -> None:
    stack, batches = stack_losses(losses()), make_batches(3, 1, utd_ratio=1)[0]
    value, info = stack.qvalue_loss(batches)
    assert value.shape == (3,)
    assert {name: tuple(entry.shape) for name, entry in info.items()} == {
        "td_error": (3, BATCH),
        "qvalue": (3, 4, BATCH),
        "target_value": (3, BATCH),
    }
    assert not any(entry.requires_grad for entry in info.values())
    value, info = stack.actor_loss(batches)
    assert (value.shape, info["log_prob"].shape) == ((3,), (3, BATCH))
    value, info = stack.alpha_loss(info["log_prob"])
    assert (value.shape, info["alpha"].shape, info["entropy"].shape) == ((3,), (3,), (3,))


def test_equals_the_single_losses_with_the_same_noise() -> None:
    single, stack = losses(), stack_losses(losses())
    batches = make_batches(3, 1, utd_ratio=1)[0]
    together, info = stack.qvalue_loss(batches)
    for position, loss in enumerate(single):
        alone, alone_info = loss.qvalue_loss(batches[position])
        torch.testing.assert_close(together[position], alone)
        for name, value in alone_info.items():
            torch.testing.assert_close(info[name][position], value, msg=name)


def test_single_losses_see_the_stack_and_the_stack_what_they_load() -> None:
    agents = [make_agent(seed) for seed in range(2)]
    stack, other = stack_losses([agent.loss for agent in agents]), make_agent(5)
    observation = TensorDict({"observation": torch.randn(4, OBSERVATION)}, [4])
    agents[1].loss.load_state_dict(other.loss.state_dict())
    name = next(iter(stack.qvalue))
    assert torch.equal(stack.qvalue[name][1], other.loss.qvalue_network_params.flatten_keys(".")[name])
    assert torch.equal(stack.target_qvalue[name][1], other.loss.target_qvalue_network_params.flatten_keys(".")[name])
    assert not torch.equal(stack.qvalue[name][0], stack.qvalue[name][1])
    for leaf in stack.actor.values():
        leaf.data.zero_()
    with agents[0].loss.actor_network_params.to_module(agents[0].loss.actor_network):
        assert agents[0].loss.actor_network(observation)["loc"].abs().max() == 0.0


def test_targets_average() -> None:
    stack = stack_losses(losses())
    before = {name: value.clone() for name, value in stack.target_qvalue.items()}
    for leaf in stack.qvalue.values():
        leaf.data += 1.0
    stack.update_targets(0.25)
    for name, value in stack.target_qvalue.items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * stack.qvalue[name].detach())


def test_fixed_temperature_has_no_loss() -> None:
    parts = make_actor(OBSERVATION, ACTION), make_qvalue_ensemble(OBSERVATION, ACTION, num_qvalue_nets=2)
    stack = stack_losses([EnsembleSACLoss(*parts, temperature=Temperature(None, init=0.2)) for _ in range(2)])
    value, info = stack.alpha_loss(torch.zeros(2, BATCH))
    assert not value.requires_grad
    torch.testing.assert_close(info["alpha"], torch.full((2,), 0.2))


class Other(EnsembleSACLoss):
    """A loss that may compute something else."""


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"sub_sample_len": 1}, "sub_sample_len"),
        ({"members": 3}, "num_qvalue_nets"),
        ({"form": "log_alpha"}, "temperature"),
        ({"reduction": "none"}, "reduction"),
    ],
)
def test_losses_that_differ_are_refused(second: dict[str, Any], words: str) -> None:
    with pytest.raises(O2OSpecError, match=words):
        stack_losses([make_agent(0).loss, make_agent(1, **second).loss])


def test_what_cannot_be_stacked_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="at least one"):
        stack_losses([])
    with pytest.raises(O2OSpecError, match="drop out"):
        stack_losses(losses(dropout=0.1))
    with pytest.raises(O2OSpecError, match="reduction"):
        stack_losses(losses(reduction="none"))
    parts = make_agent(0).loss
    other = Other(make_actor(OBSERVATION, ACTION), make_qvalue_ensemble(OBSERVATION, ACTION))
    with pytest.raises(O2OSpecError, match="Other"):
        stack_losses([parts, other])
    discounted = make_agent(1).loss
    discounted.make_value_estimator(gamma=0.5)
    with pytest.raises(O2OSpecError, match="gamma"):
        stack_losses([parts, discounted])
