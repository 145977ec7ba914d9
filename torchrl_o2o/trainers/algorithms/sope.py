# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The learner of SPEQ and SOPE: soft actor-critic with LayerNorm and dropout in two critics."""

from __future__ import annotations

from omegaconf import DictConfig
from torch.optim import Adam
from torchrl.objectives import SoftUpdate

from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.trainers.learner import Learner
from torchrl_o2o.trainers.settings import compiled, plain
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

__all__ = ["make_sope"]


def make_sope(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Critics, actor and temperature at the parameters before any has moved, then the targets.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``temperature``, ``loss``, ``value_estimator``, ``target``, ``optim``, and
            ``target_entropy``, ``None`` for -A.
        dims: observation and action dimension.

    Returns:
        The learner; it is not compiled where its critics have dropout, whose random numbers are not the loss's.
    """
    actor, qvalues = make_actor(*dims, **plain(cfg.actor)), make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
    target_entropy = -float(dims[1]) if cfg.target_entropy is None else cfg.target_entropy
    temperature = Temperature(target_entropy, form="log_alpha", **plain(cfg.temperature))
    loss = EnsembleSACLoss(actor, qvalues, temperature=temperature, **plain(cfg.loss))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    groups = {"qvalue": loss.qvalue_network_params, "actor": loss.actor_network_params, "alpha": loss.temperature}
    steps = [Descend(name, Adam(group.parameters(), **plain(cfg.optim))) for name, group in groups.items()]
    update = Update(loss, Joint(*steps), MoveTargets(SoftUpdate(loss, **plain(cfg.target))))
    return Learner(actor, loss, update if cfg.qvalue.dropout else compiled(update, cfg))
