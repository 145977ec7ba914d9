# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Actors that decide several actions at once: in both collectors, in evaluation, as FastActor, and from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Composite

from torchrl_o2o.collectors import FastActor, StepCollector, VectorCollector, make_vector_env
from torchrl_o2o.deploy import load_policy, save_policy
from torchrl_o2o.envs import make_gym_env
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import (
    act_in_chunks,
    chunk_box,
    chunk_length,
    make_actor,
    make_deterministic_actor,
    make_flow_network,
    make_one_step_actor,
    make_qvalue_ensemble,
)
from torchrl_o2o.objectives import BestOfNLoss
from torchrl_o2o.trainers import evaluate

H = 3


class Clock(gymnasium.Env):
    """The observation is the number of the step, a tenth each, and that of the reset a hundredth; nothing else."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        return self._observation(), float(action[0]), False, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.time / 10], np.float32)


class Plan(nn.Module):
    """A chunk that says when it was decided and which of its actions this is: t, t + 0.01, t + 0.02."""

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return observation + 0.01 * torch.arange(H)


def plan() -> TensorDictModule:
    actor = TensorDictModule(Plan(), in_keys=["observation"], out_keys=["action"])
    actor.spec = Composite({"action": chunk_box(1, H)})
    return act_in_chunks(actor, H)


def clock(steps: int = 5) -> gymnasium.Env:
    return TimeLimit(Clock(), steps)


#: Two episodes of five steps: the second chunk of an episode is cut by its end, and never carried over.
EXPECTED = [0.0, 0.01, 0.02, 0.3, 0.31] * 2


def test_a_chunk_is_carried_out_and_dropped_at_the_end_of_an_episode() -> None:
    collector = StepCollector(clock(), plan(), total_frames=10)
    assert [data["action"].item() for data in collector] == pytest.approx(EXPECTED)


def test_every_environment_of_many_has_its_own_chunk() -> None:
    lengths = iter([5, 2, 4])
    collector = VectorCollector(make_vector_env(lambda: clock(next(lengths)), 3), plan(), total_frames=30)
    actions = torch.stack([data["action"].flatten() for data in collector]).T.tolist()
    assert actions[0] == pytest.approx(EXPECTED)
    assert actions[1] == pytest.approx([0.0, 0.01] * 5)
    assert actions[2] == pytest.approx([0.0, 0.01, 0.02, 0.3] * 2 + [0.0, 0.01])


def test_random_frames_are_single_actions() -> None:
    torch.manual_seed(0)
    collector = StepCollector(clock(), plan(), total_frames=5, init_random_frames=2)
    actions = [data["action"].item() for data in collector]
    assert actions[2:] == pytest.approx([0.2, 0.21, 0.22])


def test_an_evaluation_carries_chunks_out() -> None:
    result = evaluate(plan(), clock, num_episodes=4, seed=0, num_envs=2)
    assert result.returns == pytest.approx([sum(EXPECTED[:5])] * 4)


def chunk_actors() -> dict[str, Any]:
    torch.manual_seed(0)
    box, sizes = chunk_box(1, H), {"hidden_sizes": (8, 8)}
    critics = make_qvalue_ensemble(3, box, num_qvalue_nets=2, activation="gelu", layer_norm="after_activation", **sizes)
    actors = {
        "gaussian": make_actor(3, box, **sizes),
        "deterministic": make_deterministic_actor(3, box, **sizes),
        "one_step": make_one_step_actor(3, box, layer_norm="after_activation", **sizes),
        "best_of_n": BestOfNLoss(make_flow_network(3, box, **sizes), critics, num_samples=4, flow_steps=2).make_actor(),
    }
    return {name: act_in_chunks(actor, H) for name, actor in actors.items()}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("kind", ["gaussian", "one_step"])
def test_a_chunk_goes_on_after_a_resume(kind: str, fast: bool) -> None:
    def collector() -> StepCollector:
        env = make_gym_env("Pendulum-v1")
        return StepCollector(env, chunk_actors()[kind], total_frames=9, seed=0, fast_act=fast)

    env_actions = []
    for cut in (9, 4):  # 4 is in the middle of a chunk
        torch.manual_seed(1)
        first = collector()
        first.total_frames = cut
        actions = [data["action"] for data in first]
        state, rng = first.state_dict(), torch.get_rng_state()
        assert ("queue" in state) == (cut == 4)
        second = collector()
        second.load_state_dict(state)
        torch.set_rng_state(rng)
        env_actions.append(torch.cat([*actions, *(data["action"] for data in second)]))
    assert torch.equal(*env_actions)


def test_many_environments_go_on_after_a_resume() -> None:
    def collector() -> VectorCollector:
        envs = make_vector_env(lambda: make_gym_env("Pendulum-v1"), 2)
        return VectorCollector(envs, chunk_actors()["gaussian"], total_frames=18, seeds=[0, 1])

    whole = torch.stack([data["action"] for data in collector()])
    first = collector()
    first.total_frames = 8
    parts = [data["action"] for data in first]
    second = collector()
    second.load_state_dict(first.state_dict())
    assert torch.equal(torch.stack([*parts, *(data["action"] for data in second)]), whole)


@pytest.mark.parametrize("kind", ["gaussian", "deterministic", "one_step"])
def test_fast_actors_carry_chunks_out(kind: str) -> None:
    actor = chunk_actors()[kind]
    act, observation = FastActor(actor, deterministic=kind != "gaussian"), np.ones((2, 3), np.float32)
    noise = torch.randn(2, H)
    with torch.no_grad():
        layers = actor.module if kind == "one_step" else None
        if layers is not None:
            chunk = layers[2](layers[1](torch.ones(2, 3), noise))
        elif kind == "gaussian":
            loc, scale = actor[0].module(torch.ones(2, 3))
            chunk = (loc + scale * noise).tanh()
        else:
            chunk = actor.module(torch.ones(2, 3))
    for step in range(H):
        got = act(observation if step == 0 else 0 * observation, noise.numpy())
        np.testing.assert_allclose(got, chunk[:, step : step + 1], rtol=1e-5, atol=1e-6)
    act.reset()
    np.testing.assert_allclose(act(observation, noise.numpy()), chunk[:, :1], rtol=1e-5, atol=1e-6)
    for wrong in ([0], [1, 0], 0, [True], [True, False, True]):  # numbers of rows, and flags of other rows
        with pytest.raises(O2OSpecError, match=r"got a mask of .*, expected bool \[2\], one flag for each row"):
            act.reset(np.array(wrong))
    act.reset(np.array([True, False]))  # the second row continues with its chunk
    np.testing.assert_allclose(act(observation, noise.numpy()), [*chunk[:1, :1], *chunk[1:, 1:2]], rtol=1e-5, atol=1e-6)
    assert act(np.ones(3)).shape == (1,)


@pytest.mark.parametrize("kind", ["gaussian", "deterministic", "one_step", "best_of_n"])
def test_policies_of_chunks_are_read_back(kind: str, tmp_path: Path) -> None:
    actor = chunk_actors()[kind]
    save_policy(tmp_path, actor, env="Pendulum-v1")
    read, native = load_policy(tmp_path, native_actions=False), load_policy(tmp_path)
    assert (chunk_length(read), chunk_length(native)) == (H, H)
    data = TensorDict({"observation": torch.randn(5, 3)}, [5])
    actions = []
    for each in (actor, read, native):
        torch.manual_seed(1)
        with torch.no_grad():
            actions.append(each(data.clone())["action"])
    torch.testing.assert_close(actions[0], actions[1])
    torch.testing.assert_close(2.0 * actions[0], actions[2])
    first, second = (evaluate(each, "Pendulum-v1", num_episodes=1, seed=0).returns for each in (actor, native))
    assert first == pytest.approx(second, rel=1e-3 if kind != "gaussian" else 1e-5)


def test_fast_actors_choose_the_best_of_n() -> None:
    actor = chunk_actors()["best_of_n"]
    act = FastActor(actor)
    for seed in range(5):
        observation = torch.randn(3, generator=torch.Generator().manual_seed(seed))
        act.reset()
        with torch.no_grad():
            torch.manual_seed(seed)
            expected = actor(TensorDict({"observation": observation}))["action"]
            torch.manual_seed(seed)
            got = [act(observation.numpy()) for _ in range(H)]
        np.testing.assert_allclose(np.concatenate(got), expected, rtol=1e-5, atol=1e-5)
    assert act.decide(np.ones((4, 3))).shape == (4, H)


def test_chunks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(O2OSpecError, match="horizon=2"):
        act_in_chunks(make_actor(3, 3), 2)
    with pytest.raises(O2OSpecError):
        StepCollector(clock(), make_actor(1, chunk_box(1, H)), total_frames=1)
