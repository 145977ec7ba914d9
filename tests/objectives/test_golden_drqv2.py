# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""DrQ-v2 and DrQ-v2+BC against the authors' numbers, in float64 (facebookresearch/drqv2, conglu1997/v-d4rl)."""

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
from torchrl_o2o.functional import linear_schedule, shift_frames
from torchrl_o2o.modules import (
    make_bottleneck,
    make_latent_actor,
    make_pixel_encoder,
    make_qvalue_ensemble,
)
from torchrl_o2o.objectives import DrQV2BCLoss, DrQV2Loss, RecordedNoise
from torchrl_o2o.objectives.networks import flat_parameters
from torchrl_o2o.updates import Descend, MoveTargets, Update

pytestmark = pytest.mark.usefixtures("float64")
UPDATES = ("update_A", "update_B", "bc_update_A", "bc_update_B")
#: `meta/stddev_schedule` of the files, which is text.
SCHEDULES = {"update_A": (1.0, 0.1, 100), "update_B": (1.0, 0.1, 100), "bc_update_A": (1.0, 0.1, 250)}


def settings(tree: golden.Tree) -> Any:
    return pixels.conv_settings(tree) | {"offset": 0.5, "initialization": "orthogonal"}


@pytest.mark.parametrize("case", ["encoder_A", "encoder_B"])
def test_encoder(case: str) -> None:
    tree = golden.load(f"drqv2/{case}")
    latent, eps = int(golden.hp(tree, "latent_dim")), golden.hp(tree, "ln_eps")
    encoder = make_pixel_encoder(pixels.shape(tree), **settings(tree), latent_dim=latent, layer_norm_eps=eps).module
    params = dict(encoder.named_parameters())
    pixels.fill(params, pixels.encoder_names(golden.sub(tree, "net"), tree, "drqv2"))
    golden.assert_close(encoder.conv[0](tree["input/pixels"]), tree["out/conv_features"], "features")
    found = encoder(tree["input/pixels"])
    golden.assert_close(found, tree["out/latent"], "latent")
    (tree["input/cotangent"] * found).sum().backward()
    pixels.compare(params, pixels.encoder_names(golden.sub(tree, "out/net_grad"), tree, "drqv2"), grad=True)


@pytest.mark.parametrize("case", ["augment_A", "augment_B"])
def test_crops(case: str) -> None:
    tree = golden.load(f"drqv2/{case}")
    found = shift_frames(tree["input/pixels"], tree["offsets/xy"].flip(1), int(golden.hp(tree, "pad")))
    golden.assert_close(found.double(), tree["out/pixels"], "crops", rtol=1e-12)
    golden.assert_close(found.double(), tree["out/pixels_float32"], "crops in float32", rtol=1e-5)


def build(case: str) -> tuple[golden.Tree, DrQV2Loss, Update]:
    tree = golden.load(f"drqv2/{case}")
    latent, action = int(golden.hp(tree, "latent_dim")), int(golden.hp(tree, "act_dim"))
    hidden = (int(golden.hp(tree, "hidden")),) * int(golden.hp(tree, "n_hidden"))
    encoder = make_pixel_encoder(pixels.shape(tree), **settings(tree), latent_dim=None, out_key="features")
    width = encoder.module.out_features
    actor = make_latent_actor(width, action, latent_dim=latent, hidden_sizes=hidden).double()
    members = make_qvalue_ensemble(
        latent, action, num_qvalue_nets=2, hidden_sizes=hidden, layer_norm=False, in_keys=("latent", "action")
    )
    networks = encoder, actor, make_bottleneck(width, latent), members
    clip = golden.hp(tree, "stddev_clip")
    loss = DrQV2Loss(*networks, noise_clip=clip)
    if case.startswith("bc"):
        weight, use = golden.hp(tree, "bc_weight"), bool(golden.hp(tree, "use_bc"))
        loss = DrQV2BCLoss(*networks, noise_clip=clip, bc_weight=weight, use_bc=use)
    loss.make_value_estimator(gamma=golden.hp(tree, "discount"))
    updater = SoftUpdate(loss, tau=golden.hp(tree, "tau"))
    for group, values in parameters(loss, tree, "").items():
        pixels.fill(flat_parameters(getattr(loss, group)), values)
    critics = loss.encoder_network_params, loss.latent_network_params, loss.qvalue_network_params
    update = Update(
        loss,
        Descend("qvalue", adam(tree, *critics)),
        Descend("actor", adam(tree, loss.actor_network_params)),
        MoveTargets(updater),
    )
    return tree, loss, update


def adam(tree: golden.Tree, *modules: torch.nn.Module) -> Adam:
    betas = golden.hp(tree, "adam_b1"), golden.hp(tree, "adam_b2")
    params = [param for module in modules for param in module.parameters()]
    return Adam(params, lr=golden.hp(tree, "lr"), betas=betas, eps=golden.hp(tree, "adam_eps"))


def parameters(loss: DrQV2Loss, tree: golden.Tree, prefix: str, suffix: str = "") -> dict[str, dict[str, Tensor]]:
    out: dict[str, dict[str, Tensor]] = {}
    encoder = {f"encoder/{key}": value for key, value in golden.sub(tree, f"{prefix}encoder{suffix}").items()}
    out["encoder_network_params"] = pixels.encoder_names(encoder, tree, "drqv2", "module.")
    for net, start in (("critic", ""), ("target_critic", "target_")):
        part = golden.sub(tree, f"{prefix}{net}{suffix}")
        if part:
            out[f"{start}latent_network_params"] = pixels.latent_names(part, part["latent/weight"], "module.")
            out[f"{start}qvalue_network_params"] = pixels.heads(part, loss.qvalue_network.module, "module.")
    part = golden.sub(tree, f"{prefix}actor{suffix}")
    body = torch.nn.ModuleDict({"1": loss.actor_network.module[0][1], "2": loss.actor_network.module[0][2]})
    names = pixels.latent_names(part, part["latent/weight"], "module.0.0.")
    out["actor_network_params"] = names | pixels.heads(part, body, "module.0.")
    return out


def batch_of(tree: golden.Tree, step: golden.Tree) -> TensorDict:
    frames = step["batch/observation"], step["batch/next_observation"]
    batch = pixels.transitions(step, frames, torch.zeros(len(frames[0])))
    batch["next", "discount"] = step["batch/discount"].unsqueeze(-1)
    offsets = step["offsets/observation_xy"].flip(1), step["offsets/next_observation_xy"].flip(1)
    return pixels.shifted(batch, *offsets, int(golden.hp(tree, "pad")))


def steps_of(tree: golden.Tree) -> list[golden.Tree]:
    """The calls that are not skipped."""
    steps = [golden.sub(tree, f"step{index}") for index in range(int(golden.hp(tree, "n_updates")))]
    return [step | {"index": torch.tensor(i)} for i, step in enumerate(steps) if not step["info/skipped"]]


def noise_of(step: golden.Tree) -> dict[str, Tensor]:
    return {name: step[f"noise/{name}"] for name in ("next_action", "action")}


def test_schedule() -> None:
    for case, values in SCHEDULES.items():
        tree = golden.load(f"drqv2/{case}")
        for step in steps_of(tree):
            assert linear_schedule(int(step["env_step"]), *values) == pytest.approx(float(step["out/std"]), rel=1e-12)


@pytest.mark.parametrize("case", UPDATES)
def test_losses(case: str) -> None:
    tree, loss, _ = build(case)
    step = steps_of(tree)[0]
    loss.std.fill_(float(step["out/std"]))
    batch = batch_of(tree, step)
    with torch.no_grad():
        action, mean = loss._act(loss._features(loss._next_state(batch)), step["noise/next_action"])
    golden.assert_close(mean, step["out/next_mean"], "mean")
    golden.assert_close(action, step["out/next_action"], "next action")
    loss.noise = RecordedNoise(noise_of(step))
    value, info = loss.qvalue_loss(batch)
    golden.assert_close(info["target_value"], step["out/target"], "target")
    golden.assert_close(info["qvalue"], step["out/q"], "q")
    golden.assert_close(value, step["out/critic_loss"], "critic loss")
    value.backward()
    found = {group: flat_parameters(getattr(loss, group)) for group in parameters(loss, tree, "")}
    expected = parameters(loss, {**tree, **grads(step)}, "grad/")
    for group in ("encoder_network_params", "latent_network_params", "qvalue_network_params"):
        pixels.compare(found[group], expected[group], grad=True)


def grads(step: golden.Tree) -> golden.Tree:
    names = ("encoder", "critic", "actor")
    return {f"grad/{n}/{k}": v for n in names for k, v in golden.sub(step, f"out/{n}_grad").items()}


@pytest.mark.parametrize("case", UPDATES)
def test_whole_updates(case: str) -> None:
    tree, loss, update = build(case)
    step: golden.Tree = {}
    for step in steps_of(tree):
        loss.std.fill_(float(step["out/std"]))
        loss.noise = RecordedNoise(noise_of(step))
        metrics = update(batch_of(tree, step))
        check_metrics(metrics, step)
        if int(step["index"]) == 0:
            expected = parameters(loss, {**tree, **grads(step)}, "grad/")["actor_network_params"]
            found = {f"module.{name}": param for name, param in loss.actor_network.module.named_parameters()}
            pixels.compare(flat_parameters(loss.actor_network_params), expected, grad=True)
            assert found
        if "out/encoder_after/conv0/bias" in step:
            check(loss, tree, f"step{int(step['index'])}/out/")
    with torch.no_grad():
        features = loss._features({"observation": step["batch/observation"]})
        golden.assert_close(loss._act(features, torch.zeros(1))[1], tree["out/eval_action"], "action")


def check_metrics(metrics: dict[str, Tensor], step: golden.Tree) -> None:
    golden.assert_close(metrics["loss_qvalue"], step["out/critic_loss"], "critic loss")
    golden.assert_close(metrics["loss_actor"], step["out/actor_loss"], "actor loss")
    golden.assert_close(metrics["log_prob"], step["out/actor_logprob"], "log prob")
    if "out/bc_loss" in step:
        golden.assert_close(metrics["bc_error"], step["out/bc_loss"], "distance")
        golden.assert_close(-metrics["qvalue_policy"], step["out/actor_q_loss"], "Q term")


def check(loss: DrQV2Loss, tree: golden.Tree, prefix: str) -> None:
    for group, values in parameters(loss, tree, prefix, "_after").items():
        pixels.compare(flat_parameters(getattr(loss, group)), values)
