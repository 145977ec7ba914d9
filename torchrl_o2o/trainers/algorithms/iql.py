# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""IQL's learner (Kostrikov et al. 2022)."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchrl.modules import AdditiveGaussianModule
from torchrl.objectives import SoftUpdate

from torchrl_o2o.errors import check_option
from torchrl_o2o.modules import (
    make_deterministic_actor,
    make_gaussian_actor,
    make_qvalue_ensemble,
    make_value_network,
)
from torchrl_o2o.objectives import IQLLoss
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

__all__ = ["decay_actor_lr", "make_iql"]


@on_device
def make_iql(cfg: DictConfig, dims: tuple[int, int], decay_steps: int | None = None) -> Learner:
    """Build IQL's learner: V by expectile regression, the actor by weighted likelihood, critics with targets from V.

    ``order="authors"`` steps V, then the actor and the critics on the new V. ``order="corl"`` (CORL, PEX) takes all
    gradients at the old parameters.

    Source: Kostrikov et al. 2022, arXiv:2110.06169, Algorithm 1, Eq. 5-7.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``value``, ``loss``, ``value_estimator``, ``target``, ``optim`` and
            ``order``; ``policy`` (``"gaussian"`` if absent, or ``"deterministic"``, which reads ``exploration``).
        dims: observation and action dimension.
        decay_steps: length of the cosine by which the actor's learning rate falls to 0, see :func:`decay_actor_lr`;
            ``None`` (default) keeps it.

    Returns:
        The learner. It is not compiled, with a warning, if its actor has dropout. A deterministic policy is fitted by
        squared distance, and its explorer adds Gaussian noise.

    Raises:
        O2OSpecError: if the order or the policy is unknown.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("iql", ["preset=cpu", "compile=false"])
        >>> learner = make_iql(cfg, (3, 2))
        >>> learner.update
        Update of IQLLoss
          Descend('value', Adam)
          Descend('actor', Adam)
          Descend('qvalue', Adam)
          MoveTargets(SoftUpdate)
        >>> bool(learner.update(random_transitions(64, 3, 2))["loss_actor"].isfinite())
        True
    """
    check_option("order", cfg.order, ("authors", "corl"))
    actor, explorer = _policy(cfg, dims)
    qvalues, value = make_qvalue_ensemble(*dims, **plain(cfg.qvalue)), make_value_network(dims[0], **plain(cfg.value))
    loss = IQLLoss(actor, qvalues, value, **plain(cfg.loss))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    actor.eval()  # no dropout when acting; the loss trains with dropout
    value_optim = Adam(loss.value_network_params.parameters(), **plain(cfg.optim))
    actor_optim = Adam(loss.actor_network_params.parameters(), **plain(cfg.optim))
    critic_optim = Adam(loss.qvalue_network_params.parameters(), **plain(cfg.optim))
    targets = MoveTargets(SoftUpdate(loss, **plain(cfg.target)))
    steps = Descend("value", value_optim), Descend("actor", actor_optim), Descend("qvalue", critic_optim)
    update = Update(loss, *steps, targets) if cfg.order == "authors" else Update(loss, Joint(*steps), targets)
    schedule = None if decay_steps is None else CosineAnnealingLR(actor_optim, max(decay_steps, 1))
    update = compiled(update, cfg, dropout=cfg.actor.get("dropout"))
    state = {} if schedule is None else {"actor_schedule": schedule}
    return Learner(actor, loss, update, explorer=explorer, state=state)


def _policy(
    cfg: DictConfig, dims: tuple[int, int]
) -> tuple[ProbabilisticTensorDictSequential | TensorDictModule, TensorDictModuleBase | None]:
    """The policy and its explorer, which adds noise to a deterministic policy."""
    kind = cfg.get("policy", "gaussian")
    check_option("policy", kind, ("gaussian", "deterministic"))
    if kind == "gaussian":
        return make_gaussian_actor(*dims, **plain(cfg.actor)), None
    actor = make_deterministic_actor(*dims, **plain(cfg.actor))
    noise = AdditiveGaussianModule(actor.spec, **plain(cfg.exploration))  # pyright: ignore[reportAttributeAccessIssue]
    return actor, TensorDictSequential([actor, noise])


def decay_actor_lr(learner: Learner) -> dict[str, Tensor]:
    """Advance the actor's learning-rate schedule, if the learner has one.

    Args:
        learner: of :func:`make_iql`.

    Returns:
        ``lr_actor``, the next step's learning rate, for the log.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("iql", ["preset=cpu", "compile=false"])
        >>> learner = make_iql(cfg, (3, 2), decay_steps=2)
        >>> for _ in range(2):
        ...     _ = learner.update(random_transitions(64, 3, 2))
        ...     print(f"{decay_actor_lr(learner)['lr_actor']:.2e}")
        1.50e-04
        0.00e+00
    """
    if "actor_schedule" in learner.state:
        learner.state["actor_schedule"].step()
    return {"lr_actor": torch.tensor(learner.optims["actor"].param_groups[0]["lr"])}
