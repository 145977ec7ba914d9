# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A learner that a test can kill: stores what actors send, checkpoints, continues; the folder is the first argument."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchrl.data import TensorDictReplayBuffer

from tests.collectors.actors import Numbered, check_numbered
from torchrl_o2o.collectors import Actors, Fleet, ProcessActors
from torchrl_o2o.data import TRANSITION, BalancedSampler, OnlineWriter, offline_online_storage
from torchrl_o2o.modules import make_actor
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers import Schedule, Session

OFFLINE, CAPACITY = 10, 5000


class Nothing:
    def metrics(self) -> dict[str, float]:
        return {"evaluation/return": 0.0}


def learn(folder: Path, actors: Actors, *, total: int, every: int = 10, at_step: Any = None) -> tuple[Fleet, Any]:
    """Store transitions to the end, from wherever the folder stands; U = T within the slack."""
    torch.manual_seed(0)
    offline = random_transitions(OFFLINE, 3, 1)
    storage, sampler = offline_online_storage(offline, CAPACITY), BalancedSampler(OFFLINE)
    buffer = TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(OFFLINE), sampler=sampler, batch_size=4)
    crew, counts = Fleet(actors, offline, num_actors=2, total_frames=total, slack=3), {"updates": 0}
    schedule = Schedule(eval_every=10**6, log_every=10**6, checkpoint_every=every)
    objects = {"collector": crew, "counts": counts}
    with Session(folder, {}, objects, buffer, Nothing, schedule, resume=True) as session, crew:
        for step, data in session.online(crew):
            buffer.extend(data.select(*TRANSITION))
            for _ in crew.updates(len(data)):
                buffer.sample()
                counts["updates"] += 1
                crew.publish()
            if at_step is not None:
                at_step(step, crew)
    assert abs(counts["updates"] - crew.frames) <= 3, "the bound holds over all restarts"
    assert buffer.writer.total_written == crew.frames == total, "each transition is stored once"
    return crew, storage[OFFLINE : OFFLINE + total]


def announce(folder: Path, step: int, crew: Fleet) -> None:
    """Tell the test which processes there are, and how far it is."""
    pids = [source.procs[0].pid for source in list(crew._sources.values())]  # pyright: ignore[reportAttributeAccessIssue]
    (folder / "said.tmp").write_text(f"{step} {' '.join(map(str, pids))}")
    (folder / "said.tmp").rename(folder / "said")


if __name__ == "__main__":
    root, frames = Path(sys.argv[1]), int(sys.argv[2])
    crew = ProcessActors(partial(Numbered, sleep=0.004), make_actor(3, 1), seed=int(sys.argv[3]))
    fleet, stored = learn(root / "run", crew, total=frames, at_step=partial(announce, root))
    check_numbered(stored)
    sys.stdout.write(f"complete {fleet.frames}, of {len(stored['observation'][:, 0].unique())} actors\n")
