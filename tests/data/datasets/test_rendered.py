# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Recorded frames are what the training environment observes, from reset to end; policies act on what they read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from torchrl_o2o.collectors import FastActor, FrameActor
from torchrl_o2o.commands.cli import main
from torchrl_o2o.data import check_offline, load_offline, record_frames, stack_rows
from torchrl_o2o.deploy import load_policy, save_policy
from torchrl_o2o.envs import make_gym_env
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.modules import make_actor, make_pixel_actor, make_pixel_encoder

pytest.importorskip("minari")
MODULE = __name__.partition(".")[0]


class Slide(gymnasium.Env):
    """A bright column at a place that the action moves; ends beyond the edge, its state is a place and a speed."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float64)
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at, self.speed = self.np_random.uniform(-0.5, 0.5), 0.0
        return np.array([self.at, self.speed]), {}

    def step(self, action: Any) -> Any:
        self.speed = 0.1 * float(action[0])
        self.at = self.at + self.speed
        return np.clip([self.at, self.speed], -1.0, 1.0), 1.0 + self.speed, abs(self.at) > 1.0, False, {}

    def render(self) -> Any:
        frame = np.zeros((20, 40, 3), np.uint8)
        frame[:, int(np.clip(20 * (self.at + 1), 0, 39))] = 240
        return frame


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    monkeypatch.setitem(
        gymnasium.registry,
        "Slide-v0",
        gymnasium.envs.registration.EnvSpec("Slide-v0", entry_point=f"{__name__}:Slide", max_episode_steps=9),
    )
    return tmp_path / "sets"


def env_of(**settings: Any) -> dict[str, Any]:
    return {"env_id": "Slide-v0", "render_size": 8, "allow_modules": [MODULE], **settings}


def test_what_is_recorded_is_what_training_observes(root: Path) -> None:
    """The stored actions, taken again in the environment of the metadata, give the stored stacks and rewards."""
    folder = record_frames("slide/random-v0", env_of(action_repeat=2), num_steps=40, seed=3)
    assert folder == root / "slide/random-v0"
    made = json.loads((folder / "data" / "metadata.json").read_text())["o2o"]
    assert (made["task"], made["seed"], made["policy"], made["rendering"]) == (
        "Slide-v0",
        3,
        None,
        {"rendered": [20, 40]},
    )
    data = stack_rows(load_offline("slide/random-v0", cache=False, min_episode_length=1))
    assert len(data) == 40
    rows = data.stacks(torch.arange(len(data)))
    env = make_gym_env(**made["env"])
    for size, codes in ((8, []), (16, ["observation_shape"])):  # frames fit an environment that observes stacks of them
        report = check_offline("slide/random-v0", env=make_gym_env(**env_of(render_size=size)), min_episode_length=1)
        assert [each.code for each in report.errors] == codes
    env.reset(seed=3)
    observation, _ = env.reset()
    for row in rows:
        np.testing.assert_array_equal(row["observation"].numpy(), observation)
        observation, reward, terminated, truncated, _ = env.step(row["action"].numpy())
        np.testing.assert_array_equal(row["next", "observation"].numpy(), observation)
        assert (np.float32(reward), terminated) == (row["next", "reward"].numpy(), bool(row["next", "terminated"]))
        if terminated or truncated:
            observation, _ = env.reset()
    ends = rows["next", "done"].squeeze(-1).nonzero().squeeze(-1)
    assert len(ends) > 4
    assert int(ends.diff(prepend=torch.tensor([-1])).max()) <= 5  # nine steps, two at a time
    assert rows["next", "reward"].max() > 1.9


@pytest.mark.parametrize("sees", [False, True])
def test_a_policy_acts_on_what_it_was_trained_on(sees: bool, root: Path, tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(0)
    if sees:
        actor: Any = make_pixel_actor(make_pixel_encoder((6, 8, 8), features=(4,), strides=(2,)), 1, hidden_sizes=(8,))
        trained = {**env_of(), "num_stack": 2}
    else:
        actor, trained = make_actor(2, 1, hidden_sizes=(8,)), {"env_id": "Slide-v0", "action_repeat": 2}
    policy = save_policy(tmp_path, actor, env=trained, action_box=([-2.0], [2.0]), metadata={"algorithm": "sac"})
    words = ["--env", "Slide-v0", "--size", "8", "--steps", "20", "--allow-modules", MODULE]
    assert main(["data", "make", "slide/sac-v0", *words, "--policy", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "train on it with dataset.source=slide/sac-v0 env.env_id=Slide-v0 +env.render_size=8" in shown
    assert ("+env.action_repeat=2" in shown) != sees
    made = json.loads((root / "slide/sac-v0/data/metadata.json").read_text())["o2o"]
    assert made["policy"].startswith("sac blake2b:")
    data = stack_rows(load_offline("slide/sac-v0", cache=False, min_episode_length=1), num_stack=2)
    act: Any = (FrameActor if sees else FastActor)(load_policy(policy, native_actions=False))
    env = make_gym_env(**{**made["env"], "render_size": 8 if sees else None, "num_stack": 2})
    env.reset(seed=0)
    observation, _ = env.reset()
    for row in data.rows[data.rows["episode"] == 0]:
        np.testing.assert_allclose(row["action"], act(observation), rtol=0.0, atol=1e-6)
        observation, *_ = env.step(row["action"].numpy())


def test_another_function_is_another_policy() -> None:
    def record(value: float, policy: str | None = None) -> Path:
        act = lambda observation: np.full(1, value)  # noqa: E731
        return record_frames("slide/fixed-v0", env_of(), num_steps=20, act=act, policy=policy)

    assert record(0.5) == record(0.5)
    with pytest.raises(O2ODataError, match=r"was made with \{'policy': "):
        record(0.25)
    with pytest.raises(O2ODataError, match=r"was made with \{'policy': "):
        record(0.5, "halves")


def test_what_does_not_fit_is_said(tmp_path: Path, capsys: Any) -> None:
    record_frames("slide/random-v0", env_of(), num_steps=20)
    with pytest.raises(O2ODataError, match=r"was made with \{'env': .*'render_size': 8.*not .*'render_size': 9"):
        record_frames("slide/random-v0", env_of(render_size=9), num_steps=20)
    for settings, match in (
        ({"noise": 0.1}, "noise only with a policy"),
        ({"num_steps": 1}, "at least 2 steps"),
        ({"env": {"env_id": "o2o/DotReach-v0", "render_size": 0}}, "at least 1 pixel"),
        ({"env": {"env_id": "o2o/DotReach-v0", "action_repeat": 0}}, "action_repeat=0"),
    ):
        with pytest.raises(O2OSpecError, match=match):
            record_frames("slide/other-v0", **{"env": env_of(), **settings})
    policy = save_policy(tmp_path, make_actor(3, 1), env={"env_id": "Slide-v0"}, action_box=([-2.0], [2.0]))
    wrong = ["--env", "Slide-v0", "--allow-modules", MODULE, "--policy", str(policy)]
    for words, match in (
        (wrong, "with 3 observation entries and 1 action dimensions, expected 2 and 1 as in Slide-v0; record another"),
        (["--size", "8"], "got --size without --env"),
    ):
        assert main(["data", "make", "slide/other-v0", *words]) == 2
        assert match in capsys.readouterr().err
