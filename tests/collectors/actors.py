# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Actors for the tests: scripted ones in this process, and environments that number what they deliver."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict

import torchrl_o2o
from torchrl_o2o.collectors.received_rows import package_stamp

OBS, ACT = 3, 1


def row(number: int, step: int, *, attempt: int = 0, version: int = 0, done: bool = False) -> TensorDict:
    """Transition [1] of an actor, whose observation says whose it is and which."""
    flag = torch.tensor([[done]])
    following = {"observation": torch.tensor([[number, attempt, step + 1.0]]), "reward": torch.tensor([[step + 0.0]])}
    following |= {"terminated": flag, "truncated": torch.zeros_like(flag), "done": flag.clone()}
    following |= {"episode_reward": torch.zeros(1, 1), "step_count": torch.full((1, 1), step + 1)}
    return TensorDict(
        {
            "observation": torch.tensor([[number, attempt, step + 0.0]]),
            "action": torch.zeros(1, ACT),
            "policy_version": torch.full((1, 1), version),
            "package_version": package_stamp().unsqueeze(0),
            "next": following,
        },
        [1],
    )


class Scripted:
    """Actors in this process, each a function from number and attempt to what it delivers."""

    def __init__(self, script: Callable[[int, int], Iterable[TensorDict]]) -> None:
        self.script, self.published, self.closed = script, [], 0

    def start(self, number: int, attempt: int) -> Any:
        return _Source(self, self.script(number, attempt))

    def publish(self, version: int, *, random: bool) -> None:
        self.published.append((version, random))


class _Source:
    def __init__(self, owner: Scripted, rows: Iterable[TensorDict]) -> None:
        self.owner, self.rows = owner, rows

    def __iter__(self) -> Iterator[TensorDict]:
        return iter(self.rows)

    def shutdown(self, timeout: float | None = None) -> None:
        self.owner.closed += 1


class Numbered(gymnasium.Env):
    """Observes its process, its episode's number there, and the step; can sleep, and go wrong at a step or in all."""

    def __init__(self, sleep: float = 0.0, length: int = 7, wrong: str = "", at: int = 5) -> None:
        size, dtype = OBS + (wrong == "shape"), np.float64 if wrong == "type" else np.float32
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), dtype)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACT,), np.float32)
        self.sleep, self.length, self.wrong, self.at = sleep, length, wrong, at
        self.episode, self.total, self.count = -1, 0, 0

    def _observe(self) -> np.ndarray:
        seen = np.zeros(self.observation_space.shape, self.observation_space.dtype)
        seen[:OBS] = os.getpid(), self.episode, self.count
        return seen

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        time.sleep(self.sleep)
        self.count, self.total = self.count + 1, self.total + 1
        reward = float("nan") if self.wrong == "nan" and self.total == self.at else 1.0
        return self._observe(), reward, False, self.count == self.length, {}


def other_version(**settings: Any) -> Numbered:
    """In the actor's process, a package of another version."""
    torchrl_o2o.__version__ = "0.0.1"
    return Numbered(**settings)


def one_slow(folder: str) -> Numbered:
    """The first to start takes half a second for a step, the others none."""
    try:
        os.mkdir(os.path.join(folder, "slow"))
    except FileExistsError:
        return Numbered()
    return Numbered(sleep=0.5)


def check_numbered(rows: TensorDict, length: int = 7) -> None:
    """Nothing lost, doubled or mixed up: per process all episodes from the first, each from its first step."""
    seen, following = rows["observation"], rows["next", "observation"]
    assert torch.equal(seen[:, :2], following[:, :2])
    assert torch.equal(seen[:, 2] + 1, following[:, 2])
    for process in seen[:, 0].unique():
        own = seen[seen[:, 0] == process]
        expected = torch.arange(len(own))
        first = own[0, 1]  # TorchRL resets once or twice before it collects
        assert torch.equal(own[:, 1], first + (expected // length).float()), "episodes in order, none left out"
        assert torch.equal(own[:, 2], (expected % length).float()), "steps in order, none left out or doubled"
