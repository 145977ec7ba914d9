# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch.optim import SGD
from torchrl.objectives import IQLLoss as UpstreamIQLLoss

from tests.objectives.offline_losses import act, assert_discounted, assert_optimal, train
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import (
    make_deterministic_actor,
    make_gaussian_actor,
    make_qvalue_ensemble,
    make_value_network,
)
from torchrl_o2o.objectives import IQLLoss, RecordedNoise
from torchrl_o2o.testing import (
    ContextualTargetEnv,
    DelayedRewardEnv,
    LossContract,
    probe_transitions,
    random_transitions,
)
from torchrl_o2o.updates import Descend, Joint, Update

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def build(
    observation: int = 5,
    action: int = 3,
    *,
    keys: tuple[Any, Any] = ("observation", "action"),
    deterministic: bool = False,
    **settings: Any,
) -> IQLLoss:
    make = make_deterministic_actor if deterministic else make_gaussian_actor
    actor = make(observation, action, hidden_sizes=(16, 16), observation_key=keys[0], action_key=keys[1])
    critics = make_qvalue_ensemble(
        observation, action, num_qvalue_nets=2, hidden_sizes=(16, 16), in_keys=keys, layer_norm=False
    )
    value = make_value_network(observation, hidden_sizes=(16, 16), observation_key=keys[0])
    return IQLLoss(actor, critics, value, **settings)


class TestContract(LossContract):
    trains = {
        "loss_qvalue": ("qvalue_network_params",),
        "loss_actor": ("actor_network_params",),
        "loss_value": ("value_network_params",),
    }
    settings: dict[str, Any] = {}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> IQLLoss:
        return build(self.observation_dim, self.action_dim, keys=(observation_key, action_key), **self.settings)


class TestContractDeterministic(TestContract):
    settings = {"deterministic": True, "ensemble_reduction": "mean", "expectile": 0.9, "beta": 10.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expectile": 1.0}, r"got expectile=1.0, expected a number in \(0, 1\)"),
        ({"beta": -1.0}, "got beta=-1.0"),
        ({"ensemble_reduction": "none"}, "got ensemble_reduction='none'"),
    ],
)
def test_options_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(O2OSpecError, match=message):
        build(**settings)


def test_it_never_asks_about_actions_outside_the_data() -> None:
    loss = build()
    loss.noise = RecordedNoise({})  # any draw would raise
    assert loss(random_transitions(12, 5, 3))["loss_actor"].isfinite()


def fitted_value(expectile: float) -> float:
    """V after training against the critics' values of four recorded actions in one state."""
    torch.manual_seed(0)
    loss = build(1, 1, expectile=expectile)
    data = random_transitions(4, 1, 1)
    data["observation"] = torch.zeros(4, 1)
    optim = torch.optim.Adam(loss.value_network_params.parameters(), lr=0.02)
    for _ in range(400):
        optim.zero_grad()
        loss.value_loss(data)[0].backward()
        optim.step()
    info = loss.value_loss(data)[1]
    qvalue = info["advantage"] + info["value"]
    return float((info["value"].mean() - qvalue.mean()) / (qvalue.max() - qvalue.mean()))


def test_expectile_one_half_fits_the_mean_and_above_it_leans_to_the_best() -> None:
    assert fitted_value(0.5) == pytest.approx(0.0, abs=1e-2)
    assert 0.1 < fitted_value(0.7) < fitted_value(0.95) < 1.0


def test_beta_zero_is_behavior_cloning() -> None:
    loss, batch = build(beta=0.0), random_transitions(12, 5, 3)
    with loss.actor_network_params.to_module(loss.actor_network):
        expected = -loss.actor_network.get_dist(batch).log_prob(batch["action"]).mean()
    torch.testing.assert_close(loss.actor_loss(batch)[0], expected)


def test_deterministic_error_is_the_squared_distance() -> None:
    loss, batch = build(deterministic=True, beta=0.0), random_transitions(12, 5, 3)
    expected = (act(loss, batch["observation"]) - batch["action"]).square().sum(-1).mean()
    torch.testing.assert_close(loss.actor_loss(batch)[0], expected)


def test_given_advantage_and_target_replace_their_own() -> None:
    loss, batch = build(), random_transitions(12, 5, 3)
    advantage, target = torch.linspace(-1, 3, 12), torch.randn(12)
    info = loss.actor_loss(batch, old_advantage=advantage)[1]
    torch.testing.assert_close(info["weight"], (3 * advantage).exp().clamp(max=100))
    assert torch.equal(info["clipped"], (3 * advantage > torch.tensor(100.0).log()).float())
    assert torch.equal(loss.qvalue_loss(batch, target_value=target)[1]["target_value"], target)


def test_the_actor_takes_the_target_critics_of_the_value_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, batch = build(), random_transitions(12, 5, 3)
    target_qvalue = loss.value_loss(batch)[1]["target_qvalue"]
    with torch.no_grad():
        for parameter in loss.value_network_params.values(True, True):
            parameter.mul_(1.1)  # V's step
    expected = loss.actor_loss(batch)[0]
    monkeypatch.setattr(loss, "_data_q", None)  # not asked a second time
    assert torch.equal(loss.actor_loss(batch, target_qvalue=target_qvalue)[0], expected)


def test_an_actor_that_acts_does_so_again_after_a_batch_that_is_refused() -> None:
    """It is trained with dropout and acts without; a batch that does not fit left it acting with."""
    actor = make_gaussian_actor(5, 3, hidden_sizes=(16,), dropout=0.5).eval()
    critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=2, hidden_sizes=(16,))
    loss, batch = IQLLoss(actor, critics, make_value_network(5, hidden_sizes=(16,))), random_transitions(12, 5, 3)
    loss.actor_network.eval()
    first, second = (loss.actor_loss(batch)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert not any(part.training for part in loss.actor_network.modules())
    wide = batch.clone()
    wide["observation"] = torch.zeros(12, 7)
    with pytest.raises(O2OSpecError):
        loss.actor_loss(wide, old_advantage=torch.zeros(12))
    assert not any(part.training for part in loss.actor_network.modules())
    loss.actor_network.train()
    kept = loss.actor_network[0].eval()  # in a network that trains, a part that does not stays so
    loss.actor_loss(batch)
    assert loss.actor_network.training
    assert not kept.training


def test_the_target_is_the_value_of_the_next_state() -> None:
    loss, batch = build(), random_transitions(12, 5, 3)
    following = batch["next"].clone().set("next", batch["next"]).set("action", batch["action"])
    value = loss.value_loss(following)[1]["value"]
    mask = ~batch["next", "terminated"].squeeze(-1)
    torch.testing.assert_close(loss.target_value(batch), batch["next", "reward"].squeeze(-1) + 0.99 * mask * value)


def test_it_is_torchrls_iql() -> None:
    """Against upstream's IQLLoss on the same networks, in the order in which upstream computes: all from old ones."""
    torch.manual_seed(0)
    actor = make_gaussian_actor(5, 3, hidden_sizes=(16,))
    critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=2, hidden_sizes=(16,), layer_norm=False)
    networks = (actor, critics, make_value_network(5, hidden_sizes=(16,)))
    ours, batch = IQLLoss(*networks), random_transitions(12, 5, 3)
    theirs = UpstreamIQLLoss(*networks, num_qvalue_nets=2, loss_function="l2", temperature=3.0, expectile=0.7)
    torch.testing.assert_close(ours.value_loss(batch)[0], theirs.value_loss(batch.clone())[0])
    torch.testing.assert_close(ours.actor_loss(batch)[0], theirs.actor_loss(batch.clone())[0])
    torch.testing.assert_close(ours.qvalue_loss(batch)[0], theirs.qvalue_loss(batch.clone())[0])


def test_probe_actor_finds_the_contextual_optimum() -> None:
    torch.manual_seed(0)
    loss = build(1, 1, expectile=0.8, beta=30.0)
    train(loss, probe_transitions(ContextualTargetEnv(), 1024), 400, lr=1e-2)
    assert_optimal(loss)


def test_probe_critic_discounts_a_delayed_reward() -> None:
    torch.manual_seed(0)
    loss, data = build(1, 1), probe_transitions(DelayedRewardEnv(), 64)
    loss.make_value_estimator(gamma=0.5)
    train(loss, data, 200, lr=1e-2)
    assert_discounted(loss, data)


def test_value_network_that_is_not_one_plain_module() -> None:
    """A sequence of modules gives the same numbers as the plain network."""
    torch.manual_seed(0)
    batch = random_transitions(6, 5, 3)
    value = make_value_network(5, hidden_sizes=(16,))
    split = TensorDictSequential(
        TensorDictModule(value.module[0], in_keys=["observation"], out_keys=["h"]),
        TensorDictModule(value.module[1], in_keys=["h"], out_keys=["state_value"]),
    )
    actor, critics = make_gaussian_actor(5, 3), make_qvalue_ensemble(5, 3, num_qvalue_nets=2)
    rows = [IQLLoss(actor, critics, net).value_loss(batch)[0] for net in (value, split)]
    torch.testing.assert_close(*rows)


def test_an_update_hands_the_target_critics_on_and_no_old_advantage() -> None:
    """The authors' actor sees the V that has just been stepped; CORL's, in one ``Joint``, the one before."""
    batch, seen = random_transitions(8, 5, 3), {}
    for order in ("authors", "corl"):
        torch.manual_seed(0)
        loss = build()
        optims = {name: SGD(getattr(loss, f"{name}_network_params").parameters(), 0.5) for name in ("value", "actor")}
        steps = [Descend(name, optim) for name, optim in optims.items()]
        old = loss.value_loss(batch)[1]
        weights = {"old": loss.actor_loss(batch, old_advantage=old["advantage"])[1]["weight"].mean()}
        metrics = Update(loss, *steps)(batch) if order == "authors" else Update(loss, Joint(*steps))(batch)
        weights["new"] = loss.actor_loss(batch)[1]["weight"].mean()
        seen[order] = [name for name, weight in weights.items() if torch.isclose(metrics["weight"], weight)]
    assert seen == {"authors": ["new"], "corl": ["old"]}
