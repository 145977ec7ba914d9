# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What robustness costs: the guards per update and per environment step, saves, the audit. Processor time, one thread.

python benchmarks/robustness.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
from timing import seconds
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.data import TRANSITION, OnlineWriter, audit, offline_online_storage
from torchrl_o2o.envs import GuardedEnv
from torchrl_o2o.functional import finite_or_raise
from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.testing import random_transitions

OBSERVATION, ACTION = 17, 6  # HalfCheetah


class Still(gymnasium.Env):
    """Does nothing, so that what is measured is the guard."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Begin."""
        return np.zeros(OBSERVATION, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Stay."""
        return np.zeros(OBSERVATION, np.float32), 0.0, False, False, {}


def guard_of_updates() -> tuple[EnsembleSACLoss, torch.optim.Optimizer]:
    """One critic update of RLPD at the paper's size: ten critics of 256 x 256, 256 rows."""
    critics = make_qvalue_ensemble(OBSERVATION, ACTION, num_qvalue_nets=10, hidden_sizes=(256, 256), layer_norm=True)
    loss = EnsembleSACLoss(make_actor(OBSERVATION, ACTION), critics, sub_sample_len=2)
    loss.make_value_estimator(gamma=0.99)
    updater = SoftUpdate(loss, tau=0.005)
    optim = torch.optim.AdamW(loss.qvalue_network_params.parameters(), lr=3e-4, fused=True)
    batch = random_transitions(256, OBSERVATION, ACTION)

    def update() -> None:
        value, _ = loss.qvalue_loss(batch)
        optim.zero_grad()
        value.backward()
        optim.step()
        updater.step()

    update()
    parameters = optim.param_groups[0]["params"]

    def guard() -> None:
        gradients = {f"gradient{number}": parameter.grad for number, parameter in enumerate(parameters)}
        finite_or_raise({"loss": torch.ones(())} | gradients)

    cost, whole = seconds(guard, 100), seconds(update, 10)
    print(f"NaN guard: {1e3 * cost:.3f} ms, critic update without it {1e3 * whole:.2f} ms: {100 * cost / whole:.2f} %")
    return loss, optim


def guard_of_environments() -> None:
    """The guard around an environment that does nothing."""
    action, times = np.zeros(ACTION, np.float32), []
    for env in (Still(), GuardedEnv(Still), GuardedEnv(Still, timeout=60.0)):
        env.reset()
        times.append(1e6 * seconds(lambda env=env: env.step(action), 3000))
    print(f"GuardedEnv: {times[1] - times[0]:.1f} us a step, with a timeout {times[2] - times[0]:.1f} us")


def saves(loss: EnsembleSACLoss, optim: torch.optim.Optimizer) -> None:
    """The first save of a full online buffer of 100,000 rows with a ten-critic agent, then saves of 1,000 more rows."""
    rows = random_transitions(100_000, OBSERVATION, ACTION).select(*TRANSITION)
    writer = OnlineWriter(1000)
    buffer = TensorDictReplayBuffer(storage=offline_online_storage(rows[:1000], 100_000), writer=writer, batch_size=256)
    buffer.extend(rows)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpointer(folder, objects={"loss": loss, "optim": optim}, buffer=buffer)
        first = seconds(lambda: checkpoint.save(1), 1, 1, time.perf_counter)
        later = []
        for step in range(2, 7):
            buffer.extend(rows[:1000])
            later.append(seconds(lambda step=step: checkpoint.save(step), 1, 1, time.perf_counter))
        size = sum(path.stat().st_size for path in Path(folder, "step-6").iterdir())
    print(f"save: first {first:.2f} s, then {np.median(later):.2f} s (agent {size / 1e6:.1f} MB), wall-clock")


def audits() -> None:
    """A million transitions looked over."""
    data = random_transitions(1_000_000, OBSERVATION, ACTION).set("episode", torch.arange(1_000_000) // 1000)
    print(f"audit: {seconds(lambda: audit(data, on_bad='report'), 1, 2):.2f} s for 1e6 transitions")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    agent = guard_of_updates()
    guard_of_environments()
    saves(*agent)
    audits()
