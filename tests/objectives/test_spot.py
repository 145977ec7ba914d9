# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SPOTLoss and the VAE it rests on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded

from tests.objectives.offline_losses import assert_discounted, assert_optimal, train
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.offline import spot_cooling
from torchrl_o2o.modules import ActionVAE, make_action_vae, make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import SPOTLoss, VAELoss
from torchrl_o2o.testing import (
    ContextualTargetEnv,
    DelayedRewardEnv,
    LossContract,
    probe_transitions,
    random_transitions,
)

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


def make_vae(observation: int, action: int, keys: tuple[Any, Any] = ("observation", "action")) -> Any:
    return make_action_vae(observation, action, hidden_sizes=(16, 16), observation_key=keys[0], action_key=keys[1])


def build(
    observation: int = 5, action: int = 3, *, keys: tuple[Any, Any] = ("observation", "action"), **settings: Any
) -> SPOTLoss:
    actor = make_deterministic_actor(
        observation, action, hidden_sizes=(16, 16), observation_key=keys[0], action_key=keys[1]
    )
    critics = make_qvalue_ensemble(
        observation, action, num_qvalue_nets=2, hidden_sizes=(16, 16), in_keys=keys, layer_norm=False
    )
    return SPOTLoss(actor, critics, make_vae(observation, action, keys), **settings)


class TestContractSPOT(LossContract):
    trains = {"loss_qvalue": ("qvalue_network_params",), "loss_actor": ("actor_network_params",)}
    settings: dict[str, Any] = {}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> SPOTLoss:
        return build(self.observation_dim, self.action_dim, keys=(observation_key, action_key), **self.settings)


class TestContractSPOTImportanceWeighted(TestContractSPOT):
    settings = {"iwae": True, "num_samples": 4, "density_weight": 0.2}


class TestContractVAE(LossContract):
    trains = {"loss_vae": ("vae_network_params",)}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> VAELoss:
        return VAELoss(make_vae(self.observation_dim, self.action_dim, (observation_key, action_key)))


@pytest.mark.parametrize(
    "settings", [{"density_weight": -0.1}, {"vae_beta": 0.0}, {"num_samples": 0}], ids=lambda item: next(iter(item))
)
def test_options_that_do_not_fit_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(O2OSpecError, match=next(iter(settings))):
        build(**settings)


def test_only_a_vae_is_taken_for_one() -> None:
    actor, critics = make_deterministic_actor(5, 3), make_qvalue_ensemble(5, 3, num_qvalue_nets=2)
    with pytest.raises(O2OSpecError, match="expected the VAE that make_action_vae"):
        SPOTLoss(actor, critics, critics[0])
    with pytest.raises(O2OSpecError, match="expected the VAE that make_action_vae"):
        VAELoss(critics[0])
    with pytest.raises(O2OSpecError, match=r"got beta=-1\.0"):
        VAELoss(make_vae(5, 3), beta=-1.0)


def test_vae_draws_its_own_noise_outside_of_losses() -> None:
    vae = make_vae(5, 3)
    data = TensorDict({"observation": torch.randn(4, 5), "action": torch.zeros(4, 3)}, [4])
    first, second = vae(data.clone())["reconstruction"], vae(data.clone())["reconstruction"]
    assert first.shape == (4, 3)
    assert not torch.equal(first, second)


def test_vae_decodes_into_the_box() -> None:
    box = Bounded(torch.tensor([0.0, -3.0]), torch.tensor([1.0, 3.0]), (2,))
    vae = make_action_vae(5, box, hidden_sizes=(8,))
    assert vae.module.latent_dim == 4
    assert box.is_in(vae.module.decode(torch.randn(9, 5), 50.0 * torch.randn(9, 4)))


def test_encoders_log_std_is_clipped() -> None:
    vae = ActionVAE(5, 3, 6, (8,), log_std_bounds=(-1.0, 0.5))
    vae.log_std.bias.data.copy_(torch.tensor([-9.0, 9.0, -9.0, 9.0, -9.0, 9.0]))
    std = vae.encode(torch.zeros(1, 5), torch.zeros(1, 3))[1]
    torch.testing.assert_close(std.log(), torch.tensor([[-1.0, 0.5] * 3]))


def two_modes(rows: int = 1024) -> TensorDict:
    """Actions near +0.6 or -0.6, never in between, whatever the observation."""
    side = torch.where(torch.rand(rows, 1) < 0.5, -0.6, 0.6)
    following = random_transitions(rows, 1, 1)["next"]
    data = {"observation": torch.rand(rows, 1), "action": side + 0.03 * torch.randn(rows, 1), "next": following}
    return TensorDict(data, [rows])


@pytest.fixture(scope="module")
def trained_vae() -> VAELoss:
    torch.manual_seed(0)
    loss = VAELoss(make_vae(1, 1), beta=0.05)
    train(loss, two_modes(), 500, lr=5e-3)
    return loss


@pytest.mark.parametrize("iwae", [False, True])
def test_penalty_is_higher_off_the_data(trained_vae: VAELoss, iwae: bool) -> None:
    torch.manual_seed(0)
    actor, critics = make_deterministic_actor(1, 1), make_qvalue_ensemble(1, 1, num_qvalue_nets=2)
    loss = SPOTLoss(actor, critics, trained_vae.vae_network, vae_beta=0.05, num_samples=32, iwae=iwae)
    loss.vae_network_params = trained_vae.vae_network_params

    def penalty(action: float) -> Tensor:
        batch = two_modes(64)
        return loss.data_penalty(batch.set("action", torch.full((64, 1), action))).mean()

    assert penalty(0.6) < penalty(0.95)
    assert penalty(-0.6) < penalty(-0.95)
    assert penalty(0.6) < penalty(0.0)


def test_spot_reads_the_vae_that_vae_loss_trained() -> None:
    """The two losses share the module's parameters, in whichever order they are built."""
    vae, data = make_vae(5, 3), random_transitions(32, 5, 3)
    actor, critics = make_deterministic_actor(5, 3), make_qvalue_ensemble(5, 3, num_qvalue_nets=2)
    training = VAELoss(vae)
    spot = SPOTLoss(actor, critics, vae)
    before = spot.vae_network_params["module", "mean", "weight"].clone()
    train(training, data, 3)
    after = spot.vae_network_params["module", "mean", "weight"]
    assert not torch.equal(after, before)
    assert torch.equal(after, training.vae_network_params["module", "mean", "weight"])


def test_cooling_reaches_the_loss_and_the_checkpoint() -> None:
    loss, batch = build(density_weight=0.5), random_transitions(12, 5, 3)
    torch.manual_seed(0)
    full, info = loss.actor_loss(batch)
    loss.density_weight.fill_(spot_cooling(0.5, 600, 1000))
    torch.manual_seed(0)
    cooled = loss.actor_loss(batch)[0]
    torch.testing.assert_close(full - cooled, 0.3 * info["penalty"].mean())
    assert loss.state_dict()["density_weight"].item() == pytest.approx(0.2)


def test_zero_weight_leaves_td3_alone() -> None:
    loss, batch = build(density_weight=0.0), random_transitions(12, 5, 3)
    value, info = loss.actor_loss(batch)
    qvalue = info["qvalue_policy"]
    torch.testing.assert_close(value.detach(), -qvalue.mean() / qvalue.abs().mean())


def test_probe_actor_finds_the_contextual_optimum() -> None:
    torch.manual_seed(0)
    data = probe_transitions(ContextualTargetEnv(), 1024)
    vae = make_vae(1, 1)
    train(VAELoss(vae), data, 100, lr=5e-3)
    actor = make_deterministic_actor(1, 1, hidden_sizes=(16, 16))
    critics = make_qvalue_ensemble(1, 1, num_qvalue_nets=2, hidden_sizes=(16, 16), layer_norm=False)
    loss = SPOTLoss(actor, critics, vae, density_weight=0.01)
    train(loss, data, 400, lr=5e-3)
    assert_optimal(loss)


def test_probe_critic_discounts_a_delayed_reward() -> None:
    torch.manual_seed(0)
    loss, data = build(1, 1), probe_transitions(DelayedRewardEnv(), 64)
    loss.make_value_estimator(gamma=0.5)
    train(loss, data, 200, lr=1e-2)
    assert_discounted(loss, data)
