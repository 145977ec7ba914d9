# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Drawing batches from a million rows, and keeping their priorities: ours beside TorchRL's, interleaved.

    python benchmarks/sampling.py             101 rounds, one thread
    python benchmarks/sampling.py --short     21 rounds

Half of the rows are offline, half online; all contenders hold the same rows and take turns within every round, so that
a busy machine slows all of them. Printed are medians, quartiles and ratios within this one run, of wall and of CPU
time. TorchRL's
PrioritizedSampler takes part where its C++ extension loads.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping

import tensordict
import torch
import torchrl
from memory import remember
from tensordict import TensorDict
from torchrl.data import (
    LazyTensorStorage,
    OfflineToOnlineReplayBuffer,
    PrioritizedSampler,
    ReplayBuffer,
    ReplayBufferEnsemble,
    TensorDictReplayBuffer,
)
from torchrl.data.replay_buffers import RandomSampler, Sampler
from torchrl.data.replay_buffers.samplers.prioritized import SumSegmentTreeFp32

from torchrl_o2o.data import (
    TRANSITION,
    BalancedReplaySampler,
    BalancedSampler,
    OnlineWriter,
    PrioritizedReplaySampler,
    offline_online_storage,
)
from torchrl_o2o.testing import random_transitions

Task = Callable[[], object]


def filled(rows: TensorDict, size: int) -> ReplayBuffer:
    """A TorchRL buffer with a storage of its own (OfflineToOnlineReplayBuffer fails on a TensorDictReplayBuffer)."""
    buffer = ReplayBuffer(storage=LazyTensorStorage(len(rows)), batch_size=size)
    buffer.extend(rows)
    return buffer


def over(storage: LazyTensorStorage, num_offline: int, sampler: Sampler, size: int) -> TensorDictReplayBuffer:
    """A buffer over the shared storage."""
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=OnlineWriter(num_offline), batch_size=size)


def prioritized(count: int, alpha: float = 0.6, beta: float = 0.4) -> dict[str, Sampler]:
    """Samplers with stored priorities; TorchRL's only where it loads."""
    half = count // 2
    samplers: dict[str, Sampler] = {
        "BalancedReplaySampler": BalancedReplaySampler(half, count - half),
        "PrioritizedReplaySampler": PrioritizedReplaySampler(count, alpha, beta),
    }
    if SumSegmentTreeFp32 is not None:
        samplers["PrioritizedSampler (TorchRL)"] = PrioritizedSampler(count, alpha, beta)
    return samplers


def measure(title: str, tasks: Mapping[str, Task], rounds: int, base: str | None = None) -> None:
    """Time all tasks, taking turns, and print medians, quartiles and the ratio to the base."""
    wall: dict[str, list[float]] = {name: [] for name in tasks}
    cpu: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 3):
        for name, task in tasks.items():
            began, spent = time.perf_counter(), time.process_time()
            task()
            if turn >= 3:
                wall[name].append((time.perf_counter() - began) * 1e3)
                cpu[name].append((time.process_time() - spent) * 1e3)
    print(
        f"\n{title}, {rounds} rounds\n{'':46s}{'wall ms':>9s}{'quartiles':>18s}{'CPU ms':>9s}{'wall, CPU / base':>20s}"
    )
    if base is not None:
        remember(title, {name: statistics.median(times) for name, times in wall.items()}, base)
    for name in tasks:
        low, median, high = statistics.quantiles(wall[name], n=4)
        spent, ratio = statistics.median(cpu[name]), ""
        if base is not None:
            ratio = f"{median / statistics.median(wall[base]):11.2f}{spent / statistics.median(cpu[base]):9.2f}"
        print(f"{name:46s}{median:9.3f}{low:9.3f}-{high:8.3f}{spent:9.3f}{ratio}", flush=True)


def mixed_batches(rows: TensorDict, storage: LazyTensorStorage, size: int, rounds: int) -> None:
    """Batches that are half offline, ready for training: flat, with all entries of a transition."""
    half = len(rows) // 2
    parts = [filled(rows[:half], size // 2), filled(rows[half:], size // 2)]
    ensemble = ReplayBufferEnsemble(*parts, sample_from_all=True, batch_size=size)
    both = OfflineToOnlineReplayBuffer(parts[0], online_storage=LazyTensorStorage(len(rows) - half), batch_size=size)
    both.extend(rows[half:])
    ours = over(storage, half, BalancedSampler(half, 0.5), size)
    uniform = over(storage, half, RandomSampler(), size)
    tasks: dict[str, Task] = {
        "ReplayBufferEnsemble (TorchRL), stacked": ensemble.sample,
        "ReplayBufferEnsemble (TorchRL), reshaped flat": lambda: ensemble.sample().reshape(-1),
        "OfflineToOnlineReplayBuffer (TorchRL)": lambda: both.sample(size),
        "RandomSampler (TorchRL), not mixed": uniform.sample,
        "BalancedSampler": ours.sample,
    }
    tasks |= {name: over(storage, half, sampler, size).sample for name, sampler in prioritized(len(rows)).items()}
    measure(f"batches of {size} from {len(rows)} rows", tasks, rounds, "ReplayBufferEnsemble (TorchRL), stacked")


def priorities(storage: LazyTensorStorage, size: int, rounds: int) -> None:
    """Draws of row numbers alone, and updates of the priorities of such a batch."""
    count = len(storage)
    samplers = prioritized(count)
    generator = torch.Generator().manual_seed(0)
    everything, scores = torch.arange(count), torch.rand(count, generator=generator) * 3.0
    for sampler in samplers.values():
        sampler.update_priority(everything, scores, storage=storage)
    index = torch.randint(count, (size,), generator=generator)
    new = torch.rand(size, generator=generator)

    def draw(sampler: Sampler) -> Task:
        return lambda: sampler.sample(storage, size)

    def update(sampler: Sampler, rows: torch.Tensor, values: torch.Tensor) -> Task:
        return lambda: sampler.update_priority(rows, values, storage=storage)

    tasks = {f"{name}: draw {size}": draw(sampler) for name, sampler in samplers.items()}
    tasks |= {f"{name}: update {size}": update(sampler, index, new) for name, sampler in samplers.items()}
    tasks |= {f"{name}: update 1": update(sampler, index[:1], new[:1]) for name, sampler in samplers.items()}
    measure(f"priorities of {count} rows", tasks, rounds)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="21 rounds")
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rounds = 21 if arguments.short else arguments.rounds
    print(f"torch {torch.__version__}, torchrl {torchrl.__version__}, tensordict {tensordict.__version__}")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{arguments.threads} thread(s), observation 17, action 6, float32")
    if SumSegmentTreeFp32 is None:
        print("PrioritizedSampler (TorchRL) is left out: its C++ extension does not load with this torch")
    rows = random_transitions(arguments.rows, 17, 6).select(*TRANSITION)
    half = len(rows) // 2
    storage = offline_online_storage(rows[:half], len(rows) - half)
    storage.set(slice(half, len(rows)), rows[half:])
    mixed_batches(rows, storage, 5120, rounds)
    mixed_batches(rows, storage, 256, rounds)
    priorities(storage, 256, rounds)


if __name__ == "__main__":
    main()
