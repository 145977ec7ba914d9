# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Behavior cloning, and SAC from a cloned policy."""

from __future__ import annotations

from omegaconf import DictConfig
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch.optim import Adam

from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.modules import make_actor, make_deterministic_actor, make_gaussian_actor
from torchrl_o2o.objectives import BCLoss
from torchrl_o2o.trainers.algorithms.sac import ensemble_sac
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.updates import Descend, Update

__all__ = ["make_bc", "make_sac_of_clone"]

_POLICIES = {"deterministic": make_deterministic_actor, "gaussian": make_gaussian_actor, "tanh_gaussian": make_actor}


def _make_policy(cfg: DictConfig, dims: tuple[int, int]) -> ProbabilisticTensorDictSequential | TensorDictModule:
    check_option("policy", cfg.policy, tuple(_POLICIES))
    return _POLICIES[cfg.policy](*dims, **plain(cfg.actor))


@on_device
def make_bc(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build a cloning learner: squared error of a deterministic policy, negative log-likelihood of a stochastic one.

    Args:
        cfg: sections ``actor``, ``optim`` and ``policy``.
        dims: observation and action dimension.

    Returns:
        The learner.

    Raises:
        O2OSpecError: if the policy is unknown.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("bc", ["preset=cpu", "compile=false"])
        >>> learner = make_bc(cfg, (3, 2))
        >>> learner.update
        Update of BCLoss
          Descend('actor', Adam)
        >>> sorted(learner.update(random_transitions(64, 3, 2)))
        ['finite', 'imitation_error', 'loss_actor']
    """
    actor = _make_policy(cfg, dims)
    loss = BCLoss(actor)
    optim = Adam(loss.actor_network_params.parameters(), **plain(cfg.optim))
    return Learner(actor, loss, compiled(Update(loss, Descend("actor", optim)), cfg))


@on_device
def make_sac_of_clone(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build SAC that starts from the cloned policy, with new critics and a new temperature.

    Args:
        cfg: sections ``actor``, ``policy`` and ``sac``; the latter as in
            :func:`~torchrl_o2o.trainers.algorithms.make_rlpd`, with ``utd_ratio``.
        dims: observation and action dimension.

    Returns:
        The learner.

    Raises:
        O2OSpecError: if the policy is deterministic.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("bc", ["preset=cpu", "compile=false", "policy=tanh_gaussian", "learner=sac"])
        >>> learner = make_sac_of_clone(cfg, (3, 2))
        >>> learner.update
        Update of EnsembleSACLoss
          Repeat(1)
            Descend('qvalue', AdamW)
            MoveTargets(SoftUpdate)
          Descend('actor', AdamW)
          Descend('alpha', AdamW)
        >>> bool(learner.update(random_transitions(64, 3, 2))["loss_actor"].isfinite())
        True
    """
    if cfg.policy == "deterministic":
        raise O2OSpecError(
            "got learner=sac with policy=deterministic, expected a stochastic policy; set policy=tanh_gaussian or "
            "policy=gaussian"
        )
    actor = _make_policy(cfg, dims)
    assert isinstance(actor, ProbabilisticTensorDictSequential)
    loss, update = ensemble_sac(actor, dims, cfg.sac, utd_ratio=cfg.sac.utd_ratio)
    return Learner(actor, loss, compiled(update, cfg))
