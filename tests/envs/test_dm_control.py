# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Tasks of dm_control's suite: what becomes of its time steps, on a stand-in; the suite itself where it is there."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from torchrl_o2o.envs import env_state, make_gym_env, restore_env_state
from torchrl_o2o.errors import O2OSpecError


class Suite(ModuleType):
    """As much of ``dm_control.suite`` as is used: a walk that is over after three steps of control."""

    ALL_TASKS = (("walker", "walk"), ("walker", "run"))
    ends_at = 0.0

    def load(self, domain: str, task: str) -> Any:
        quality = SimpleNamespace(shadowsize=4096, offsamples=4)
        model = SimpleNamespace(ptr=SimpleNamespace(vis=SimpleNamespace(quality=quality), nhfield=0))
        self.shown: dict[str, Any] = {}
        self.task = SimpleNamespace(random=np.random.RandomState())
        self.made_current = self.rendered = 0
        contexts = SimpleNamespace(gl=SimpleNamespace(_platform_make_current=self.make_current))
        data = SimpleNamespace(ptr=None)
        self.physics = SimpleNamespace(model=model, data=data, render=self.render, contexts=contexts)
        return self

    def make_current(self) -> None:
        self.made_current += 1

    def render(self, **settings: Any) -> np.ndarray:
        self.shown, self.rendered = settings, self.rendered + 1
        return np.full((settings["height"], settings["width"], 3), 10 * self.count, np.uint8)

    def control_timestep(self) -> float:
        return 0.025

    def observation_spec(self) -> dict[str, Any]:
        return {"orientations": SimpleNamespace(shape=(2,)), "height": SimpleNamespace(shape=())}

    def action_spec(self) -> Any:
        return SimpleNamespace(shape=(2,), minimum=-1.0, maximum=np.array([1.0, 2.0]), dtype=np.dtype(float))

    def observed(self, reward: float | None, discount: float | None) -> Any:
        last = self.count == 3
        observation = {"orientations": np.full(2, self.start), "height": self.count}
        return SimpleNamespace(observation=observation, reward=reward, discount=discount, last=lambda: last)

    def reset(self) -> Any:
        self.count, self.start = 0, self.task.random.uniform()
        return self.observed(None, None)

    def step(self, action: np.ndarray) -> Any:
        self.count += 1
        return self.observed(float(action[1]), self.ends_at if self.count == 3 else 1.0)

    def close(self) -> None:
        pass


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    package, suite = ModuleType("dm_control"), Suite("dm_control.suite")
    monkeypatch.setitem(sys.modules, "dm_control", package)
    monkeypatch.setitem(sys.modules, "dm_control.suite", suite)
    return suite


@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_an_end_is_terminal_where_the_discount_is_zero(suite: Suite, discount: float) -> None:
    suite.ends_at = discount
    env = make_gym_env("dm_control/walker-walk-v0", seed=0)
    first, again = env.reset(seed=1)[0], env.reset(seed=1)[0]
    np.testing.assert_array_equal(first, again)
    assert (first.shape, first.dtype, first[2]) == ((3,), np.float32, 0.0)
    steps = [env.step(np.array([0.0, 1.0], np.float32)) for _ in range(3)]
    assert [step[1:4] for step in steps[:2]] == [(2.0, False, False)] * 2
    assert steps[2][1:4] == (2.0, discount == 0.0, discount == 1.0)
    assert env.unwrapped.metadata["render_fps"] == 40.0


@pytest.mark.parametrize("shadows", [False, True])
def test_frames_are_rendered_once_a_step_and_plainly_unless_asked(suite: Suite, shadows: bool) -> None:
    env = make_gym_env("dm_control/walker-walk-v0", render_size=12, action_repeat=2, num_stack=2, shadows=shadows)
    env.reset(seed=0)
    frames, reward, *_ = env.step(np.array([0.0, 1.0], np.float32))
    assert frames[:, 0, 0].tolist() == [0, 0, 0, 20, 20, 20]
    assert (frames.shape, reward) == ((6, 12, 12), 4.0)
    flags = {} if shadows else {"shadow": False, "reflection": False}
    assert suite.made_current == suite.rendered > 1  # whatever else was drawn in between
    assert suite.shown == {"width": 12, "height": 12, "camera_id": 0, "render_flag_overrides": flags}
    assert suite.physics.model.ptr.vis.quality.offsamples == (4 if shadows else 0)


def test_what_is_missing_is_said(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(O2OSpecError, match="has no walker-wlk, expected one such as walker-walk"):
        make_gym_env("dm_control/walker-wlk-v0", render_size=12)
    monkeypatch.setattr(suite, "render", lambda **_: 1 / 0)
    with pytest.raises(O2OSpecError, match=r"cannot be rendered here \(ZeroDivisionError.*libosmesa6"):
        make_gym_env("dm_control/walker-walk-v0", render_size=12)
    monkeypatch.setattr(suite, "load", lambda *_: suite.flex_vertedge)
    with pytest.raises(O2OSpecError, match=r"not work with this MuJoCo .*torchrl_o2o\[dm_control\]"):
        make_gym_env("dm_control/walker-walk-v0", render_size=12)
    monkeypatch.setitem(sys.modules, "dm_control.suite", None)
    with pytest.raises(O2OSpecError, match=r"dm_control cannot be imported .*pip install torchrl_o2o\[dm_control\]"):
        make_gym_env("dm_control/walker-walk-v0")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("dm_control") is None, reason="dm_control is not installed")
def test_the_suite_itself() -> None:
    env = make_gym_env("dm_control/walker-walk-v0", render_size=64, action_repeat=2)
    stack, _ = env.reset(seed=0)
    assert (stack.shape, stack.dtype) == ((9, 64, 64), np.uint8)
    assert stack.std() > 5.0
    again = make_gym_env("dm_control/walker-walk-v0", render_size=64, action_repeat=2)
    for _ in range(20):
        env.step(env.action_space.sample())
    state = env_state(env)
    assert state is not None
    restore_env_state(again, state)
    for _ in range(20):
        action = env.action_space.sample()
        here, there = env.step(action), again.step(action)
        np.testing.assert_array_equal(here[0], there[0])
        assert here[1] == there[1]
    env.reset(seed=0)
    steps, truncated = 0, False
    while not truncated:
        after, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert (terminated, 0.0 <= reward <= 2.0) == (False, True)
        steps += 1
    assert steps == 500
    assert (after[6:] != stack[6:]).any()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("dm_control") is None, reason="dm_control is not installed")
def test_pictures_do_not_depend_on_what_else_is_drawn() -> None:
    suite, cheetah = (make_gym_env(name, render_size=64) for name in ("dm_control/walker-walk-v0", "HalfCheetah-v5"))
    first = [env.reset(seed=0)[0] for env in (suite, cheetah)]
    for _ in range(2):
        for env, frames in zip((suite, cheetah), first):
            np.testing.assert_array_equal(env.reset(seed=0)[0], frames)
