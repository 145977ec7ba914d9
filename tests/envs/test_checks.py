# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Environments that this package cannot use are refused, with how to mend them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import NormalizeObservation, NormalizeReward, TimeLimit

from torchrl_o2o.collectors import StepCollector, VectorCollector, make_vector_env
from torchrl_o2o.envs.guard import GuardedEnv
from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.envs.outputs import CheckedEnv, EnvFaultError
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor
from torchrl_o2o.trainers import evaluate

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)
SEEN = np.zeros(2, np.float32)


class Plain(gymnasium.Env):
    """Stands still; its spaces may be replaced."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("space", [spaces.Discrete(2), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(3)])
def test_discrete_actions_get_one_sentence(space: spaces.Space) -> None:
    env = Plain()
    env.action_space = space
    for wrap in (CheckedEnv, lambda env: GuardedEnv(lambda: env)):
        with pytest.raises(O2OSpecError, match=r"Plain has discrete actions, .*for continuous actions only"):
            wrap(env)


def test_whole_numbers_as_actions_need_make_gym_env() -> None:
    env = Plain()
    env.action_space = spaces.Box(0, 10, (1,), np.int64)
    with pytest.raises(O2OSpecError, match=r"are integers, .*make_gym_env"):
        CheckedEnv(env)


ACTOR = make_actor(3, 1, hidden_sizes=(8,))


@pytest.mark.parametrize("wrapper", [NormalizeObservation, NormalizeReward])
@pytest.mark.parametrize(
    "use",
    [
        lambda build: evaluate(ACTOR, build, num_episodes=1, seed=0),
        lambda build: StepCollector(build(), ACTOR, total_frames=1),
        lambda build: VectorCollector(make_vector_env(build, 2)),
    ],
)
def test_running_statistics_are_told_of(
    wrapper: type[gymnasium.Wrapper], use: Callable[[Callable[[], gymnasium.Env]], object]
) -> None:
    """A return of 3 was evaluated as 74: statistics begin anew in each copy of such an environment."""

    def build(running: bool = True) -> gymnasium.Env:
        env = wrapper(make_gym_env("Pendulum-v1"))
        env.update_running_mean = running
        return TimeLimit(env, 2)

    with pytest.warns(UserWarning, match=f"Pendulum-v1 normalizes by running statistics .{wrapper.__name__}"):
        use(build)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use(lambda: build(False))


class Older(gymnasium.Env):
    """In the form of the older gym."""

    observation_space, action_space = BOX, spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self) -> np.ndarray:
        return SEEN

    def step(self, action: Any) -> Any:
        return SEEN, 0.0, False, {}


class OlderStep(Older):
    """Of which only the reset was converted."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        return SEEN, {}


USES: dict[str, Callable[[Callable[[], gymnasium.Env]], Any]] = {
    "make_gym_env": lambda make: make_gym_env(_registered(make), allow_modules=(__name__,)),
    "StepCollector": lambda make: StepCollector(make(), make_actor(2, 1, hidden_sizes=(8,)), total_frames=1, seed=0),
    "in TimeLimit": lambda make: StepCollector(
        TimeLimit(make(), 5), make_actor(2, 1, hidden_sizes=(8,)), total_frames=1
    ),
    "VectorCollector": lambda make: make_vector_env(make, 2),
    "GuardedEnv": GuardedEnv,
    "evaluate": lambda make: evaluate(make_actor(2, 1, hidden_sizes=(8,)), make, num_episodes=1, seed=0),
}


def _registered(make: Callable[[], gymnasium.Env]) -> str:
    gymnasium.register("Older-v0", entry_point=make)
    return "Older-v0"


@pytest.mark.parametrize("use", USES)
def test_environments_of_the_older_gym_are_told_what_has_changed(use: str) -> None:
    with pytest.raises(O2OSpecError, match=r"has reset\(\), expected gymnasium's reset\(\*, seed=None, options=None\)"):
        USES[use](Older)


def test_a_step_of_four_values_in_a_wrapper_is_named() -> None:
    collector = StepCollector(TimeLimit(OlderStep(), 5), make_actor(2, 1, hidden_sizes=(8,)), total_frames=1, seed=0)
    with pytest.raises(EnvFaultError, match="step returned 4 values, expected"):
        next(iter(collector))


@pytest.mark.parametrize(
    ("low", "high", "fits"),
    [(-np.inf, np.inf, True), (0.0, np.inf, False), (-np.inf, 0.5, False), (-2.0, np.inf, True)],
)
def test_a_policy_stays_within_the_edges_that_a_half_open_box_has(low: float, high: float, fits: bool) -> None:
    env = Plain()
    env.action_space = spaces.Box(low, high, (1,), np.float32)
    actor = make_actor(2, 1, hidden_sizes=(8,))
    if fits:
        assert len(list(StepCollector(env, actor, total_frames=2, seed=0))) == 2
        return
    with pytest.raises(O2OSpecError, match=r"the policy acts in \[-1.0\]..\[1.0\]"):
        StepCollector(env, actor, total_frames=2, seed=0)
