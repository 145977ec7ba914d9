# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A small run with every kind of randomness in it, to be interrupted, and to be killed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.data.writers import OnlineWriter
from torchrl_o2o.record.recorder import Recorder

OFFLINE, ONLINE = 30, 20


def rows(first: int, count: int) -> TensorDict:
    """Rows that say which they are."""
    number = torch.arange(first, first + count, dtype=torch.float32)
    following = {"reward": number[:, None] / 7, "terminated": (number[:, None] % 5) == 0}
    return TensorDict({"observation": torch.stack([number, -number], 1), "next": following}, [count])


def new_buffer(online: int = ONLINE, offline: int = OFFLINE) -> TensorDictReplayBuffer:
    storage = LazyTensorStorage(offline + online)
    storage.set(torch.arange(offline), rows(10_000, offline))
    return TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(offline), batch_size=8)


class Run:
    """Everything a training script has, in small; ``resume`` restores the newest checkpoint over what ``seed`` drew."""

    def __init__(self, folder: Path, *, resume: bool = False, seed: int = 0, **options) -> None:
        for seeder in (torch.manual_seed, np.random.seed, random.seed):
            seeder(seed)
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
        self.optim = torch.optim.Adam(self.net.parameters())
        self.buffer = new_buffer()
        self.buffer.set_rng(torch.Generator().manual_seed(seed))
        self.counters = {"updates": 0}
        self.recorder = Recorder(folder, config={"algorithm": "tiny"}, resume=resume)
        objects = {"net": self.net, "optim": self.optim, "counters": self.counters, "recorder": self.recorder}
        self.checkpoint = Checkpointer(
            folder / "checkpoints", objects=objects, buffer=self.buffer, config={"algorithm": "tiny"}, **options
        )
        self.restored = self.checkpoint.restore() if resume else None

    def train(self, updates: int) -> Run:
        for _ in range(updates):
            self.counters["updates"] += 1
            step = self.counters["updates"]
            self.buffer.extend(rows(step, 1 + random.randrange(2)))
            batch = self.buffer.sample()
            noise = float(np.random.rand())
            loss = (self.net(batch["observation"] / 100) - batch["next", "reward"] * noise).square().mean()
            self.optim.zero_grad()
            loss.backward()
            self.optim.step()
            self.recorder.log(step, {"train/loss": loss, "train/noise": noise})
        return self

    def save(self) -> Run:
        self.checkpoint.save(self.counters["updates"])
        return self

    def close(self) -> None:
        self.recorder.close()

    def everything(self) -> dict:
        """All that a resumed run must have in common with an uninterrupted one."""
        return {
            "net": {name: value.clone() for name, value in self.net.state_dict().items()},
            "optim": [value.clone() for state in self.optim.state.values() for value in state.values()],
            "rows": self.buffer.storage[:].clone().to_dict(),
            "length": torch.tensor(len(self.buffer)),
            "next": torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64),
            "sample": self.buffer.sample().to_dict(),
        }


def uninterrupted(folder: Path, updates: int) -> dict:
    run = Run(folder).train(updates)
    run.close()
    return run.everything()


def assert_identical(first, second) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)
