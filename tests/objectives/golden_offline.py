# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the golden tests of AWAC, IQL, TD3+BC and SPOT share: filling networks, stepping, comparing."""

from __future__ import annotations

from typing import Any

import torch
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor, nn
from torchrl.modules import ValueOperator
from torchrl.objectives import SoftUpdate
from torchrl.objectives.common import LossModule

from tests import golden_vectors as golden
from torchrl_o2o.modules import make_qvalue_ensemble
from torchrl_o2o.modules.gaussian_policies import GaussianVectorHead


def depth(tree: golden.Tree, net: str) -> int:
    """Number of hidden layers of a golden network."""
    return sum(key.startswith("layer") and key.endswith("/bias") for key in golden.sub(tree, net)) - 1


def critics(tree: golden.Tree) -> list[ValueOperator]:
    """Twin critics with the golden parameters."""
    hidden = (16,) * depth(tree, "critic")
    members = make_qvalue_ensemble(5, 3, num_qvalue_nets=2, hidden_sizes=hidden, layer_norm=False)
    for index, member in enumerate(members):
        golden.fill(member, golden.sub(tree, "critic"), index)
    return members


def fill_actor(actor: TensorDictModuleBase, tree: golden.Tree) -> None:
    """Golden layers and, where there is one, the vector of log standard deviations."""
    golden.fill(actor, golden.sub(tree, "actor"))
    for head in actor.modules():
        if isinstance(head, GaussianVectorHead):
            head.log_std.data.copy_(log_std(golden.sub(tree, "actor")))


def log_std(tree: golden.Tree) -> Tensor:
    return tree["log_std"] if "log_std" in tree else tree["log_std_logit"]


def targets(loss: LossModule, tree: golden.Tree) -> SoftUpdate:
    """Fill the target networks; returns their updater."""
    updater = SoftUpdate(loss, tau=golden.hp(tree, "tau"))  # copies parameters into the targets, so it comes first
    critic = golden.sub(tree, "target_critic")
    golden.fill_stacked(loss.target_qvalue_network_params, loss.qvalue_network.module, critic)
    if "target_actor/layer0/bias" in tree:
        actor = golden.sub(tree, "target_actor")
        golden.fill_stacked(loss.target_actor_network_params, loss.actor_network.module, actor)
    return updater


def adam(params: nn.Module, lr: float, kind: type[torch.optim.Optimizer] = torch.optim.Adam, **more: Any) -> Any:
    return kind(list(params.parameters()), lr=lr, betas=(0.9, 0.999), eps=1e-8, **more)


def step(optim: torch.optim.Optimizer, value: Tensor) -> Tensor:
    optim.zero_grad()
    value.backward()
    optim.step()
    return value.detach()


def flat(params: nn.Module, grad: bool = False) -> dict[str, Tensor]:
    return {key: (value.grad if grad else value) for key, value in params.flatten_keys(".").items()}


def same_critic(loss: LossModule, tree: golden.Tree, prefix: str, *, grad: bool = False, target: bool = False) -> None:
    params = loss.target_qvalue_network_params if target else loss.qvalue_network_params
    golden.assert_params(flat(params, grad), loss.qvalue_network.module, golden.sub(tree, prefix), "module.")


def same_actor(loss: LossModule, tree: golden.Tree, prefix: str, *, grad: bool = False, target: bool = False) -> None:
    params = flat(loss.target_actor_network_params if target else loss.actor_network_params, grad)
    body, expected = loss.actor_network, golden.sub(tree, prefix)
    start = "module."
    if isinstance(body, ProbabilisticTensorDictSequential):
        body, start = body[0], "module.0.module."
    golden.assert_params(params, body.module, expected, start)
    names = [name for name in params if name.endswith("log_std")]
    for name in names:
        golden.assert_close(params[name], log_std(expected), name)
