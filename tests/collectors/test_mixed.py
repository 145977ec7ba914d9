# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Images and vectors by name, from the environment through collector, storage, shift and loss to the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch.optim import Adam
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.collectors import StepCollector, VectorCollector, make_vector_env
from torchrl_o2o.commands.cli import main
from torchrl_o2o.data import BalancedSampler, OnlineWriter, RandomShift, pixel_data, transition_keys
from torchrl_o2o.deploy import read_policy, save_policy
from torchrl_o2o.envs import DotReachEnv, EnvFaultError, GuardedEnv, make_gym_env
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import (
    Temperature,
    make_latent_actor,
    make_pixel_actor,
    make_pixel_encoder,
    make_qvalue_ensemble,
)
from torchrl_o2o.objectives import PixelSACLoss
from torchrl_o2o.trainers import evaluate
from torchrl_o2o.updates import Copy, Descend, MoveTargets, Update

MODULE = __name__.partition(".")[0]


class Mixed(DotReachEnv):
    """The dot's image from a camera of any name, and its position in float64."""

    breaks = False

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        position = spaces.Box(-1.0, 1.0, (2,), np.float64)
        self.observation_space = spaces.Dict({"wrist": self.observation_space, "joints": position})

    def reset(self, **settings: Any) -> Any:
        frame, info = super().reset(**settings)
        return {"wrist": frame, "joints": self._position}, info

    def step(self, action: Any) -> Any:
        frame, *rest = super().step(action)
        joints = np.full(2, np.nan) if self.breaks else self._position
        return {"wrist": frame, "joints": joints}, *rest


gymnasium.register("Mixed-v0", Mixed, max_episode_steps=6)


def make(**settings: Any) -> gymnasium.Env:
    return make_gym_env("Mixed-v0", allow_modules=[MODULE], **settings)


def episode(length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "wrist": rng.integers(0, 256, (length + 1, 16, 16, 3), np.uint8),
        "joints": rng.normal(size=(length + 1, 2)),
        "action": rng.uniform(-1, 1, (length, 2)),
        "reward": np.ones(length),
    }


def test_a_run_from_images_and_a_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    data, keys = pixel_data([episode(9)], image_keys=["wrist"]), transition_keys("wrist", "joints")
    settings = {"features": (4, 4), "strides": (2, 2), "latent_dim": 5}
    encoder = make_pixel_encoder({"wrist": (9, 16, 16)}, vectors={"joints": 2}, **settings)  # type: ignore[arg-type]
    actor = make_pixel_actor(encoder, 2, hidden_sizes=(8,))
    heads = make_qvalue_ensemble(10, 2, num_qvalue_nets=2, hidden_sizes=(8,), in_keys=("latent", "action"))
    loss = PixelSACLoss(actor, encoder, heads, temperature=Temperature(-1.0))
    critics = [*loss.encoder_network_params.parameters(), *loss.qvalue_network_params.parameters()]
    update = Update(
        loss,
        Copy(*PixelSACLoss.LATE_COPY),
        Descend("qvalue", Adam(critics)),
        MoveTargets(SoftUpdate(loss, tau=0.01)),
        Descend("actor", Adam(loss.actor_network_params.parameters())),
    )
    buffer = TensorDictReplayBuffer(
        storage=data.storage(20),
        sampler=BalancedSampler(len(data), 0.5),
        writer=OnlineWriter(len(data)),
        batch_size=8,
        transform=RandomShift(1, keys=["wrist", ("next", "wrist")]),
    )
    collector = StepCollector(GuardedEnv(make), actor, total_frames=14, seed=0)
    for row in collector:
        buffer.extend(row.select(*keys))
    metrics = update(buffer.sample())
    assert all(value.isfinite().all() for value in metrics.values())
    rows = buffer.storage[len(data) :]
    assert rows["wrist"].dtype == torch.uint8
    assert rows["joints"].dtype == torch.float32
    torch.testing.assert_close(rows["next", "joints"][:5], rows["joints"][1:6], rtol=0.0, atol=0.0)
    first = rows["wrist"][6].unflatten(0, (3, 3))
    assert (first == first[:1]).all(), "an episode's first frame fills the stack"
    again = StepCollector(GuardedEnv(make), actor, total_frames=14, seed=1)
    again.load_state_dict(collector.state_dict())
    assert torch.equal(again._observation["joints"], collector._observation["joints"])
    evaluated = evaluate(actor, make, num_episodes=3, seed=0, num_envs=2)
    assert evaluated.lengths.tolist() == [6, 6, 6]
    box = (np.full(2, -1.0), np.full(2, 1.0))
    policy = read_policy(save_policy(tmp_path, actor, env="Mixed-v0", action_box=box))
    assert (policy.shapes, policy.dims) == ({"wrist": (9, 16, 16), "joints": (2,)}, (9, 16, 16, 2))
    loaded = evaluate(policy.actor(), make, num_episodes=3, seed=0, num_envs=2)
    np.testing.assert_array_equal(loaded.returns, evaluated.returns)
    words = ["evaluate", str(tmp_path), "--episodes", "1", "--allow-modules", MODULE]
    assert main(words) == 0
    assert main([*words, "--env", "o2o/DotReach-v0"]) == 2
    error = capsys.readouterr().err
    assert "with {'wrist': '9x16x16', 'joints': '2'} observation entries" in error
    assert "expected 9x16x16 and 2 as in o2o/DotReach-v0" in error
    assert main(["export", str(tmp_path)]) == 2
    assert "expected an actor" in capsys.readouterr().err


def test_a_deterministic_policy_of_images_and_a_state_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images, settings = (
        {"wrist": (9, 16, 16), "front": (3, 8, 8)},
        {"features": (4,), "strides": (2,), "latent_dim": None},
    )
    encoder = make_pixel_encoder(images, vectors={"joints": 2}, out_key="features", **settings)  # type: ignore[arg-type]
    head = make_latent_actor(encoder.module.out_features, 2, latent_dim=5, hidden_sizes=(8,))
    box = (np.full(2, -1.0), np.full(2, 1.0))
    policy = read_policy(save_policy(tmp_path, TensorDictSequential(encoder, head), action_box=box))
    assert policy.shapes == {**images, "joints": (2,)}
    seen = {name: torch.randint(256, (6, *shape), dtype=torch.uint8) for name, shape in images.items()}
    rows = TensorDict({**seen, "joints": torch.randn(6, 2)}, [6])
    expected = head(encoder(rows.copy()))["action"]
    torch.testing.assert_close(policy.actor()(rows)["action"], expected, rtol=0.0, atol=0.0)


def test_entries_can_be_chosen_and_faults_are_found() -> None:
    assert list(make(observation_keys=["wrist"]).observation_space) == ["wrist"]
    with pytest.raises(O2OSpecError, match="collect from images with StepCollector"):
        VectorCollector(make_vector_env(make, 1))
    with pytest.raises(O2OSpecError, match="pass observation_keys with entries that it has"):
        make(observation_keys=["hand"])
    env = GuardedEnv(make, max_rejected=0)
    env.reset(seed=0)
    env.unwrapped.breaks = True  # type: ignore[attr-defined]
    with pytest.raises(EnvFaultError, match="an observation that is not finite"):
        env.step(np.zeros(2))
