# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The learner of SPEQ and SOPE: soft actor-critic with LayerNorm and dropout in two critics."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch.optim import Adam
from torchrl.objectives import SoftUpdate

from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.trainers.learner import Learner
from torchrl_o2o.trainers.settings import compiled, plain
from torchrl_o2o.trainers.stabilization import critics_alone
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

__all__ = ["make_critics_alone", "make_sope", "phase_settings"]


def make_sope(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build the learner: critics, actor and temperature, all at the old parameters, then the targets.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``temperature``, ``loss``, ``value_estimator``, ``target``, ``optim``, and
            ``target_entropy``, ``None`` for -A.
        dims: observation and action dimension.

    Returns:
        The learner. It is not compiled, with a warning, if its critics have dropout.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("sope", ["preset=cpu", "compile=false"])
        >>> learner = make_sope(cfg, (3, 2))
        >>> learner.update
        Update of EnsembleSACLoss
          Joint()
            Descend('qvalue', Adam)
            Descend('actor', Adam)
            Descend('alpha', Adam)
          MoveTargets(SoftUpdate)
        >>> bool(learner.update(random_transitions(64, 3, 2))["loss_actor"].isfinite())
        True
    """
    actor, qvalues = make_actor(*dims, **plain(cfg.actor)), make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
    target_entropy = -float(dims[1]) if cfg.target_entropy is None else cfg.target_entropy
    temperature = Temperature(target_entropy, form="log_alpha", **plain(cfg.temperature))
    loss = EnsembleSACLoss(actor, qvalues, temperature=temperature, **plain(cfg.loss))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    groups = {"qvalue": loss.qvalue_network_params, "actor": loss.actor_network_params, "alpha": loss.temperature}
    steps = [Descend(name, Adam(group.parameters(), **plain(cfg.optim))) for name, group in groups.items()]
    update = Update(loss, Joint(*steps), MoveTargets(SoftUpdate(loss, **plain(cfg.target))))
    return Learner(actor, loss, _compiled(update, cfg))


def make_critics_alone(cfg: DictConfig, learner: Learner) -> Update:
    """The update of a stabilization phase: the critics' step and the targets, compiled if the learner's update is.

    Args:
        cfg: as in :func:`make_sope`.
        learner: of :func:`make_sope`.

    Returns:
        The update, on the learner's own optimizer.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("sope", ["preset=cpu", "compile=false"])
        >>> alone = make_critics_alone(cfg, make_sope(cfg, (3, 2)))
        >>> alone
        Update of EnsembleSACLoss
          Descend('qvalue', Adam, scale=0.5)
          MoveTargets(SoftUpdate)
        >>> bool(alone(random_transitions(64, 3, 2))["loss_qvalue"].isfinite())
        True
    """
    return _compiled(critics_alone(learner), cfg)


def phase_settings(cfg: DictConfig, num_offline: int) -> dict[str, Any]:
    """The settings of a phase, with the argument names of :func:`~torchrl_o2o.trainers.stabilize`.

    Args:
        cfg: ``online.batch_size`` and ``phases.held_out``.
        num_offline: number of offline rows in the buffer. If there are any, half of a batch is offline.

    Returns:
        ``num_offline``, ``batch_size`` and ``share``.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> cfg = script_config("sope", ["preset=cpu", "compile=false"])
        >>> phase_settings(cfg, num_offline=1_000)
        {'num_offline': 1000, 'batch_size': 128, 'share': 0.1}
    """
    rows = cfg.online.batch_size // (2 if num_offline else 1)
    return {"num_offline": num_offline, "batch_size": rows, "share": cfg.phases.held_out}


def _compiled(update: Update, cfg: DictConfig) -> Update:
    return compiled(update, cfg, dropout=cfg.qvalue.dropout)
