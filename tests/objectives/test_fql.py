# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.modules import MLP, ValueOperator
from torchrl.objectives import SoftUpdate

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_deterministic_actor, make_flow_network, make_one_step_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import BestOfNLoss, FQLLoss, RecordedNoise
from torchrl_o2o.testing import ContextualTargetEnv, LossContract, probe_transitions, random_transitions
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

SIZES = {"hidden_sizes": (16, 16)}


def networks(observation: int = 5, action: int = 3, keys: tuple[Any, Any] = ("observation", "action")) -> Any:
    torch.manual_seed(0)
    named = {"observation_key": keys[0], "action_key": keys[1], **SIZES}
    norm = {"activation": "gelu", "layer_norm": "after_activation", "in_keys": keys, **SIZES}
    critics = make_qvalue_ensemble(observation, action, num_qvalue_nets=2, **norm)
    return make_one_step_actor(observation, action, **named), make_flow_network(observation, action, **named), critics


class TestContractFQL(LossContract):
    trains = {
        "loss_qvalue": ("qvalue_network_params",),
        "loss_flow": ("flow_network_params",),
        "loss_actor": ("actor_network_params",),
    }

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> FQLLoss:
        return FQLLoss(*networks(self.observation_dim, self.action_dim, (observation_key, action_key)))


class TestContractBestOfN(LossContract):
    trains = {"loss_qvalue": ("qvalue_network_params",), "loss_flow": ("actor_network_params",)}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> BestOfNLoss:
        keys = (observation_key, action_key)
        return BestOfNLoss(*networks(self.observation_dim, self.action_dim, keys)[1:], num_samples=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "alpha=-1"),
        ({"flow_steps": 0}, "flow_steps=0"),
        ({"aggregation": "max"}, "aggregation='max'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(O2OSpecError, match=message):
        FQLLoss(*networks(), **settings)


def test_other_actors_and_flows_are_refused() -> None:
    actor, flow, critics = networks()
    with pytest.raises(O2OSpecError, match="make_one_step_actor"):
        FQLLoss(make_deterministic_actor(5, 3), flow, critics)
    with pytest.raises(O2OSpecError, match="make_flow_network"):
        FQLLoss(actor, make_deterministic_actor(5, 3), critics)


def test_one_sample_is_the_flows_own_action() -> None:
    """N = 1 leaves no choice: the target is the value of the flow's action."""
    loss, batch = BestOfNLoss(*networks()[1:], num_samples=1), random_transitions(12, 5, 3)
    noise = torch.randn(1, 12, 3)
    loss.noise = RecordedNoise({"next_action": noise})
    action = loss._end_of_flow(loss._next_state(batch), noise[0])
    value = loss._qvalues(loss._next_state(batch), action, loss._target_critics).mean(0)
    rows = batch["next"]
    expected = rows["reward"].squeeze(-1) + 0.99 * (~rows["terminated"]).squeeze(-1) * value
    torch.testing.assert_close(loss.target_value(batch), expected)


def test_actions_behind_the_end_of_an_episode_are_left_out_of_the_flow() -> None:
    loss, batch = FQLLoss(*networks(5, 6)), random_transitions(4, 5, 6)
    loss.noise = RecordedNoise({"flow_start": torch.randn(4, 6), "flow_time": torch.rand(4, 1)})
    batch["valid"] = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    before = loss.flow_loss(batch)[1]["flow_error"]
    batch["action"][1:3, -2:] = 0.5
    after = loss.flow_loss(batch)[1]["flow_error"]
    torch.testing.assert_close(before[[0, 3]], after[[0, 3]])
    assert before.shape == (4,)
    with pytest.raises(O2OSpecError, match="'valid' of shape"):
        loss.flow_loss(batch.set("valid", torch.ones(4, 4)))


def test_the_acting_policy_follows_the_loss() -> None:
    loss = BestOfNLoss(*networks()[1:], num_samples=8)
    actor, data = loss.make_actor(), TensorDict({"observation": torch.randn(4, 5)}, [4])
    assert {id(value) for value in actor.parameters()} == {id(value) for value in loss.parameters()}
    torch.manual_seed(1)
    before = actor(data.clone())["action"]
    with torch.no_grad():
        for value in loss.parameters():
            value.add_(0.05)
    torch.manual_seed(1)
    assert not torch.equal(actor(data.clone())["action"], before)


@pytest.mark.parametrize("form", ["copied", "float64", "loaded"])
def test_the_actor_has_the_parameters_of_its_own_loss(form: str) -> None:
    loss = BestOfNLoss(*networks()[1:], num_samples=4)
    if form == "copied":
        loss = copy.deepcopy(loss)
    elif form == "float64":
        loss = loss.double()
    else:
        loss.load_state_dict({key: value + 1.0 for key, value in loss.state_dict().items()})
    actor = loss.make_actor()
    assert {id(value) for value in actor.parameters()} == {id(value) for value in loss.parameters()}


def train(loss: Any, batch: TensorDict, steps: int) -> None:
    parts = {"qvalue": loss.qvalue_network_params, "flow": loss._flow_params}
    if isinstance(loss, FQLLoss):
        parts["actor"] = loss.actor_network_params
    descends = [Descend(name, torch.optim.Adam(part.parameters(), lr=3e-3)) for name, part in parts.items()]
    update = Update(loss, Joint(MoveTargets(SoftUpdate(loss, tau=0.05)), *descends))
    for _ in range(steps):
        update(batch)


@pytest.mark.parametrize("kind", ["fql", pytest.param("best_of_n", marks=pytest.mark.slow)])
def test_probe_policy_finds_the_contextual_optimum(kind: str) -> None:
    torch.manual_seed(0)
    actor, flow, critics = networks(1, 1)
    loss: Any = FQLLoss(actor, flow, critics, alpha=0.1) if kind == "fql" else BestOfNLoss(flow, critics)
    train(loss, probe_transitions(ContextualTargetEnv(), 512), 400)
    policy = actor if kind == "fql" else loss.make_actor()
    observation = torch.linspace(-0.9, 0.9, 7).unsqueeze(-1)
    with torch.no_grad():
        action = policy(TensorDict({"observation": observation}, [7]))["action"]
    assert (action - observation / 2).abs().mean() < 0.2


def test_critics_of_several_observations_are_not_cut_to_one() -> None:
    keys = ["observation", "goal", "action"]
    critics = [ValueOperator(MLP(10, 1, num_cells=[8]), in_keys=keys) for _ in range(2)]
    loss = BestOfNLoss(make_flow_network(5, 3, hidden_sizes=(8,)), critics)
    with pytest.raises(O2OSpecError, match=r"policies read \['observation'\] and whose critics read .*'goal'"):
        loss.make_actor()
