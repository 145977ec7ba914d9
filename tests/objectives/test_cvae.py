# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_conditional_vae, make_inverse_dynamics
from torchrl_o2o.objectives import ConditionalVAELoss, InverseDynamicsLoss, RecordedNoise
from torchrl_o2o.testing import LossContract, random_transitions


class TestContractFullDecoder(LossContract):
    trains = {"loss_vae": ("vae_network_params",)}
    decoder: Any = "full"

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> ConditionalVAELoss:
        keys = {"observation_key": observation_key, "action_key": action_key}
        vae = make_conditional_vae(
            self.observation_dim, self.action_dim, hidden_sizes=(16, 16), decoder=self.decoder, **keys
        )
        return ConditionalVAELoss(vae, beta=0.3)


class TestContractLatentDecoder(TestContractFullDecoder):
    decoder = "latent"


class TestContractInverseDynamics(LossContract):
    trains = {"loss_inverse": ("inverse_network_params",)}

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> InverseDynamicsLoss:
        network = make_inverse_dynamics(
            self.observation_dim, self.action_dim, hidden_sizes=(16, 16), observation_key=observation_key
        )
        return InverseDynamicsLoss(network)


def build(decoder: Any = "full", beta: float = 0.5) -> ConditionalVAELoss:
    return ConditionalVAELoss(make_conditional_vae(5, 3, hidden_sizes=(16,), decoder=decoder), beta=beta)


@pytest.mark.parametrize("decoder", ["full", "latent"])
def test_loss_by_hand(decoder: Any) -> None:
    loss, batch = build(decoder), random_transitions(12, 5, 3)
    noise = torch.randn(12, 6)
    loss.noise = RecordedNoise({"latent": noise})
    value, info = loss.vae_loss(batch)
    with loss.vae_network_params.to_module(loss.vae_network):
        vae = loss.vae_network.module
        mean, std = vae.encode(batch["observation"], batch["action"])
        latent = mean + std * noise
        read = [latent, batch["observation"], batch["action"]] if decoder == "full" else [latent]
        reconstruction = vae.decoder(torch.cat(read, -1))
    normal = torch.distributions.Normal(mean, std)
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean(-1)
    error = nn.functional.mse_loss(reconstruction, batch["next", "observation"], reduction="none").mean(-1)
    torch.testing.assert_close(info["kl"], kl.detach())
    torch.testing.assert_close(info["reconstruction_error"], error.detach())
    torch.testing.assert_close(value, (error + 0.5 * kl).mean())


def test_annealing_is_part_of_the_state() -> None:
    loss = build()
    loss.set_progress(0.45)
    assert float(loss.kl_weight) == pytest.approx(0.25)
    other = build()
    other.load_state_dict(loss.state_dict(), strict=True)
    assert float(other.kl_weight) == pytest.approx(0.25)
    loss.set_progress(0.1)
    batch = random_transitions(12, 5, 3)
    _, info = loss.vae_loss(batch)
    loss.noise = RecordedNoise({"latent": torch.zeros(12, 6)})
    value, info = loss.vae_loss(batch)
    torch.testing.assert_close(value, info["reconstruction_error"].mean())  # no divergence in the loss at first


def test_decoder_on_the_latent_alone_cannot_collapse() -> None:
    """With a next state that is the pair itself, only the latent decoder has to put the pair into the latent."""
    divergence = {}
    for decoder in ("full", "latent"):
        torch.manual_seed(0)
        loss = ConditionalVAELoss(make_conditional_vae(3, 2, hidden_sizes=(32,), decoder=decoder), beta=0.5)  # type: ignore[arg-type]
        optim = torch.optim.Adam(loss.parameters(), lr=3e-3)
        for _ in range(300):
            batch = random_transitions(128, 3, 2)
            batch["next", "observation"] = 2.0 * batch["observation"] + batch["action"].sum(-1, keepdim=True)
            value, info = loss.vae_loss(batch)
            optim.zero_grad()
            value.backward()
            optim.step()
        divergence[decoder] = float(info["kl"].mean())
    assert divergence["latent"] > 0.1
    assert divergence["full"] < 0.1 * divergence["latent"]


def test_inverse_dynamics_learns_the_action() -> None:
    torch.manual_seed(0)
    loss = InverseDynamicsLoss(make_inverse_dynamics(3, 2, hidden_sizes=(32,), embedding_dim=4))
    optim = torch.optim.Adam(loss.parameters(), lr=3e-3)
    for _ in range(300):
        batch = random_transitions(128, 3, 2)
        batch["next", "observation"] = batch["observation"] + torch.cat([batch["action"], batch["action"][:, :1]], -1)
        out = loss(batch)
        value = out["loss_inverse"]
        optim.zero_grad()
        value.backward()
        optim.step()
    assert value < 0.1 * batch["action"].square().mean()
    expected = 1 - value.detach() / batch["action"].var(0, correction=0).mean()
    torch.testing.assert_close(out["explained_variance"], expected)


def test_what_is_no_such_network_is_refused() -> None:
    plain = TensorDictModule(nn.Linear(5, 3), in_keys=["observation"], out_keys=["action"])
    with pytest.raises(O2OSpecError, match="make_conditional_vae"):
        ConditionalVAELoss(plain)
    with pytest.raises(O2OSpecError, match="make_inverse_dynamics"):
        InverseDynamicsLoss(plain)
    with pytest.raises(O2OSpecError, match="got beta=-1"):
        build(beta=-1.0)
    with pytest.raises(O2OSpecError, match="got decoder='half'"):
        make_conditional_vae(5, 3, decoder="half")  # type: ignore[arg-type]
