# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.functional import softplus
from torch.optim import Adam
from torchrl.objectives import SoftUpdate

from tests.kernels import without_kernels
from tests.objectives import test_brac as brac
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import (
    Multiplier,
    Temperature,
    make_actor,
    make_deterministic_actor,
    make_gaussian_actor,
    make_qvalue_ensemble,
)
from torchrl_o2o.objectives import BRACDualLoss, BRACLoss, RecordedNoise
from torchrl_o2o.objectives.carry import carry_over
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.updates import Descend, Every, MoveTargets, Repeat, Update

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")

ROWS, GAMMA, TAU, KAPPA, LR, ENTROPY = 8, 0.97, 0.1, 5.0, 1e-2, 0.2


def build(
    observation: int = 5, action: int = 3, *, keys: tuple[Any, Any] = ("observation", "action"), **settings: Any
) -> BRACDualLoss:
    torch.manual_seed(0)
    actor = make_actor(observation, action, hidden_sizes=(16, 16), observation_key=keys[0], action_key=keys[1])
    shape: dict[str, Any] = {"num_qvalue_nets": 3, "hidden_sizes": (16, 16), "layer_norm": False}
    *critics, divergence = make_qvalue_ensemble(observation, action, in_keys=keys, **shape)
    return BRACDualLoss(actor, critics, divergence, **settings)


class TestContractPolicyPenalty(brac.TestContractPolicyPenalty):
    """Weights that are learned; BRAC-p."""

    trains = {**brac.TestContractPolicyPenalty.trains, "loss_divergence": ("divergence_network_params",)}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> BRACDualLoss:
        learned = {"multiplier": Multiplier(0.5, target=0.0), "temperature": Temperature(-3.0, init=0.2)}
        keys = (observation_key, action_key)
        return build(self.observation_dim, self.action_dim, keys=keys, **learned, **self.settings)


class TestContractValuePenalty(TestContractPolicyPenalty):
    settings = {"value_penalty": True}

    def make_batch(self, *, observation_key: Any = "observation", action_key: Any = "action") -> TensorDict:
        batch = super().make_batch(observation_key=observation_key, action_key=action_key)
        return batch.set(("next", "action"), batch[action_key].roll(-1, 0))


def rows(count: int = ROWS) -> TensorDict:
    """Transitions with the action of the next step."""
    batch = random_transitions(count, 5, 3, generator=torch.Generator().manual_seed(0))
    batch = batch.apply(lambda value: value.to(torch.get_default_dtype()) if value.is_floating_point() else value)
    return batch.set(("next", "action"), batch["action"].roll(-1, 0))


def draws() -> dict[str, Tensor]:
    """The noise of every minibatch."""
    torch.manual_seed(1)
    names = ("action", "next_action", "divergence_action")
    return {name: torch.randn(ROWS, 3) for name in names} | {"divergence_share": torch.rand(ROWS, 1) * 2.0 - 1.0}


def optim_of(params: Any) -> Adam:
    return Adam(params.parameters(), lr=LR)


def authors_update(loss: BRACDualLoss) -> Update:
    """Three steps of the divergence's critic, on a minibatch each; the others on the last."""
    loss.make_value_estimator(gamma=GAMMA)
    agent = [MoveTargets(SoftUpdate(loss, tau=TAU)), Descend("qvalue", optim_of(loss.qvalue_network_params))]
    agent.append(Descend("actor", optim_of(loss.actor_network_params)))
    critic = Descend("divergence", optim_of(loss.divergence_network_params))
    weight = Descend("multiplier", optim_of(loss.multiplier))
    return Update(loss, Repeat(3, Every(3, *agent), critic, Every(3, weight)))


class Plain:
    """The authors' agent, written out a second time: plain tensors, matrix products and autograd only."""

    def __init__(self, loss: BRACDualLoss) -> None:
        state = loss.state_dict()
        self.kind, self.value_penalty = loss.divergence, loss.value_penalty
        self.actor, self.critics, self.targets, self.dual = (
            [value.clone() for name, value in state.items() if name.startswith(f"{owner}_network_params")]
            for owner in ("actor", "qvalue", "target_qvalue", "divergence")
        )
        self.alpha = state["multiplier.raw"].clone()
        trained = {"actor": self.actor, "critics": self.critics, "dual": self.dual, "alpha": [self.alpha]}
        self.optims = {name: Adam([each.requires_grad_() for each in of], lr=LR) for name, of in trained.items()}

    def policy(self, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        w1, b1, w2, b2, w_mean, b_mean, w_std, b_std = self.actor
        hidden = torch.relu(torch.relu(state @ w1.T + b1) @ w2.T + b2)
        std = (hidden @ w_std.T + b_std).exp()
        action = torch.tanh(hidden @ w_mean.T + b_mean + std * noise)
        density = torch.exp(-0.5 * noise**2) / (std * math.sqrt(2.0 * math.pi)) / (1.0 - action**2)
        return action, density.log().sum(-1)

    @staticmethod
    def score(net: list[Tensor], state: Tensor, action: Tensor) -> Tensor:
        w1, b1, w2, b2, w3, b3 = net
        hidden = torch.relu(torch.relu(torch.cat([state, action], -1) @ w1.T + b1) @ w2.T + b2)
        return (hidden @ w3.T + b3)[:, 0]

    def least(self, stacked: list[Tensor], state: Tensor, action: Tensor) -> Tensor:
        values = [self.score([each[member] for each in stacked], state, action) for member in range(2)]
        return torch.minimum(*values)

    def divergence(self, state: Tensor, action: Tensor, recorded: Tensor) -> Tensor:
        of_policy, of_data = self.score(self.dual, state, action), self.score(self.dual, state, recorded)
        if self.kind == "wasserstein":
            return of_policy - of_data
        return torch.log(softplus(of_policy) + 1e-8) + 1.0 - softplus(of_data)

    def descend(self, name: str, loss: Tensor) -> float:
        optim = self.optims[name]
        trained = optim.param_groups[0]["params"]
        for param, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            param.grad = gradient
        optim.step()
        return loss.item()

    def critics_step(self, batch: TensorDict, noise: dict[str, Tensor]) -> float:
        there, outcome = batch["next", "observation"], batch["next"]
        with torch.no_grad():
            action, log_prob = self.policy(there, noise["next_action"])
            value = self.least(self.targets, there, action) - ENTROPY * log_prob
            if self.value_penalty:
                value = value - self.alpha * self.divergence(there, action, outcome["action"])
            goes_on = 1.0 - outcome["terminated"][:, 0].to(value.dtype)
            target = outcome["reward"][:, 0] + GAMMA * goes_on * value
        loss = torch.zeros(())
        for member in range(2):
            net = [each[member] for each in self.critics]
            loss = loss + (self.score(net, batch["observation"], batch["action"]) - target).square().mean()
        return self.descend("critics", loss)

    def dual_step(self, batch: TensorDict, noise: dict[str, Tensor]) -> float:
        state, recorded = batch["observation"], batch["action"]
        action = self.policy(state, noise["divergence_action"])[0].detach()
        share = (noise["divergence_share"] + 1.0) / 2.0
        between = (action + share * (recorded - action)).requires_grad_()
        slope = torch.autograd.grad(self.score(self.dual, state, between).sum(), between, create_graph=True)[0]
        steep = torch.relu(torch.sqrt(1e-8 + slope.square().sum(-1)) - 1.0)
        loss = KAPPA * steep.square().mean() - self.divergence(state, action, recorded).mean()
        return self.descend("dual", loss)

    def update(self, batches: list[TensorDict], noise: dict[str, Tensor]) -> dict[str, float]:
        """The divergence's critic on the first batches; targets, critics, actor, that critic and alpha on the last."""
        batch, out = batches[-1], {}
        for each in batches[:-1]:
            self.dual_step(each, noise)
        with torch.no_grad():
            for target, source in zip(self.targets, self.critics, strict=True):
                target.copy_((1.0 - TAU) * target + TAU * source)
        out["loss_qvalue"] = self.critics_step(batch, noise)
        action, log_prob = self.policy(batch["observation"], noise["action"])
        divergence = self.divergence(batch["observation"], action, batch["action"])
        value = self.least(self.critics, batch["observation"], action)
        penalty = self.alpha.detach() * divergence
        out["loss_actor"] = self.descend("actor", (ENTROPY * log_prob + penalty - value).mean())
        out["loss_divergence"] = self.dual_step(batch, noise)
        out["loss_multiplier"] = self.descend("alpha", -(self.alpha * divergence.detach()).mean())
        return out


def learned(value_penalty: bool, divergence: Any) -> BRACDualLoss:
    weights = {"multiplier": Multiplier(0.5, target=0.0), "temperature": Temperature(None, init=ENTROPY)}
    loss = build(value_penalty=value_penalty, divergence=divergence, **weights)
    with torch.no_grad():  # a critic whose slope is above 1 and counts
        loss.divergence_network_params["module", "head", "weight"].mul_(16.0)
    return loss


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("divergence", ["kl", "wasserstein"])
@pytest.mark.parametrize("value_penalty", [True, False])
def test_whole_updates_are_the_authors(value_penalty: bool, divergence: str) -> None:
    """Losses and every parameter behind four updates."""
    loss = learned(value_penalty, divergence)
    plain, update, noise = Plain(loss), authors_update(loss), draws()
    loss.noise = RecordedNoise(noise)
    for turn in range(4):
        batch = rows(3 * ROWS)
        batch["next", "reward"] += turn
        expected, got = plain.update(list(batch.split(ROWS)), noise), update(batch)
        assert got["slope_penalty"] > 1e-3, "the gradient penalty is tested too"
        for name, value in expected.items():
            assert float(got[name]) == pytest.approx(value, rel=1e-9), (turn, name)
    state = loss.state_dict()
    for owner, values in {
        "actor": plain.actor,
        "qvalue": plain.critics,
        "target_qvalue": plain.targets,
        "divergence": plain.dual,
    }.items():
        ours = [value for name, value in state.items() if name.startswith(f"{owner}_network_params")]
        for value, expected_value in zip(ours, values, strict=True):
            torch.testing.assert_close(value, expected_value.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss.multiplier.value, plain.alpha.detach(), rtol=1e-9, atol=0.0)


def test_compiled_and_stacked_equal_eager() -> None:
    losses = [learned(True, "kl") for _ in range(4)]
    updates = [authors_update(loss) for loss in losses]
    for loss in losses:
        loss.noise = RecordedNoise(draws())
    stacked = Update.stack(updates[2:])
    with without_kernels():
        updates[1].compile()
        for _ in range(2):
            metrics = [update(rows(3 * ROWS)) for update in updates[:2]]
            together = stacked(torch.stack([rows(3 * ROWS)] * 2))
    for name, value in metrics[0].items():
        torch.testing.assert_close(metrics[1][name], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together[name][0], value, rtol=1e-4, atol=1e-5)


def critic_trained_on(divergence: Any, mean: float, spread: float, data: Tensor, **settings: Any) -> Tensor:
    """What the divergence of N(mean, spread^2) from the data is estimated to be, behind many steps of its critic."""
    torch.manual_seed(0)
    actor = make_gaussian_actor(1, 1, hidden_sizes=(8,), mean="linear", clip_samples=False)
    shape: dict[str, Any] = {"num_qvalue_nets": 2, "hidden_sizes": (32, 32), "layer_norm": False}
    critic, score = make_qvalue_ensemble(1, 1, **shape)
    loss = BRACDualLoss(actor, [critic], score, divergence=divergence, **settings)
    with torch.no_grad():
        for value in loss.actor_network_params.values(True, True):
            value.zero_()
        for name, value in loss.actor_network_params.flatten_keys(".").items():
            if name.endswith("mean.bias"):
                value.fill_(mean)
            if name.endswith("log_std"):
                value.fill_(math.log(spread))
    batch, optim = random_transitions(len(data), 1, 1).set("action", data), optim_of(loss.divergence_network_params)
    batch["observation"].zero_()
    for _ in range(300):
        optim.zero_grad()
        loss.divergence_loss(batch)[0].backward()
        optim.step()
    return loss.estimate_divergence(batch)


def test_the_best_critic_finds_the_wasserstein_distance() -> None:
    """Points at -0.4 and next to 0.3."""
    estimate = critic_trained_on("wasserstein", 0.3, 1e-3, torch.full((256, 1), -0.4), gradient_penalty=50.0)
    assert estimate.mean().item() == pytest.approx(0.7, abs=0.05)


def test_the_best_critic_finds_the_kullback_leibler_divergence() -> None:
    """Of two Gaussians whose means are 1.5 standard deviations apart: 1.5^2 / 2; less with a bounded slope."""
    data = 0.2 * torch.randn(2048, 1, generator=torch.Generator().manual_seed(0))
    free, bounded = (critic_trained_on("kl", 0.3, 0.2, data, gradient_penalty=each).mean() for each in (0.0, 5.0))
    assert free.item() == pytest.approx(1.125, abs=0.2)
    assert 0.0 < bounded < 0.5 * free


def test_without_weight_it_is_brac() -> None:
    """Every equation but the divergence's is shared."""
    batch, settings = rows(12), {"multiplier": Multiplier(0.0), "value_penalty": True}
    dual, (actor, behavior) = build(**settings), (make_actor(5, 3, hidden_sizes=(16, 16)) for _ in range(2))
    critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=2, layer_norm=False, hidden_sizes=(16, 16))
    clone = BRACLoss(actor, critics, behavior, **settings)
    carry_over(dual, clone)
    noise = {name: torch.randn(12, 3) for name in ("action", "next_action")}
    many = {name: torch.randn(4, 12, 3) for name in ("divergence", "next_divergence")}
    dual.noise = clone.noise = RecordedNoise(noise | many)
    torch.testing.assert_close(dual.target_value(batch), clone.target_value(batch))
    torch.testing.assert_close(dual.actor_loss(batch)[0], clone.actor_loss(batch)[0])


def test_the_recorded_next_action_counts_in_the_target() -> None:
    batch, other = rows(), rows()
    other["next", "action"] = -other["next", "action"]
    loss = build(value_penalty=True, multiplier=Multiplier(2.0))
    loss.noise = RecordedNoise(draws())
    changed = loss.target_value(batch) != loss.target_value(other)
    assert torch.equal(changed, ~batch["next", "terminated"].squeeze(-1))
    assert ("next", "action") in loss.in_keys
    assert ("next", "action") not in build().in_keys


def test_a_target_without_the_next_action_is_refused() -> None:
    loss = build(value_penalty=True)
    with pytest.raises(O2OSpecError, match=r"add_next_action.*value_penalty=False"):
        loss.target_value(random_transitions(4, 5, 3))
    with pytest.raises(O2OSpecError, match=r"got \('next', 'action'\) of shape \[8, 1\]"):
        loss.target_value(rows().set(("next", "action"), torch.zeros(8, 1)))


def test_settings_out_of_range_are_refused() -> None:
    for name, value in {"soft_min_weight": 1.5, "gradient_penalty": -1.0}.items():
        with pytest.raises(O2OSpecError, match=f"{name}={value}"):
            build(**{name: value})
    with pytest.raises(O2OSpecError, match="wasserstein"):
        build(divergence="mmd")
    critics = make_qvalue_ensemble(5, 3, num_qvalue_nets=2)
    with pytest.raises(O2OSpecError, match="deterministic"):
        BRACDualLoss(make_deterministic_actor(5, 3), critics[:1], critics[1])


def test_a_copy_measures_with_its_own_critic() -> None:
    loss = build()
    other = copy.deepcopy(loss)
    loss.noise = other.noise = RecordedNoise(draws())
    with torch.no_grad():
        other.divergence_network_params["module", "head", "weight"].neg_()
    assert not torch.equal(loss.estimate_divergence(rows()), other.estimate_divergence(rows()))
    assert not isinstance(loss, BRACLoss)
