# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Episodes that end with success."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from torchrl_o2o.envs import EndAtSuccess, RepeatAction, env_state, make_gym_env, restore_env_state


class Counting(gymnasium.Env):
    """Succeeds in its third step, and in none after it."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, key: str) -> None:
        self.key, self.count = key, 0

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return np.zeros(1, np.float32), 0.0, False, False, {self.key: np.bool_(self.count == 3)}


@pytest.mark.parametrize(
    ("key", "ends"),
    [("success", [False, False, True]), ("is_success", [False, False, True]), ("other", [False] * 3)],
)
def test_the_step_that_succeeds_is_terminal(key: str, ends: list[bool]) -> None:
    env = EndAtSuccess(Counting(key))
    for _ in range(2):
        env.reset()
        assert [env.step(np.zeros(1))[2] for _ in range(3)] == ends


@pytest.mark.parametrize("flag", [float("nan"), 2, "yes", np.array([True, False])])
def test_what_is_neither_true_nor_false_ends_no_episode(flag: Any) -> None:
    class Unclear(Counting):
        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            return *super().step(action)[:4], {"success": flag}

    env = EndAtSuccess(Unclear("success"))
    env.reset()
    assert env.step(np.zeros(1))[2] is False


def test_the_flag_that_is_reported_counts() -> None:
    class Both(Counting):
        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            return *super().step(action)[:4], {"success": None, "is_success": True}

    env = EndAtSuccess(Both("success"))
    env.reset()
    assert env.step(np.zeros(1))[2] is True


@pytest.mark.parametrize("key", ["success", "is_success"])
def test_a_success_between_two_decisions_counts(key: str) -> None:
    """The third of four steps succeeds, the second time of the second repeated action does not."""
    env = EndAtSuccess(RepeatAction(Counting(key), 2))
    env.reset()
    first, second = (env.step(np.zeros(1)) for _ in range(2))
    assert (first[2], first[4]) == (False, {key: np.False_})
    assert (second[2], second[4]) == (True, {key: np.True_})


def test_it_is_restored_in_the_middle_of_an_episode() -> None:
    env, action = EndAtSuccess(make_gym_env("HalfCheetah-v5", seed=0)), np.full(6, 0.5, np.float32)
    env.reset(seed=0)
    env.step(action)
    state = env_state(env)
    assert state is not None
    expected = env.step(action)[0]
    env.reset(seed=1)
    restore_env_state(env, state)
    assert (env.step(action)[0] == expected).all()
