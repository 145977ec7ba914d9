# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from torchrl_o2o.envs import DotReachEnv, RenderedFrames, StackFrames, env_state, make_gym_env, restore_env_state
from torchrl_o2o.envs.pixels import chase_dot
from torchrl_o2o.errors import O2OSpecError


def play(noise: float, episodes: int = 20) -> float:
    env, rng = DotReachEnv(), np.random.default_rng(0)
    total = 0.0
    for seed in range(episodes):
        frame, _ = env.reset(seed=seed)
        for _ in range(25):
            frame, reward, *_ = env.step(np.clip(chase_dot(frame) + noise * rng.standard_normal(2), -1, 1))
            total += reward
    return total / episodes


def test_the_controller_reaches_and_noise_spoils_it() -> None:
    assert play(0.0) > 19.0
    assert 12.0 < play(0.7) < 17.0


def test_frames_are_stacked_and_the_first_fills_all_places() -> None:
    env = make_gym_env("o2o/DotReach-v0", seed=0)
    stack, _ = env.reset(seed=1)
    assert stack.dtype == np.uint8
    assert stack.shape == env.observation_space.shape == (9, 16, 16)
    assert (stack[:3] == stack[3:6]).all()
    assert (stack[3:6] == stack[6:]).all()
    after, *_ = env.step(np.ones(2, np.float32))
    assert (after[:6] == stack[3:]).all()
    assert (after[6:] != stack[6:]).any()
    assert env.spec.max_episode_steps == 25


def test_an_episode_goes_on_from_a_saved_state() -> None:
    env = make_gym_env("o2o/DotReach-v0", seed=0)
    for _ in range(3):
        env.step(env.action_space.sample())
    state = env_state(env)
    assert state is not None
    expected = [env.step(np.full(2, 0.3, np.float32)) for _ in range(3)]
    restore_env_state(env, state)
    for step in expected:
        found = env.step(np.full(2, 0.3, np.float32))
        assert (found[0] == step[0]).all()
        assert found[1] == step[1]


def test_rendered_frames_can_be_stacked() -> None:
    env = StackFrames(RenderedFrames(DotReachEnv(render_mode="rgb_array")), num_stack=2)
    assert env.reset(seed=0)[0].shape == (6, 16, 16)
    with pytest.raises(O2OSpecError, match="rgb_array"):
        RenderedFrames(DotReachEnv())


class Shows(gymnasium.Env):
    def __init__(self, shape: tuple[int, ...], dtype: type) -> None:
        self.observation_space = spaces.Box(0, 255, shape, dtype)


def test_alpha_is_left_out_and_other_images_are_refused() -> None:
    assert StackFrames(Shows((8, 8, 4), np.uint8)).observation_space.shape == (9, 8, 8)
    with pytest.raises(O2OSpecError, match="scale floats"):
        StackFrames(Shows((8, 8, 3), np.float32))
    with pytest.raises(O2OSpecError, match="channels last"):
        StackFrames(Shows((3, 8, 8), np.uint8))
