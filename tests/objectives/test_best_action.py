# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor

from torchrl_o2o.collectors import FastActor
from torchrl_o2o.collectors.single import kind_of
from torchrl_o2o.deploy import load_policy, save_policy
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_deterministic_actor, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import AWACLoss, BestAction, RecordedNoise, TD3BCLoss


def build(family: Callable[..., ProbabilisticActor] = make_actor) -> AWACLoss:
    torch.manual_seed(0)
    actor = family(3, 2, hidden_sizes=(8,))
    return AWACLoss(actor, make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,)))


def test_it_is_the_action_that_the_first_critic_values_most() -> None:
    loss, state, noise = build(), {"observation": torch.randn(6, 3)}, torch.randn(5, 6, 2)
    loss.noise = RecordedNoise({"best_action": noise})
    best = BestAction(loss, num_actions=5)(TensorDict(state, [6]))["action"]
    actions = loss._policy(state).rsample_and_log_prob((5,), noise=noise)[0]
    values = torch.stack([loss._qvalues(state, action)[0] for action in actions])
    expected = torch.stack([actions[values[:, row].argmax(), row] for row in range(6)])
    torch.testing.assert_close(best, expected)
    assert not best.requires_grad


def test_it_follows_the_loss_and_draws_when_evaluated() -> None:
    loss = build()
    policy, data = BestAction(loss), TensorDict({"observation": torch.zeros(3)}, [])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        assert not policy(data)["action"].clone().equal(policy(data)["action"])
    for value in loss.actor_network_params.parameters():
        value.data.zero_()
    loss.noise = RecordedNoise({"best_action": torch.zeros(10, 2)})
    assert policy(data)["action"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("family", [make_actor, make_gaussian_actor])
def test_the_policy_that_is_saved_acts_as_the_one_that_is_evaluated(
    tmp_path: Path, family: Callable[..., ProbabilisticActor]
) -> None:
    """In the file, under numpy and in the environment's units."""
    loss, box = build(family), (torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0]))
    policy, seen = BestAction(loss, num_actions=5), torch.randn(6, 3)
    saved = policy.make_actor()
    for value in loss.parameters():
        value.data.add_(0.1 * torch.randn_like(value))
    torch.manual_seed(3)
    noise = torch.randn(5, 6, 2)
    loss.noise = RecordedNoise({"best_action": noise})
    expected = policy(TensorDict({"observation": seen}, [6]))["action"]

    def act(actor: TensorDictModuleBase) -> torch.Tensor:
        torch.manual_seed(3)
        return actor(TensorDict({"observation": seen}, [6]))["action"]

    assert torch.equal(act(saved), expected), "it follows the loss"
    loaded = load_policy(save_policy(tmp_path / "unit.pt", saved, action_box=(-torch.ones(2), torch.ones(2))))
    assert torch.equal(act(loaded), expected)
    numbers = noise.transpose(0, 1).reshape(6, 10).numpy()
    torch.testing.assert_close(torch.from_numpy(FastActor(loaded)(seen.numpy(), numbers)), expected)
    native = load_policy(save_policy(tmp_path / "native.pt", saved, action_box=box))
    torch.testing.assert_close(act(native), box[0] + 0.5 * (box[1] - box[0]) * (expected + 1.0))


def test_a_policy_of_unlike_inputs_is_not_saved() -> None:
    critics = make_qvalue_ensemble(4, 2, num_qvalue_nets=2, hidden_sizes=(8,), in_keys=("state", "action"))
    with pytest.raises(O2OSpecError, match="one observation for all"):
        BestAction(AWACLoss(make_actor(3, 2, hidden_sizes=(8,)), critics)).make_actor()


def test_no_action_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="num_actions=0"):
        BestAction(build(), num_actions=0)


def test_critics_may_read_what_the_actor_does_not() -> None:
    """A state that only the critics see, as in asymmetric actor-critic; where it is not there, it is named."""
    actor = make_actor(3, 2, hidden_sizes=(8,))
    critics = make_qvalue_ensemble(4, 2, num_qvalue_nets=2, hidden_sizes=(8,), in_keys=("state", "action"))
    policy = BestAction(AWACLoss(actor, critics))
    assert policy.in_keys == ["observation", "state"]
    data = TensorDict({"observation": torch.zeros(6, 3), "state": torch.zeros(6, 4)}, [6])
    assert policy(data)["action"].shape == (6, 2)
    with pytest.raises(O2OSpecError, match=r"got a batch with \['observation'\], expected 'state'"):
        policy(data.select("observation"))


def test_the_loss_is_no_part_of_it() -> None:
    """A checkpoint of both would hold its networks twice."""
    loss = build().double()
    policy = BestAction(loss)
    assert not policy.state_dict()
    assert [id(param) for param in policy.parameters()] == [id(param) for param in loss.parameters()]
    assert kind_of(policy) == (torch.device("cpu"), torch.float64), "collectors find its device and dtype"


def test_a_deterministic_actor_is_refused() -> None:
    actor = make_deterministic_actor(3, 2, hidden_sizes=(8,))
    loss = TD3BCLoss(actor, make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,)))
    with pytest.raises(O2OSpecError, match=r"got the deterministic actor .*, expected a stochastic one"):
        BestAction(loss)


def test_it_acts_without_dropout_and_the_loss_trains_with_it() -> None:
    torch.manual_seed(0)
    actor = make_gaussian_actor(3, 2, hidden_sizes=(16,), dropout=0.5)
    critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(16,), dropout=0.5)
    loss, data = AWACLoss(actor, critics), TensorDict({"observation": torch.ones(4, 3)}, [4])
    loss.noise = RecordedNoise({"best_action": torch.randn(10, 4, 2)})
    policy = BestAction(loss)
    first, second = (policy(data)["action"].clone() for _ in range(2))
    assert torch.equal(first, second)
    once, again = (loss._qvalues({"observation": data["observation"]}, first) for _ in range(2))
    assert not torch.equal(once, again)
