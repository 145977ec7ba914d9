# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from torchrl_o2o.envs import (
    DotReachEnv,
    RenderedFrames,
    StackFrames,
    env_state,
    film_episode,
    make_gym_env,
    restore_env_state,
)
from torchrl_o2o.envs.outputs import CheckedEnv
from torchrl_o2o.envs.pixels import RepeatAction, chase_dot
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


def test_frames_of_another_size_are_means_over_areas() -> None:
    """Pixels are shared where an edge goes through them; one size up repeats."""
    frame = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)

    class Draws(DotReachEnv):
        def render(self) -> np.ndarray:
            return frame

    whole = RenderedFrames(Draws(render_mode="rgb_array"), size=3).reset()[0]
    np.testing.assert_array_equal(whole, np.rint(frame.reshape(3, 2, 3, 3, 3).mean((1, 3))).astype(np.uint8))
    shared = RenderedFrames(Draws(render_mode="rgb_array"), size=4).reset()[0]
    corner = np.einsum("h,w,hwc->c", [1.0, 0.5], [1.0, 1.0, 0.25], frame[:2, :3]) / (1.5 * 2.25)
    np.testing.assert_array_equal(shared[0, 0], np.rint(corner).astype(np.uint8))
    larger = RenderedFrames(Draws(render_mode="rgb_array"), size=18).reset()[0]
    np.testing.assert_array_equal(larger, frame.repeat(3, 0).repeat(2, 1))


def test_an_action_is_repeated_until_the_episode_ends() -> None:
    single = make_gym_env("o2o/DotReach-v0", seed=0)
    action = np.array([0.1, -0.2], np.float32)
    rewards = [single.step(action)[1] for _ in range(25)]
    env = make_gym_env("o2o/DotReach-v0", seed=0, action_repeat=4)
    steps = [env.step(action) for _ in range(7)]
    assert [step[1] for step in steps] == [sum(rewards[4 * k : 4 * k + 4]) for k in range(7)]
    assert [step[3] for step in steps] == [False] * 6 + [True]
    with pytest.raises(O2OSpecError, match="shadows=True without render_size"):
        make_gym_env("o2o/DotReach-v0", shadows=True)


def test_a_reward_may_be_an_array_of_one_number() -> None:
    class Shaped(DotReachEnv):
        def step(self, action: np.ndarray) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, np.array([reward]), *rest

    action, envs = np.full(2, 0.1, np.float32), (DotReachEnv(), Shaped())
    plain, shaped = (CheckedEnv(StackFrames(RepeatAction(env, 3))) for env in envs)
    for env in (plain, shaped):
        env.reset(seed=6)  # which begins near the target
    assert plain.step(action)[1] == shaped.step(action)[1] > 0.0


@pytest.mark.parametrize(("reward", "total"), [(np.float16(60_000), 180_000.0), (np.uint8(200), 600.0), ([2], 6.0)])
def test_rewards_of_a_repeated_action_are_summed_as_floats(reward: Any, total: float) -> None:
    """In float16, three times 60 000 was infinite."""

    class Rewards(DotReachEnv):
        def step(self, action: np.ndarray) -> Any:
            observation, _, *rest = super().step(action)
            return observation, reward, *rest

    env = RepeatAction(Rewards(), 3)
    env.reset(seed=0)
    assert env.step(np.zeros(2))[1] == total


def test_an_environment_may_change_the_action_that_is_repeated() -> None:
    class Scales(DotReachEnv):
        taken: list[list[float]] = []

        def step(self, action: np.ndarray) -> Any:
            action *= 2.0
            self.taken.append(action.tolist())
            return super().step(action)

    env = RepeatAction(Scales(), 3)
    env.reset(seed=0)
    env.step(np.full(2, 0.1, np.float64))
    assert Scales.taken == [[0.2, 0.2]] * 3


class Shows(gymnasium.Env):
    def __init__(self, shape: tuple[int, ...], dtype: type) -> None:
        self.observation_space = spaces.Box(0, 255, shape, dtype)


def test_alpha_is_left_out_and_other_images_are_refused() -> None:
    assert StackFrames(Shows((8, 8, 4), np.uint8)).observation_space.shape == (9, 8, 8)
    with pytest.raises(O2OSpecError, match="multiply floats"):
        StackFrames(Shows((8, 8, 3), np.float32))
    with pytest.raises(O2OSpecError, match="channels to the last dimension"):
        StackFrames(Shows((3, 8, 8), np.uint8))
    for shape in ((3, 8, 3), (3, 8, 4), (4, 8, 3)):  # either end could be the channels
        with pytest.raises(O2OSpecError, match="the first or the last dimension could be the channels"):
            StackFrames(Shows(shape, np.uint8))
    assert StackFrames(Shows((8, 3, 3), np.uint8)).observation_space.shape == (9, 8, 3)


def test_an_entry_that_is_neither_image_nor_vector_is_named() -> None:
    env = Shows((8, 8, 3), np.uint8)
    env.observation_space = spaces.Dict({"eye": env.observation_space, "time": spaces.Box(0.0, 1.0, ())})
    with pytest.raises(O2OSpecError, match=r"observation\['time'\] is Box.*, expected .* or a vector \[n\]; reshape"):
        StackFrames(env)


class Redraws(DotReachEnv):
    """Draws into one array, as some renderers do."""

    def render(self) -> np.ndarray:
        self.canvas = getattr(self, "canvas", np.zeros((16, 16, 3), np.uint8))
        self.canvas[:] = self._frame()
        return self.canvas


def test_frames_are_copies() -> None:
    env = RenderedFrames(Redraws(render_mode="rgb_array"))
    first, _ = env.reset(seed=0)
    kept = first.copy()
    env.step(np.ones(2))
    assert np.array_equal(first, kept)
    film = film_episode(Redraws(render_mode="rgb_array"), lambda observation: np.ones(2), seed=0, max_steps=3)
    assert len({frame.tobytes() for frame in film.frames}) == 4


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (np.full((8, 8, 3), 0.7, np.float32), "an observation of type float32 came back, expected uint8"),
        (np.full((8, 8, 3), 300), "an observation of int64 with the value 300 came back, expected uint8"),
        (np.full((1, 8, 3), 7, np.uint8), r"an observation of shape \(1, 8, 3\) came back, expected \(8, 8, 3\)"),
    ],
)
def test_images_are_those_of_the_space(frame: np.ndarray, said: str) -> None:
    """Frames in [0, 1] were all black, 300 was 44, and one row was repeated."""

    class Sees(Shows):
        def reset(self, **_: Any) -> Any:
            return frame, {}

    env = StackFrames(Sees((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=said):
        env.reset()
