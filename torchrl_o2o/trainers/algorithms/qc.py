# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Flow Q-learning (Park et al. 2025) and Q-chunking (Li et al. 2025): flow policies, soft actor-critics on chunks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from omegaconf import DictConfig
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torch.optim import AdamW
from torchrl.objectives import SoftUpdate
from torchrl.objectives.common import LossModule

from torchrl_o2o.data import ChunkSampler
from torchrl_o2o.errors import check_option
from torchrl_o2o.modules import (
    Temperature,
    act_in_chunks,
    chunk_box,
    make_actor,
    make_flow_network,
    make_one_step_actor,
    make_qvalue_ensemble,
)
from torchrl_o2o.objectives import BestOfNLoss, EnsembleSACLoss, FQLLoss
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

__all__ = ["make_qc"]

_Made = tuple[TensorDictModuleBase, LossModule, Mapping[str, nn.Module]]


@on_device
def make_qc(cfg: DictConfig, dims: tuple[int, int], *, online: bool = False) -> Learner:
    """Build networks, loss and update of FQL, QC and their variants, by ``policy``.

    Everything is stepped at once, and the target critics follow the critics from before the step, as in the authors'
    codes.

    Source: Park et al. 2025 (FQL), arXiv:2502.02538; Li et al. 2025 (QC), arXiv:2507.07969.

    Args:
        cfg: ``policy``, ``horizon``, ``action_chunking``, sections ``actor``, ``qvalue``, ``loss``,
            ``value_estimator``, ``target``, ``optim``; ``one_step`` beside ``flow``, ``best_of_n`` or ``gaussian``.
        dims: observation and action dimension.

    Keyword Args:
        online: whether ``alpha_online``, if set, is the weight of FQL's distillation. Defaults to ``False``.

    Returns:
        The learner, which samples chunks and acts in them.

    Raises:
        O2OSpecError: if the policy is unknown.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers import starting_buffer
        >>> cfg = script_config("qc", ["preset=cpu", "compile=false", "algorithm=qc"])
        >>> learner = make_qc(cfg, (3, 2))
        >>> learner.update
        Update of BestOfNLoss
          Joint()
            MoveTargets(SoftUpdate)
            Descend('qvalue', AdamW)
            Descend('flow', AdamW)
        >>> buffer = starting_buffer(random_transitions(100, 3, 2), 10, batch_size=16)
        >>> learner.see(buffer)  # which draws chunks from now on, as the phases of a run do
        >>> batch = buffer.sample()
        >>> batch["action"].shape  # five actions of two dimensions
        torch.Size([16, 10])
        >>> bool(learner.update(batch)["loss_flow"].isfinite())
        True
    """
    acted = cfg.horizon if cfg.action_chunking else 1
    makers = {"one_step": _one_step, "best_of_n": _best_of_n, "gaussian": _gaussian}
    check_option("policy", cfg.policy, tuple(makers))
    actor, loss, parts = makers[cfg.policy](cfg, dims[0], dims[1], acted)
    if online and isinstance(loss, FQLLoss) and cfg.alpha_online is not None:
        loss.alpha.fill_(cfg.alpha_online)
    loss.make_value_estimator(**plain(cfg.value_estimator))
    targets = MoveTargets(SoftUpdate(loss, **plain(cfg.target)))
    optims = {name: AdamW(part.parameters(), **plain(cfg.optim)) for name, part in parts.items()}
    update = Update(loss, Joint(targets, *(Descend(name, optim) for name, optim in optims.items())))
    gamma = float(cfg.value_estimator.gamma)
    view = partial(ChunkSampler, horizon=cfg.horizon, gamma=gamma, action_chunking=cfg.action_chunking)
    return Learner(act_in_chunks(actor, acted), loss, compiled(update, cfg), view=view)


def _flow_and_critics(cfg: DictConfig, width: int, size: int, acted: int) -> dict[str, Any]:
    box = chunk_box(size, acted)
    return {
        "flow_network": make_flow_network(width, box, **plain(cfg.flow)),
        "qvalue_network": make_qvalue_ensemble(width, box, **plain(cfg.qvalue)),
    }


def _one_step(cfg: DictConfig, width: int, size: int, acted: int) -> _Made:
    actor = make_one_step_actor(width, chunk_box(size, acted), **plain(cfg.actor))
    loss = FQLLoss(actor, **_flow_and_critics(cfg, width, size, acted), **plain(cfg.loss.one_step))
    parts = {"qvalue": loss.qvalue_network_params, "flow": loss.flow_network_params, "actor": loss.actor_network_params}
    return actor, loss, parts


def _best_of_n(cfg: DictConfig, width: int, size: int, acted: int) -> _Made:
    loss = BestOfNLoss(**_flow_and_critics(cfg, width, size, acted), **plain(cfg.loss.best_of_n))
    return loss.make_actor(), loss, {"qvalue": loss.qvalue_network_params, "flow": loss.actor_network_params}


def _gaussian(cfg: DictConfig, width: int, size: int, acted: int) -> _Made:
    box = chunk_box(size, acted)
    actor = make_actor(width, box, **plain(cfg.actor))
    temperature = Temperature(cfg.target_entropy_per_dim * size * acted)
    critics = make_qvalue_ensemble(width, box, **plain(cfg.qvalue))
    loss = EnsembleSACLoss(actor, critics, temperature=temperature, **plain(cfg.loss.gaussian))
    parts = {"qvalue": loss.qvalue_network_params, "actor": loss.actor_network_params, "alpha": loss.temperature}
    return actor, loss, parts
