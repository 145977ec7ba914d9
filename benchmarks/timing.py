# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the update benchmarks share: contenders taking turns, and how fast this machine multiplies matrices now."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from tensordict import TensorDict
from torch.utils.flop_counter import FlopCounterMode

from torchrl_o2o.updates import matmul_route

Update = Callable[[TensorDict], Any]
Shape = tuple[int, int, int, int]


def take_turns(updates: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU milliseconds per call, the contenders interleaved within every round."""
    wall: dict[str, list[float]] = {name: [] for name in updates}
    cpu: dict[str, list[float]] = {name: [] for name in updates}
    for _ in range(rounds):
        for name, update in updates.items():
            began, spent = time.perf_counter(), time.process_time()
            update()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            wall[name].append((time.perf_counter() - began) * 1e3)
            cpu[name].append((time.process_time() - spent) * 1e3)
    return {name: (statistics.median(wall[name]), statistics.median(cpu[name])) for name in updates}


def seconds(
    call: Callable[[], Any], repeats: int = 1, rounds: int = 5, clock: Callable[[], float] = time.process_time
) -> float:
    """Least time of a call over a few rounds, of the processor unless another clock is given."""
    best = float("inf")
    for _ in range(rounds):
        began = clock()
        for _ in range(repeats):
            call()
        best = min(best, (clock() - began) / repeats)
    return best


def products(shape: Shape, device: str = "cpu") -> tuple[Callable[[], Any], float]:
    """One batched product [E, M, K] times [E, K, N] to measure the machine's rate by, and its GFLOP."""
    members, rows, inner, columns = shape
    left = torch.randn(members, rows, inner, device=device)
    right = torch.randn(members, columns, inner, device=device).mT
    out = torch.empty(members, rows, columns, device=device)
    return lambda: torch.bmm(left, right, out=out), 2e-9 * members * rows * inner * columns


def by_onednn(update: Update) -> Update:
    """The same update with its float32 products by oneDNN, whatever those of the other contenders are."""

    def routed(batch: TensorDict) -> Any:
        with matmul_route("onednn"):
            return update(batch)

    return routed


class _NoModules(nullcontext):
    """Counts for the whole only: torch's own tracker compares modules, and a loss's parameters are TensorDicts."""

    parents = frozenset({"Global"})


def count_gflop(update: Callable[[], Any]) -> float:
    """GFLOP of the matrix products in one call of an eager update, backward passes included."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        update()
    return counter.get_total_flops() / 1e9
