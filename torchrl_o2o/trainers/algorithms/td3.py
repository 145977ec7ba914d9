# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Learners on TD3's critics: TD3+BC (Fujimoto & Gu 2021), ReBRAC (Tarasov et al. 2023) and SPOT (Wu et al. 2022)."""

from __future__ import annotations

from omegaconf import DictConfig
from tensordict.nn import TensorDictModule, TensorDictSequential
from tensordict.utils import NestedKey
from torch.optim import Adam, Optimizer
from torchrl.modules import AdditiveGaussianModule
from torchrl.objectives import SoftUpdate

from torchrl_o2o.data import TRANSITION
from torchrl_o2o.functional import spot_cooling
from torchrl_o2o.modules import make_action_vae, make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import ReBRACLoss, SPOTLoss, TD3BCLoss, VAELoss
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.updates import Descend, Every, MoveTargets, Update

__all__ = ["decay_constraint", "decay_penalty", "make_rebrac", "make_spot", "make_td3_bc"]


@on_device
def make_td3_bc(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build TD3+BC's learner: critics on smoothed target actions; the actor maximizes the first and imitates the data.

    Source: Fujimoto & Gu 2021, arXiv:2106.06860, Eq. 3-5.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``loss``, ``value_estimator``, ``target``, ``optim``, ``exploration`` and
            ``policy_delay``.
        dims: observation and action dimension.

    Returns:
        The learner; its explorer adds Gaussian noise.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("td3_bc", ["preset=cpu", "compile=false"])
        >>> learner = make_td3_bc(cfg, (3, 2))
        >>> learner.update
        Update of TD3BCLoss
          Descend('qvalue', Adam)
          Every(2)
            Descend('actor', Adam)
            MoveTargets(SoftUpdate)
        >>> ["loss_actor" in learner.update(random_transitions(64, 3, 2)) for _ in range(4)]
        [False, True, False, True]
    """
    actor = make_deterministic_actor(*dims, **plain(cfg.actor))
    loss = TD3BCLoss(actor, make_qvalue_ensemble(*dims, **plain(cfg.qvalue)), **plain(cfg.loss))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    critic_optim = Adam(loss.qvalue_network_params.parameters(), **plain(cfg.optim))
    actor_optim = Adam(loss.actor_network_params.parameters(), **plain(cfg.optim))
    return _td3(cfg, actor, loss, critic_optim, actor_optim)


@on_device
def make_rebrac(cfg: DictConfig, dims: tuple[int, int], *, online: bool = False) -> Learner:
    """Build ReBRAC's learner: TD3 with behavior regularization of actor and critics.

    The critics step with every update. With every ``policy_delay``-th update, beginning with the first, the target
    actor follows the actor, then the actor steps with the new critics, and then the target critics follow. This is the
    authors' order.

    Source: Tarasov et al. 2023, arXiv:2305.09836, Eq. 3-4, and the authors' code; online as in CORL.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``loss``, ``value_estimator``, ``target``, ``actor_optim``,
            ``qvalue_optim`` and ``policy_delay``.
        dims: observation and action dimension.

    Keyword Args:
        online: whether the critics' penalty and calibration are left out. Defaults to ``False``.

    Returns:
        The learner. Offline, it reads the action of the next step and, with ``loss.calibrate``, the row's return. It
        collects without noise.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("rebrac", ["preset=cpu", "compile=false"])
        >>> learner = make_rebrac(cfg, (3, 2))
        >>> learner.update
        Update of ReBRACLoss
          Descend('qvalue', Adam)
          Every(2, first=True)
            MoveTargets(SoftUpdate, ('actor_network',))
            Descend('actor', Adam)
            MoveTargets(SoftUpdate, ('qvalue_network',))
        >>> rows = random_transitions(64, 3, 2)
        >>> rows["next", "action"] = rows["action"]  # see add_next_action
        >>> bool(learner.update(rows)["loss_actor"].isfinite())
        True
    """
    actor = make_deterministic_actor(*dims, **plain(cfg.actor))
    settings = plain(cfg.loss)
    if online:
        settings |= {"critic_bc_coef": 0.0, "calibrate": False}
    loss = ReBRACLoss(actor, make_qvalue_ensemble(*dims, **plain(cfg.qvalue)), **settings)
    loss.make_value_estimator(**plain(cfg.value_estimator))
    critic_optim = Adam(loss.qvalue_network_params.parameters(), **plain(cfg.qvalue_optim))
    actor_optim = Adam(loss.actor_network_params.parameters(), **plain(cfg.actor_optim))
    targets = SoftUpdate(loss, **plain(cfg.target))
    update = Update(
        loss,
        Descend("qvalue", critic_optim),
        Every(
            cfg.policy_delay,
            MoveTargets(targets, ("actor_network",)),
            Descend("actor", actor_optim),
            MoveTargets(targets, ("qvalue_network",)),
            first=True,
        ),
    )
    further: list[NestedKey] = [("next", "action")] if loss.critic_bc_coef else []
    further += ["mc_return"] if loss.calibrate else []
    keys = (*TRANSITION, *further)
    return Learner(actor, loss, compiled(update, cfg), keys=keys)


def decay_penalty(cfg: DictConfig, learner: Learner) -> None:
    """Set the weight of ReBRAC's penalty on the actor for the next online update.

    Args:
        cfg: section ``loss``, ``online.total_frames`` and ``cooling_floor``.
        learner: of :func:`make_rebrac`.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("rebrac", ["preset=cpu", "compile=false", "online.total_frames=4"])
        >>> learner = make_rebrac(cfg, (3, 2), online=True)
        >>> for _ in range(3):
        ...     decay_penalty(cfg, learner)
        ...     print(f"{learner.loss.actor_bc_coef.item():.5f}")
        ...     _ = learner.update(random_transitions(64, 3, 2))
        0.00100
        0.00075
        0.00050
    """
    assert isinstance(learner.loss, ReBRACLoss)
    weight = spot_cooling(cfg.loss.actor_bc_coef, learner.calls, cfg.online.total_frames, cfg.cooling_floor)
    learner.loss.actor_bc_coef.fill_(weight)


@on_device
def make_spot(cfg: DictConfig, dims: tuple[int, int], *, online: bool = False) -> Learner:
    """Build SPOT's learner: TD3 with a penalty on actions that are unlikely under a VAE of the data.

    Source: Wu et al. 2022, arXiv:2202.06239, Eq. 10-13.

    Args:
        cfg: sections ``vae``, ``actor``, ``qvalue``, ``loss``, ``target``, ``vae_optim``, ``qvalue_optim``,
            ``actor_optim``, ``exploration``, and ``gamma``, ``gamma_online``, ``policy_delay``.
        dims: observation and action dimension.

    Keyword Args:
        online: whether ``gamma_online`` is the discount. Defaults to ``False``.

    Returns:
        The learner; its explorer adds Gaussian noise. ``further["vae"]`` is the update that fits the VAE.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("spot", ["preset=cpu", "compile=false"])
        >>> learner = make_spot(cfg, (3, 2))
        >>> learner.update
        Update of SPOTLoss
          Descend('qvalue', Adam)
          Every(2)
            Descend('actor', Adam)
            MoveTargets(SoftUpdate)
        >>> rows = random_transitions(64, 3, 2)
        >>> _ = learner.further["vae"](rows)  # fitted first
        >>> bool(learner.update(rows)["loss_qvalue"].isfinite())
        True
    """
    vae = make_action_vae(*dims, **plain(cfg.vae))
    actor = make_deterministic_actor(*dims, **plain(cfg.actor))
    qvalues = make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
    vae_loss = VAELoss(vae, beta=cfg.loss.vae_beta)  # trains the module that the loss in the next line uses
    vae_optim = Adam(vae_loss.vae_network_params.parameters(), **plain(cfg.vae_optim))
    loss = SPOTLoss(actor, qvalues, vae, **plain(cfg.loss))
    loss.make_value_estimator(gamma=cfg.gamma_online if online else cfg.gamma)
    critic_optim = Adam(loss.qvalue_network_params.parameters(), **plain(cfg.qvalue_optim))
    actor_optim = Adam(loss.actor_network_params.parameters(), **plain(cfg.actor_optim))
    further = {"vae": compiled(Update(vae_loss, Descend("vae", vae_optim)), cfg)}
    return _td3(cfg, actor, loss, critic_optim, actor_optim, further)


def decay_constraint(cfg: DictConfig, learner: Learner) -> None:
    """Set SPOT's weight of the constraint for the next online update.

    Args:
        cfg: section ``loss``, ``online.total_frames`` and ``cooling_floor``.
        learner: of :func:`make_spot`.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("spot", ["preset=cpu", "compile=false", "online.total_frames=4"])
        >>> learner = make_spot(cfg, (3, 2), online=True)
        >>> for _ in range(3):
        ...     decay_constraint(cfg, learner)
        ...     print(f"{learner.loss.density_weight.item():.4f}")
        ...     _ = learner.update(random_transitions(64, 3, 2))
        0.0375
        0.0250
        0.0125
    """
    assert isinstance(learner.loss, SPOTLoss)
    weight = spot_cooling(cfg.loss.density_weight, learner.calls + 1, cfg.online.total_frames, cfg.cooling_floor)
    learner.loss.density_weight.fill_(weight)


def _td3(
    cfg: DictConfig,
    actor: TensorDictModule,
    loss: TD3BCLoss | SPOTLoss,
    critic_optim: Optimizer,
    actor_optim: Optimizer,
    further: dict[str, Update] | None = None,
) -> Learner:
    """TD3's update: critics, and at every ``policy_delay``-th update the actor on the new critics, and all targets."""
    targets = MoveTargets(SoftUpdate(loss, **plain(cfg.target)))
    update = Update(
        loss, Descend("qvalue", critic_optim), Every(cfg.policy_delay, Descend("actor", actor_optim), targets)
    )
    noise = AdditiveGaussianModule(actor.spec, **plain(cfg.exploration))  # pyright: ignore[reportAttributeAccessIssue]
    explorer = TensorDictSequential([actor, noise])
    return Learner(actor, loss, compiled(update, cfg), explorer=explorer, further=further)
