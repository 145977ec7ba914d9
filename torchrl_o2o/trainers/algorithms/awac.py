# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""AWAC's learner (Nair et al. 2020)."""

from __future__ import annotations

from omegaconf import DictConfig
from torch.optim import Adam, AdamW
from torchrl.objectives import SoftUpdate

from torchrl_o2o.errors import check_option
from torchrl_o2o.modules import make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import AWACLoss, BCLoss
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

__all__ = ["make_awac"]


@on_device
def make_awac(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build AWAC's learner: critics on one-step targets without entropy, the actor by weighted likelihood, the targets.

    In the authors' order, all gradients are computed at the old parameters. In the order of CORL and jaxrl, the actor's
    loss uses the updated critics.

    Source: Nair et al. 2020, arXiv:2006.09359, Algorithm 1.

    Args:
        cfg: ``order`` (``"corl"`` or ``"authors"``), ``actor_weight_decay``, and sections ``actor``, ``qvalue``,
            ``loss``, ``value_estimator``, ``target`` and ``optim``; ``decoupled_weight_decay`` and ``bc_steps`` may be
            absent.
        dims: observation and action dimension.

    Returns:
        The learner. With ``bc_steps``, ``further["cloning"]`` is the update that clones the data beforehand.

    Raises:
        O2OSpecError: if the order is unknown.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("awac", ["preset=cpu", "compile=false"])
        >>> learner = make_awac(cfg, (3, 2))
        >>> learner.update
        Update of AWACLoss
          Descend('qvalue', Adam)
          Descend('actor', Adam)
          MoveTargets(SoftUpdate)
        >>> bool(learner.update(random_transitions(64, 3, 2))["loss_actor"].isfinite())
        True
    """
    check_option("order", cfg.order, ("corl", "authors"))
    actor = make_gaussian_actor(*dims, **plain(cfg.actor))
    loss = AWACLoss(actor, make_qvalue_ensemble(*dims, **plain(cfg.qvalue)), **plain(cfg.loss))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    critic_optim = Adam(loss.qvalue_network_params.parameters(), **plain(cfg.optim))
    actor_params, kind = loss.actor_network_params.parameters(), AdamW if cfg.get("decoupled_weight_decay") else Adam
    actor_optim = kind(actor_params, weight_decay=cfg.actor_weight_decay, **plain(cfg.optim))
    steps = Descend("qvalue", critic_optim), Descend("actor", actor_optim)
    ordered = steps if cfg.order == "corl" else (Joint(*steps),)
    update = Update(loss, *ordered, MoveTargets(SoftUpdate(loss, **plain(cfg.target))))
    further = {}
    if cfg.get("bc_steps"):  # trains the loss's own actor, with a separate optimizer
        further = {"cloning": compiled(Update(BCLoss(actor), Descend("actor", actor_optim)), cfg)}
    return Learner(actor, loss, compiled(update, cfg), further=further)
