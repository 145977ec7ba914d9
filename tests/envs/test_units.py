# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction, TransformAction

from torchrl_o2o.envs import make_gym_env
from torchrl_o2o.envs.units import match_actions, native_action_space
from torchrl_o2o.errors import O2OSpecError


class Valve(gymnasium.Env):
    """Remembers what it was told."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, low: float = -1.0, high: float = 1.0) -> None:
        self.action_space = spaces.Box(low, high, (1,), np.float32)
        self.told: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.told.append(float(action[0]))
        return np.zeros(1, np.float32), 0.0, False, False, {}


def told(env: gymnasium.Env, actions: list[float]) -> list[float]:
    """What the valve inside is told by these actions."""
    env.reset()
    for action in actions:
        env.step(np.array([action], np.float32))
    return env.unwrapped.told  # type: ignore[attr-defined]


@pytest.mark.parametrize(("low", "high"), [(-2.0, 2.0), (0.0, 1.0), (-1.0, 1.0)])
def test_a_policy_of_native_actions_reaches_the_environment_through_any_scaling(low: float, high: float) -> None:
    """Actions were mapped to [-1, 1] whatever box the scaled environment took: half of them in [-2, 2]."""
    env = match_actions(RescaleAction(Valve(-3.0, 5.0), low, high), [-3.0], [5.0])
    np.testing.assert_allclose(told(env, [-3.0, 1.0, 5.0]), [-3.0, 1.0, 5.0], atol=1e-6)


def test_a_policy_of_unit_actions_in_an_environment_that_was_scaled_from_them() -> None:
    env = match_actions(RescaleAction(Valve(), -2.0, 2.0), [-1.0], [1.0])
    np.testing.assert_allclose(told(env, [-1.0, 0.5, 1.0]), [-1.0, 0.5, 1.0], atol=1e-6)


def test_environments_of_make_gym_env_take_native_actions() -> None:
    env = match_actions(make_gym_env("Pendulum-v1"), [-2.0], [2.0])
    assert env.action_space == spaces.Box(-2.0, 2.0, (1,), np.float32)
    assert native_action_space(env) == native_action_space(make_gym_env("Pendulum-v1")) == env.action_space


def test_what_a_function_of_the_caller_does_to_actions_is_not_guessed() -> None:
    """It need not map its box onto the one inside, so the inner box is nobody's units."""
    swapped = TransformAction(Valve(-2.0, 2.0), partial(np.multiply, -2.0), spaces.Box(-1.0, 1.0, (1,), np.float32))
    assert native_action_space(swapped) == swapped.action_space
    with pytest.raises(O2OSpecError, match=r"the policy acts in \[-2.0\]..\[2.0\], the environment takes"):
        match_actions(swapped, [-2.0], [2.0])
    assert told(match_actions(swapped, [-1.0], [1.0]), [0.5]) == [-1.0]
