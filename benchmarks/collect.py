# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Collecting one frame at a time and many environments at once, and the latency of one action; ours beside TorchRL's.

    python benchmarks/collect.py             201 rounds, one thread
    python benchmarks/collect.py --short     41 rounds

The standard actor (2x256) acts in HalfCheetah-v5. Contenders take turns within every round, so that a busy machine
slows all of them. Printed are medians and quartiles of wall time, CPU time, and ratios within this one run.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium
import mujoco
import numpy as np
import tensordict
import torch
import torchrl
from memory import remember
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import SerialEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor

from torchrl_o2o.collectors import FastActor, StepCollector, VectorCollector, make_vector_env, policy_parts
from torchrl_o2o.envs import make_env, make_gym_env
from torchrl_o2o.modules import make_actor

ENV, ENDLESS, NUM_ENVS = "HalfCheetah-v5", 10**9, 10
Task = Callable[[], object]


def measure(title: str, tasks: Mapping[str, tuple[Task, int, int]], rounds: int, base: str) -> None:
    """Time all tasks (function, calls per turn, frames per call), taking turns; microseconds per frame."""
    wall: dict[str, list[float]] = {name: [] for name in tasks}
    cpu: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 3):
        for name, (task, calls, frames) in tasks.items():
            began, spent = time.perf_counter(), time.process_time()
            for _ in range(calls):
                task()
            if turn >= 3:
                wall[name].append((time.perf_counter() - began) / (calls * frames) * 1e6)
                cpu[name].append((time.process_time() - spent) / (calls * frames) * 1e6)
    print(f"\n{title}, {rounds} rounds\n{'':52s}{'wall us':>9s}{'quartiles':>18s}{'CPU us':>9s}{'base/wall, CPU':>17s}")
    remember(title, {name: statistics.median(times) for name, times in wall.items()}, base)
    for name in tasks:
        low, median, high = statistics.quantiles(wall[name], n=4)
        spent = statistics.median(cpu[name])
        ratios = statistics.median(wall[base]) / median, statistics.median(cpu[base]) / spent
        print(f"{name:52s}{median:9.1f}{low:9.1f}-{high:8.1f}{spent:9.1f}{ratios[0]:9.2f}{ratios[1]:8.2f}", flush=True)


def bare(env: gymnasium.Env) -> Iterator[None]:
    """Steps without an actor or a tensordict: what cannot be saved."""
    shape = (1000, *(env.action_space.shape or ()))
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, shape).astype(np.float32)
    env.reset(seed=0)
    for action in itertools.cycle(actions):
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
        yield


def one_frame(actor: ProbabilisticActor, rounds: int) -> None:
    """One environment, one frame per batch."""
    theirs = Collector(make_env(ENV, seed=0), actor, frames_per_batch=1, total_frames=ENDLESS)
    ours = {
        "StepCollector": StepCollector(make_gym_env(ENV), actor, total_frames=ENDLESS, seed=0),
        "StepCollector(fast_act=True)": StepCollector(
            make_gym_env(ENV), actor, total_frames=ENDLESS, seed=0, fast_act=True
        ),
    }
    sources: dict[str, Iterator[Any]] = {"Collector(frames_per_batch=1) (TorchRL)": iter(theirs)}
    sources |= {name: iter(collector) for name, collector in ours.items()}
    sources["the environment's steps alone"] = bare(make_gym_env(ENV))
    tasks = {name: (source.__next__, 25, 1) for name, source in sources.items()}
    measure("us per frame, one environment", tasks, rounds, "Collector(frames_per_batch=1) (TorchRL)")
    theirs.shutdown()


def many(actor: ProbabilisticActor, rounds: int) -> None:
    """Several environments, one frame of each per batch."""
    serial = SerialEnv(NUM_ENVS, lambda: make_env(ENV))
    theirs = Collector(serial, actor, frames_per_batch=NUM_ENVS, total_frames=ENDLESS)
    seeds = list(range(NUM_ENVS))
    make = lambda: make_vector_env(lambda: make_gym_env(ENV), NUM_ENVS)  # noqa: E731
    outside, action = VectorCollector(make(), seeds=seeds), 2 * torch.rand(NUM_ENVS, 6) - 1
    base = f"Collector over SerialEnv({NUM_ENVS}) (TorchRL)"
    one = iter(StepCollector(make_gym_env(ENV), actor, total_frames=ENDLESS, seed=0))
    tasks: dict[str, tuple[Task, int, int]] = {
        base: (iter(theirs).__next__, 1, NUM_ENVS),
        "StepCollector, one environment": (one.__next__, NUM_ENVS, 1),
        "VectorCollector": (iter(VectorCollector(make(), actor)).__next__, 1, NUM_ENVS),
        "VectorCollector, a seed each": (iter(VectorCollector(make(), actor, seeds=seeds)).__next__, 1, NUM_ENVS),
        "VectorCollector.step, actions from outside": (lambda: outside.step(action), 1, NUM_ENVS),
        "the environments' steps alone": (bare(make_gym_env(ENV)).__next__, NUM_ENVS, 1),
    }
    measure(f"us per frame, {NUM_ENVS} environments", tasks, rounds, base)
    theirs.shutdown()


def acting(actor: ProbabilisticActor, rounds: int) -> None:
    """One observation in, one action out."""
    parts, mode, sample = policy_parts(actor), FastActor(actor), FastActor(actor, deterministic=False)
    observation = np.random.default_rng(0).standard_normal(17).astype(np.float32)
    batch = np.tile(observation, (NUM_ENVS, 1))

    def theirs() -> np.ndarray:
        data = TensorDict({"observation": torch.from_numpy(observation)})
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            return actor(data)["action"].numpy()

    def direct() -> np.ndarray:
        with torch.no_grad():
            return parts.act(torch.from_numpy(observation), deterministic=True).numpy()

    tasks: dict[str, tuple[Task, int, int]] = {
        "the TorchRL actor on a TensorDict": (theirs, 5, 1),
        "PolicyParts.act, the same bits": (direct, 20, 1),
        "FastActor": (lambda: mode(observation), 50, 1),
        "FastActor(deterministic=False)": (lambda: sample(observation), 50, 1),
        f"FastActor, {NUM_ENVS} observations, per call": (lambda: mode(batch), 20, 1),
    }
    measure("us per action", tasks, rounds, "the TorchRL actor on a TensorDict")
    print(f"largest difference to the TorchRL actor: {np.abs(mode(observation) - theirs()).max():.1e}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="41 rounds")
    parser.add_argument("--rounds", type=int, default=201)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rounds = 41 if arguments.short else arguments.rounds
    print(f"torch {torch.__version__}, torchrl {torchrl.__version__}, tensordict {tensordict.__version__}")
    print(f"gymnasium {gymnasium.__version__}, mujoco {mujoco.__version__}, numpy {np.__version__}")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{arguments.threads} thread(s) (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}), 2x256 actor, {ENV}")
    actor = make_actor(17, 6)
    acting(actor, rounds)
    one_frame(actor, rounds)
    many(actor, rounds)


if __name__ == "__main__":
    main()
