# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Stochastic policies by the setting ``policy_family``, shared by the learners of ACA and BRAC."""

from __future__ import annotations

from omegaconf import DictConfig
from tensordict.nn import ProbabilisticTensorDictSequential

from torchrl_o2o.errors import check_option
from torchrl_o2o.modules import make_actor, make_gaussian_actor
from torchrl_o2o.trainers.settings import plain

__all__ = ["make_policy"]

_FAMILIES = {"tanh": make_actor, "gaussian": make_gaussian_actor}


def make_policy(cfg: DictConfig, dims: tuple[int, int]) -> ProbabilisticTensorDictSequential:
    """Build a stochastic policy, squashed by tanh or not.

    Args:
        cfg: ``policy_family`` (``"tanh"`` or ``"gaussian"``), and section ``actor``.
        dims: observation and action dimension.

    Returns:
        The policy.

    Raises:
        O2OSpecError: if the family is unknown.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> make_policy(script_config("aca", ["preset=cpu"]), (3, 2)).out_keys
        ['loc', 'scale', 'action']
    """
    check_option("policy_family", cfg.policy_family, tuple(_FAMILIES))
    return _FAMILIES[cfg.policy_family](*dims, **plain(cfg.actor))
