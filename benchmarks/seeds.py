# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""N agents at once against N agents one after the other: updates of RLPD and of A3RL, interleaved.

    python benchmarks/seeds.py             N = 1, 5, 10, small networks and the paper's, eager and compiled
    python benchmarks/seeds.py --short     N = 1, 5, small networks
    python benchmarks/seeds.py --device cuda --modes eager compiled graphs --agents 1 10 20

An update is utd_ratio critic steps with target averaging, then one actor and one temperature step. The contenders take
turns within every round; "times as fast" is the median over rounds of N single updates over the one stacked update.
The parts of an A3RL step (density ratio, scored pool, update) are timed each by itself.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from tensordict import stack
from torch.optim import AdamW
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.data import OnlineWriter, PoolSampler, offline_online_storage
from torchrl_o2o.functional.noise import GeneratorNoise
from torchrl_o2o.modules import DensityRatio, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import DensityRatioLoss, EnsembleSACLoss, join_sources
from torchrl_o2o.priorities import Advantage, DensityRatioScore
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.updates import Descend, MoveTargets, Repeat, Update

OBSERVATION, ACTION, BATCH = 17, 6, 256
# Widths, critics and utd_ratio of the CPU presets and of the paper.
SIZES = {"small": ((64, 64), 2, 2), "paper": ((256, 256), 10, 20)}


def make_agent(size: str, device: str, seed: int) -> tuple[EnsembleSACLoss, Update]:
    """One agent's loss and update, as the scripts have them."""
    torch.manual_seed(seed)
    hidden, members, ratio = SIZES[size]
    critics = make_qvalue_ensemble(OBSERVATION, ACTION, num_qvalue_nets=members, hidden_sizes=hidden)
    actor = make_actor(OBSERVATION, ACTION, hidden_sizes=hidden)
    loss = EnsembleSACLoss(actor, critics, sub_sample_len=2).to(device)
    loss.noise = GeneratorNoise(torch.Generator(device).manual_seed(seed))
    parts = loss.qvalue_network_params, loss.actor_network_params, loss.temperature
    critic, actor_, alpha = (AdamW(part.parameters(), lr=3e-4, weight_decay=0.0, fused=True) for part in parts)
    targets = MoveTargets(SoftUpdate(loss, tau=0.005))
    repeated = Repeat(ratio, Descend("qvalue", critic), targets)
    return loss, Update(loss, repeated, Descend("actor", actor_), Descend("alpha", alpha))


def contenders(size: str, agents: int, device: str, mode: str) -> dict[str, Callable[[], object]]:
    """N single updates and one stacked one, of agents of their own; eagerly both do one agent after the other."""
    batch = random_transitions(SIZES[size][2] * BATCH, OBSERVATION, ACTION).to(device)
    batches = stack([batch] * agents)
    _, update = make_agent(size, device, 0)
    stacked = Update.stack([make_agent(size, device, seed)[1] for seed in range(agents)])
    if mode != "eager":
        how = "reduce-overhead" if mode == "graphs" else "default"
        update.compile(mode=how)
        stacked.compile(mode=how)

    def single() -> None:
        for _ in range(agents):  # the same agent N times: the work of N, and no other caches than N would have
            update(batch)

    return {"single": single, "stacked": lambda: stacked(batches)}


def timed(table: dict[str, Callable[[], object]], rounds: int, device: str) -> list[dict[str, list[float]]]:
    """Milliseconds per call by wall clock and of CPU time, taking turns."""
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    for call in table.values():
        for _ in range(2):
            call()
    wall: dict[str, list[float]] = {name: [] for name in table}
    cpu: dict[str, list[float]] = {name: [] for name in table}
    for _ in range(rounds):
        for name, call in table.items():
            wait()
            began, spent = time.perf_counter(), time.process_time()
            call()
            wait()
            wall[name].append((time.perf_counter() - began) * 1e3)
            cpu[name].append((time.process_time() - spent) * 1e3)
    return [wall, cpu]


def updates(size: str, mode: str, arguments: argparse.Namespace) -> None:
    """Print N single updates against the stacked one."""
    print(f"\n{size} networks {SIZES[size][0]}, {SIZES[size][1]} critics, utd_ratio {SIZES[size][2]}, {mode}")
    print(f"  {'N':>3s}{'N single, ms':>14s}{'stacked':>10s}{'stacked/N':>12s}{'times as fast: wall':>22s}{'CPU':>8s}")
    for agents in arguments.agents:
        wall, cpu = timed(contenders(size, agents, arguments.device, mode), arguments.rounds, arguments.device)
        gains = [
            statistics.median(a / b for a, b in zip(times["single"], times["stacked"], strict=True))
            for times in (wall, cpu)
        ]
        one, all_ = (statistics.median(wall[name]) for name in ("single", "stacked"))
        print(f"  {agents:3d}{one:14.1f}{all_:10.1f}{all_ / agents:12.2f}{gains[0]:22.2f}{gains[1]:8.2f}", flush=True)


def a3rl(size: str, agents: int, arguments: argparse.Namespace) -> None:
    """Print what the parts of one A3RL step of N agents cost: only the scored pools are not stacked."""
    table = contenders(size, agents, "cpu", "compiled")
    hidden = SIZES[size][0]
    densities = [DensityRatioLoss(DensityRatio(OBSERVATION, ACTION, hidden_sizes=hidden)) for _ in range(agents + 1)]
    updates = [
        Update(loss, Descend("density_ratio", torch.optim.Adam(loss.parameters(), lr=3e-4, fused=True))).compile()
        for loss in densities
    ]
    rows = random_transitions(BATCH // 2, OBSERVATION, ACTION)
    both = join_sources(rows, rows)
    many, stacked, alone = stack([both] * agents), Update.stack(updates[:-1]), updates[-1]
    loss, _ = make_agent(size, "cpu", 0)
    score = Advantage(loss) + DensityRatioScore(densities[-1].density_ratio_network)
    offline = random_transitions(5_000, OBSERVATION, ACTION)
    batch_size = SIZES[size][2] * BATCH
    buffer = TensorDictReplayBuffer(
        storage=offline_online_storage(offline, 5_000),
        sampler=PoolSampler(score, len(offline)),
        writer=OnlineWriter(len(offline)),
        batch_size=batch_size,
    )
    buffer.extend(random_transitions(5_000, OBSERVATION, ACTION))
    parts = {
        "update, N single": table["single"],
        "update, stacked": table["stacked"],
        "density ratio, N single": lambda: [alone(both) for _ in range(agents)],
        "density ratio, stacked": lambda: stacked(many),
        "scored pools, N single": lambda: [buffer.sample() for _ in range(agents)],
    }
    times = {name: statistics.median(values) for name, values in timed(parts, arguments.rounds, "cpu")[1].items()}
    print(f"\nA3RL, {size} networks, N = {agents}, compiled: CPU ms per environment step of all agents")
    for name, value in times.items():
        print(f"  {name:26s}{value:10.1f}", flush=True)
    pools = times["scored pools, N single"]
    before = times["update, N single"] + times["density ratio, N single"] + pools
    after = times["update, stacked"] + times["density ratio, stacked"] + pools
    print(f"  whole step {before / after:.2f} times as fast; the pools are {pools / after:.0%} of the stacked step")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="N = 1, 5, small networks, compiled, 5 rounds")
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled", "graphs"], default=["compiled"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--onednn", action="store_true", help="float32 products by oneDNN, see update.py")
    parser.add_argument("--no-a3rl", action="store_true", help="leave out the parts of A3RL")
    arguments = parser.parse_args()
    if arguments.short:
        arguments.agents, arguments.sizes, arguments.modes, arguments.rounds = [1, 5], ["small"], ["compiled"], 5
    warnings.filterwarnings("ignore")
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if arguments.onednn else "none"  # type: ignore[attr-defined]
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{arguments.device}, {arguments.threads} thread(s), batch {BATCH}, {arguments.rounds} rounds")
    for size in arguments.sizes:
        for mode in arguments.modes:
            updates(size, mode, arguments)
        if not arguments.no_a3rl and arguments.device == "cpu":
            a3rl(size, max(arguments.agents), arguments)


if __name__ == "__main__":
    main()
