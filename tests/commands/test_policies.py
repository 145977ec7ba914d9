# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""`o2o evaluate`, `o2o export` and `o2o play` on policies that no run trained."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

from torchrl_o2o.checkpoint.manifest import dump, load
from torchrl_o2o.commands.cli import main
from torchrl_o2o.data.conventions import FittedConvention
from torchrl_o2o.data.transforms import AffineReward, ObservationStats
from torchrl_o2o.deploy import load_policy, save_policy
from torchrl_o2o.envs import make_gym_env
from torchrl_o2o.modules import make_deterministic_actor
from torchrl_o2o.trainers import evaluate

STATS = ObservationStats(torch.tensor([0.3, 0.1, 0.5]), torch.tensor([0.4, 0.5, 2.5]))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    actor = make_deterministic_actor(3, 1, hidden_sizes=(8,))
    env = {"env_id": "Pendulum-v1", "max_episode_steps": 50, "allow_modules": ["this_module_must_not_be_imported"]}
    save_policy(
        tmp_path, actor, convention=FittedConvention(AffineReward(), STATS), env=env, action_box=([-2.0], [2.0])
    )
    return tmp_path


def test_evaluate(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same numbers as from Python: with the run's statistics, in its environment, whose time limit is 50."""
    assert main(["evaluate", str(run), "--episodes", "3", "--seed", "7"]) == 0
    out, err = capsys.readouterr()
    assert "leaves out" not in err
    make = lambda: make_gym_env("Pendulum-v1", max_episode_steps=50)  # noqa: E731
    expected = evaluate(load_policy(run), make, num_episodes=3, seed=7).returns
    assert f"return            {expected.mean():9.2f} +- {expected.std():.2f}" in out
    assert "length                50.00" in out
    assert main(["evaluate", str(run / "policy.pt"), "--env", "Pendulum-v1", "--episodes", "1"]) == 0
    told = capsys.readouterr()
    assert "length               200.00" in told.out
    assert "o2o: --env leaves out the settings of the training's environment (max_episode_steps=50); leave" in told.err


def test_export(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run)]) == 0
    assert main(["export", str(run), "--unit-actions", "--out", str(tmp_path / "unit.pt2")]) == 0
    assert "actions in [-2.0] to [2.0]" in capsys.readouterr().out
    observation = torch.randn(5, 3)
    native, unit = (torch.export.load(tmp_path / name).module()(observation) for name in ("policy.pt2", "unit.pt2"))
    torch.testing.assert_close(native, 2.0 * unit, rtol=0.0, atol=1e-6)
    expected = load_policy(run).module(observation)
    torch.testing.assert_close(native, expected, rtol=0.0, atol=1e-6)


class Drawing(gymnasium.Wrapper):
    """Draws its step count as a shade of gray."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}
    count = 0

    def reset(self, **options: Any) -> Any:
        self.count = 0
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self.count += 1
        return super().step(action)

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.full((8, 8, 3), 5 * self.count, np.uint8)


def make_drawing(env_id: str, *, env_kwargs: Any = None, **settings: Any) -> gymnasium.Env:
    assert env_kwargs in (None, {"render_mode": "rgb_array"})
    env = Drawing(make_gym_env(env_id, **settings))
    env.unwrapped.render_mode = "rgb_array"
    return env


def test_play_writes_a_gif(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every second of 50 frames a second, and the last one; the return is that of the evaluation."""
    monkeypatch.setattr("torchrl_o2o.envs.make_gym_env", make_drawing)
    assert main(["play", str(run), "--seed", "7"]) == 0
    expected = evaluate(
        load_policy(run), lambda: make_gym_env("Pendulum-v1", max_episode_steps=50), num_episodes=1, seed=7
    )
    assert f"26 frames, return {expected.returns[0]:.2f}" in capsys.readouterr().out
    with Image.open(run / "policy.gif") as image:
        assert (image.format, image.size, image.n_frames) == ("GIF", (8, 8), 26)  # type: ignore[attr-defined]
        image.seek(10)
        assert image.convert("RGB").getpixel((0, 0)) == (100, 100, 100)
    assert main(["play", str(run), "--episodes", "2", "--max-steps", "60", "--out", str(run / "two.gif")]) == 0
    with Image.open(run / "two.gif") as image:
        assert image.n_frames == 26 + 6  # the end of each episode is seen  # type: ignore[attr-defined]
    assert main(["play", str(run), "--max-steps", "0"]) == 2


def test_evaluate_writes_videos(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torchrl_o2o.envs.make_gym_env", make_drawing)
    assert main(["evaluate", str(run), "--episodes", "3", "--video", str(run / "seen.gif")]) == 0
    assert f"median            {run / 'seen-median.gif'}" in capsys.readouterr().out
    assert sorted(path.name for path in run.glob("*.gif")) == ["seen-best.gif", "seen-median.gif", "seen-worst.gif"]


def test_play_without_a_renderer(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Blind(Drawing):
        def render(self) -> Any:
            raise ImportError("no GL library")

    monkeypatch.setattr("torchrl_o2o.envs.make_gym_env", lambda *args, **options: Blind(make_drawing(*args, **options)))
    assert main(["play", str(run)]) == 2
    assert "Pendulum-v1 cannot be rendered here (ImportError: no GL library)" in capsys.readouterr().err
    monkeypatch.setattr("torchrl_o2o.envs.make_gym_env", make_drawing)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "PIL" else found(name))
    assert main(["play", str(run)]) == 2
    assert "pip install torchrl_o2o[video]" in capsys.readouterr().err
    assert not list(run.glob("*.gif"))


@pytest.mark.parametrize("command", ["evaluate", "play"])
def test_where_a_policy_cannot_go(command: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(run / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main([command, str(run), "--env", "MountainCarContinuous-v0"]) == 2
    assert "with 3 observation entries and 1 action dimensions" in capsys.readouterr().err
    file = run / "policy.pt"
    file.write_bytes(dump("policy", load(file.read_bytes()) | {"env": None}))
    assert main([command, str(run)]) == 2
    assert "without an environment; name one with --env" in capsys.readouterr().err


def test_a_policy_file_names_no_module_to_import(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "policy.pt"
    env = {"env_id": "antigravity:Pendulum-v1", "allow_modules": ["antigravity"]}
    file.write_bytes(dump("policy", load(file.read_bytes()) | {"env": env}))
    assert main(["evaluate", str(run)]) == 2
    assert "would run code of the module 'antigravity'" in capsys.readouterr().err
