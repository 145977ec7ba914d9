# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the behavior tests of the offline losses share: training on probes, comparing compiled with eager."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SoftUpdate
from torchrl.objectives.common import LossModule


def total(out: TensorDict) -> Tensor:
    return sum(value for key, value in out.items() if key.startswith("loss_"))  # type: ignore[return-value]


def train(loss: LossModule, data: TensorDict, updates: int, *, lr: float = 3e-3, tau: float = 0.05) -> None:
    """Joint updates on all losses, as the probe environments allow."""
    updater = SoftUpdate(loss, tau=tau) if has_targets(loss) else None
    optim = torch.optim.Adam([value for value in loss.parameters() if value.requires_grad], lr=lr)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(len(data)), batch_size=64)
    replay.extend(data)
    for _ in range(updates):
        optim.zero_grad()
        total(loss(replay.sample())).backward()
        optim.step()
        if updater is not None:
            updater.step()


def has_targets(loss: LossModule) -> bool:
    return any(name.startswith("target_") for name, _ in loss.named_children())


def act(loss: LossModule, observation: Tensor) -> Tensor:
    """Deterministic actions of the loss's actor."""
    data = TensorDict({"observation": observation}, observation.shape[:-1])
    with (
        loss.actor_network_params.to_module(loss.actor_network),
        set_exploration_type(ExplorationType.DETERMINISTIC),
        torch.no_grad(),
    ):
        return loss.actor_network(data)["action"]


def assert_optimal(loss: LossModule) -> None:
    """The actor does what `ContextualTargetEnv` rewards most: half of the observation."""
    observation = torch.linspace(-0.9, 0.9, 7).unsqueeze(-1)
    assert (act(loss, observation) - observation / 2).abs().max() < 0.15


def assert_discounted(loss: LossModule, data: TensorDict) -> None:
    """The critics' values of the two steps of 32 episodes of `DelayedRewardEnv` with gamma = 0.5."""
    qvalue = loss.qvalue_loss(data)[1]["qvalue"].mean(0)
    torch.testing.assert_close(qvalue[0::2], torch.full((32,), 0.5), atol=0.1, rtol=0)
    torch.testing.assert_close(qvalue[1::2], torch.ones(32), atol=0.1, rtol=0)
