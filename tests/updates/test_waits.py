# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""How often an update reads a tensor's value, for which the processor has to wait if the tensor is on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.updates.agents import JOINT, LOSSES, REPEATED, UTD, make_agent, make_batch
from tests.updates.test_update import make_update
from torchrl_o2o.updates import Update
from torchrl_o2o.updates.steps import descends_of

ATEN = torch.ops.aten
READS = {ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.masked_select.default, ATEN.equal.default}


class Reads(TorchDispatchMode):
    """Counts operations whose result, or the shape of it, the processor has to know before it can continue."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func in (ATEN.index.Tensor, ATEN.index_put_.default) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.count += int(func in READS or masks)
        return func(*args, **kwargs or {})


def reads_of(call: Callable[[], object]) -> int:
    call()  # the first call compiles and makes the optimizers' states
    with Reads() as reads:
        call()
    return reads.count


def test_reads_are_counted() -> None:
    values = torch.arange(4.0)
    assert reads_of(lambda: None) == 0
    assert reads_of(lambda: values.sum().item()) == 1
    assert reads_of(lambda: values[values > 1]) == 1
    assert reads_of(lambda: bool(values.isfinite().all())) == 1
    assert reads_of(lambda: torch.stack([values.sum(), values.mean()])) == 0


@pytest.mark.parametrize("kind", ["rlpd", "cal_ql", "samg"])
def test_a_compiled_update_reads_nothing_but_whether_it_was_finite(kind: str, captured: list[Any]) -> None:
    agent, batch = make_agent(kind), make_batch()
    update = make_update(kind, agent)
    update.check_finite = False
    assert reads_of(lambda: update(batch)) == 0
    assert captured
    update.check_finite = True
    assert reads_of(lambda: update(batch)) == 1  # however many steps the call has


def test_stacked_agents_read_nothing(captured: list[Any]) -> None:
    batch = make_batch()
    updates = [make_update("rlpd", make_agent("rlpd", seed=seed)) for seed in range(3)]
    for update in updates:
        update.check_finite = False
    stacked = Update.stack(updates).compile()
    batches = torch.stack([batch] * 3)
    assert reads_of(lambda: stacked(batches)) == 0


@pytest.mark.parametrize("kind", LOSSES)
def test_an_eager_update_reads_once_a_step(kind: str) -> None:
    """To check it for finite values; optimizers that are not fused count their steps on the processor."""
    agent, batch = make_agent(kind), make_batch()
    for optim in agent.optims.values():
        for group in optim.param_groups:
            group["fused"] = True
    update = make_update(kind, agent, compile=False)
    steps = len(descends_of(update.steps))
    repeated = steps + UTD - 1  # the critics step once a minibatch, the rest once a call
    expected = 1 if kind in JOINT else repeated if kind in REPEATED else steps
    assert reads_of(lambda: update(batch)) == expected
