# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""How time grows with the work: rows, critics, updates a step, stacked agents, environments, length of a run.

    python benchmarks/growth.py                   every curve, a few minutes
    python benchmarks/growth.py --only rows run --largest 10_000_000
    python benchmarks/growth.py --only files --largest 100_000_000 --folder /disk --private 3

Each curve is a table of seconds over sizes, with its exponent: the slope of log seconds over log size between the last
two sizes. 1 is proportional, 0 is constant; what should be constant and is not, or exceeds 1, is a fault. Times are of
the processor and one thread, the least of a few rounds, so that what else runs on the machine counts little.

`files` is for rows in memory-mapped files: 10^8 of them take 12 GB on the disk, in `--folder`. Each size has a process
of its own, of which the largest resident memory is told, file pages included, and the largest private memory;
`--private` is a limit in GB to the latter (`RLIMIT_DATA`), as on a machine that has no more, and leaves out the
samplers with a stored priority for each row.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensordict
import torch
from tensordict import TensorDict
from timing import seconds
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.collectors import VectorCollector, make_vector_env
from torchrl_o2o.data import (
    TRANSITION,
    BalancedReplaySampler,
    BalancedSampler,
    OnlineWriter,
    PrioritizedReplaySampler,
    load_offline,
    offline_online_storage,
)
from torchrl_o2o.envs import make_gym_env
from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.updates import Descend, MoveTargets, Repeat, Update

OBSERVATION, ACTION, BATCH = 17, 6, 256


#: Options of the command line that one curve reads.
OPTIONS = argparse.Namespace(folder=None, private=None)


def table(title: str, sizes: Sequence[int], curves: dict[str, list[float]]) -> None:
    """Print a curve a line, with its exponent."""
    print(f"\n{title}\n{'':50s}" + "".join(f"{size:>12,d}" for size in sizes) + f"{'exponent':>12s}")
    for name, values in curves.items():
        row = "".join(f"{1e3 * value:9.3g} ms" for value in values) + f"{exponent(sizes, values):12.2f}"
        print(f"{name:50s}" + row, flush=True)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The slope between the last two sizes in double logarithms: 1 is proportional, 0 constant."""
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def gather(sizes: Sequence[int], measured: Callable[[int], Iterator[tuple[str, float]]]) -> dict[str, list[float]]:
    """The curves of all sizes, by name."""
    curves: dict[str, list[float]] = {}
    for size in sizes:
        for name, value in measured(size):
            curves.setdefault(name, []).append(value)
    return curves


def rows(largest: int) -> None:
    """Loading, drawing, saving and restoring over the number of rows."""
    sizes = [size for size in (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000) if size <= largest]

    def measured(count: int) -> Iterator[tuple[str, float]]:
        data = random_transitions(count, OBSERVATION, ACTION)
        arrays = {
            "observations": data["observation"].numpy(),
            "actions": data["action"].numpy(),
            "rewards": data["next", "reward"].numpy(),
            "next_observations": data["next", "observation"].numpy(),
            "terminals": np.zeros(count, bool),
            "timeouts": np.arange(count) % 1000 == 999,
        }
        yield "load_offline of arrays", seconds(lambda: load_offline(arrays), rounds=1)
        offline = data.select(*TRANSITION)
        buffers = {}
        for sampler in (
            BalancedSampler(count),
            PrioritizedReplaySampler(2 * count, 0.6, 0.4),
            BalancedReplaySampler(count, count),
        ):
            storage = offline_online_storage(offline, count)
            buffer = TensorDictReplayBuffer(
                storage=storage, sampler=sampler, writer=OnlineWriter(count), batch_size=BATCH
            )
            buffer.extend(offline)
            buffers[type(sampler).__name__] = buffer
            yield f"draw {BATCH}, {type(sampler).__name__}", seconds(buffer.sample, repeats=20, rounds=5)
        index, priority = torch.arange(BATCH), torch.rand(BATCH)
        for name in ("PrioritizedReplaySampler", "BalancedReplaySampler"):
            sampler = buffers[name].sampler
            call = lambda sampler=sampler: sampler.update_priority(index, priority)  # noqa: E731
            yield f"update {BATCH}, {name}", seconds(call, repeats=20, rounds=5)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Checkpointer(folder, objects={}, buffer=buffers["BalancedSampler"], copies=False)
            yield "first save", seconds(lambda: checkpoint.save(1), rounds=1)
            buffers["BalancedSampler"].extend(offline[:1000])
            yield "save of 1,000 rows more", seconds(lambda: checkpoint.save(2), rounds=1)
            yield "restore", seconds(checkpoint.restore, rounds=1)

    table("rows (offline; as many online)", sizes, gather(sizes, measured))


SMALL, EPISODE, PART, ONLINE = (3, 1), 1_000, 1_000_000, 100_000


def write_rows(count: int, folder: Path) -> None:
    """Write episodes of small rows into memory-mapped files, so many rows at a time."""
    row = random_transitions(1, *SMALL).set("episode", torch.zeros(1, dtype=torch.int64))[0]
    rows = TensorDict.expand(row, count).clone(recurse=False).memmap_like(str(folder))
    for start in range(0, count, PART):
        number = torch.arange(start, min(start + PART, count))
        part = random_transitions(len(number), *SMALL)
        last = (number % EPISODE == EPISODE - 1).unsqueeze(-1)
        part["next", "observation"] = part.get("observation").roll(-1, 0) + last
        part["next", "terminated"].zero_()
        part["next", "truncated"] = part["next", "done"] = last
        rows[start : start + len(number)] = part.set("episode", number // EPISODE)


@contextmanager
def watched(name: str, report: dict[str, float]) -> Iterator[None]:
    """Note the largest resident and private memory within a block, in MiB."""
    over, private = threading.Event(), [memory("RssAnon")]

    def look() -> None:
        while not over.wait(0.05):
            private.append(max(private.pop(), memory("RssAnon")))

    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        report[f"{name}: resident"], report[f"{name}: private"] = memory("VmHWM"), max(*private, memory("RssAnon"))


def memory(field: str) -> float:
    """A line of the process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def in_files(count: int, folder: Path, private: float | None) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds and MiB of everything that is done with so many rows in files; its own process."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if private is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(private * 1e9), int(private * 1e9)))
    times: dict[str, float] = {}
    peaks = {"imports": memory("RssAnon")}
    with watched("write", peaks):
        write_rows(count, folder / "rows")
    held: dict[str, Any] = {}

    def measure(name: str, call: Callable[[], object]) -> None:
        with watched(name, peaks):
            times[name] = seconds(call, rounds=1)

    measure("load_offline of the files", lambda: held.update(data=load_offline(folder / "rows")))
    build = partial(offline_online_storage, held["data"], ONLINE, scratch_dir=folder / "scratch")
    measure("storage in files", lambda: held.update(storage=build()))
    buffer = TensorDictReplayBuffer(storage=held["storage"], writer=OnlineWriter(count), batch_size=BATCH)
    more = held["data"][:1_000].select(*TRANSITION)
    buffer.extend(more)
    open_folder = partial(Checkpointer, folder / "checkpoints", objects={}, buffer=buffer, copies=False)
    measure("checkpointer", lambda: held.update(checkpoint=open_folder()))
    measure("first save", lambda: held["checkpoint"].save(0))
    samplers = {
        "BalancedSampler": lambda: BalancedSampler(count),
        "PrioritizedReplaySampler": lambda: PrioritizedReplaySampler(count + ONLINE, 0.6, 0.4),
        "BalancedReplaySampler": lambda: BalancedReplaySampler(count, ONLINE),
    }
    for step, (name, make) in enumerate(list(samplers.items())[: None if private is None else 1], 1):
        buffer.set_sampler(make())
        measure(f"first draw, {name}", buffer.sample)
        times[f"draw {BATCH}, {name}"] = seconds(buffer.sample, repeats=20, rounds=5)
        buffer.extend(more)
        measure(f"save of 1,000 rows more, {name}", partial(held["checkpoint"].save, step))
        if step == 1:
            measure("restore", held["checkpoint"].restore)
    return times, peaks


def files(largest: int) -> None:
    """Rows in memory-mapped files: loading, drawing, saving and restoring, with the memory that it takes."""
    sizes = [size for size in (100_000, 1_000_000, 10_000_000, 100_000_000) if size <= largest]
    curves: dict[str, list[float]] = {}
    sums: dict[str, list[float]] = {}
    for size in sizes:
        with (
            tempfile.TemporaryDirectory(dir=OPTIONS.folder) as folder,
            multiprocessing.get_context("spawn").Pool(1) as pool,
        ):
            times, peaks = pool.apply(in_files, (size, Path(folder), OPTIONS.private))
        for found, values in ((curves, times), (sums, peaks)):
            for name, value in values.items():
                found.setdefault(name, []).append(value)
    table(f"rows in files (offline; {ONLINE:,d} online slots)", sizes, curves)
    imports = sums.pop("imports")
    print("largest memory above what the imports take, MiB")
    for name, values in sums.items():
        grown = [max(value - before, 1.0) for value, before in zip(values, imports, strict=True)]
        print(f"{name:54s}" + "".join(f"{value:>12,.0f}" for value in grown) + f"{exponent(sizes, grown):12.2f}")


def update_of(members: int = 2, ratio: int = 1) -> Update:
    """RLPD's update with small networks."""
    critics = make_qvalue_ensemble(OBSERVATION, ACTION, num_qvalue_nets=members, hidden_sizes=(64, 64))
    loss = EnsembleSACLoss(make_actor(OBSERVATION, ACTION, hidden_sizes=(64, 64)), critics, sub_sample_len=2)
    adam = lambda part: torch.optim.Adam(part.parameters(), lr=3e-4, fused=True)  # noqa: E731
    return Update(
        loss,
        Repeat(ratio, Descend("qvalue", adam(loss.qvalue_network_params)), MoveTargets(SoftUpdate(loss, tau=0.005))),
        Descend("actor", adam(loss.actor_network_params)),
        Descend("alpha", adam(loss.temperature)),
    )


def agent(members: int = 2, ratio: int = 1) -> Callable[[], object]:
    """One uncompiled update of one agent."""
    update, batch = update_of(members, ratio), random_transitions(ratio * BATCH, OBSERVATION, ACTION)
    update(batch)
    return lambda: update(batch)


def stack(count: int) -> Callable[[], object]:
    """One compiled update of stacked agents."""
    update = Update.stack([update_of() for _ in range(count)]).compile()
    batches = tensordict.stack([random_transitions(BATCH, OBSERVATION, ACTION)] * count)
    update(batches)
    return lambda: update(batches)


def members(largest: int) -> None:
    """An update over the number of critics."""
    sizes = [2, 10, 50, 100]
    table(
        "critics, uncompiled update",
        sizes,
        {"update": [seconds(agent(members=size), repeats=3, rounds=3) for size in sizes]},
    )


def ratio(largest: int) -> None:
    """An update over critic steps for each environment step."""
    sizes = [1, 4, 16, 64]
    table("utd_ratio, uncompiled update", sizes, {"update": [seconds(agent(ratio=size), rounds=3) for size in sizes]})


def agents(largest: int) -> None:
    """A compiled update of stacked agents over their number."""
    sizes = [1, 4, 16, 64]
    table("stacked agents, compiled", sizes, {"update of all": [seconds(stack(size), rounds=5) for size in sizes]})


def environments(largest: int) -> None:
    """A step of all environments over their number."""
    sizes, actor = [1, 4, 16, 64, 256], make_actor(3, 1, hidden_sizes=(64, 64))

    def measured(count: int) -> Iterator[tuple[str, float]]:
        envs = make_vector_env(lambda: make_gym_env("Pendulum-v1"), count)
        frames = iter(VectorCollector(envs, actor))
        next(frames)
        yield "VectorCollector, one step of all", seconds(lambda: next(frames), repeats=5, rounds=3)
        envs.close()

    table("environments (Pendulum-v1)", sizes, gather(sizes, measured))


def run(largest: int) -> None:
    """What a step and a save cost, and the memory of the process, as a run gets longer."""
    sizes = [size for size in (1_000, 10_000, 100_000, 1_000_000) if size <= largest]
    offline = random_transitions(10_000, OBSERVATION, ACTION).select(*TRANSITION)
    buffer = TensorDictReplayBuffer(
        storage=offline_online_storage(offline, max(sizes)),
        sampler=BalancedSampler(len(offline)),
        writer=OnlineWriter(len(offline)),
        batch_size=BATCH,
    )
    curves: dict[str, list[float]] = {"store and draw": [], "save after 1,000 rows": []}
    memory, stored = [], 0
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpointer(folder, objects={}, buffer=buffer, copies=False)
        for size in sizes:
            while stored < size - 1_000:
                buffer.extend(offline[: min(1_000, size - 1_000 - stored)])
                stored += min(1_000, size - 1_000 - stored)
            checkpoint.save(stored)
            began = time.process_time()
            for row in offline[:1_000].split(1):
                buffer.extend(row)
                buffer.sample()
            curves["store and draw"].append((time.process_time() - began) / 1_000)
            stored += 1_000
            curves["save after 1,000 rows"].append(seconds(partial(checkpoint.save, stored), rounds=1))
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    table("steps of a run", sizes, curves)
    print(f"{'largest resident memory, MiB':50s}" + "".join(f"{value:>12,d}" for value in memory))


CURVES: dict[str, Callable[[int], None]] = {
    "rows": rows,
    "files": files,
    "members": members,
    "ratio": ratio,
    "agents": agents,
    "environments": environments,
    "run": run,
}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CURVES), default=list(CURVES))
    parser.add_argument("--largest", type=int, default=1_000_000, help="rows, and steps of a run")
    parser.add_argument("--folder", help="for the files of `files`; default: the system's temporary folder")
    parser.add_argument("--private", type=float, help="limit to the private memory of `files`, in GB")
    arguments = parser.parse_args(namespace=OPTIONS)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in arguments.only:
        CURVES[name](arguments.largest)


if __name__ == "__main__":
    main()
