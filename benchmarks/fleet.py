# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""One learner and 1 to 16 actors whose environment sleeps as a robot does: how far that goes, and what ends it.

    python benchmarks/fleet.py                               10 and 50 ms a step, 8 seconds each
    python benchmarks/fleet.py --seconds 3 --actors 1 4      less
    python benchmarks/fleet.py --every 10                    one update in ten transitions, so that actors are the limit
    python benchmarks/fleet.py --paper                       what 100 and 1000 actors send, computed

Observations and actions have HalfCheetah's sizes, the actor is the standard one (2x256), the learner makes one update
of two critics of 2x256 a transition (batch 256, half of it offline). Actors are processes of this machine. Their
processor time is read from /proc, so this needs Linux.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from torch.optim import Adam
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import Fleet, ProcessActors
from torchrl_o2o.data import TRANSITION
from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers import starting_buffer
from torchrl_o2o.updates import Descend, MoveTargets, Update

OBSERVATION, ACTION, BATCH, ENDLESS = 17, 6, 256, 10**9


class Robot(gymnasium.Env):
    """Takes its time for a step and uses no processor meanwhile."""

    def __init__(self, sleep: float) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION,), np.float32)
        self.sleep, self.count = sleep, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        """Begin an episode."""
        super().reset(seed=seed)
        self.count = 0
        return self.np_random.standard_normal(OBSERVATION, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Sleep, and observe noise."""
        time.sleep(self.sleep)
        self.count += 1
        return self.np_random.standard_normal(OBSERVATION, np.float32), 0.0, False, self.count == 1000, {}


def make_update(actor: Any) -> Update:
    """Two critics, separate steps, eager."""
    qvalues = make_qvalue_ensemble(OBSERVATION, ACTION, num_qvalue_nets=2, hidden_sizes=(256, 256), layer_norm=True)
    loss = EnsembleSACLoss(actor, qvalues, temperature=Temperature(-ACTION))
    return Update(
        loss,
        Descend("qvalue", Adam(loss.qvalue_network_params.parameters(), lr=3e-4, fused=True)),
        MoveTargets(SoftUpdate(loss, tau=0.005)),
        Descend("actor", Adam(loss.actor_network_params.parameters(), lr=3e-4, fused=True)),
        Descend("alpha", Adam(loss.temperature.parameters(), lr=3e-4)),
    )


def cpu_seconds(fleet: Fleet) -> float:
    """Processor time of the actors so far."""
    ticks = 0
    for source in list(fleet._sources.values()):
        with open(f"/proc/{source.procs[0].pid}/stat") as file:  # pyright: ignore[reportAttributeAccessIssue]
            ticks += sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(actors: int, sleep: float, seconds: float, every: int) -> dict[str, float]:
    """Run for a while once all actors deliver."""
    left = 0
    torch.manual_seed(0)
    offline, actor = random_transitions(10_000, OBSERVATION, ACTION), make_actor(OBSERVATION, ACTION)
    buffer, update = starting_buffer(offline, 100_000, data="symmetric", batch_size=BATCH), make_update(actor)
    fleet = Fleet(ProcessActors(partial(Robot, sleep), actor), offline, num_actors=actors, total_frames=ENDLESS)
    ages: list[float] = []
    began: dict[str, float] = {}
    with fleet:
        for data in fleet:
            buffer.extend(data.select(*TRANSITION))
            ages += fleet._ages
            fleet._ages.clear()
            credit, left = divmod(left + len(data), every)
            for _ in fleet.updates(credit):
                update(buffer.sample())
                fleet.publish()
            if not began and len(fleet._sources) == actors and fleet.frames > 5 * actors:
                began = snapshot(fleet)
                ages = []
            if began and time.perf_counter() - began["time"] > seconds:
                break
        ended = snapshot(fleet)
    spent = {name: value - began[name] for name, value in ended.items()}
    return {
        "rate": spent["frames"] / spent["time"],
        "of ideal": spent["frames"] / spent["time"] * sleep / actors,
        "updates": spent["version"] / spent["time"],
        "staleness": float(np.mean(ages)),
        "oldest": max(ages),
        "learning": 1.0 - spent["waited"] / spent["time"],
        "actor ms": spent["actors' cpu"] / spent["frames"] * 1e3,
        "cpus": (spent["actors' cpu"] + spent["own cpu"]) / spent["time"],
    }


def snapshot(fleet: Fleet) -> dict[str, float]:
    """What counts up."""
    return {
        "time": time.perf_counter(),
        "frames": fleet.frames,
        "version": fleet.version,
        "waited": fleet.waited,
        "own cpu": time.process_time(),
        "actors' cpu": cpu_seconds(fleet),
    }


def on_paper() -> None:
    """Bytes a second from what a transition and a policy weigh."""
    actor = make_actor(OBSERVATION, ACTION)
    weights = 4 * sum(value.numel() for value in actor.parameters())
    row = random_transitions(1, OBSERVATION, ACTION).select(*TRANSITION)
    stored = sum(row[key].numel() * row[key].element_size() for key in TRANSITION)
    sent = stored + 8 + 24 + 4 + 8  # policy version, package version, running return and length
    print(f"a transition: {stored} bytes stored, {sent} sent; a policy: {weights} bytes")
    titles = ("rows/s", "rows MB/s", "weights each step", "each second", "1 h stored")
    print(f"{'actors':>7s}{'ms':>5s}" + "".join(f"{title:>19s}" for title in titles))
    for actors, sleep in itertools.product((16, 100, 1000), (0.01, 0.05)):
        rate = actors / sleep
        words = (
            f"{rate:.0f}",
            f"{rate * sent / 1e6:.2f}",
            f"{rate * weights / 1e6:.0f} MB/s",
            f"{actors * weights / 1e6:.1f} MB/s",
            f"{rate * 3600 * stored / 1e9:.1f} GB",
        )
        print(f"{actors:7d}{sleep * 1e3:5.0f}" + "".join(f"{word:>19s}" for word in words))


def main() -> None:
    """Print a line a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="how long each is measured")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--sleep", type=float, nargs="+", default=[10.0, 50.0], help="ms a step")
    parser.add_argument("--every", type=int, default=1, help="transitions an update")
    parser.add_argument("--paper", action="store_true", help="compute, do not run")
    arguments = parser.parse_args()
    if arguments.paper:
        on_paper()
        return
    torch.set_num_threads(1)
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    names = ("rate", "of ideal", "updates", "staleness", "oldest", "learning", "actor ms", "cpus")
    print(f"{'ms':>4s}{'actors':>8s}" + "".join(f"{name:>11s}" for name in names))
    for sleep in arguments.sleep:
        for actors in arguments.actors:
            measured = measure(actors, sleep / 1e3, arguments.seconds, arguments.every)
            print(f"{sleep:4.0f}{actors:8d}" + "".join(f"{measured[name]:11.2f}" for name in names), flush=True)


if __name__ == "__main__":
    main()
