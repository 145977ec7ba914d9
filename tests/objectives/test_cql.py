# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import ConservativePenalty, Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import CalQLLoss, CQLLoss, EnsembleSACLoss, GeneratorNoise, base
from torchrl_o2o.testing import (
    ContextualTargetEnv,
    DelayedRewardEnv,
    LossContract,
    probe_transitions,
    random_transitions,
)

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def build(
    kind: type[CQLLoss] = CQLLoss,
    observation: int = 5,
    action: Any = 3,
    *,
    hidden: tuple[int, ...] = (16, 16),
    keys: tuple[Any, Any] = ("observation", "action"),
    penalty: dict[str, Any] | None = None,
    **settings: Any,
) -> CQLLoss:
    names = {"observation_key": keys[0], "action_key": keys[1]}
    actor = make_actor(observation, action, hidden_sizes=hidden, affine_log_std=True, **names)
    critics = make_qvalue_ensemble(
        observation, action, num_qvalue_nets=2, hidden_sizes=hidden, layer_norm=False, in_keys=keys
    )
    settings.setdefault("temperature", Temperature(-3.0, form="log_alpha"))
    return kind(actor, critics, penalty=ConservativePenalty(**{"num_actions": 4, **(penalty or {})}), **settings)


class TestContractCQL(LossContract):
    trains = {
        "loss_qvalue": ("qvalue_network_params",),
        "loss_actor": ("actor_network_params",),
        "loss_alpha": ("temperature",),
        "loss_alpha_prime": ("penalty",),
    }
    kind: type[CQLLoss] = CQLLoss
    settings: dict[str, Any] = {"penalty": {"target_gap": 0.8, "weight": 2.0}}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> CQLLoss:
        return build(self.kind, keys=(observation_key, action_key), **self.settings)

    def bootstrapped(self, loss: CQLLoss, batch: TensorDict) -> torch.Tensor:
        torch.manual_seed(1)  # the penalty also reads the next state, to draw actions there
        return loss.target_value(batch)


class TestContractMaxBackup(TestContractCQL):
    settings = {
        "penalty": {"target_gap": 0.8, "importance_sampling": False, "gap_bounds": (-200.0, 200.0)},
        "max_target_backup": True,
        "entropy_backup": True,
        "actor_q": "mean",
    }


class TestContractCalQL(TestContractCQL):
    kind = CalQLLoss

    def make_batch(self, **keys: Any) -> TensorDict:
        batch = super().make_batch(**keys)
        return batch.set("mc_return", torch.linspace(-1, 1, self.batch_size).unsqueeze(-1))


def seeded(loss: CQLLoss, batch: TensorDict, seed: int = 0) -> TensorDict:
    torch.manual_seed(seed)
    return loss(batch.clone())


def same_networks(**settings: Any) -> tuple[CQLLoss, CalQLLoss]:
    losses = []
    for kind in (CQLLoss, CalQLLoss):
        torch.manual_seed(3)
        losses.append(build(kind, **settings))
    return losses[0], losses[1]


def test_calql_with_returns_of_minus_infinity_is_cql() -> None:
    cql, calql = same_networks(penalty={"target_gap": 0.8})
    batch = random_transitions(12, 5, 3)
    expected = seeded(cql, batch)
    got = seeded(calql, batch.clone().set("mc_return", torch.full((12, 1), -float("inf"))))
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


def test_calibration_can_be_turned_off_as_corl_does() -> None:
    cql, calql = same_networks()
    batch = random_transitions(12, 5, 3)
    calql.calibrate = False
    assert calql.in_keys == cql.in_keys
    got = seeded(calql, batch)
    for key, value in seeded(cql, batch).items():
        assert torch.equal(got[key], value), key
    other = CalQLLoss(
        make_actor(5, 3, hidden_sizes=(8,)), make_qvalue_ensemble(5, 3, num_qvalue_nets=2), calibrate=False
    )
    assert other(batch)["bound_rate"] == 0.0


def test_calibration_stops_the_push_on_policy_actions_only() -> None:
    _, calql = same_networks()
    batch = random_transitions(12, 5, 3).set("mc_return", torch.full((12, 1), 50.0))
    info = calql.qvalue_loss(batch)[1]
    assert info["bound_rate"] == 1.0
    # 8 of 12 candidates are at least 50 plus minus their log-density, so the gap is what the bound makes it.
    assert (info["gap"] > 40).all()


def test_calql_without_returns_says_what_to_do() -> None:
    with pytest.raises(O2OSpecError, match=r"without 'mc_return', expected each row's return; .*add_mc_return"):
        build(CalQLLoss).qvalue_loss(random_transitions(4, 5, 3))


def test_weight_zero_is_soft_actor_critic() -> None:
    batch = random_transitions(12, 5, 3)
    torch.manual_seed(0)
    ours = build(penalty={"weight": 0.0}, entropy_backup=True)
    theirs = EnsembleSACLoss(
        ours.actor_network, build_critics(ours), actor_q="min", temperature=Temperature(-3.0, form="log_alpha")
    )
    with ours.actor_network_params.to_module(theirs.actor_network):
        theirs.actor_network_params.data.copy_(ours.actor_network_params.data)
    values = []
    for loss in (ours, theirs):
        loss.noise = GeneratorNoise(torch.Generator().manual_seed(0))
        values.append(loss.qvalue_loss(batch)[0])
        loss.noise = GeneratorNoise(torch.Generator().manual_seed(0))
        values[-1] = values[-1] + loss.actor_loss(batch)[0]
    torch.testing.assert_close(*values)


def build_critics(loss: CQLLoss) -> list:
    critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=2, hidden_sizes=(16, 16), layer_norm=False)
    for member, critic in enumerate(critics):
        state = {key: value[member] for key, value in loss.qvalue_network_params.data.flatten_keys(".").items()}
        critic.load_state_dict(state)
    return critics


def test_uniform_actions_fill_the_actors_own_box_and_state_its_density() -> None:
    spec = Bounded(torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0]), (2,))
    loss = build(action=spec, penalty={"num_actions": 500})
    action, log_density = loss._proposals(random_transitions(8, 5, 2))
    uniform = action[:500]
    torch.testing.assert_close(uniform.amin((0, 1)), torch.tensor([-2.0, 0.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(uniform.amax((0, 1)), torch.tensor([2.0, 1.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(log_density[:500], torch.full((500, 8), -1.3862944))  # volume 4


def test_each_proposal_is_evaluated_at_the_current_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving the next observation moves the proposals drawn there, but no critic input."""
    loss = build()
    batch = random_transitions(6, 5, 3)
    batch["next", "terminated"] = torch.ones(6, 1, dtype=torch.bool)
    seen = []
    original = base.call_ensemble

    def spy(network: Any, params: Any, inputs: Any, *further: Any) -> Any:
        seen.append(inputs["observation"])
        return original(network, params, inputs, *further)

    monkeypatch.setattr(base, "call_ensemble", spy)
    loss.qvalue_loss(batch)
    _, current = seen  # of the target, and of the 3n + 1 actions
    assert all(torch.equal(each, batch["observation"]) for each in current)


def test_one_batched_critic_call_per_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """3n + 1 actions of all critics go through one call, not through a loop."""
    shapes = []
    original = base.call_ensemble

    def spy(network: Any, params: Any, inputs: Any, *further: Any) -> Any:
        shapes.append(tuple(inputs["action"].shape))
        return original(network, params, inputs, *further)

    monkeypatch.setattr(base, "call_ensemble", spy)
    build(max_target_backup=True).qvalue_loss(random_transitions(6, 5, 3))
    assert shapes == [(4, 6, 3), (13, 6, 3)]


@pytest.mark.parametrize(
    ("settings", "message"), [({"actor_q": "max"}, "got actor_q='max'"), ({"reduction": "avg"}, "got reduction='avg'")]
)
def test_options_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(O2OSpecError, match=message):
        build(**settings)


def test_an_actor_without_a_box_is_refused() -> None:
    actor = make_actor(5, 3, hidden_sizes=(8,))
    actor._spec = None
    with pytest.raises(O2OSpecError, match="expected one bounded action"):
        CQLLoss(actor, make_qvalue_ensemble(5, 3, num_qvalue_nets=2), temperature=Temperature(-3.0))


def test_default_target_entropy_is_minus_the_action_dimensions() -> None:
    assert build(temperature=None).temperature.target_entropy == -3.0


def train_step(loss: CQLLoss, batch: TensorDict, optim: torch.optim.Optimizer, updater: SoftUpdate) -> None:
    out = loss(batch)
    optim.zero_grad()
    (out["loss_qvalue"] + out["loss_actor"] + out["loss_alpha"] + out["loss_alpha_prime"]).backward()
    optim.step()
    updater.step()


def train(loss: CQLLoss, data: TensorDict, updates: int) -> None:
    updater = SoftUpdate(loss, tau=0.05)
    optim = torch.optim.Adam(loss.parameters(), lr=3e-3)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(len(data)), batch_size=64)
    replay.extend(data)
    for _ in range(updates):
        train_step(loss, replay.sample(), optim, updater)


def test_probe_actor_finds_the_contextual_optimum() -> None:
    torch.manual_seed(0)
    loss = build(observation=1, action=1, penalty={"weight": 0.02}, temperature=Temperature(None, init=0.01))
    train(loss, probe_transitions(ContextualTargetEnv(), 512), 500)
    observation = torch.linspace(-0.9, 0.9, 7).unsqueeze(-1)
    with loss.actor_network_params.to_module(loss.actor_network):
        action = loss.actor_network.get_dist(TensorDict({"observation": observation}, [7])).mode
    assert (action - observation / 2).abs().max() < 0.2


def test_probe_critic_discounts_and_unseen_actions_are_pushed_down() -> None:
    """With data on a > 0 only, a CQL critic values a < 0 less; without the penalty it does not have to."""
    torch.manual_seed(0)
    data = probe_transitions(DelayedRewardEnv(), 64)
    data["action"] = data["action"].abs() * 0.2 + 0.8
    loss = build(observation=1, action=1, penalty={"weight": 1.0}, temperature=Temperature(None, init=1e-6))
    loss.make_value_estimator(gamma=0.5)
    train(loss, data, 300)
    unseen = data.clone()
    unseen["action"] = -data["action"]
    seen_value = loss.qvalue_loss(data)[1]["qvalue"].mean()
    unseen_value = loss.qvalue_loss(unseen)[1]["qvalue"].mean()
    assert seen_value - unseen_value > 0.5
