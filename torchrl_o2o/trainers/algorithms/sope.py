# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The learner of SPEQ and SOPE: soft actor-critic with LayerNorm and dropout in two critics."""

from __future__ import annotations

import warnings
from typing import Any

from omegaconf import DictConfig
from torch.optim import Adam
from torchrl.objectives import SoftUpdate

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.trainers.compiling import compiled
from torchrl_o2o.trainers.learner import Learner, on_device
from torchrl_o2o.trainers.settings import plain
from torchrl_o2o.trainers.stabilization import StoppingRule, critics_alone
from torchrl_o2o.updates import Descend, Joint, MoveTargets, Update

__all__ = ["check_phases", "make_critics_alone", "make_sope", "phase_settings"]


@on_device
def make_sope(cfg: DictConfig, dims: tuple[int, int]) -> Learner:
    """Build the learner: critics, actor and temperature, all at the old parameters, then the targets.

    Args:
        cfg: sections ``actor``, ``qvalue``, ``temperature``, ``loss``, ``value_estimator``, ``target``, ``optim``, and
            ``target_entropy``, ``None`` for -A.
        dims: observation and action dimension.

    Returns:
        The learner. It is not compiled, with a warning, if its critics have dropout.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("sope", ["preset=cpu", "compile=false"])
        >>> learner = make_sope(cfg, (3, 2))
        >>> learner.update
        Update of EnsembleSACLoss
          Joint()
            Descend('qvalue', Adam)
            Descend('actor', Adam)
            Descend('alpha', Adam)
          MoveTargets(SoftUpdate)
        >>> bool(learner.update(random_transitions(64, 3, 2))["loss_actor"].isfinite())
        True
    """
    actor, qvalues = make_actor(*dims, **plain(cfg.actor)), make_qvalue_ensemble(*dims, **plain(cfg.qvalue))
    target_entropy = -float(dims[1]) if cfg.target_entropy is None else cfg.target_entropy
    temperature = Temperature(target_entropy, form="log_alpha", **plain(cfg.temperature))
    loss = EnsembleSACLoss(actor, qvalues, temperature=temperature, **plain(cfg.loss))
    loss.make_value_estimator(**plain(cfg.value_estimator))
    groups = {"qvalue": loss.qvalue_network_params, "actor": loss.actor_network_params, "alpha": loss.temperature}
    steps = [Descend(name, Adam(group.parameters(), **plain(cfg.optim))) for name, group in groups.items()]
    update = Update(loss, Joint(*steps), MoveTargets(SoftUpdate(loss, **plain(cfg.target))))
    return Learner(actor, loss, _compiled(update, cfg))


def make_critics_alone(cfg: DictConfig, learner: Learner) -> Update:
    """The update of a stabilization phase: the critics' step and the targets, compiled if the learner's update is.

    Args:
        cfg: as in :func:`make_sope`.
        learner: of :func:`make_sope`.

    Returns:
        The update, on the learner's own optimizer.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> cfg = script_config("sope", ["preset=cpu", "compile=false"])
        >>> alone = make_critics_alone(cfg, make_sope(cfg, (3, 2)))
        >>> alone
        Update of EnsembleSACLoss
          Descend('qvalue', Adam, scale=0.5)
          MoveTargets(SoftUpdate)
        >>> bool(alone(random_transitions(64, 3, 2))["loss_qvalue"].isfinite())
        True
    """
    return _compiled(critics_alone(learner), cfg)


def phase_settings(cfg: DictConfig, num_offline: int) -> dict[str, Any]:
    """The settings of a phase, with the argument names of :func:`~torchrl_o2o.trainers.stabilize`.

    Args:
        cfg: ``online.batch_size`` and ``phases.held_out``.
        num_offline: number of offline rows in the buffer. If there are any, half of a batch is offline.

    Returns:
        ``num_offline``, ``batch_size`` and ``share``.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> cfg = script_config("sope", ["preset=cpu", "compile=false"])
        >>> phase_settings(cfg, num_offline=1_000)
        {'num_offline': 1000, 'batch_size': 128, 'share': 0.1}
    """
    rows = cfg.online.batch_size // (2 if num_offline else 1)
    return {"num_offline": num_offline, "batch_size": rows, "share": cfg.phases.held_out}


def check_phases(cfg: DictConfig, num_offline: int) -> None:
    """Raise or warn before the first step if a run's stabilization phases cannot be made, or cannot end early.

    Args:
        cfg: section ``phases``, and ``online.total_frames``, ``online.init_random_frames``, ``online.batch_size``,
            ``online.online_capacity`` and ``handover.warmup_steps``.
        num_offline: as in :func:`phase_settings`.

    Raises:
        O2OSpecError: if a setting is out of range, or there will be too few rows at the first phase.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> check_phases(script_config("sope", ["preset=cpu"]), num_offline=1_000)
        >>> check_phases(script_config("sope", ["preset=cpu", "phases.every=1_500", "online.batch_size=2_000"]), 0)
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got 0 offline rows and 1500 online ones at the first phase, expected 4000 of...
    """
    rule, every, total = StoppingRule(**plain(cfg.phases.rule)), cfg.phases.every, cfg.online.total_frames
    share, rows = cfg.phases.held_out, phase_settings(cfg, num_offline)["batch_size"]
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 < share < 1.0:
        raise O2OSpecError(f"got phases.held_out={share}, expected a number between 0 and 1")
    if rows < 1:
        raise O2OSpecError(
            f"got online.batch_size={cfg.online.batch_size}, expected at least 2, of which half are offline"
        )
    before = max(cfg.online.init_random_frames, cfg.handover.get("warmup_steps", 0) - 1)  # no updates until then
    first = every * (before // every + 1)
    if first > total:
        warnings.warn(
            f"this run makes no phase: the first one would follow step {first} (phases.every={every}, after the first "
            f"{before} steps, in which there are no updates), but online.total_frames={total}; lower phases.every or "
            "raise online.total_frames",
            stacklevel=2,
        )
        return
    if rule.patience is None:
        return
    capacity = cfg.online.get("online_capacity")
    online = first if capacity is None else min(first, capacity)
    if max(num_offline, online) < 2 * rows:
        raise O2OSpecError(
            f"got {num_offline} offline rows and {online} online ones at the first phase, expected {2 * rows} of one "
            f"kind, to hold a batch of {rows} out; raise phases.every, lower online.batch_size, or set "
            "phases.rule.patience=null, which holds no rows out"
        )
    waits = -(-rule.patience // rule.check_every) * rule.check_every
    if waits >= rule.max_updates:
        warnings.warn(
            f"no phase can end early: phases.rule.patience={rule.patience}, checked every {rule.check_every} updates, "
            f"is not over before max_updates={rule.max_updates}; lower patience or check_every, raise max_updates, or "
            "set phases.rule.patience=null, which holds no rows out",
            stacklevel=2,
        )


def _compiled(update: Update, cfg: DictConfig) -> Update:
    return compiled(update, cfg, dropout=cfg.qvalue.dropout)
