# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import SoftUpdate

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_pixel_actor, make_pixel_encoder, make_qvalue_ensemble
from torchrl_o2o.objectives import PixelSACLoss
from torchrl_o2o.objectives.networks import flat_parameters
from torchrl_o2o.testing import LossContract, random_transitions
from torchrl_o2o.updates import Copy, Descend, MoveTargets, Repeat, Update

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
SMALL: Any = {"features": (8, 8), "strides": (2, 2), "latent_dim": 10}


def with_frames(batch: TensorDict, key: Any = "observation") -> TensorDict:
    """Random frames in place of random vectors."""
    generator = torch.Generator().manual_seed(0)
    for entry in (key, ("next", *key) if isinstance(key, tuple) else ("next", key)):
        frames = torch.randint(0, 256, (len(batch), 9, 16, 16), generator=generator, dtype=torch.uint8)
        batch[entry] = frames
    return batch


def build(key: Any = "observation", action_key: Any = "action", vectors: Any = None, **settings: Any) -> PixelSACLoss:
    encoder = make_pixel_encoder({key: (9, 16, 16)}, vectors=vectors, **SMALL)
    actor = make_pixel_actor(encoder, 3, hidden_sizes=(16,), action_key=action_key)
    width = encoder.module.out_features
    heads = make_qvalue_ensemble(width, 3, num_qvalue_nets=4, hidden_sizes=(16,), in_keys=("latent", action_key))
    return PixelSACLoss(actor, encoder, heads, **settings)


class TestContract(LossContract):
    trains = {
        "loss_qvalue": ("qvalue_network_params", "encoder_network_params"),
        "loss_actor": ("actor_network_params",),
        "loss_alpha": ("temperature",),
    }

    def make_loss(self, *, observation_key: Any = "observation", action_key: Any = "action") -> PixelSACLoss:
        return build(observation_key, action_key, sub_sample_len=2)

    def make_batch(self, **keys: Any) -> TensorDict:
        return with_frames(super().make_batch(**keys), keys.get("observation_key", "observation"))


def test_convolutions_of_the_actor_are_no_parameters() -> None:
    loss = build()
    trained = [name for name, _ in loss.actor_network_params.named_parameters()]
    assert any("latent" in name for name in trained)
    assert not any("conv" in name for name in trained)
    assert any("conv" in name for name in flat_parameters(loss.actor_network_params))


def test_the_actor_acts_by_the_convolutions_from_before_the_call() -> None:
    """Bitwise, for several minibatches too; the acting module follows."""
    torch.manual_seed(0)
    loss = build(entropy_backup=False, sub_sample_len=1)
    critic_params = [*loss.encoder_network_params.parameters(), *loss.qvalue_network_params.parameters()]
    update = Update(
        loss,
        Copy(*PixelSACLoss.LATE_COPY),
        Repeat(2, Descend("qvalue", torch.optim.Adam(critic_params)), MoveTargets(SoftUpdate(loss, tau=0.5))),
        Descend("actor", torch.optim.Adam(loss.actor_network_params.parameters())),
    )
    batch = TestContract().make_batch()
    for _ in range(3):
        before = {key: value.clone() for key, value in flat_parameters(loss.encoder_network_params).items()}
        update(batch)
        acting = dict(loss.actor_network.named_buffers()) | flat_parameters(loss.actor_network_params)
        for key, value in before.items():
            if ".conv." in key:
                name = key.replace("module.", "module.0.module.encoder.", 1)
                assert torch.equal(acting[name], value), key
                assert not torch.equal(flat_parameters(loss.encoder_network_params)[key], value), key


def test_images_and_vectors_together() -> None:
    loss = build("pixels", vectors={"state": 5})
    batch = with_frames(random_transitions(12, 5, 3, observation_key="state"), "pixels")
    first = loss.qvalue_loss(batch)[1]["qvalue"]
    batch["state"] = batch["state"] + 1.0
    assert not torch.equal(first, loss.qvalue_loss(batch)[1]["qvalue"])
    assert set(loss.in_keys) >= {"pixels", "state", ("next", "pixels"), ("next", "state")}


def test_heads_that_do_not_read_the_latent_are_refused() -> None:
    encoder = make_pixel_encoder((9, 16, 16), **SMALL)
    with pytest.raises(O2OSpecError, match="expected 'latent' among them, which the encoder writes"):
        PixelSACLoss(make_pixel_actor(encoder, 3), encoder, make_qvalue_ensemble(10, 3, num_qvalue_nets=2))


def test_a_repeat_stands_first_but_for_a_copy() -> None:
    loss = build()
    step = Descend("actor", torch.optim.Adam(loss.actor_network_params.parameters()))
    with pytest.raises(O2OSpecError, match="Repeat after another step"):
        Update(loss, step, Repeat(2, step))
    with pytest.raises(O2OSpecError, match="it has no such"):
        Update(loss, Copy("nothing", "actor_network_params"), step)
