# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the golden tests from pixels share: the authors' layouts turned into this package's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Tensor

from tests import golden_vectors as golden
from torchrl_o2o.data import RandomShift
from torchrl_o2o.objectives import RecordedNoise


def conv_settings(tree: golden.Tree) -> dict[str, tuple[int, ...]]:
    return {"features": ints(tree, "conv_features"), "strides": ints(tree, "conv_strides")}


def ints(tree: golden.Tree, name: str) -> tuple[int, ...]:
    return tuple(tree[f"hp/{name}"].tolist())


def shape(tree: golden.Tree) -> tuple[int, int, int]:
    return 3 * int(golden.hp(tree, "num_stack")), int(golden.hp(tree, "height")), int(golden.hp(tree, "width"))


def encoder_names(tree: golden.Tree, whole: golden.Tree, family: str, prefix: str = "") -> dict[str, Tensor]:
    """Golden convolutions and bottleneck under the names and in the layout of ``PixelEncoder``."""
    out: dict[str, Tensor] = {}
    sides = [int(golden.hp(whole, side)) for side in ("height", "width")]
    channels = 0
    for index, stride in enumerate(ints(whole, "conv_strides")):
        if f"encoder/conv{index}/weight" in tree:
            weight = tree[f"encoder/conv{index}/weight"]
            if index == 0 and family == "rlpd":  # color-major to frame-major
                weight = weight.unflatten(2, (3, -1)).transpose(2, 3).flatten(2, 3)
            out[f"{prefix}conv.0.layers.{index}.weight"] = weight.permute(3, 2, 0, 1)
            out[f"{prefix}conv.0.layers.{index}.bias"] = tree[f"encoder/conv{index}/bias"]
        sides = [(side - 3) // stride + 1 for side in sides]
    channels = ints(whole, "conv_features")[-1]
    if "latent/weight" in tree:
        weight = tree["latent/weight"]
        if family == "rlpd":  # rows of hwc to chw
            weight = weight.unflatten(0, (*sides, channels)).permute(2, 0, 1, 3).flatten(0, 2)
        out |= latent_names(tree, weight, f"{prefix}latent.0.")
    return out


def latent_names(tree: golden.Tree, weight: Tensor, prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}0.weight": weight.T,
        f"{prefix}0.bias": tree["latent/bias"],
        f"{prefix}1.weight": tree["latent/ln_scale"],
        f"{prefix}1.bias": tree["latent/ln_bias"],
    }


def fill(params: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        params[name].data.copy_(value)


def compare(params: Mapping[str, Tensor], values: Mapping[str, Tensor], *, grad: bool = False) -> None:
    assert values
    for name, value in values.items():
        found = params[name].grad if grad else params[name]
        golden.assert_close(found, value, name)


def rlpd_stack(frames: Tensor) -> Tensor:
    """[N, H, W, 3, S] to [N, 3 S, H, W], frame after frame."""
    return frames.permute(0, 4, 3, 1, 2).flatten(1, 2)


def shifted(batch: TensorDict, offset: Tensor, following: Tensor, pad: int) -> TensorDict:
    noise = {"observation_shift": offset.flatten(), "next/observation_shift": following.flatten()}
    return RandomShift(pad, noise=RecordedNoise(noise))(batch)  # type: ignore[return-value]


def transitions(tree: golden.Tree, frames: tuple[Tensor, Tensor], terminated: Tensor) -> TensorDict:
    flag = terminated.bool().unsqueeze(-1)
    reward = tree["batch/reward"].unsqueeze(-1)
    following = {"observation": frames[1], "reward": reward, "terminated": flag, "done": flag}
    return TensorDict({"observation": frames[0], "action": tree["batch/action"], "next": following}, [len(reward)])


def heads(tree: golden.Tree, net: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    """Golden fully connected layers under the names of ``net``."""
    out: dict[str, Tensor] = {}
    for names, values in zip(golden.ordered({}, net, prefix), golden.golden_layers(tree), strict=True):
        out |= dict(zip(names, values, strict=True))
    return out
