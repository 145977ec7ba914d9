# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""PEX's online learner (Zhang et al. 2023): a new policy next to a frozen one."""

from __future__ import annotations

from omegaconf import DictConfig
from torch.optim import Adam
from torchrl.objectives import SoftUpdate

from torchrl_o2o.modules import make_gaussian_actor, make_qvalue_ensemble, make_value_network
from torchrl_o2o.objectives import ExpandedPolicy, PEXLoss
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

__all__ = ["make_pex"]


@on_device
def make_pex(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build PEX's learner: V and critics as in IQL, both at the old parameters, then the targets, then the new policy.

    Source: Zhang et al. 2023, arXiv:2302.00935, and the authors' code.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``value``, ``loss``, ``expansion``, ``value_estimator``, ``target``,
            ``optim``, and ``eval_eps``.
        dims: observation and action dimension.

    Returns:
        The learner. It collects and is evaluated with the choice between both policies. ``policy.pt`` of a run holds
        both policies and the critics, and chooses without randomness.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("pex", ["preset=cpu", "compile=false"])
        >>> learner = make_pex(cfg, (3, 2))
        >>> learner.update
        Update of PEXLoss
          Joint()
            Descend('value', Adam)
            Descend('qvalue', Adam)
          MoveTargets(SoftUpdate)
          Descend('actor', Adam)
        >>> share = learner.update(random_transitions(64, 3, 2))["offline_share"]
        >>> 0.0 <= share.item() <= 1.0
        True
    """
    new, offline = (make_gaussian_actor(*dims, **plain(cfg.actor)) for _ in range(2))
    qvalues, value = make_qvalue_ensemble(*dims, **plain(cfg.qvalue)), make_value_network(dims[0], **plain(cfg.value))
    loss = PEXLoss(new, qvalues, value, offline, **plain(cfg.expansion), **plain(cfg.loss))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    value_optim = Adam(loss.value_network_params.parameters(), **plain(cfg.optim))
    critic_optim = Adam(loss.qvalue_network_params.parameters(), **plain(cfg.optim))
    actor_optim = Adam(loss.actor_network_params.parameters(), **plain(cfg.optim))
    update = Update(
        loss,
        Joint(Descend("value", value_optim), Descend("qvalue", critic_optim)),
        MoveTargets(SoftUpdate(loss, **plain(cfg.target))),
        Descend("actor", actor_optim),
    )
    both = ExpandedPolicy(loss, eval_eps=cfg.eval_eps)
    return Learner(loss.make_actor(), loss, compiled(update, cfg), explorer=both, tester=both)
