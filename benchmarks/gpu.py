# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""All that is measured on a GPU, in ten minutes: first the CUDA tests, then updates and stacked agents.

    python benchmarks/gpu.py --out gpu.jsonl                     all parts, each in a process of its own
    python benchmarks/gpu.py --only rlpd seeds --out gpu.jsonl   some of them
    python benchmarks/gpu.py --device cpu --short --out cpu.jsonl    a look whether the script works

Every figure is appended to the file when it is there, with the card's name. A part that fails or takes longer than its
share of the time leaves its error in the file, and the others go on. Times are wall-clock medians of calls that end
with a synchronization; contenders of one part take turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import take_turns

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]
#: Members of a stack.
AGENTS = (1, 10, 32)


def modes(device: str) -> list[str]:
    """How an update runs; CUDA graphs need a GPU."""
    return ["eager", "default", *(["reduce-overhead"] if device != "cpu" else [])]


def timed(
    part: str, contenders: dict[str, Callable[[], Callable[[], Any]]], arguments: argparse.Namespace
) -> Iterator[Row]:
    """Build the contenders, leave out those that fail, time each alone, then let them take turns."""
    calls: dict[str, Callable[[], Any]] = {}
    for name, make in contenders.items():
        try:
            call = make()
            for _ in range(2 if arguments.short else 5):
                call()  # compiles, allocates, records
            calls[name] = call
            wall, _ = take_turns({name: call}, 3)[name]
            yield {"part": part, "contender": name, "ms_alone": wall}  # stays if the time runs out before the turns
        except Exception as error:
            yield {"part": part, "contender": name, "error": f"{type(error).__name__}: {error}"}
    for name, (wall, cpu) in take_turns(calls, 3 if arguments.short else 11).items():
        yield {"part": part, "contender": name, "ms": wall, "cpu_ms": cpu}


def rlpd(arguments: argparse.Namespace) -> Iterator[Row]:
    """RLPD's update at the paper's size beside TorchRL's losses: ten critics, 2x256, batch 256, utd_ratio 20."""
    import update

    from torchrl_o2o.testing import random_transitions

    size = update.PAPER._replace(utd_ratio=2) if arguments.short else update.PAPER
    batch = random_transitions(size.utd_ratio * update.BATCH, update.OBSERVATION, update.ACTION).to(arguments.device)
    forms: dict[str, Callable[[], Any]] = {
        "REDQLoss (TorchRL)": partial(update.redq, size),
        "SACLoss x10 (TorchRL)": partial(update.sac, size),
        "eager": partial(update.ours, size),
        **{mode: partial(update.whole, mode, size=size) for mode in modes(arguments.device)[1:]},
        "bfloat16": partial(update.whole, modes(arguments.device)[-1], torch.bfloat16, size),
    }
    calls = {name: partial(_bound, make, batch) for name, make in forms.items()}
    yield from timed(f"rlpd, utd_ratio {size.utd_ratio}", calls, arguments)


def _bound(make: Callable[[], Any], batch: Any) -> Callable[[], Any]:
    update = make()
    return lambda: update(batch)


def a3rl(arguments: argparse.Namespace) -> Iterator[Row]:
    """A3RL's step at the paper's size, its pool drawn and scored on the device, beside RLPD's from the same rows."""
    import a3rl as sizes
    from torchrl.data import TensorDictReplayBuffer

    from torchrl_o2o.data import BalancedSampler, OnlineWriter, PoolSampler, offline_online_storage
    from torchrl_o2o.priorities import AdvantageAligned, DensityRatioScore
    from torchrl_o2o.testing import random_transitions

    number, rows = 20_000, sizes.UTD * sizes.BATCH
    data = random_transitions(number, sizes.OBSERVATION, sizes.ACTION)

    def make(compiled: bool, pool: bool) -> Callable[[], Any]:
        agent, storage = sizes.Agent(compiled), offline_online_storage(data, number, device=arguments.device)
        score = AdvantageAligned(agent.advantage(), DensityRatioScore(agent.ratio))
        sampler = PoolSampler(score, number) if pool else BalancedSampler(number)
        buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=OnlineWriter(number), batch_size=rows)
        buffer.extend(data)
        return lambda: agent.update(buffer.sample())

    forms = {"A3RL, eager": (False, True), "A3RL, compiled": (True, True), "RLPD, compiled": (True, False)}
    yield from timed("a3rl", {name: partial(make, *form) for name, form in forms.items()}, arguments)


def offline(arguments: argparse.Namespace) -> Iterator[Row]:
    """AWAC's, IQL's and CQL's updates, 2x256, batch 256, beside plain torch."""
    import update_offline

    from torchrl_o2o.testing import random_transitions

    batch = random_transitions(update_offline.BATCH, *update_offline.SIZE).to(arguments.device)
    batch["mc_return"] = batch["next", "reward"].clone()
    for kind in ("awac", "iql", "cql"):
        forms: dict[str, Callable[[], Any]] = {
            "plain torch": update_offline.PLAIN[kind],
            "eager": partial(update_offline.eager, kind),
            **{mode: partial(update_offline.compiled, kind, mode=mode) for mode in modes(arguments.device)[1:]},
        }
        yield from timed(kind, {name: partial(_bound, make, batch) for name, make in forms.items()}, arguments)


def seeds(arguments: argparse.Namespace) -> Iterator[Row]:
    """Stacked agents of RLPD at the paper's size: what many seeds cost over one."""
    import seeds as stacks

    mode = "graphs" if arguments.device != "cpu" else "compiled"
    for agents in AGENTS[: 1 if arguments.short else None]:
        size = "small" if arguments.short else "paper"
        make = lambda agents=agents, size=size: stacks.contenders(size, agents, arguments.device, mode)["stacked"]  # noqa: E731
        yield from timed("seeds", {f"{agents} agents, {size}, {mode}": make}, arguments)


def pixels(arguments: argparse.Namespace) -> Iterator[Row]:
    """The update of RLPD from pixels: 64x64 frames, the paper's networks, batch 256, utd_ratio 1."""
    from torchrl.objectives import SoftUpdate

    from torchrl_o2o.modules import encoder_width, make_pixel_actor, make_pixel_encoder, make_qvalue_ensemble
    from torchrl_o2o.objectives import PixelSACLoss
    from torchrl_o2o.testing import random_transitions
    from torchrl_o2o.updates import Copy, Descend, MoveTargets, Update

    size, rows = ((9, 16, 16), 16) if arguments.short else ((9, 64, 64), 256)
    shape: dict[str, Any] = {"features": (16, 32), "strides": (2, 2)} if arguments.short else {}
    batch = random_transitions(rows, 1, 6)
    for key in ("observation", ("next", "observation")):
        batch[key] = torch.randint(0, 256, (rows, *size), dtype=torch.uint8)
    batch = batch.to(arguments.device)

    def make(mode: str) -> Callable[[], Any]:
        encoder = make_pixel_encoder(size, **shape)
        heads = make_qvalue_ensemble(encoder_width(encoder), 6, num_qvalue_nets=10, in_keys=("latent", "action"))
        loss = PixelSACLoss(make_pixel_actor(encoder, 6), encoder, heads, sub_sample_len=1).to(arguments.device)
        adam = lambda *parts: torch.optim.Adam([p for part in parts for p in part.parameters()], fused=True)  # noqa: E731
        update = Update(
            loss,
            Copy(*PixelSACLoss.LATE_COPY),
            Descend("qvalue", adam(loss.encoder_network_params, loss.qvalue_network_params)),
            MoveTargets(SoftUpdate(loss, tau=0.005)),
            Descend("actor", adam(loss.actor_network_params)),
            Descend("alpha", adam(loss.temperature)),
        )
        if mode != "eager":
            update.compile(mode=mode)  # type: ignore[arg-type]
        return lambda: update(batch)

    yield from timed(f"pixels {size}", {mode: partial(make, mode) for mode in modes(arguments.device)}, arguments)


def synchronizations(arguments: argparse.Namespace) -> Iterator[Row]:
    """Whether an update waits for the device: with `torch.cuda.set_sync_debug_mode("error")` a wait is an error."""
    import update

    from torchrl_o2o.testing import random_transitions

    rows = update.PAPER.utd_ratio * update.BATCH
    batch = random_transitions(rows, update.OBSERVATION, update.ACTION).to(arguments.device)
    step = update.whole(modes(arguments.device)[-1])
    for _ in range(3):
        step(batch)
    if arguments.device == "cpu":
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            step(batch)
        yield {"part": "synchronizations", "waits": False}
    except RuntimeError as error:
        yield {"part": "synchronizations", "waits": True, "error": str(error)}
    finally:
        torch.cuda.set_sync_debug_mode("default")


def tests(arguments: argparse.Namespace) -> Iterator[Row]:
    """The tests that need a GPU."""
    words = [sys.executable, "-m", "pytest", "-q", "-k", "cuda", "tests"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    yield {"part": "tests", "outcome": done.stdout.strip().splitlines()[-1:], "rc": done.returncode}


#: What is measured, in this order, and the seconds that each may take.
PARTS: dict[str, tuple[Callable[[argparse.Namespace], Iterator[Row]], int]] = {
    "tests": (tests, 100),
    "rlpd": (rlpd, 120),
    "a3rl": (a3rl, 90),
    "synchronizations": (synchronizations, 40),
    "seeds": (seeds, 110),
    "offline": (offline, 80),
    "pixels": (pixels, 60),
}


def measure(part: str, arguments: argparse.Namespace) -> None:
    """One part, in this process: every row goes to the file at once."""
    torch.set_default_device(arguments.device)
    torch.set_num_threads(1)
    card = torch.cuda.get_device_name() if arguments.device != "cpu" else "cpu"
    for row in PARTS[part][0](arguments):
        line = json.dumps({**row, "card": card, "torch": torch.__version__, "short": arguments.short})
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True, help="file that rows are appended to")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--short", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--here", action="store_true", help="in this process; for one part")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    if arguments.here:
        for part in arguments.only:
            measure(part, arguments)
        return
    for part in arguments.only:
        words = [sys.executable, __file__, "--device", arguments.device, "--out", str(arguments.out), "--here"]
        words += [*(["--short"] if arguments.short else []), "--only", part]
        began, error = time.monotonic(), None
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            _, said = process.communicate(timeout=PARTS[part][1])
            error = said.strip().splitlines()[-1:] if process.returncode else None
        except subprocess.TimeoutExpired:
            error = f"not done after {PARTS[part][1]} s"
            os.killpg(process.pid, signal.SIGKILL)  # what the part has started, too
            process.wait()
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": part, "seconds": round(time.monotonic() - began, 1), "error": error}) + "\n")


if __name__ == "__main__":
    main()
