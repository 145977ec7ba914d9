# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A real offline-to-online run, asked to stop by a signal at any point, ends as if it had never stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.data import TRANSITION, BalancedSampler, OnlineWriter, offline_online_storage
from torchrl_o2o.envs.make import make_gym_env, seed_everything
from torchrl_o2o.functional.diagnostics import finite_or_raise
from torchrl_o2o.modules import Temperature, make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.record.files import read_metrics
from torchrl_o2o.record.recorder import Recorder
from torchrl_o2o.trainers.interrupt import graceful_exit

pytest.importorskip("mujoco")
NUM_OFFLINE, OFFLINE_UPDATES, ONLINE_FRAMES = 300, 20, 40


def offline_data(env_id):
    torch.manual_seed(123)
    env = make_gym_env(env_id, seed=123)
    actor = make_actor(env.observation_space.shape[0], env.action_space.shape[0])
    frames = StepCollector(env, actor, total_frames=NUM_OFFLINE, init_random_frames=NUM_OFFLINE, seed=123)
    return torch.cat(list(frames)).select(*TRANSITION)


class Training:
    """RLPD with a phase of offline updates before it, with all that makes it resumable."""

    def __init__(self, folder: Path, env_id: str, *, resume: bool = False) -> None:
        offline = offline_data(env_id)
        seed_everything(1 if not resume else 99)
        env = make_gym_env(env_id)
        sizes = env.observation_space.shape[0], env.action_space.shape[0]
        self.actor = make_actor(*sizes, hidden_sizes=(16,))
        qvalues = make_qvalue_ensemble(*sizes, num_qvalue_nets=3, hidden_sizes=(16,))
        self.loss = EnsembleSACLoss(self.actor, qvalues, temperature=Temperature(-1.0), sub_sample_len=2)
        self.loss.make_value_estimator(gamma=0.99)
        self.updater = SoftUpdate(self.loss, tau=0.005)
        self.optim = torch.optim.Adam(self.loss.parameters(), lr=1e-3)
        self.buffer = TensorDictReplayBuffer(
            storage=offline_online_storage(offline, 25),  # wraps
            sampler=BalancedSampler(len(offline), 0.5),
            writer=OnlineWriter(len(offline)),
            batch_size=32,
        )
        self.collector = StepCollector(env, self.actor, total_frames=ONLINE_FRAMES, seed=1)
        self.counters = {"updates": 0}
        self.recorder = Recorder(folder, config={"env": env_id}, seed=1, resume=resume)
        objects = {"loss": self.loss, "optim": self.optim, "collector": self.collector, "counters": self.counters}
        self.checkpoint = Checkpointer(
            folder / "checkpoints", objects={**objects, "recorder": self.recorder}, buffer=self.buffer
        )
        self.restored = self.checkpoint.restore() if resume else None

    def update(self) -> None:
        self.counters["updates"] += 1
        batch = self.buffer.sample()
        losses = {"loss_qvalue": self.loss.qvalue_loss(batch)[0], "loss_actor": self.loss.actor_loss(batch)[0]}
        self.optim.zero_grad()
        sum(losses.values()).backward()
        finite_or_raise(losses | {name: weight.grad for name, weight in self.loss.named_parameters()})
        self.optim.step()
        self.updater.step()
        self.recorder.log(self.counters["updates"], {f"train/{name}": value for name, value in losses.items()})

    def run(self, signal_at: int | None = None) -> int:
        """Train to the end, or until the signal it sends itself; return the exit code."""
        with graceful_exit() as interrupt, self.recorder:
            for _ in self.phases():
                if self.counters["updates"] + 1 == signal_at:
                    os.kill(os.getpid(), signal.SIGTERM)
                self.update()
                if interrupt.requested:
                    self.checkpoint.save(self.counters["updates"])
                    break
        return interrupt.exit_code

    def phases(self):
        while self.counters["updates"] < OFFLINE_UPDATES:
            yield "offline"
        for transition in self.collector:
            self.buffer.extend(transition.select(*TRANSITION))
            yield "online"

    def everything(self) -> dict:
        return {
            "loss": dict(self.loss.state_dict()),
            "optim": self.optim.state_dict()["state"],
            "buffer": self.buffer.storage[:].to_dict(),
            "next": torch.rand(3),
        }


@pytest.mark.filterwarnings("ignore:a batch at offline_fraction")
@pytest.mark.parametrize("env_id", ["Hopper-v5", "Ant-v5"])
@pytest.mark.parametrize(
    "stops",
    [[7], [OFFLINE_UPDATES], [OFFLINE_UPDATES + 1], [33], [9, 34, 35, 57]],
    ids=lambda stops: "-".join(map(str, stops)),
)
def test_interrupted_run_equals_the_uninterrupted_one(tmp_path, env_id, stops):
    whole = Training(tmp_path / "whole", env_id)
    assert whole.run() == 0
    expected = whole.everything()
    parts = Training(tmp_path / "parts", env_id)
    for stop in stops:
        assert parts.run(signal_at=stop) == 143
        parts = Training(tmp_path / "parts", env_id, resume=True)
        assert parts.restored == stop
    assert parts.run() == 0
    assert parts.counters["updates"] == OFFLINE_UPDATES + ONLINE_FRAMES
    torch.testing.assert_close(parts.everything(), expected, rtol=0, atol=0)
    series = [[row | {"time": 0} for row in read_metrics(tmp_path / name)] for name in ("parts", "whole")]
    assert series[0] == series[1]
