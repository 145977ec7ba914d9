# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A restored environment continues bit for bit, in the middle of an episode and through the next reset."""

from __future__ import annotations

import io
import socket

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, RecordEpisodeStatistics

from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.envs.snapshot import env_state, restore_env_state
from torchrl_o2o.errors import O2OCheckpointError

MUJOCO = (
    "HalfCheetah-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "Ant-v5",
    "Humanoid-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Pusher-v5",
)
ROBOTICS = ("PointMaze_UMaze-v3", "PointMaze_Medium_Diverse_GR-v3", "AntMaze_UMaze-v5", "AdroitHandDoor-v1")
CLASSIC = ("Pendulum-v1", "MountainCarContinuous-v0")


def through_file(state):
    """Write and read as a checkpoint does, where no code may be needed."""
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def play(env, actions):
    """Step through actions, resetting at ends, and return everything seen."""
    trace = []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        trace.append((observation, reward, terminated, truncated, info))
        if terminated or truncated:
            trace.append((env.reset()[0], 0.0, False, False, {}))
    return trace


def assert_same(first, second):
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        np.testing.assert_array_equal(first, second)


def actions_of(env, count, seed=0):
    space = env.action_space
    return np.random.default_rng(seed).uniform(space.low, space.high, (count, *space.shape)).astype(space.dtype)


def check_exact_resume(make, warm_up=27, steps=50):
    original = make(seed=3)
    original.reset(seed=3)
    play(original, actions_of(original, warm_up, seed=1))
    state = through_file(env_state(original))
    copy = make(seed=99)
    restore_env_state(copy, state)
    actions = actions_of(original, steps)
    assert_same(play(original, actions), play(copy, actions))
    np.testing.assert_array_equal(original.action_space.sample(), copy.action_space.sample())
    assert_same(original.reset(), copy.reset())
    assert_same(play(original, actions[:3]), play(copy, actions[:3]))


@pytest.mark.parametrize("env_id", [*MUJOCO, *CLASSIC])
def test_resume_is_exact(env_id):
    pytest.importorskip("mujoco")
    check_exact_resume(lambda seed: make_gym_env(env_id, seed=seed))


@pytest.mark.parametrize("env_id", ROBOTICS)
def test_resume_is_exact_with_goals_and_changed_models(env_id):
    pytest.importorskip("gymnasium_robotics")
    check_exact_resume(lambda seed: make_gym_env(env_id, seed=seed))


def test_resume_is_exact_through_a_time_limit():
    check_exact_resume(lambda seed: make_gym_env("Pendulum-v1", seed=seed, max_episode_steps=40))


def test_resume_is_exact_with_wrappers_that_have_a_state():
    def make(seed):
        env = make_gym_env("Pendulum-v1", seed=seed, max_episode_steps=20)
        return NormalizeReward(NormalizeObservation(RecordEpisodeStatistics(env)))

    original = make(3)
    original.reset(seed=3)
    play(original, actions_of(original, 45, seed=1))
    copy = make(99)
    restore_env_state(copy, through_file(env_state(original)))
    actions = actions_of(original, 30)
    for first, second in zip(play(original, actions), play(copy, actions), strict=True):
        assert_same(first[:4], second[:4])
        if "episode" in first[4]:
            assert first[4]["episode"]["r"] == second[4]["episode"]["r"]


def test_a_fresh_environment_that_was_never_reset_is_restored():
    original = gymnasium.make("CartPole-v1")
    original.reset(seed=5)
    original.step(0)
    copy = gymnasium.make("CartPole-v1")
    restore_env_state(copy, through_file(env_state(original)))
    assert_same(play(original, [0, 1] * 20), play(copy, [0, 1] * 20))


def test_capturing_does_not_disturb_the_environment():
    first, second = make_gym_env("Hopper-v5", seed=1), make_gym_env("Hopper-v5", seed=1)
    actions = actions_of(first, 40)
    trace = []
    for action in actions:
        trace += play(first, [action])
        env_state(first)
    assert_same(trace, play(second, actions))


def test_state_is_a_copy():
    env = make_gym_env("Hopper-v5", seed=1)
    state = env_state(env)
    before = through_file(state)
    play(env, actions_of(env, 5))
    saved, again = (found(each, "data", "HopperEnv.data")["arrays"] for each in (state, before))
    torch.testing.assert_close(saved, again, rtol=0, atol=0)


def found(state, kind, where):
    """What a captured state holds of one kind at one place."""
    (contents,) = [contents for each, place, contents in state["nodes"] if (each, place) == (kind, where)]
    return contents


class Remote(gymnasium.Env):
    """Holds something that no walk can copy."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.connection = socket.socket()


def test_environment_that_cannot_be_captured_gives_none_and_names_the_reason():
    env = Remote()
    with pytest.warns(UserWarning, match=r"Remote\.connection is a socket\.socket; a resumed run starts a new episode"):
        assert env_state(env) is None
    env.connection.close()


def test_state_of_another_environment_is_refused():
    state = env_state(make_gym_env("Hopper-v5", seed=1))
    with pytest.raises(O2OCheckpointError, match=r"HopperEnv of Hopper-v5, this one .*Walker2dEnv of Walker2d-v5"):
        restore_env_state(make_gym_env("Walker2d-v5", seed=1), state)


def test_state_of_another_model_is_refused():
    state = env_state(make_gym_env("Hopper-v5", seed=1))
    found(state, "data", "HopperEnv.data")["arrays"]["integration"] = torch.zeros(3)
    with pytest.raises(O2OCheckpointError, match="state has 3 numbers, expected"):
        restore_env_state(make_gym_env("Hopper-v5", seed=1), state)


def test_generator_of_an_unknown_kind_is_refused():
    state = env_state(make_gym_env("Pendulum-v1", seed=1))
    found(state, "generator", "PendulumEnv._np_random")["bit_generator"] = "default_rng"
    with pytest.raises(O2OCheckpointError, match="the generator 'default_rng'"):
        restore_env_state(make_gym_env("Pendulum-v1", seed=1), state)


def test_what_a_caller_holds_is_not_written_into():
    """Gymnasium's checker remembers the last observation it gave out."""
    env = gymnasium.make("Pendulum-v1")
    env.reset(seed=1)
    state = env_state(env)
    given = env.step(np.ones(1, np.float32))[0]
    kept = given.copy()
    restore_env_state(env, state)
    np.testing.assert_array_equal(given, kept)
    np.testing.assert_array_equal(env.step(np.ones(1, np.float32))[0], kept)
