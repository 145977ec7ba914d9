# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Learning from pixels against the RLPD authors' numbers (ikostrikov/rlpd@c90fd4b), in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.optim import Adam
from torchrl.objectives import SoftUpdate

from tests import golden_vectors as golden
from tests.objectives import golden_pixels as pixels
from torchrl_o2o.functional import shift_frames
from torchrl_o2o.modules import Temperature, make_pixel_actor, make_pixel_encoder, make_qvalue_ensemble
from torchrl_o2o.objectives import PixelSACLoss, RecordedNoise
from torchrl_o2o.objectives.networks import flat_parameters
from torchrl_o2o.updates import Copy, Descend, MoveTargets, Repeat, Update
from torchrl_o2o.updates.eager import execute_step
from torchrl_o2o.updates.loss_calls import LossResults

pytestmark = pytest.mark.usefixtures("float64")
UPDATES = ("update_A", "update_B")
ACTOR = "module.0.module."


@pytest.mark.parametrize("case", ["encoder_A", "encoder_B"])
def test_encoder(case: str) -> None:
    tree = golden.load(f"rlpd_pixels/{case}")
    settings: Any = pixels.conv_settings(tree) | {"latent_dim": int(golden.hp(tree, "latent_dim"))}
    encoder = make_pixel_encoder(pixels.shape(tree), **settings).module
    params = dict(encoder.named_parameters())
    pixels.fill(params, pixels.encoder_names(golden.sub(tree, "net"), tree, "rlpd"))
    frames = pixels.rlpd_stack(tree["input/pixels"])
    features = encoder.conv[0](frames).unflatten(1, (int(pixels.ints(tree, "conv_features")[-1]), -1))
    golden.assert_close(features.transpose(1, 2).flatten(1), tree["out/conv_features"], "features")
    latent = encoder(frames)
    golden.assert_close(latent, tree["out/latent"], "latent")
    loss = (tree["input/cotangent"] * latent).sum()
    golden.assert_close(loss, tree["out/loss"], "loss")
    loss.backward()
    expected = pixels.encoder_names(golden.sub(tree, "out/net_grad"), tree, "rlpd")
    pixels.compare(params, expected, grad=True)


@pytest.mark.parametrize("case", ["augment_A", "augment_B"])
def test_crops(case: str) -> None:
    tree = golden.load(f"rlpd_pixels/{case}")
    for name in ("pixels", "next_pixels"):
        frames = pixels.rlpd_stack(tree[f"input/{name}"])
        found = shift_frames(frames, tree[f"offsets/{name}"], int(golden.hp(tree, "pad")))
        assert found.dtype == torch.uint8
        assert torch.equal(found, pixels.rlpd_stack(tree[f"out/{name}"]))


def build(case: str) -> tuple[golden.Tree, PixelSACLoss, Update]:
    tree = golden.load(f"rlpd_pixels/{case}")
    latent, action = int(golden.hp(tree, "latent_dim")), int(golden.hp(tree, "act_dim"))
    hidden = (int(golden.hp(tree, "hidden")),) * int(golden.hp(tree, "n_hidden"))
    settings: Any = pixels.conv_settings(tree) | {"latent_dim": latent, "layer_norm_eps": golden.hp(tree, "ln_eps")}
    encoder = make_pixel_encoder(pixels.shape(tree), **settings)
    bounds = (golden.hp(tree, "log_std_min"), golden.hp(tree, "log_std_max"))
    actor = make_pixel_actor(encoder, action, hidden_sizes=hidden, log_std_bounds=bounds)
    members = make_qvalue_ensemble(
        latent,
        action,
        num_qvalue_nets=int(golden.hp(tree, "num_qs")),
        hidden_sizes=hidden,
        layer_norm=bool(golden.hp(tree, "layer_norm")),
        layer_norm_eps=golden.hp(tree, "ln_eps"),
        in_keys=("latent", "action"),
    )
    temperature = Temperature(golden.hp(tree, "target_entropy"))
    temperature.log_alpha.data.copy_(tree["log_alpha"])
    loss = PixelSACLoss(
        actor,
        encoder,
        members,
        temperature=temperature,
        sub_sample_len=int(golden.hp(tree, "num_min_qs")),
        entropy_backup=bool(golden.hp(tree, "backup_entropy")),
        ensemble_reduction="mean",
    )
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    updater = SoftUpdate(loss, tau=golden.hp(tree, "tau"))
    for group, values in parameters(loss, tree, "").items():
        pixels.fill(flat_parameters(getattr(loss, group)), values)
    update = Update(
        loss,
        Copy(*PixelSACLoss.LATE_COPY),
        Repeat(
            int(golden.hp(tree, "utd_ratio")),
            Descend("qvalue", adam(tree, "critic", loss.encoder_network_params, loss.qvalue_network_params)),
            MoveTargets(updater),
        ),
        Descend("actor", adam(tree, "actor", loss.actor_network_params)),
        Descend("alpha", adam(tree, "temp", loss.temperature)),
    )
    return tree, loss, update


def adam(tree: golden.Tree, name: str, *modules: torch.nn.Module) -> Adam:
    betas = golden.hp(tree, "adam_b1"), golden.hp(tree, "adam_b2")
    params = [param for module in modules for param in module.parameters()]
    return Adam(params, lr=golden.hp(tree, f"{name}_lr"), betas=betas, eps=golden.hp(tree, "adam_eps"))


def parameters(loss: PixelSACLoss, tree: golden.Tree, prefix: str, suffix: str = "") -> dict[str, dict[str, Tensor]]:
    """Golden parameters of all networks by the names of the loss's."""
    out: dict[str, dict[str, Tensor]] = {}
    for net, start in (("critic", ""), ("target_critic", "target_")):
        part = golden.sub(tree, f"{prefix}{net}{suffix}")
        out[f"{start}encoder_network_params"] = pixels.encoder_names(part, tree, "rlpd", "module.")
        out[f"{start}qvalue_network_params"] = pixels.heads(part, loss.qvalue_network.module, "module.")
    part = golden.sub(tree, f"{prefix}actor{suffix}")
    policy = loss.actor_network[0].module
    names = pixels.heads(part, torch.nn.ModuleDict({"trunk": policy.trunk, "head": policy.head}), ACTOR)
    out["actor_network_params"] = names | pixels.encoder_names(part, tree, "rlpd", f"{ACTOR}encoder.")
    return out


def check(loss: PixelSACLoss, tree: golden.Tree, prefix: str) -> None:
    for group, values in parameters(loss, tree, prefix, "_after").items():
        pixels.compare(flat_parameters(getattr(loss, group)), values)


def batch_of(tree: golden.Tree, step: golden.Tree) -> TensorDict:
    stack = int(golden.hp(tree, "num_stack"))
    frames = step["batch/frames"]
    pair = pixels.rlpd_stack(frames[..., :stack]), pixels.rlpd_stack(frames[..., 1:])
    batch = pixels.transitions(step, pair, step["batch/terminated"])
    offsets = step["offsets/observation"], step["offsets/next_observation"]
    return pixels.shifted(batch, *offsets, int(golden.hp(tree, "pad")))


def noise_of(step: golden.Tree) -> dict[str, list[Tensor]]:
    subset = list(step["subset"])
    return {"next_action": list(step["noise/next_action"]), "action": [step["noise/action"]], "target": subset}


@pytest.mark.parametrize("case", UPDATES)
def test_gradients(case: str) -> None:
    tree, loss, update = build(case)
    step = golden.sub(tree, "step0")
    execute_step(loss, update.steps[0], TensorDict({}, []), LossResults())  # the late copy
    first = batch_of(tree, step)[: int(golden.hp(tree, "minibatch"))]
    loss.noise = RecordedNoise({name: values[0] for name, values in noise_of(step).items()})
    loss.qvalue_loss(first)[0].backward()
    expected = golden.sub(step, "out/critic_grad_first")
    found = flat_parameters(loss.encoder_network_params), flat_parameters(loss.qvalue_network_params)
    pixels.compare(found[0], pixels.encoder_names(expected, tree, "rlpd", "module."), grad=True)
    pixels.compare(found[1], pixels.heads(expected, loss.qvalue_network.module, "module."), grad=True)


@pytest.mark.parametrize("case", UPDATES)
def test_whole_updates(case: str) -> None:
    from tests.updates.test_golden import Recorded

    tree, loss, update = build(case)
    step: golden.Tree = {}
    for index in range(int(golden.hp(tree, "n_updates"))):
        step = golden.sub(tree, f"step{index}")
        before = {key: value.clone() for key, value in flat_parameters(loss.encoder_network_params).items()}
        loss.noise = Recorded(noise_of(step))
        metrics = update(batch_of(tree, step))
        golden.assert_close(metrics["loss_qvalue"], step["out/critic_loss"], "critic loss")
        golden.assert_close(metrics["qvalue"], step["out/q_mean"], "Q")
        golden.assert_close(metrics["target_value"], step["out/target"][-1].mean(), "target")
        golden.assert_close(metrics["loss_actor"], step["out/actor_loss"], "actor loss")
        golden.assert_close(metrics["entropy"], step["out/entropy"], "entropy")
        golden.assert_close(metrics["alpha"], step["out/alpha"], "alpha")
        golden.assert_close(metrics["loss_alpha"], step["out/temperature_loss"], "temperature loss")
        golden.assert_close(loss.temperature.log_alpha, step["out/log_alpha_after"], "log alpha")
        copied = flat_parameters(loss.actor_network_params)
        for key, value in before.items():
            if ".conv." in key:
                assert torch.equal(copied[key.replace("module.", f"{ACTOR}encoder.", 1)], value), key
        if f"step{index}/out/critic_after/encoder/conv0/bias" in tree:
            check(loss, tree, f"step{index}/out/")
    frames = pixels.rlpd_stack(step["batch/frames"][..., : int(golden.hp(tree, "num_stack"))])
    frames = frames[: len(tree["out/eval_mean"])]
    with torch.no_grad():
        dist = loss._policy({"observation": frames})
    golden.assert_close(dist.loc, tree["out/eval_mean"], "mean")
    golden.assert_close(dist.scale, tree["out/eval_std"], "std")
    golden.assert_close(dist.mode, tree["out/eval_action"], "action")
