# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The hand-over from offline pre-training to online fine-tuning: networks, optimizers, data, warm-up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives.common import LossModule

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.data import TRANSITION
from torchrl_o2o.data.buffers import MakeStorage, StartingData, starting_buffer, top_episodes
from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.objectives.carry import ParameterSource, align, carry_optimizer, carry_over, stack_agents

__all__ = [
    "HandOver",
    "MakeStorage",
    "align",
    "carry_optimizer",
    "carry_over",
    "stack_agents",
    "starting_buffer",
    "top_episodes",
]


@checked_arguments
@dataclass(frozen=True)
class HandOver:
    """The decisions of a method between the phases, one per field.

    ==============  ========================================  ==============  ============  ========================
    method          carry                                     optimizers      data          warm-up, temperature
    ==============  ========================================  ==============  ============  ========================
    CQL, Cal-QL     actor, critics, temperature, penalty      kept            symmetric     none
    AWAC, IQL       actor, critics (IQL: value too)           kept            all           AWAC (rlkit) 1000 steps
    ACA             see :func:`align`                         fresh           top           none, alpha = 1
    SAC+ML -> SAC   actor, critics, temperature               fresh           none or top   none
    SAC, BC start   actor                                     fresh           none or all   none
    WSRL            actor, critics, temperature               kept            none          5000 steps
    PEX             critics, V; actor as the frozen policy    fresh           symmetric     5001 steps
    ==============  ========================================  ==============  ============  ========================

    Args:
        carry: networks that are copied, see :func:`carry_over`; all others are new.
        keep_optimizers: whether the optimizers' moments are copied. Defaults to ``False``.
        init_alpha: initial temperature online; ``None`` (default) keeps the loss's temperature.
        warmup_steps: environment steps with the frozen policy before the first update. Defaults to 0.
        data: the offline rows that stay in the buffer, see :func:`starting_buffer`. Defaults to ``"all"``.
        num_top_episodes: for ``data="top"``; not read otherwise, so that a method's preset may hold it.
        offline_fraction: for ``data="symmetric"``; not read otherwise.

    Raises:
        O2OSpecError: if a value is out of range.

    Examples:
        >>> wsrl = HandOver(data="none", warmup_steps=5000)
        >>> wsrl.may_update(4999), wsrl.may_update(5000)
        (False, True)
    """

    carry: tuple[str, ...] = ("actor_network", "qvalue_network")
    keep_optimizers: bool = False
    init_alpha: float | None = None
    warmup_steps: int = 0
    data: StartingData = "all"
    num_top_episodes: int = 0
    offline_fraction: float = 0.5

    def __post_init__(self) -> None:
        """Check the values."""
        check_option("data", self.data, ("none", "all", "top", "symmetric"))
        if self.warmup_steps < 0 or (self.init_alpha is not None and not 0.0 < self.init_alpha < math.inf):
            raise O2OSpecError(
                f"got warmup_steps={self.warmup_steps}, init_alpha={self.init_alpha}, expected warmup_steps >= 0 and a "
                "positive init_alpha"
            )
        if self.num_top_episodes < 0 or not 0.0 <= self.offline_fraction <= 1.0:
            raise O2OSpecError(
                f"got num_top_episodes={self.num_top_episodes}, offline_fraction={self.offline_fraction}, expected "
                "num_top_episodes >= 0 and offline_fraction in [0, 1]"
            )

    def apply(
        self,
        source: ParameterSource,
        destination: LossModule,
        optimizers: Sequence[tuple[Mapping[str, Any] | torch.optim.Optimizer, torch.optim.Optimizer]] = (),
    ) -> list[str]:
        """Carry networks, temperature and optimizers over.

        Args:
            source: the offline loss, or its state.
            destination: the online loss, changed in place.
            optimizers: (offline, online) pairs, used if ``keep_optimizers``. Defaults to none.

        Returns:
            The networks that are new.

        Raises:
            O2OSpecError: if something does not fit.
        """
        fresh = carry_over(source, destination, self.carry)
        if self.init_alpha is not None:
            temperature = getattr(destination, "temperature", None)
            if temperature is None:
                raise O2OSpecError("got init_alpha for an online loss without temperature, expected None; leave it out")
            temperature.fill_(self.init_alpha)
        if self.keep_optimizers:
            if not optimizers:
                raise O2OSpecError(
                    "got keep_optimizers=True, but no optimizers were given, expected (offline, online) pairs; pass "
                    "them"
                )
            for offline, online in optimizers:
                carry_optimizer(offline, online)
        return fresh

    def buffer(
        self,
        offline: TensorDictBase,
        online_capacity: int,
        *,
        batch_size: int = 256,
        keys: Sequence[NestedKey] = TRANSITION,
        make_storage: MakeStorage | None = None,
        scratch_dir: str | Path | None = None,
        device: torch.device | str = "cpu",
    ) -> TensorDictReplayBuffer:
        """The buffer for the start of online training, see :func:`starting_buffer`."""
        return starting_buffer(
            offline,
            online_capacity,
            data=self.data,
            batch_size=batch_size,
            num_top_episodes=self.num_top_episodes if self.data == "top" else 0,
            offline_fraction=self.offline_fraction if self.data == "symmetric" else 0.5,
            keys=keys,
            make_storage=make_storage,
            scratch_dir=scratch_dir,
            device=device,
        )

    def may_update(self, step: int) -> bool:
        """Whether the warm-up is over after ``step`` online environment steps."""
        return step >= self.warmup_steps
