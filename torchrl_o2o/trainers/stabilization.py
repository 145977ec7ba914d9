# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Stabilization phases: at intervals, only the critics are trained for many updates on the current data (SPEQ, SOPE).

They work with any learner with critics, and do not change the learner.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import ReplayBuffer
from torchrl.objectives.common import LossModule

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_count
from torchrl_o2o.functional.noise import GeneratorNoise, RowSource
from torchrl_o2o.trainers.learner import Learner
from torchrl_o2o.updates import Descend, MoveTargets, Update
from torchrl_o2o.updates.loss_calls import call_loss
from torchrl_o2o.updates.steps import descends_of, walk

__all__ = [
    "HeldOut",
    "PhaseReport",
    "StoppingRule",
    "critics_alone",
    "hold_out",
    "is_due",
    "policy_value_loss",
    "stabilize",
]


class PhaseReport(NamedTuple):
    """The report of a phase.

    Args:
        updates: of the critics.
        losses: validation losses, before the phase and at each check.
        improved: whether each check improved on the best before it.
        stopped: whether it stopped early.

    Examples:
        >>> report = PhaseReport(updates=20, losses=[-1.0, -1.5], improved=[True], stopped=False)
        >>> report.metrics()
        {'phase_updates': tensor(20.), 'validation_loss': tensor(-1.5000), 'validation_change': tensor(-0.5000)}
    """

    updates: int
    losses: list[float]
    improved: list[bool]
    stopped: bool

    def metrics(self) -> dict[str, Tensor]:
        """Metrics to log."""
        found = {"phase_updates": float(self.updates)}
        if self.losses:
            found |= {"validation_loss": self.losses[-1], "validation_change": self.losses[-1] - self.losses[0]}
        return {name: torch.tensor(value) for name, value in found.items()}


@checked_arguments
@dataclass(frozen=True)
class StoppingRule:
    r"""The end of a stabilization phase: after ``max_updates``, or when the validation loss stops improving.

    Every ``check_every`` updates, the validation loss L is compared with the best so far, b: it is improved iff
    :math:`L < b - \tau|b|`. The phase ends after ``patience`` updates without improvement.

    Source: SOPE's code. The code tests L < (1 - tau) b, which is wrong for negative losses, the usual case with
    positive values: a constant loss, and one that rises by less than a thousandth per check, count as improved.
    ``sope_code`` reproduces this.

    Args:
        max_updates: largest number of updates. Defaults to 75,000; SPEQ makes exactly that many.
        check_every: updates between checks. Defaults to 1,000.
        patience: updates without improvement; ``None`` never stops early and checks nothing (SPEQ). Defaults to 10,000.
        tolerance: :math:`\tau`. Defaults to 0.001.
        sope_code: whether to compare as in SOPE's code. Defaults to ``False``.

    Raises:
        O2OSpecError: if a number is out of range.

    Examples:
        >>> rule = StoppingRule(max_updates=60, check_every=5, patience=10)
        >>> losses = iter([-10.0] * 100)
        >>> rule.run(lambda: None, lambda: next(losses)).updates
        10
        >>> losses = iter([-10.0] * 100)
        >>> StoppingRule(max_updates=60, check_every=5, patience=10, sope_code=True).run(
        ...     lambda: None, lambda: next(losses)).updates
        60
    """

    max_updates: int = 75_000
    check_every: int = 1_000
    patience: int | None = 10_000
    tolerance: float = 1e-3
    sope_code: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("max_updates", "check_every"):
            check_count(name, getattr(self, name), least=1)
        if self.patience is not None:
            check_count("patience", self.patience, least=1)
        if not 0.0 <= self.tolerance < 1.0:
            raise O2OSpecError(f"got tolerance={self.tolerance}, expected a share in [0, 1)")

    def improves(self, loss: float, best: float) -> bool:
        """Whether a validation loss is better than the best before it.

        Args:
            loss: L.
            best: b.
        """
        if self.sope_code:
            return loss < (1.0 - self.tolerance) * best
        return loss < best - self.tolerance * abs(best)

    def run(self, update: Callable[[], object], validate: Callable[[], float]) -> PhaseReport:
        """Run a phase.

        Args:
            update: one update of the critics.
            validate: returns the current validation loss; not called if ``patience`` is ``None``.

        Returns:
            What was done.
        """
        watches = self.patience is not None
        losses: list[float] = [validate()] if watches else []
        improved: list[bool] = []
        best, waited = (losses[0] if watches else math.nan), 0
        for done in range(self.max_updates):
            if watches and done and done % self.check_every == 0:
                losses.append(validate())
                improved.append(self.improves(losses[-1], best))
                best, waited = (losses[-1], 0) if improved[-1] else (best, waited + self.check_every)
                if waited >= (self.patience or 0):
                    return PhaseReport(done, losses, improved, True)
            update()
        return PhaseReport(self.max_updates, losses, improved, False)


class HeldOut(NamedTuple):
    """Rows of a storage that are held out for validation, and the rest.

    Args:
        offline: offline rows to learn from.
        online: online rows to learn from.
        batches: rows of each validation batch; incomplete batches are dropped.
    """

    offline: Tensor
    online: Tensor
    batches: list[Tensor]


@checked_arguments
def hold_out(
    num_offline: int, num_online: int, *, batch_size: int = 256, share: float = 0.1, source: RowSource | None = None
) -> HeldOut:
    """Choose the rows that are held out from a phase.

    A share of the online rows, at least one batch, and *the same number* of offline rows are held out. A region keeps
    at least one batch. No rows of a region are held out if they do not fill a batch.

    Source: SOPE's code, which removes the rows from its buffers and appends them to the ring afterwards; here they are
    not moved.

    Args:
        num_offline: rows at the storage's start.
        num_online: number of rows after them.

    Keyword Args:
        batch_size: rows of a validation batch. Defaults to 256.
        share: of the online rows. Defaults to 0.1.
        source: draws the rows, by ``fractions("held_out_offline" | "held_out_online", n)``; ``None`` (default) takes
            torch's global generator.

    Returns:
        Row numbers of the storage.

    Raises:
        O2OSpecError: if a number is out of range.

    Examples:
        >>> held = hold_out(300, 100, batch_size=8)
        >>> len(held.offline), len(held.online), len(held.batches)
        (290, 90, 2)
    """
    check_count("batch_size", batch_size, least=1)
    if not 0.0 < share < 1.0:
        raise O2OSpecError(f"got share={share}, expected a number between 0 and 1")
    draws, wanted = source or GeneratorNoise(), max(batch_size, int(share * num_online))
    kept, batches = [], []
    for name, first, size in (("offline", 0, num_offline), ("online", num_offline, num_online)):
        apart = min(wanted, size - batch_size)
        apart = apart if apart >= batch_size else 0
        order = draws.fractions(f"held_out_{name}", size).argsort() + first
        kept.append(order[apart:].sort().values)
        batches += list(order[: apart // batch_size * batch_size].split(batch_size)) if apart else []
    return HeldOut(kept[0], kept[1], batches)


@torch.no_grad()
def policy_value_loss(loss: LossModule, batches: list[TensorDictBase]) -> float:
    r"""Mean over batches of :math:`\alpha\log\pi(\tilde a|s)-\bar Q(s,\tilde a)`: the actor's loss, with fresh actions.

    While the policy is frozen, it falls as the values of its actions rise.

    Source: SOPE's code.

    Args:
        loss: a loss with ``actor_loss``.
        batches: validation rows.

    Returns:
        The mean.
    """
    return float(torch.stack([call_loss(loss, "actor", batch, {})[0] for batch in batches]).mean())


def critics_alone(learner: Learner, *, scale: float = 0.5) -> Update:
    """An update with only the critics' step and the targets of a learner's update, with the same optimizer.

    Args:
        learner: a learner with a step of the loss ``"qvalue"``.

    Keyword Args:
        scale: factor of the loss, one half in SPEQ's and SOPE's code. It affects Adam, because its moments are shared
            with other updates. Defaults to 0.5.

    Returns:
        The update, not compiled.

    Raises:
        O2OSpecError: if the learner has no such step, or several.

    Examples:
        >>> import torch
        >>> from torchrl.objectives import SoftUpdate
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> from torchrl_o2o.trainers import Learner
        >>> actor = make_actor(3, 2)
        >>> loss = EnsembleSACLoss(actor, make_qvalue_ensemble(3, 2, num_qvalue_nets=2))
        >>> step = Descend("qvalue", torch.optim.Adam(loss.qvalue_network_params.parameters()))
        >>> critics_alone(Learner(actor, loss, Update(loss, step, MoveTargets(SoftUpdate(loss, tau=0.005)))))
        Update of EnsembleSACLoss
          Descend('qvalue', Adam, scale=0.5)
          MoveTargets(SoftUpdate)
    """
    assert isinstance(learner.update, Update)
    steps = learner.update.steps
    critics = [step for step in descends_of(steps) if step.name == "qvalue"]
    if len(critics) != 1:
        raise O2OSpecError(f"got {len(critics)} steps of 'qvalue' in {learner.update!r}, expected one")
    moving = [step for step in walk(steps) if isinstance(step, MoveTargets)]
    alone = Descend("qvalue", critics[0].optim, critics[0].clip_grad_norm, scale * critics[0].scale)
    return Update(learner.loss, alone, *moving)


def is_due(step: int, interval: int) -> bool:
    """Whether a phase follows this environment step; offline rows do not count.

    Args:
        step: environment steps so far.
        interval: steps between phases, 10,000 in the papers.

    Returns:
        The answer.

    Examples:
        >>> [step for step in range(451) if is_due(step, 100)]
        [100, 200, 300, 400]
    """
    return step > 0 and step % interval == 0


def stabilize(
    learner: Learner,
    update: Update,
    buffer: ReplayBuffer,
    rule: StoppingRule,
    *,
    num_offline: int,
    batch_size: int = 256,
    share: float = 0.1,
) -> PhaseReport:
    """Run one phase: critics and targets are trained, policy and temperature are not.

    Source: SPEQ's and SOPE's code.

    Batches are ``batch_size`` offline rows and as many online ones, without held-out rows. Without offline rows, they
    have only online rows (SPEQ).

    Args:
        learner: the learner whose policy gives the validation loss.
        update: of the learner's critics, see :func:`critics_alone`.
        buffer: offline rows at its start, then online ones.
        rule: when the phase ends.

    Keyword Args:
        num_offline: offline rows.
        batch_size: rows of each kind. Defaults to 256.
        share: of the online rows held out, see :func:`hold_out`. Defaults to 0.1.

    Returns:
        What was done.

    Raises:
        O2OSpecError: if there are too few rows to hold any out, and the rule watches.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.testing import random_transitions
        >>> from torchrl_o2o.trainers import starting_buffer
        >>> from torchrl_o2o.trainers.algorithms import make_critics_alone, make_sope
        >>> cfg = script_config("sope", ["preset=cpu", "compile=false"])
        >>> learner = make_sope(cfg, (3, 2))
        >>> buffer = starting_buffer(random_transitions(100, 3, 2), 100, data="symmetric")
        >>> _ = buffer.extend(random_transitions(50, 3, 2))
        >>> rule = StoppingRule(max_updates=4, check_every=2, patience=2)
        >>> report = stabilize(learner, make_critics_alone(cfg, learner), buffer, rule, num_offline=100, batch_size=16)
        >>> len(report.losses) >= 2, report.updates <= 4
        (True, True)
    """
    num_online = len(buffer) - num_offline
    nothing = HeldOut(torch.arange(num_offline), torch.arange(num_offline, len(buffer)), [])
    watches = rule.patience is not None
    held = hold_out(num_offline, num_online, batch_size=batch_size, share=share) if watches else nothing
    if watches and not held.batches:
        raise O2OSpecError(
            f"got {num_offline} offline and {num_online} online rows, expected {2 * batch_size} of one kind to hold "
            f"out a batch of {batch_size}; begin phases later, or let them run with patience=None"
        )
    storage = buffer._storage
    batches = [storage[rows] for rows in held.batches]

    def learn() -> None:
        parts = [rows[torch.randint(len(rows), (batch_size,))] for rows in (held.offline, held.online) if len(rows)]
        update(storage[torch.cat(parts)])

    return rule.run(learn, lambda: policy_value_loss(learner.loss, batches))
