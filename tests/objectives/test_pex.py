# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP, ValueOperator

from torchrl_o2o.collectors import FastActor
from torchrl_o2o.deploy import export_policy, load_policy, save_policy
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import (
    make_actor,
    make_deterministic_actor,
    make_gaussian_actor,
    make_qvalue_ensemble,
    make_value_network,
)
from torchrl_o2o.objectives import ExpandedPolicy, IQLLoss, PEXLoss
from torchrl_o2o.objectives.carry import carry_over
from torchrl_o2o.testing import LossContract, random_transitions

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def networks(observation: int = 5, action: int = 3, keys: tuple[Any, Any] = ("observation", "action")) -> Any:
    size = {"hidden_sizes": (16,)}
    actor = make_gaussian_actor(
        observation, action, observation_key=keys[0], action_key=keys[1], clip_samples=False, **size
    )
    critics = make_qvalue_ensemble(observation, action, num_qvalue_nets=2, layer_norm=False, in_keys=keys, **size)
    return actor, critics, make_value_network(observation, observation_key=keys[0], **size)


def build(observation: int = 5, action: int = 3, *, keys: Any = ("observation", "action"), **settings: Any) -> PEXLoss:
    return PEXLoss(*networks(observation, action, keys), networks(observation, action, keys)[0], **settings)


class TestContract(LossContract):
    trains = {
        "loss_qvalue": ("qvalue_network_params",),
        "loss_actor": ("actor_network_params",),
        "loss_value": ("value_network_params",),
    }

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> PEXLoss:
        return build(self.observation_dim, self.action_dim, keys=(observation_key, action_key))


def state(rows: int = 2000) -> dict[str, torch.Tensor]:
    return {"observation": torch.randn(rows, 5)}


def test_infinite_inverse_temperature_takes_the_larger_value_and_zero_tosses_a_coin() -> None:
    torch.manual_seed(0)
    sharp, coin = build(inv_temperature=float("inf")), build(inv_temperature=0.0)
    inputs = state()
    taken = sharp.propose(inputs)
    values = [sharp._qvalues(inputs, action).amin(0) for action in (taken.offline, taken.new)]
    assert torch.equal(taken.takes_new.bool(), values[1] > values[0])
    tossed = coin.propose(inputs)
    assert torch.equal(tossed.probability, torch.full((2000, 2), 0.5))
    assert 0.45 < tossed.takes_new.mean() < 0.55


def test_one_choice_is_drawn_for_each_row() -> None:
    torch.manual_seed(0)
    loss = build(inv_temperature=0.0)
    assert 0.0 < loss.propose(state(64)).takes_new.mean() < 1.0


def test_a_new_policy_that_is_the_offline_one_without_spread_acts_as_that() -> None:
    loss = build()
    loss.actor_network_params.data.copy_(loss.offline_actor_network_params.data)
    loss.actor_network_params["module", "0", "module", "1", "log_std"].data.fill_(-100.0)
    policy, data = ExpandedPolicy(loss), TensorDict(state(8), [8])
    loss.actor_network[0].module[-1].log_std_bounds = (-1000.0, 2.0)
    taken = loss.propose(state(8))
    torch.testing.assert_close(taken.new, taken.offline)
    with set_exploration_type(ExplorationType.RANDOM):
        expected = loss.propose({"observation": data["observation"]}).offline
        torch.testing.assert_close(policy(data)["action"], expected)


def test_evaluation_without_eps_is_the_better_mode() -> None:
    loss, inputs = build(), state(32)
    policy = ExpandedPolicy(loss, eval_eps=0.0)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        first, second = (policy(TensorDict(inputs, [32]))["action"].clone() for _ in range(2))
    assert torch.equal(first, second)
    with set_exploration_type(ExplorationType.RANDOM):
        assert not torch.equal(first, policy(TensorDict(inputs, [32]))["action"])


def test_the_recorded_action_is_not_read_by_the_policy_and_the_offline_policy_never_moves() -> None:
    loss, batch = build(), random_transitions(16, 5, 3)
    torch.manual_seed(0)
    one = loss.actor_loss(batch)[0]
    torch.manual_seed(0)
    other = loss.actor_loss(batch.clone().set("action", torch.zeros(16, 3)))[0]
    assert torch.equal(one, other)
    assert not any(value.requires_grad for value in loss.offline_actor_network_params.parameters())


def test_the_hand_over_makes_the_offline_policy_of_the_actor() -> None:
    offline, loss = IQLLoss(*networks()), build()
    new = loss.actor_network_params.data.clone()
    names = ("qvalue_network", "value_network", "offline_actor_network=actor_network")
    assert carry_over(offline, loss, names) == ["actor_network"]
    frozen, theirs = (
        params.flatten_keys(".") for params in (loss.offline_actor_network_params, offline.actor_network_params)
    )
    assert all(torch.equal(frozen[name], value) for name, value in theirs.items())
    assert (loss.actor_network_params.data == new).all()


@pytest.mark.parametrize(
    ("settings", "message"), [({"inv_temperature": -1.0}, "inv_temperature"), ({"expectile": 1.0}, "expectile")]
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(O2OSpecError, match=message):
        build(**settings)


def test_deterministic_policies_are_refused() -> None:
    actor, critics, value = networks()
    with pytest.raises(O2OSpecError, match="offline policy"):
        PEXLoss(actor, critics, value, make_deterministic_actor(5, 3, hidden_sizes=(16,)))
    with pytest.raises(O2OSpecError, match="eval_eps"):
        ExpandedPolicy(build(), eval_eps=2.0)


@pytest.mark.parametrize("make", [make_gaussian_actor, make_actor])
def test_the_policy_to_deploy_takes_what_the_critics_value_more(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    offline, new = (make(5, 2, hidden_sizes=(16,)) for _ in range(2))
    critics = make_qvalue_ensemble(5, 2, num_qvalue_nets=3, hidden_sizes=(16,))
    loss = PEXLoss(new, critics, make_value_network(5, hidden_sizes=(16,)), offline)
    with torch.no_grad():
        loss.actor_network_params.apply_(lambda value: value.normal_())  # an update in place is followed
    actor, state = loss.make_actor(), torch.randn(40, 5)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        expected = ExpandedPolicy(loss, eval_eps=0.0)(TensorDict({"observation": state}, [40]))["action"]
    torch.testing.assert_close(actor(state), expected, rtol=1e-6, atol=1e-6)
    proposals = loss.propose({"observation": state}, greedy=0.0)
    assert 0 < proposals.takes_new.sum() < 40
    np.testing.assert_allclose(FastActor(actor)(state.numpy()), expected.numpy(), rtol=1e-5, atol=1e-5)
    box = (-2 * np.ones(2), 4 * np.ones(2))
    loaded = load_policy(save_policy(tmp_path, actor, action_box=box))
    torch.testing.assert_close(loaded(state), 1 + 3 * expected, rtol=1e-5, atol=1e-5)
    export_policy(loaded, file := tmp_path / "policy.pt2")
    torch.testing.assert_close(torch.export.load(file).module()(state), 1 + 3 * expected, rtol=1e-5, atol=1e-5)


def test_policies_and_critics_of_several_observations_are_not_cut_to_one() -> None:
    """``ExpandedPolicy`` hands them all on; the actor to deploy is handed one."""
    actor, _, value = networks()
    critics = [ValueOperator(MLP(10, 1, num_cells=[8]), in_keys=["observation", "goal", "action"]) for _ in range(2)]
    loss = PEXLoss(actor, critics, value, networks()[0])
    data = TensorDict({"observation": torch.randn(4, 5), "goal": torch.randn(4, 2)}, [4])
    assert ExpandedPolicy(loss)(data)["action"].shape == (4, 3)
    with pytest.raises(O2OSpecError, match=r"whose critics read \['observation', 'goal', 'action'\], expected one"):
        loss.make_actor()
    other = PEXLoss(networks()[0], networks()[1], value, networks(keys=("elsewhere", "action"))[0])
    with pytest.raises(O2OSpecError, match=r"whose policies read \['elsewhere', 'observation'\]"):
        other.make_actor()


def test_the_policies_act_without_dropout_and_the_new_one_trains_with_it() -> None:
    """They are no parts of the expanded policy, which ``eval()`` would reach."""
    torch.manual_seed(0)
    offline, new = (make_gaussian_actor(5, 3, hidden_sizes=(16,), dropout=0.5) for _ in range(2))
    loss = PEXLoss(new, *networks()[1:], offline)
    policy, data = ExpandedPolicy(loss, eval_eps=0.0), TensorDict(state(4), [4])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        first, second = (policy(data)["action"].clone() for _ in range(2))
    assert torch.equal(first, second)
    once, again = (loss.propose({"observation": data["observation"]}) for _ in range(2))
    assert torch.equal(once.offline, again.offline), "the frozen one has none in the loss, too"
    assert loss.actor_network.training
