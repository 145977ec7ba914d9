# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Where a whole RLPD run spends its time: `sota-implementations/rlpd/rlpd.py` as it is, its parts timed from outside.

    python benchmarks/end_to_end.py             200 environment steps with the paper's networks at utd_ratio 20
    python benchmarks/end_to_end.py --short     30 of them
    python benchmarks/end_to_end.py --steps 500 compile=false training.utd_ratio=1

Further words override the script's configuration. Every part is a function of the run that is replaced by a timed one;
a part's time is without that of the parts it calls. Printed are, per environment step, medians of wall and of CPU time
and the shares of their sums; evaluations and checkpoints are timed once and spread over the steps between them.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import tensordict
import torch
import torchrl
from hydra import compose, initialize_config_dir

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.trainers import Finetuning, load_problem, online_phase
from torchrl_o2o.trainers.algorithms import make_rlpd

FOLDER = Path(__file__).parents[1] / "sota-implementations" / "rlpd"
PARTS = ("environment", "guards", "acting", "collecting", "buffer", "sampling", "update", "logging", "rest")
WARM_UP = 5  # updates, the compilation among them


class Stopwatch:
    """Times nested functions; what is written down for each is without what it calls."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = defaultdict(list)
        self.cpu: dict[str, list[float]] = defaultdict(list)
        self._open: list[list[float]] = []  # of every function under way: wall and CPU time of those it called
        self._step: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._began = (0.0, 0.0)

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Replace a function by one that is timed."""
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter(), time.process_time()
            self._open.append([0.0, 0.0])
            try:
                return function(*args, **kwargs)
            finally:
                inner = self._open.pop()
                spent = time.perf_counter() - began[0], time.process_time() - began[1]
                for kind in (0, 1):
                    self._step[part][kind] += spent[kind] - inner[kind]
                    if self._open:
                        self._open[-1][kind] += spent[kind]

        setattr(owner, name, timed)

    def begin_step(self) -> None:
        """Forget what was not part of a step."""
        self._step.clear()
        self._began = time.perf_counter(), time.process_time()

    def end_step(self) -> None:
        """Write down one step; ``rest`` is what no part accounts for."""
        total = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        for kind, table in enumerate((self.wall, self.cpu)):
            known = {part: self._step[part][kind] for part in PARTS[:-1]}
            for part, seconds in (known | {"rest": total[kind] - sum(known.values())}).items():
                table[part].append(seconds)
        self.begin_step()


def instrument(watch: Stopwatch, run: Finetuning) -> None:
    """Replace the run's parts by timed ones."""
    assert isinstance(run.collector, StepCollector)
    env: Any = run.collector.env
    watch.wrap(env.env, "step", "environment")
    watch.wrap(env.env, "reset", "environment")
    watch.wrap(env, "step", "guards")
    watch.wrap(env, "reset", "guards")
    watch.wrap(run.collector, "_act", "acting")
    watch.wrap(run.collector, "_step", "collecting")
    watch.wrap(run.buffer, "extend", "buffer")
    watch.wrap(run.buffer, "sample", "sampling")
    watch.wrap(run.learner, "update", "update")
    watch.wrap(run.session.record, "log", "logging")


def measure(cfg: Any, steps: int) -> tuple[Stopwatch, float, float]:
    """The loop of rlpd.py for some steps; also seconds for one checkpoint and one evaluation."""
    problem, watch = load_problem(cfg, "rlpd"), Stopwatch()
    run = online_phase(cfg, problem, None, make_rlpd)
    instrument(watch, run)
    first = cfg.online.init_random_frames + WARM_UP
    with run:
        for step, data in run.steps():
            if step > 1:
                (watch.end_step if step - 1 > first else watch.begin_step)()
            if step > first + steps:
                break
            run.buffer.extend(problem.convention.online(data).select(*run.learner.keys))
            if run.may_update(step):
                run.log(run.learner.update(run.sample()))
        began = time.perf_counter()
        run.session.checkpoint.save(run.collector.frames)
        saved = time.perf_counter()
        assert run.session.evaluate is not None
        run.session.evaluate()
        seconds = saved - began, time.perf_counter() - saved
    run.collector.shutdown()
    return watch, *seconds


def report(watch: Stopwatch, cfg: Any, checkpoint: float, evaluation: float) -> None:
    """Print the parts."""
    wall = {part: sum(watch.wall[part]) for part in PARTS}
    cpu = {part: sum(watch.cpu[part]) for part in PARTS}
    count = len(watch.wall["update"])
    every = {"checkpoint": cfg.schedule.checkpoint_every, "evaluation": cfg.schedule.eval_every}
    spread = {"checkpoint": checkpoint / every["checkpoint"], "evaluation": evaluation / every["evaluation"]}
    total, total_cpu = sum(wall.values()) / count + sum(spread.values()), sum(cpu.values()) / count
    columns = f"{'wall, median':>13s}{'mean':>9s}{'share':>8s}{'CPU, median':>13s}{'share':>8s}"
    print(f"\n{'ms per environment step':24s}{columns}")
    for part in PARTS:
        mean, spent = wall[part] / count, cpu[part] / count
        print(
            f"{part:24s}{statistics.median(watch.wall[part]) * 1e3:13.3f}{mean * 1e3:9.3f}{mean / total:8.2%}"
            f"{statistics.median(watch.cpu[part]) * 1e3:13.3f}{spent / total_cpu:8.2%}"
        )
    for name, seconds in spread.items():
        whole = f"{seconds * every[name]:.1f} s every {every[name]}"
        print(f"{name:24s}{'':13s}{seconds * 1e3:9.3f}{seconds / total:8.2%}   ({whole})")
    outside, outside_cpu = 1 - wall["update"] / count / total, 1 - cpu["update"] / count / total_cpu
    print(f"\n{1 / total:.2f} environment steps per second over {count} steps; {1 / total_cpu:.2f} per CPU second *")
    print(f"outside the update: {outside:.1%} of wall time (target: at most 10 %), {outside_cpu:.1%} of CPU time *")
    print("* without evaluation and checkpoints")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="30 steps")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("overrides", nargs="*", help="of the script's configuration, as name=value")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(FOLDER), version_base="1.3"):
        fixed = [
            f"run_dir={folder}/run",
            "schedule.eval_every=100000",
            "schedule.checkpoint_every=100000",
            "online.init_random_frames=50",
            "online.total_frames=5000",
        ]
        cfg = compose("config", overrides=[*fixed, *arguments.overrides])
        torch.set_num_threads(cfg.num_threads)
        print(f"torch {torch.__version__}, torchrl {torchrl.__version__}, tensordict {tensordict.__version__}")
        print(f"gymnasium {gymnasium.__version__}, mujoco {mujoco.__version__}")
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        print(
            f"{cfg.num_threads} thread(s) (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}), {cfg.task_name}, "
            f"utd_ratio {cfg.utd_ratio}, {cfg.qvalue.num_qvalue_nets} critics of {cfg.qvalue.hidden_sizes}, "
            f"compile {cfg.compile}",
            flush=True,
        )
        watch, checkpoint, evaluation = measure(cfg, 30 if arguments.short else arguments.steps)
        report(watch, cfg, checkpoint, evaluation)


if __name__ == "__main__":
    main()
