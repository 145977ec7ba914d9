# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The first edition's functions for updates, as short forms of :class:`~torchrl_o2o.updates.Update`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torchrl.objectives import SoftUpdate
from torchrl.objectives.common import LossModule

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.updates.agents import StackedUpdate
from torchrl_o2o.updates.program import Mode
from torchrl_o2o.updates.steps import Descend, Joint, MoveTargets, Repeat, Step
from torchrl_o2o.updates.update import Update

__all__ = ["compile_update", "stack_updates"]


def compile_update(
    loss: LossModule,
    optims: Mapping[str, torch.optim.Optimizer],
    target_updater: SoftUpdate | None = None,
    *,
    utd_ratio: int | None = None,
    joint: bool = False,
    rows: Sequence[str] = (),
    max_grad_norm: Mapping[str, float] | None = None,
    compile: bool = True,
    mode: Mode = "default",
    matmul_dtype: torch.dtype | None = None,
) -> Update:
    """Build an :class:`Update` as in the first edition, from losses' names and optimizers, in the order of the steps.

    With ``utd_ratio``, the first loss and the targets are stepped on each of that many minibatches, and then the others
    once. Without it, all losses are stepped on the whole batch (with ``joint``, from one set of gradients), then the
    targets. New code should list the steps in an :class:`Update`.

    Args:
        loss: a loss module.
        optims: name of the loss -> optimizer of the parameters that it trains.
        target_updater: moves the targets; ``None`` (default) does not move them.
        utd_ratio: see above. Defaults to ``None``.
        joint: see above. Defaults to ``False``.
        rows: see :class:`Update`.
        max_grad_norm: name of the loss -> ``clip_grad_norm`` of its :class:`Descend`. Defaults to none.
        compile: whether the update is compiled. Defaults to ``True``.
        mode: see :meth:`Update.compile`.
        matmul_dtype: see :meth:`Update.compile`.

    Returns:
        The update, with ``check_finite=False``.

    Raises:
        O2OSpecError: as :class:`Update` and :meth:`Update.compile`, or if the options do not fit together.

    Examples:
        >>> from torchrl_o2o.modules import make_gaussian_actor
        >>> from torchrl_o2o.objectives import BCLoss
        >>> loss = BCLoss(make_gaussian_actor(3, 2, hidden_sizes=(8,)))
        >>> compile_update(loss, {"actor": torch.optim.Adam(loss.parameters())}, compile=False)
        Update of BCLoss
          Descend('actor', Adam)
    """
    if not optims or (utd_ratio is not None and (utd_ratio < 1 or joint)):
        raise O2OSpecError(
            f"got {len(optims)} losses, {utd_ratio=}, {joint=}; expected at least one loss, and joint=False with "
            "utd_ratio; change one of them"
        )
    bounds = dict(max_grad_norm or {})
    if unknown := sorted(set(bounds) - set(optims)):
        raise O2OSpecError(f"got max_grad_norm for {unknown}, expected losses among {list(optims)}; correct the names")
    descends = [Descend(name, optim, bounds.get(name)) for name, optim in optims.items()]
    targets = () if target_updater is None else (MoveTargets(target_updater),)
    steps: tuple[Step, ...] = (Joint(*descends), *targets) if joint else (*descends, *targets)
    if utd_ratio is not None:
        steps = (Repeat(utd_ratio, descends[0], *targets), *descends[1:])
    update = Update(loss, *steps, rows=rows, check_finite=False)
    return update.compile(mode=mode, matmul_dtype=matmul_dtype) if compile else update


def stack_updates(updates: Sequence[Update]) -> StackedUpdate:
    """The first edition's name of :class:`StackedUpdate`.

    Args:
        updates: one per agent.

    Returns:
        The update of all agents.

    Raises:
        O2OSpecError: as :class:`StackedUpdate`.

    Examples:
        >>> from torchrl_o2o.modules import make_gaussian_actor
        >>> from torchrl_o2o.objectives import BCLoss
        >>> losses = [BCLoss(make_gaussian_actor(3, 2, hidden_sizes=(8,))) for _ in range(2)]
        >>> updates = [Update(loss, Descend("actor", torch.optim.Adam(loss.parameters()))) for loss in losses]
        >>> type(stack_updates(updates)).__name__
        'StackedUpdate'
    """
    return StackedUpdate(updates)
