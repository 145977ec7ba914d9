# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Learners with conservative values: CQL (Kumar et al. 2020), Cal-QL (Nakamoto et al. 2023), and SAC after them."""

from __future__ import annotations

from omegaconf import DictConfig
from torch.optim import Adam
from torchrl.objectives import SoftUpdate

from torchrl_o2o.data import TRANSITION
from torchrl_o2o.modules import ConservativePenalty, Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import CalQLLoss, CQLLoss, EnsembleSACLoss
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

__all__ = ["make_cal_ql", "make_cql", "make_sac_after_cql"]


@on_device
def make_cql(cfg: DictConfig, dims: tuple[int, int], kind: type[CQLLoss] = CQLLoss) -> Learner:
    """Build CQL's learner, which lowers the values of unseen actions; all gradients are taken at the same parameters.

    Source: Kumar et al. 2020, arXiv:2006.04779, Eq. 4 and appendix F.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``penalty``, ``temperature``, ``loss``, ``value_estimator``, ``target``,
            ``optim``, and ``qvalue_lr``, ``actor_lr``.
        dims: observation and action dimension.
        kind: the loss. Defaults to :class:`~torchrl_o2o.objectives.CQLLoss`.

    Returns:
        The learner.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("cql", ["preset=cpu", "compile=false"])
        >>> learner = make_cql(cfg, (3, 2))
        >>> learner.update
        Update of CQLLoss
          Joint()
            Descend('qvalue', Adam)
            Descend('actor', Adam)
            Descend('alpha', Adam)
          MoveTargets(SoftUpdate)
        >>> bool(learner.update(random_transitions(64, 3, 2))["gap"].isfinite())  # of values on and off the data
        True
    """
    actor, qvalues = make_actor(*dims, **plain(cfg.actor)), make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
    penalty = ConservativePenalty(**plain(cfg.penalty))
    loss = kind(actor, qvalues, temperature=_temperature(cfg, dims), penalty=penalty, **plain(cfg.loss))
    steps = _steps(cfg, loss)
    if cfg.penalty.target_gap is not None:
        multiplier = Adam(loss.penalty.parameters(), lr=cfg.qvalue_lr, **plain(cfg.optim))
        steps = (*steps, Descend("alpha_prime", multiplier))
    keys = (*TRANSITION, "mc_return") if kind is CalQLLoss else TRANSITION
    return Learner(actor, loss, _joint(cfg, loss, steps), keys=keys)


@on_device
def make_cal_ql(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build CQL that does not lower values below the returns in the data; see :func:`make_cql`.

    Source: Nakamoto et al. 2023, arXiv:2303.05479, Eq. 5.1.

    Args:
        cfg: as there.
        dims: observation and action dimension.

    Returns:
        The learner, which reads ``mc_return``.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("cql", ["preset=cpu", "compile=false", "algorithm=cal_ql"])
        >>> learner = make_cal_ql(cfg, (3, 2))
        >>> learner.keys[-1]
        'mc_return'
        >>> rows = random_transitions(64, 3, 2)
        >>> rows["mc_return"] = rows["next", "reward"]  # see returns_of
        >>> bool(learner.update(rows)["bound_rate"].isfinite())
        True
    """
    return make_cql(cfg, dims, CalQLLoss)


@on_device
def make_sac_after_cql(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build plain soft actor-critic from CQL's actor and critics, for comparison.

    Args:
        cfg: as in :func:`make_cql`.
        dims: observation and action dimension.

    Returns:
        The learner.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers import HandOver, hand_over
        >>> cfg = script_config("cql", ["preset=cpu", "compile=false", "learner=sac"])
        >>> online = make_sac_after_cql(cfg, (3, 2))
        >>> how = HandOver(carry=("actor_network", "qvalue_network"))
        >>> hand_over(make_cql(cfg, (3, 2)), online, how)  # starts from scratch
        ['temperature']
        >>> bool(online.update(random_transitions(64, 3, 2))["loss_actor"].isfinite())
        True
    """
    actor, qvalues = make_actor(*dims, **plain(cfg.actor)), make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
    loss = EnsembleSACLoss(actor, qvalues, temperature=_temperature(cfg, dims), actor_q="min")
    return Learner(actor, loss, _joint(cfg, loss, _steps(cfg, loss)))


def _temperature(cfg: DictConfig, dims: tuple[int, int]) -> Temperature:
    """A temperature with target entropy -A."""
    return Temperature(-float(dims[1]), **{"form": "log_alpha", **plain(cfg.temperature)})


def _steps(cfg: DictConfig, loss: CQLLoss | EnsembleSACLoss) -> tuple[Descend, ...]:
    critic_optim = Adam(loss.qvalue_network_params.parameters(), lr=cfg.qvalue_lr, **plain(cfg.optim))
    actor_optim = Adam(loss.actor_network_params.parameters(), lr=cfg.actor_lr, **plain(cfg.optim))
    alpha_optim = Adam(loss.temperature.parameters(), lr=cfg.actor_lr, **plain(cfg.optim))
    return Descend("qvalue", critic_optim), Descend("actor", actor_optim), Descend("alpha", alpha_optim)


def _joint(cfg: DictConfig, loss: CQLLoss | EnsembleSACLoss, steps: tuple[Descend, ...]) -> Update:
    """An update that takes all gradients at the same parameters, then all steps, then moves the targets."""
    loss.make_value_estimator(**plain(cfg.value_estimator))
    return compiled(Update(loss, Joint(*steps), MoveTargets(SoftUpdate(loss, **plain(cfg.target)))), cfg)
