# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""AWR (Peng et al. 2019): two regressions on labels from whole episodes."""

from __future__ import annotations

import math

from omegaconf import DictConfig
from tensordict.nn import TensorDictModuleBase
from torch.optim import SGD

from torchrl_o2o.errors import O2OSpecError, check_count
from torchrl_o2o.modules import GaussianVectorHead, make_gaussian_actor, make_value_network
from torchrl_o2o.objectives import AWRLoss
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.updates import Descend, Update

__all__ = ["check_awr", "make_awr"]


@on_device
def make_awr(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build AWR's learner: a value and a policy of fixed standard deviation, with separate steps on labeled rows.

    Source: Peng et al. 2019, arXiv:1910.00177, Algorithm 1, and the authors' code.

    Args:
        cfg: sections ``actor``, ``value``, ``loss``, ``value_estimator``, ``actor_optim``, ``value_optim``, and
            ``actor_std`` in half-widths of the action box.
        dims: observation and action dimension.

    Returns:
        The learner. ``further["value"]`` is the update of V.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("awr", ["preset=cpu", "compile=false"])
        >>> learner = make_awr(cfg, (3, 2))
        >>> rows = learner.loss.label(random_transitions(64, 3, 2))  # all rows, in their order
        >>> sorted(learner.further["value"](rows[:16]))
        ['finite', 'loss_value', 'value']
        >>> bool(learner.update(rows[:16])["loss_actor"].isfinite())
        True
    """
    actor = make_gaussian_actor(*dims, mean="linear", **plain(cfg.actor))
    _fix_width(actor, cfg.actor_std)
    loss = AWRLoss(actor, make_value_network(dims[0], **plain(cfg.value)), **plain(cfg.loss))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    trained = [value for value in loss.actor_network_params.parameters() if value.requires_grad]
    value_optim = SGD(loss.value_network_params.parameters(), **plain(cfg.value_optim))
    further = {"value": Update(loss, Descend("value", value_optim))}
    update = Update(loss, Descend("actor", SGD(trained, **plain(cfg.actor_optim))))
    return Learner(actor, loss, update, further=further)


def _fix_width(actor: TensorDictModuleBase, std: float) -> None:
    for head in actor.modules():
        if isinstance(head, GaussianVectorHead):
            head.log_std.data.fill_(math.log(std))
            head.log_std.requires_grad_(False)


def check_awr(cfg: DictConfig) -> None:
    """Raise for unusable settings before the first iteration.

    Args:
        cfg: the configuration of the script.

    Raises:
        O2OSpecError: naming the setting.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> check_awr(script_config("awr", ["preset=cpu", "actor_std=0.0"]))
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got actor_std=0.0, expected more than 0, in half-widths of the action box
    """
    for name in ("value_steps", "actor_steps", "batch_size", "frames_per_iteration"):
        check_count(name, cfg[name], least=1)
    if not (isinstance(cfg.actor_std, float | int) and cfg.actor_std > 0.0):
        raise O2OSpecError(f"got actor_std={cfg.actor_std}, expected more than 0, in half-widths of the action box")
    if cfg.compile:
        raise O2OSpecError(
            "got compile=true, expected false, because compiled updates only support Adam and AWR uses SGD; set "
            "compile=false"
        )
    if cfg.handover.data not in ("all", "none"):
        raise O2OSpecError(
            f"got handover.data={cfg.handover.data}; expected all or none, because returns need whole episodes in "
            "their order"
        )
    capacity = cfg.online.get("online_capacity")
    if capacity is not None and capacity < cfg.online.total_frames:
        raise O2OSpecError(
            f"got online.online_capacity={capacity} for {cfg.online.total_frames} frames; expected null, because "
            "returns need all rows in their order"
        )
