# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Learners on TD3's critics: TD3+BC (Fujimoto & Gu 2021) and SPOT (Wu et al. 2022)."""

from __future__ import annotations

from omegaconf import DictConfig
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch.optim import Adam, Optimizer
from torchrl.modules import AdditiveGaussianModule
from torchrl.objectives import SoftUpdate

from torchrl_o2o.functional import spot_cooling
from torchrl_o2o.modules import make_action_vae, make_deterministic_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import SPOTLoss, TD3BCLoss, VAELoss
from torchrl_o2o.trainers.learner import Learner
from torchrl_o2o.trainers.settings import compiled, plain
from torchrl_o2o.updates import Descend, Every, MoveTargets, Update

__all__ = ["cool_constraint", "make_spot", "make_td3_bc"]


def make_td3_bc(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Critics on smoothed target actions; the actor climbs the first and is held to the recorded actions.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``loss``, ``value_estimator``, ``target``, ``optim``, ``exploration`` and
            ``policy_delay``.
        dims: observation and action dimension.

    Returns:
        The learner; its explorer adds Gaussian noise.
    """
    actor = make_deterministic_actor(*dims, **plain(cfg.actor))
    loss = TD3BCLoss(actor, make_qvalue_ensemble(*dims, **plain(cfg.qvalue)), **plain(cfg.loss))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    critic_optim = Adam(loss.qvalue_network_params.parameters(), **plain(cfg.optim))
    actor_optim = Adam(loss.actor_network_params.parameters(), **plain(cfg.optim))
    return _td3(cfg, actor, loss, critic_optim, actor_optim)


def make_spot(cfg: DictConfig, dims: tuple[int, int], *, online: bool = False) -> Learner:
    """TD3 whose actor pays for actions that a VAE of the data finds unlikely.

    Args:
        cfg: sections ``vae``, ``actor``, ``qvalue``, ``loss``, ``target``, ``vae_optim``, ``qvalue_optim``,
            ``actor_optim``, ``exploration``, and ``gamma``, ``gamma_online``, ``policy_delay``.
        dims: observation and action dimension.

    Keyword Args:
        online: discount by ``gamma_online``. Defaults to ``False``.

    Returns:
        The learner; its explorer adds Gaussian noise. ``further["vae"]`` is the update that fits the VAE.
    """
    vae = make_action_vae(*dims, **plain(cfg.vae))
    actor = make_deterministic_actor(*dims, **plain(cfg.actor))
    qvalues = make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
    vae_loss = VAELoss(vae, beta=cfg.loss.vae_beta)  # trains the module that the next line's loss reads
    vae_optim = Adam(vae_loss.vae_network_params.parameters(), **plain(cfg.vae_optim))
    loss = SPOTLoss(actor, qvalues, vae, **plain(cfg.loss))
    loss.make_value_estimator(gamma=cfg.gamma_online if online else cfg.gamma)
    critic_optim = Adam(loss.qvalue_network_params.parameters(), **plain(cfg.qvalue_optim))
    actor_optim = Adam(loss.actor_network_params.parameters(), **plain(cfg.actor_optim))
    further = {"vae": compiled(Update(vae_loss, Descend("vae", vae_optim)), cfg)}
    return _td3(cfg, actor, loss, critic_optim, actor_optim, further)


def cool_constraint(cfg: DictConfig, learner: Learner) -> None:
    """Set SPOT's weight of the constraint for the next online update.

    Args:
        cfg: section ``loss``, ``online.total_frames`` and ``cooling_floor``.
        learner: of :func:`make_spot`.
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
    """TD3's update: critics; at every ``policy_delay``-th update the actor on the new critics, and all targets."""
    targets = MoveTargets(SoftUpdate(loss, **plain(cfg.target)))
    update = Update(
        loss, Descend("qvalue", critic_optim), Every(cfg.policy_delay, Descend("actor", actor_optim), targets)
    )
    noise = AdditiveGaussianModule(actor.spec, **plain(cfg.exploration))  # pyright: ignore[reportAttributeAccessIssue]
    explorer = TensorDictSequential(actor, noise)
    return Learner(actor, loss, compiled(update, cfg), explorer=explorer, further=further)
