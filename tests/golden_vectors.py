# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Reading the golden vectors: numbers that the reference implementations produced, see tests/golden/README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"

Tree = Mapping[str, Tensor]


def load(case: str) -> dict[str, Tensor]:
    """Arrays of ``tests/golden/<case>.npz`` as tensors; what is text is left out."""
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return {key: torch.from_numpy(array) for key, array in arrays.items() if array.dtype.kind != "U"}


def sub(tree: Tree, prefix: str) -> dict[str, Tensor]:
    """Entries below ``prefix/``, with the prefix removed."""
    return {key.removeprefix(prefix + "/"): value for key, value in tree.items() if key.startswith(prefix + "/")}


def hp(tree: Tree, name: str) -> float:
    """A scalar hyper-parameter."""
    return float(tree[f"hp/{name}"])


def layers(net: nn.Module) -> list[nn.Module]:
    """Linear and LayerNorm layers in order."""
    return [layer for layer in net.modules() if isinstance(layer, (nn.Linear, nn.LayerNorm))]


def golden_layers(tree: Tree) -> list[tuple[Tensor, Tensor]]:
    """(weight in torch's layout, bias) of linear and LayerNorm layers in order; ensembles lead with E."""
    out: list[tuple[Tensor, Tensor]] = []
    depth = sum(key.startswith("layer") and key.endswith("/weight") for key in tree)
    for name in [f"layer{i}" for i in range(depth)] + [
        head for head in ("mean", "log_std") if f"{head}/weight" in tree
    ]:
        out.append((tree[f"{name}/weight"].transpose(-1, -2), tree[f"{name}/bias"]))
        if f"{name}/ln_scale" in tree:
            out.append((tree[f"{name}/ln_scale"], tree[f"{name}/ln_bias"]))
    return out


def fill(net: nn.Module, tree: Tree, member: int | None = None) -> None:
    """Copy golden parameters (of one ensemble member) into a module."""
    for layer, (weight, bias) in zip(layers(net), golden_layers(tree), strict=True):
        layer.weight.data.copy_(weight if member is None else weight[member])
        layer.bias.data.copy_(bias if member is None else bias[member])


def ordered(params: TensorDict, net: nn.Module, prefix: str) -> list[tuple[str, str]]:
    """Dotted (weight, bias) names in ``params`` of the layers of ``net``, in order."""
    names = [name for name, layer in net.named_modules() if isinstance(layer, (nn.Linear, nn.LayerNorm))]
    return [(f"{prefix}{name}.weight", f"{prefix}{name}.bias") for name in names]


def fill_stacked(params: TensorDict, net: nn.Module, tree: Tree, prefix: str = "module.") -> None:
    """Copy golden ensemble parameters into a loss's stacked (target) parameters."""
    flat = dict(params.flatten_keys(".").items())
    for (weight, bias), (w, b) in zip(ordered(params, net, prefix), golden_layers(tree), strict=True):
        flat[weight].data.copy_(w)
        flat[bias].data.copy_(b)


def assert_params(values: Mapping[str, Tensor], net: nn.Module, tree: Tree, prefix: str, rtol: float = 1e-8) -> None:
    """Compare dotted parameters (or gradients) with golden ones, each array relative to its largest entry."""
    for (weight, bias), (w, b) in zip(ordered(values, net, prefix), golden_layers(tree), strict=True):
        assert_close(values[weight], w, weight, rtol)
        assert_close(values[bias], b, bias, rtol)


def assert_close(got: Tensor, expected: Tensor, what: str = "", rtol: float = 1e-8) -> None:
    """``|got - expected| <= rtol * max|expected|``, the tolerance the golden vectors are specified with."""
    bound = rtol * float(expected.abs().max().clamp_min(1e-12))
    worst = float((got.detach() - expected).abs().max())
    assert worst <= bound, f"{what}: worst difference {worst:.3e}, allowed {bound:.3e}"


def transitions(tree: Tree, prefix: str = "batch") -> TensorDict:
    """Golden transitions in TED form."""
    batch = sub(tree, prefix)
    terminated = batch["terminated"].bool().unsqueeze(-1)
    following = {
        "observation": batch["next_observation"],
        "reward": batch["reward"].unsqueeze(-1),
        "terminated": terminated,
        "done": terminated,
    }
    return TensorDict(
        {"observation": batch["observation"], "action": batch["action"], "next": following}, len(terminated)
    )


def rows(values: Sequence[Tensor]) -> Tensor:
    """Stack scalars."""
    return torch.stack(list(values))
