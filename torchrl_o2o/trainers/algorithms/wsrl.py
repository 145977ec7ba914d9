# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The online learner of WSRL (Zhou et al. 2024): soft actor-critic that continues a conservative learner."""

from __future__ import annotations

from omegaconf import DictConfig
from torch.optim import Adam
from torchrl.objectives import SoftUpdate

from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.updates import Descend, Ghost, Joint, MoveTargets, Repeat, Update, Whole

__all__ = ["ghostless_lr", "make_wsrl", "warm_start_update"]


def ghostless_lr(lr: float, steps: int, ghosts: int) -> float:
    r"""The learning rate without ghost steps that equals ``lr`` with them in the long run.

    A ghost step decays Adam's second moment without a new gradient, so its mean is smaller by the factor steps / (steps
    + ghosts). Momentum still applies the whole of each real step. The result is :math:`lr\sqrt{(steps+ghosts)/steps}`.

    Args:
        lr: the learning rate with ghost steps.
        steps: real steps per update.
        ghosts: steps with a gradient of zero per update.

    Returns:
        The learning rate.

    Examples:
        >>> round(ghostless_lr(1e-4, steps=1, ghosts=4), 6)  # WSRL's actor
        0.000224
    """
    return lr * ((steps + ghosts) / steps) ** 0.5


@on_device
def make_wsrl(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build WSRL's networks, loss and update, with the shapes of the offline learner's.

    Source: Zhou et al. 2024, arXiv:2412.07762, and the authors' code.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``temperature``, ``online_loss``, ``value_estimator``, ``target``,
            ``optim``, and ``qvalue_lr``, ``actor_lr``, ``utd_ratio``, ``ghost_steps``.
        dims: observation and action dimension.

    Returns:
        The learner.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("wsrl", ["preset=cpu", "compile=false"])
        >>> learner = make_wsrl(cfg, (3, 2))
        >>> learner.update
        Update of EnsembleSACLoss
          Repeat(4)
            Descend('qvalue', Adam)
            MoveTargets(SoftUpdate)
          Whole()
            Joint()
              Descend('actor', Adam)
              Descend('alpha', Adam)
        >>> bool(learner.update(random_transitions(64, 3, 2))["loss_actor"].isfinite())
        True
    """
    actor, qvalues = make_actor(*dims, **plain(cfg.actor)), make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
    temperature = Temperature(-float(dims[1]), **plain(cfg.temperature))
    loss = EnsembleSACLoss(actor, qvalues, temperature=temperature, **plain(cfg.online_loss))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    targets = SoftUpdate(loss, **plain(cfg.target))
    rates = {"qvalue_lr": cfg.qvalue_lr, "actor_lr": cfg.actor_lr, **plain(cfg.optim)}
    update = warm_start_update(loss, targets, utd_ratio=cfg.utd_ratio, ghost_steps=cfg.ghost_steps, **rates)
    return Learner(actor, loss, compiled(update, cfg))


def warm_start_update(
    loss: EnsembleSACLoss,
    targets: SoftUpdate,
    *,
    utd_ratio: int = 4,
    qvalue_lr: float = 3e-4,
    actor_lr: float = 1e-4,
    ghost_steps: bool = False,
    fused: bool = True,
) -> Update:
    """Build the update: a critic step per minibatch, then one of actor and temperature on all of them.

    The authors' code steps all three Adam optimizers in each of these calls, with a gradient of zero for networks that
    are not trained in the call. With ``ghost_steps``, this update does the same. Without, it uses the larger learning
    rates of :func:`ghostless_lr`.

    Args:
        loss: of the agent.
        targets: of the same loss.

    Keyword Args:
        utd_ratio: minibatches. Defaults to 4.
        qvalue_lr: the authors' learning rate of the critics. Defaults to 3e-4.
        actor_lr: of actor and temperature. Defaults to 1e-4.
        ghost_steps: whether to make ghost steps, for parity with the authors' code. Defaults to ``False``.
        fused: of Adam. Defaults to ``True``.

    Returns:
        The update, not compiled.

    Examples:
        >>> actor = make_actor(3, 2, hidden_sizes=(8,))
        >>> loss = EnsembleSACLoss(actor, make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,)))
        >>> warm_start_update(loss, SoftUpdate(loss, tau=0.005), utd_ratio=2, ghost_steps=True)
        Update of EnsembleSACLoss
          Repeat(2)
            Descend('qvalue', Adam)
            Ghost('actor')
            Ghost('alpha')
            MoveTargets(SoftUpdate)
          Whole()
            Joint()
              Descend('actor', Adam)
              Descend('alpha', Adam)
            Ghost('qvalue')
    """
    if not ghost_steps:
        qvalue_lr = ghostless_lr(qvalue_lr, steps=utd_ratio, ghosts=1)
        actor_lr = ghostless_lr(actor_lr, steps=1, ghosts=utd_ratio)
    qvalue = Descend("qvalue", Adam(loss.qvalue_network_params.parameters(), lr=qvalue_lr, fused=fused))
    actor = Descend("actor", Adam(loss.actor_network_params.parameters(), lr=actor_lr, fused=fused))
    alpha = Descend("alpha", Adam(loss.temperature.parameters(), lr=actor_lr, fused=fused))
    between, last = ((Ghost(actor), Ghost(alpha)), (Ghost(qvalue),)) if ghost_steps else ((), ())
    return Update(
        loss,
        Repeat(utd_ratio, qvalue, *between, MoveTargets(targets)),
        Whole(Joint(actor, alpha), *last),
    )
