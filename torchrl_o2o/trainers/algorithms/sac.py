# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Soft actor-critics: RLPD (Ball et al. 2023), SACfD, REDQ and SAC."""

from __future__ import annotations

from omegaconf import DictConfig
from tensordict.nn import ProbabilisticTensorDictSequential
from torch.optim import AdamW
from torchrl.objectives import SoftUpdate

from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.optim import weight_decay_groups
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.updates import Descend, MoveTargets, Repeat, Update

__all__ = ["ensemble_sac", "make_rlpd"]


@on_device
def make_rlpd(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build RLPD's networks, loss and update.

    Source: Ball et al. 2023, arXiv:2302.02948, Algorithm 1; REDQ, SACfD and SAC are other settings of the same.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``temperature``, ``loss``, ``value_estimator``, ``target``, ``optim``, and
            ``target_entropy_per_dim``, ``critic_weight_decay``, ``utd_ratio``.
        dims: observation and action dimension.

    Returns:
        The learner.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("rlpd", ["preset=cpu", "compile=false", "utd_ratio=2"])
        >>> learner = make_rlpd(cfg, (3, 2))
        >>> learner.update
        Update of EnsembleSACLoss
          Repeat(2)
            Descend('qvalue', AdamW)
            MoveTargets(SoftUpdate)
          Descend('actor', AdamW)
          Descend('alpha', AdamW)
        >>> bool(learner.update(random_transitions(64, 3, 2))["loss_actor"].isfinite())
        True
    """
    actor = make_actor(*dims, **plain(cfg.actor))
    loss, update = ensemble_sac(actor, dims, cfg, utd_ratio=cfg.utd_ratio)
    return Learner(actor, loss, compiled(update, cfg))


def ensemble_sac(
    actor: ProbabilisticTensorDictSequential, dims: tuple[int, int], section: DictConfig, *, utd_ratio: int
) -> tuple[EnsembleSACLoss, Update]:
    """Build the loss and update of Ball et al. 2023, Algorithm 1, lines 13 to 24, for a given actor.

    On each of ``utd_ratio`` minibatches a step of the critics and of their targets; then, on the last, a step of the
    actor and of the temperature.

    Args:
        actor: the policy.
        dims: observation and action dimension.
        section: the sections of :func:`make_rlpd`, except ``actor``.

    Keyword Args:
        utd_ratio: critic steps per update.

    Returns:
        The loss and its update, not compiled.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("rlpd", ["preset=cpu", "compile=false"])
        >>> loss, update = ensemble_sac(make_actor(3, 2, hidden_sizes=(8,)), (3, 2), cfg, utd_ratio=4)
        >>> update.num_minibatches
        4
        >>> bool(update(random_transitions(4 * 16, 3, 2))["loss_qvalue"].isfinite())
        True
    """
    qvalues = make_qvalue_ensemble(*dims, **plain(section.qvalue))
    temperature = Temperature(section.target_entropy_per_dim * dims[1], **plain(section.temperature))
    loss = EnsembleSACLoss(actor, qvalues, temperature=temperature, **plain(section.loss))
    loss.make_value_estimator(**plain(section.value_estimator))
    targets = MoveTargets(SoftUpdate(loss, **plain(section.target)))
    decayed = weight_decay_groups(loss.qvalue_network_params, section.critic_weight_decay)
    critic_optim = AdamW(decayed, **plain(section.optim))
    actor_optim = AdamW(loss.actor_network_params.parameters(), weight_decay=0.0, **plain(section.optim))
    alpha_optim = AdamW(loss.temperature.parameters(), weight_decay=0.0, **plain(section.optim))
    update = Update(
        loss,
        Repeat(utd_ratio, Descend("qvalue", critic_optim), targets),
        Descend("actor", actor_optim),
        Descend("alpha", alpha_optim),
    )
    return loss, update
