# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Learners of Yu & Zhang 2023: SAC+ML, baselines on another policy, ACA, and SAC for comparison."""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig
from torch import Tensor
from torch.optim import Adam
from torchrl.objectives import SoftUpdate

from torchrl_o2o.functional import interpolation_weight
from torchrl_o2o.modules import Temperature, make_baselines, make_qvalue_ensemble
from torchrl_o2o.objectives import ACALoss, BaselineLoss, EnsembleSACLoss, SACMLLoss
from torchrl_o2o.trainers.algorithms.policies import make_policy
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.handover import align
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.updates import Descend, MoveTargets, Update

__all__ = ["decay_alignment", "make_aca", "make_baseline_learner", "make_sac_after_sac_ml", "make_sac_ml"]

_Soft = SACMLLoss | ACALoss | EnsembleSACLoss


@on_device
def make_sac_ml(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build the offline learner: soft actor-critic with a likelihood term and the baseline for the alignment.

    The order is the authors': temperature, critics, baselines, actor, then the targets.

    Source: Yu & Zhang 2023, Eq. 8 and 9, and the authors' code.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``baseline``, ``sac_ml``, ``value_estimator``, ``target``, ``optim``, and
            ``policy_family``, ``target_entropy_per_dim``.
        dims: observation and action dimension.

    Returns:
        The learner.

    Raises:
        O2OSpecError: if the policy's family is unknown.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("aca", ["preset=cpu", "compile=false"])
        >>> learner = make_sac_ml(cfg, (3, 2))
        >>> learner.update
        Update of SACMLLoss
          Descend('alpha', Adam)
          Descend('qvalue', Adam)
          Descend('baseline', Adam)
          Descend('actor', Adam)
          MoveTargets(SoftUpdate)
        >>> bool(learner.update(random_transitions(64, 3, 2))["loss_actor"].isfinite())
        True
    """
    actor, qvalues = make_policy(cfg, dims), make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
    baselines, temperature = make_baselines(dims[0], **plain(cfg.baseline)), _temperature(cfg, dims)
    loss = SACMLLoss(actor, qvalues, baselines, temperature=temperature, **plain(cfg.sac_ml))
    return Learner(actor, loss, _in_turn(cfg, loss, ("qvalue", "baseline", "actor")))


@on_device
def make_baseline_learner(cfg: DictConfig, dims: tuple[int, int], *, policy: Mapping[str, Tensor]) -> Learner:
    """Build the offline learner of baselines for the policy of another learner, which is not changed.

    Source: Yu & Zhang 2023, Eq. 8 and 9.

    Args:
        cfg: sections ``actor``, ``baseline``, ``policy_baseline``, ``value_estimator``, ``optim`` and
            ``policy_family``.
        dims: observation and action dimension.

    Keyword Args:
        policy: the actor's state.

    Returns:
        The learner.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("aca", ["preset=cpu", "compile=false"])
        >>> cloned = make_sac_ml(cfg, (3, 2)).actor  # or any policy of the same shape
        >>> learner = make_baseline_learner(cfg, (3, 2), policy=cloned.state_dict())
        >>> learner.update
        Update of BaselineLoss
          Descend('baseline', Adam)
        >>> bool(learner.update(random_transitions(64, 3, 2))["loss_baseline"].isfinite())
        True
    """
    actor, baselines = make_policy(cfg, dims), make_baselines(dims[0], **plain(cfg.baseline))
    actor.load_state_dict(policy)
    loss = BaselineLoss(actor, baselines, **plain(cfg.policy_baseline))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    optim = Adam(loss.baseline_network_params.parameters(), **plain(cfg.optim))
    return Learner(actor, loss, compiled(Update(loss, Descend("baseline", optim)), cfg))


@on_device
def make_aca(cfg: DictConfig, dims: tuple[int, int], source: Mapping[str, Tensor]) -> Learner:
    """Build the online learner, with the critic k log pi_0 + R; R starts as the baseline.

    Source: Yu & Zhang 2023, and the authors' code; see :class:`~torchrl_o2o.objectives.ACALoss`.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``alignment``, ``interpolation``, ``value_estimator``, ``target``,
            ``optim``, and ``policy_family``, ``target_entropy_per_dim``, ``max_grad_norm``.
        dims: observation and action dimension.
        source: state of the offline loss, with baselines.

    Returns:
        The learner.

    Raises:
        O2OSpecError: if the offline state does not fit, or the policy's family is unknown.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("aca", ["preset=cpu", "compile=false"])
        >>> offline = make_sac_ml(cfg, (3, 2))
        >>> learner = make_aca(cfg, (3, 2), offline.loss.state_dict())
        >>> learner.update
        Update of ACALoss
          Descend('alpha', Adam)
          Descend('qvalue', Adam)
          Descend('actor', Adam, clip_grad_norm=0.25)
          MoveTargets(SoftUpdate)
        >>> bool(learner.update(random_transitions(64, 3, 2))["loss_actor"].isfinite())
        True
    """
    actor, residuals = make_policy(cfg, dims), make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
    loss = align(source, actor, residuals, temperature=_temperature(cfg, dims), **plain(cfg.alignment))
    learner = Learner(actor, loss, _in_turn(cfg, loss, ("qvalue", "actor"), cfg.max_grad_norm))
    decay_alignment(cfg, learner)
    return learner


def decay_alignment(cfg: DictConfig, learner: Learner) -> dict[str, Tensor]:
    """Set k for the next update, from the number of updates made.

    Args:
        cfg: section ``interpolation``.
        learner: from :func:`make_aca`; others are not changed.

    Returns:
        ``interpolation``, the k of the previous update, for the log.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("aca", ["preset=cpu", "compile=false", "interpolation.horizon=0.004"])
        >>> learner = make_aca(cfg, (3, 2), make_sac_ml(cfg, (3, 2)).loss.state_dict())
        >>> for _ in range(3):
        ...     _ = learner.update(random_transitions(64, 3, 2))
        ...     print(f"{decay_alignment(cfg, learner)['interpolation']:.2f}")
        1.00
        0.75
        0.50
    """
    if not isinstance(learner.loss, ACALoss):
        return {}
    before = learner.loss.interpolation.clone()
    learner.loss.interpolation = interpolation_weight(learner.calls, **plain(cfg.interpolation))
    return {"interpolation": before}


@on_device
def make_sac_after_sac_ml(cfg: DictConfig, dims: tuple[int, int], source: Mapping[str, Tensor]) -> Learner:
    """Build the paper's comparison, plain soft actor-critic from the offline critics.

    Args:
        cfg: as in :func:`make_aca`.
        dims: observation and action dimension.
        source: not used, because the hand-over copies the networks.

    Returns:
        The learner.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.trainers import HandOver, hand_over
        >>> cfg = script_config("aca", ["preset=cpu", "compile=false", "learner=sac"])
        >>> offline = make_sac_ml(cfg, (3, 2))
        >>> learner = make_sac_after_sac_ml(cfg, (3, 2), offline.loss.state_dict())
        >>> hand_over(offline, learner, HandOver(carry=("actor_network", "qvalue_network")))  # starts from scratch
        ['temperature']
    """
    actor, qvalues = make_policy(cfg, dims), make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
    loss = EnsembleSACLoss(actor, qvalues, temperature=_temperature(cfg, dims), actor_q="min")
    return Learner(actor, loss, _in_turn(cfg, loss, ("qvalue", "actor"), cfg.max_grad_norm))


def _temperature(cfg: DictConfig, dims: tuple[int, int]) -> Temperature:
    """The temperature, which starts at one."""
    return Temperature(cfg.target_entropy_per_dim * dims[1], form="log_alpha")


def _in_turn(cfg: DictConfig, loss: _Soft, networks: tuple[str, ...], max_grad_norm: float | None = None) -> Update:
    """An update of the temperature, then of the networks one after the other, then of the targets."""
    loss.make_value_estimator(**plain(cfg.value_estimator))
    parts = {"alpha": loss.temperature} | {name: getattr(loss, f"{name}_network_params") for name in networks}
    steps = [
        Descend(name, Adam(part.parameters(), **plain(cfg.optim)), max_grad_norm if name == "actor" else None)
        for name, part in parts.items()
    ]
    return compiled(Update(loss, *steps, MoveTargets(SoftUpdate(loss, **plain(cfg.target)))), cfg)
