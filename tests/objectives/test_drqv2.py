# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch.optim import Adam
from torchrl.objectives import SoftUpdate
from torchrl.objectives.value import TD0Estimator, ValueEstimatorBase

from tests.kernels import without_kernels
from tests.objectives.test_pixel_sac import with_frames
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.noise import GeneratorNoise
from torchrl_o2o.modules import (
    ConservativePenalty,
    make_bottleneck,
    make_latent_actor,
    make_pixel_encoder,
    make_qvalue_ensemble,
)
from torchrl_o2o.objectives import DrQV2BCLoss, DrQV2CQLLoss, DrQV2Loss, RecordedNoise
from torchrl_o2o.objectives.networks import flat_parameters
from torchrl_o2o.testing import LossContract
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def networks(key: Any = "observation", action_key: Any = "action") -> Any:
    settings: Any = {"features": (8, 8), "strides": (2, 1), "offset": 0.5, "initialization": "orthogonal"}
    encoder = make_pixel_encoder({key: (9, 16, 16)}, latent_dim=None, out_key="features", **settings)
    width = encoder.module.out_features
    actor = make_latent_actor(width, 3, latent_dim=10, hidden_sizes=(16,), action_key=action_key)
    sizes: Any = {"num_qvalue_nets": 2, "hidden_sizes": (16,), "layer_norm": False}
    return (
        encoder,
        actor,
        make_bottleneck(width, 10),
        make_qvalue_ensemble(10, 3, in_keys=("latent", action_key), **sizes),
    )


class TestContract(LossContract):
    trains = {
        "loss_qvalue": ("qvalue_network_params", "latent_network_params", "encoder_network_params"),
        "loss_actor": ("actor_network_params",),
    }

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> DrQV2Loss:
        return DrQV2Loss(*networks(observation_key, action_key), std=0.2)

    def make_batch(self, **keys: Any) -> TensorDict:
        return with_frames(super().make_batch(**keys), keys.get("observation_key", "observation"))


class TestContractBC(TestContract):
    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> DrQV2Loss:
        return DrQV2BCLoss(*networks(observation_key, action_key), std=0.2)


class TestContractCQL(TestContract):
    trains = {
        "loss_qvalue": ("qvalue_network_params", "latent_network_params", "encoder_network_params"),
        "loss_actor": ("actor_network_params",),
        "loss_alpha_prime": ("penalty",),
    }

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> DrQV2Loss:
        penalty = ConservativePenalty(2.0, num_actions=3, target_gap=0.5)
        return DrQV2CQLLoss(*networks(observation_key, action_key), std=0.2, penalty=penalty)

    def bootstrapped(self, loss: DrQV2Loss, batch: TensorDict) -> torch.Tensor:
        torch.manual_seed(1)  # the penalty also reads the next state, to value actions there
        return loss.target_value(batch)


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("target_gap", [None, 0.4])
def test_the_penalty_of_v_d4rl(sampling: bool, target_gap: float | None) -> None:
    """Uniform actions and the policy's at s, the policy's at s' valued there, and the recorded one, summed by hand."""
    torch.manual_seed(0)
    weight, temperature, std, count = 3.0, 0.7, 0.2, 4
    penalty = ConservativePenalty(
        weight,
        num_actions=count,
        importance_sampling=sampling,
        softmax_temperature=temperature,
        target_gap=target_gap,
        init_log_multiplier=0.3,
    )
    loss, batch = DrQV2CQLLoss(*networks(), std=std, penalty=penalty), TestContract().make_batch()
    draws = {name: torch.randn(count, 12, 3) for name in ("penalty_action", "penalty_next_action")}
    uniform, noise = torch.rand(count, 12, 3) * 2 - 1, torch.randn(12, 3)
    loss.noise = RecordedNoise({**draws, "uniform_action": uniform, "next_action": noise})
    value, info = loss.qvalue_loss(batch)
    found = torch.autograd.grad(value, list(loss.encoder_network_params.parameters()))

    features, following = (loss._features({"observation": frames}) for frames in states(batch))
    following = following.detach()
    latent, heads = flat_parameters(loss.latent_network_params), flat_parameters(loss.qvalue_network_params)

    def q(place: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return loss._heads(place, action, latent, heads)

    entries = [q(features, action) + (3 * math.log(2.0) if sampling else 0.0) for action in uniform]
    for place, name in ((features, "penalty_action"), (following, "penalty_next_action")):
        for draw in draws[name]:
            mean = loss._act(place, torch.zeros(12, 3))[1].detach()
            action = (mean + (std * draw).clamp(-0.3, 0.3)).clamp(-1 + 1e-6, 1 - 1e-6)
            log_prob = torch.distributions.Normal(mean, std).log_prob(action).sum(-1)
            entries.append(q(place, action) - (log_prob if sampling else 0.0))
    recorded = q(features, batch["action"])
    entries += [] if sampling else [recorded]
    gap = temperature * torch.logsumexp(torch.stack(entries) / temperature, 0) - recorded
    expected = (recorded - info["target_value"]).square() + weight * gap
    if target_gap is not None:
        expected = expected + (math.exp(0.3) - 1.0) * weight * gap - math.exp(0.3) * weight * target_gap
    expected = expected.sum(0).mean()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(info["gap"], gap.detach())
    wanted = torch.autograd.grad(expected, list(loss.encoder_network_params.parameters()))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    multiplier, _ = loss.alpha_prime_loss(batch, gap=info["gap"])
    raised = 0.0 if target_gap is None else -math.exp(0.3) * weight * (gap.mean() - target_gap)
    torch.testing.assert_close(multiplier, torch.as_tensor(raised).detach())


def test_without_weight_it_is_drqv2() -> None:
    noise, batch = torch.randn(12, 3), TestContract().make_batch()
    torch.manual_seed(0)
    plain, losses = networks(), []
    for build in (lambda: DrQV2Loss(*plain), lambda: DrQV2CQLLoss(*plain, penalty=ConservativePenalty(0.0))):
        loss = build()
        loss.noise = Named(next_action=noise, action=noise)
        losses.append((loss.qvalue_loss(batch)[0], loss.actor_loss(batch)[0]))
    torch.testing.assert_close(losses[0], losses[1])


class Named(GeneratorNoise):
    """Recorded numbers where there are any."""

    def __init__(self, **values: torch.Tensor) -> None:
        super().__init__()
        self.values = values

    def normal(self, name: str, like: torch.Tensor, sample_shape: tuple[int, ...] = ()) -> torch.Tensor:
        return self.values.get(name, super().normal(name, like, sample_shape))


def states(batch: TensorDict) -> tuple[torch.Tensor, torch.Tensor]:
    return batch["observation"], batch["next", "observation"]


def test_cloning_trains_actor_and_encoder() -> None:
    torch.manual_seed(0)
    loss, batch = DrQV2BCLoss(*networks(), std=0.0), TestContract().make_batch()
    params = [*loss.actor_network_params.parameters(), *loss.encoder_network_params.parameters()]
    before = flat_parameters(loss.encoder_network_params)["module.conv.0.layers.0.weight"].clone()
    update = Update(loss, Descend("clone", Adam(params, lr=1e-3)))
    errors = [float(update(batch)["bc_error"]) for _ in range(40)]
    assert errors[-1] < 0.5 * errors[0]
    assert not torch.equal(before, flat_parameters(loss.encoder_network_params)["module.conv.0.layers.0.weight"])


def test_the_noise_is_clipped_and_not_the_normal_numbers() -> None:
    loss, batch = DrQV2Loss(*networks(), std=0.1, noise_clip=0.3), TestContract().make_batch()
    features = loss._features(loss._state(batch))
    action, mean = loss._act(features, torch.full((12, 3), 2.0))
    torch.testing.assert_close(action, (mean + 0.2).clamp(-1 + 1e-6, 1 - 1e-6))
    action, mean = loss._act(features, torch.full((12, 3), 5.0))
    torch.testing.assert_close(action, (mean + 0.3).clamp(-1 + 1e-6, 1 - 1e-6))


def test_steps_and_discounts_of_the_batch_enter_the_target() -> None:
    loss, batch = DrQV2Loss(*networks(), std=0.0), TestContract().make_batch()
    loss.noise = RecordedNoise({"next_action": torch.zeros(12, 3)})
    loss.make_value_estimator(gamma=0.9)
    one = loss.target_value(batch)
    reward, goes_on = batch["next", "reward"].squeeze(-1), ~batch["next", "terminated"].squeeze(-1)
    value = (one - reward) / 0.9
    assert (value[~goes_on] == 0).all()
    three = loss.target_value(batch.clone().set("steps_to_next_obs", torch.full((12,), 3)))
    torch.testing.assert_close(three[goes_on], (reward + 0.9**3 * value)[goes_on])
    factor = batch.clone()
    factor["next", "discount"] = torch.full((12, 1), 0.5)
    torch.testing.assert_close(loss.target_value(factor)[goes_on], (reward + 0.5 * value)[goes_on])


class Halved(TD0Estimator):
    """Trusts the next value half."""

    def value_estimate(self, tensordict: Any, target_params: Any = None, next_value: Any = None, **kwargs: Any) -> Any:
        next_value = tensordict["next", "state_value"] if next_value is None else next_value
        return super().value_estimate(tensordict, next_value=0.5 * next_value)


class Returns(ValueEstimatorBase):
    """No one-step target."""

    def forward(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def value_estimate(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def test_discounts_of_the_batch_go_through_the_value_estimator() -> None:
    """They are the whole factor of the next value, at terminal rows and after several steps too."""
    loss, batch = DrQV2Loss(*networks(), std=0.0), TestContract().make_batch()
    loss.noise = RecordedNoise({"next_action": torch.zeros(12, 3)})
    loss.make_value_estimator(gamma=1.0)
    everything_goes_on = batch.clone()
    everything_goes_on["next", "terminated"] = torch.zeros(12, 1, dtype=torch.bool)
    reward = batch["next", "reward"].squeeze(-1)
    value = loss.target_value(everything_goes_on) - reward
    batch["next", "discount"] = torch.linspace(0.0, 1.0, 12).unsqueeze(-1)
    batch["steps_to_next_obs"] = torch.full((12,), 3)
    before = batch.clone()
    expected = batch["next", "discount"].squeeze(-1) * value
    torch.testing.assert_close(loss.target_value(batch), reward + expected)
    estimator = Halved(gamma=0.9, value_network=None)
    loss.make_value_estimator(estimator)
    torch.testing.assert_close(loss.target_value(batch), reward + 0.5 * expected)
    assert estimator.gamma == 0.9
    assert (batch == before).all()
    loss.make_value_estimator(Returns(value_network=None))
    with pytest.raises(O2OSpecError, match="their own discounts and a Returns, expected a TD0Estimator"):
        loss.target_value(batch)


@pytest.mark.parametrize("estimator", [None, Halved])
def test_a_compiled_update_discounts_by_the_batch_too(estimator: Any) -> None:
    measured = []
    for compiled in (False, True):
        torch.manual_seed(0)
        loss, batch = DrQV2Loss(*networks(), std=0.2), TestContract().make_batch()
        if estimator is not None:
            loss.make_value_estimator(estimator(gamma=0.9, value_network=None))
        batch["next", "discount"] = torch.linspace(0.0, 1.0, 12).unsqueeze(-1)
        update = Update(
            loss,
            Descend("qvalue", Adam(loss.qvalue_network_params.parameters())),
            MoveTargets(SoftUpdate(loss, tau=0.1)),
        )
        if compiled:
            update.compile()
        torch.manual_seed(1)
        with without_kernels():
            measured.append(torch.stack([update(batch)["loss_qvalue"] for _ in range(2)]))
    torch.testing.assert_close(*measured)


def test_the_penalty_compiled_is_the_same() -> None:
    """With the actor on the features from before the step, and the multiplier at the parameters of the critics'."""
    measured, batch = [], TestContract().make_batch()
    for compiled in (False, True):
        torch.manual_seed(0)
        loss = DrQV2CQLLoss(*networks(), penalty=ConservativePenalty(2.0, num_actions=3, target_gap=0.5))
        critics = loss.encoder_network_params, loss.latent_network_params, loss.qvalue_network_params
        update = Update(
            loss,
            Joint(
                Descend("qvalue", Adam([param for part in critics for param in part.parameters()])),
                Descend("alpha_prime", Adam(loss.penalty.parameters())),
            ),
            Descend("actor", Adam(loss.actor_network_params.parameters())),
            MoveTargets(SoftUpdate(loss, tau=0.1)),
        )
        if compiled:
            update.compile()
        torch.manual_seed(1)
        with without_kernels():
            names = ("loss_qvalue", "loss_actor", "loss_alpha_prime", "alpha_prime")
            measured.append(torch.stack([update(batch)[name] for name in names for _ in range(2)]))
    torch.testing.assert_close(*measured)


@pytest.mark.parametrize("settings", [{"std": -1.0}, {"noise_clip": -0.1}, {"bc_weight": -1.0}])
def test_negative_settings_are_refused(settings: Any) -> None:
    with pytest.raises(O2OSpecError, match=f"got .*{next(iter(settings))}=-"):
        DrQV2BCLoss(*networks(), **settings)


def test_networks_that_do_not_fit_are_refused() -> None:
    encoder, actor, latent, critics = networks()
    with pytest.raises(O2OSpecError, match="which the network before it writes"):
        DrQV2Loss(encoder, actor, make_bottleneck(latent.module[0].in_features, 10, out_key="z"), critics)


def test_the_copies_of_a_shared_output_layer_stay_equal_bit_for_bit() -> None:
    torch.manual_seed(0)
    encoder, actor, latent, critics = networks()
    shared = make_qvalue_ensemble(
        10, 3, num_qvalue_nets=2, hidden_sizes=(16,), in_keys=critics[0].in_keys, shared_head=True
    )
    loss, batch = DrQV2Loss(encoder, actor, latent, shared), TestContract().make_batch()
    head = loss.qvalue_network_params["module", "head", "weight"]
    before, optim = head.detach().clone(), torch.optim.SGD(loss.qvalue_network_params.parameters(), lr=0.1)
    for _ in range(3):
        optim.zero_grad()
        loss.qvalue_loss(batch)[0].backward()
        optim.step()
    assert not torch.equal(head, before)
    assert torch.equal(head[0], head[1])
