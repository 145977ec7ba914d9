# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Films of episodes: how many frames, what ends in the file, and what is said where nothing can be drawn."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from torchrl_o2o.envs.video import check_video, draw, drawing_env, film_episode, write_video
from torchrl_o2o.errors import O2OSpecError


class Counting(gymnasium.Env):
    """Draws its step count as a shade of gray, 100 frames a second; lasts seven steps and pays one for each."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}
    observation_space = action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode: str | None = "rgb_array") -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        return np.zeros(1, np.float32), 1.0, self.count == 7, False, {}

    def render(self) -> Any:
        return np.full((7, 9, 3), 10 * self.count, np.uint8)


@pytest.mark.parametrize(("max_steps", "shades"), [(None, [0, 40, 70]), (5, [0, 40, 50]), (0, [0])])
def test_every_fourth_frame_and_the_last(max_steps: int | None, shades: list[int]) -> None:
    film = film_episode(Counting(), lambda _: np.zeros(1), seed=0, max_steps=max_steps)
    assert [frame[0, 0, 0] for frame in film.frames] == shades
    assert (film.fps, film.total, film.length) == (25.0, *[7 if max_steps is None else max_steps] * 2)


def test_a_reward_may_be_an_array_of_one_number() -> None:
    class Shaped(Counting):
        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, np.array([reward]), *rest

    assert film_episode(Shaped(), lambda _: np.zeros(1), seed=0).total == 7.0


@pytest.mark.parametrize("held", [False, True])
def test_an_environment_draws_with_its_own_textures(held: bool) -> None:
    current: list[str] = []

    class Viewed(Counting):
        def __init__(self, name: str) -> None:
            super().__init__()
            viewer = SimpleNamespace(make_context_current=lambda: current.append(name))
            renderer = SimpleNamespace(viewer=viewer)
            vars(self).update(
                {"robot": SimpleNamespace(mujoco_renderer=renderer)} if held else {"mujoco_renderer": renderer}
            )

        def render(self) -> Any:
            return current[-1]

    first, second = Viewed("first"), Viewed("second")
    assert [draw(env) for env in (first, second, first)] == ["first", "second", "first"]


def test_a_gif_has_the_environments_speed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "new" / "run.gif", [np.full((8, 8, 3), 10 * k, np.uint8) for k in range(4)], 10.0)
    with Image.open(path) as image:
        assert (image.n_frames, image.info["duration"]) == (4, 100)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("fps", "shown", "total"), [(15.0, 30, 2000), (60.0, 20, 500), (125.0, 12, 240)])
def test_a_gif_lasts_as_long_as_the_episode(fps: float, shown: int, total: int, tmp_path: Path) -> None:
    """Its times are hundredths of a second, of which viewers show one for a tenth."""
    path = write_video(tmp_path / "x.gif", [np.full((8, 8, 3), 8 * k, np.uint8) for k in range(30)], fps)
    with Image.open(path) as image:
        times = []
        for index in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(index)
            times.append(image.info["duration"])
    assert (len(times), sum(times)) == (shown, total)
    assert min(times) >= 20


def test_an_mp4_goes_through_ffmpeg_in_even_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def imwrite(uri: str, frames: np.ndarray, **settings: Any) -> bytes:
        seen.update(settings, uri=uri, shape=frames.shape)
        return b"film"

    v3 = types.ModuleType("imageio.v3")
    v3.imwrite = imwrite  # type: ignore[attr-defined]
    imageio = types.ModuleType("imageio")
    imageio.v3 = v3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imageio", imageio)
    monkeypatch.setitem(sys.modules, "imageio.v3", v3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    path = write_video(tmp_path / "run.mp4", film_episode(Counting(), lambda _: np.zeros(1), seed=0).frames, 25.0)
    assert path.read_bytes() == b"film"
    assert (seen["shape"], seen["fps"], seen["plugin"]) == ((3, 6, 8, 3), 25.0, "FFMPEG")


def test_what_cannot_be_written_or_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(O2OSpecError, match=r"ends in \.gif or \.mp4"):
        check_video("run.avi")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(O2OSpecError, match=r"an mp4 needs imageio-ffmpeg; install it with pip install torchrl_o2o\[v"):
        check_video("run.mp4")
    with pytest.raises(O2OSpecError, match=r"it cannot be rendered here.*render_mode is None.*metadata's render_modes"):
        drawing_env(lambda: Counting(None), "it")
    monkeypatch.setattr(Counting, "render", lambda self: None)
    with pytest.raises(O2OSpecError, match="it renders NoneType, expected an image"):
        drawing_env(Counting, "it")


@pytest.mark.parametrize(
    ("frames", "found"),
    [
        ([], "none"),
        ([np.zeros((8, 8), np.uint8)], r"uint8 \[8, 8\]"),
        ([np.zeros((8, 8, 3), np.float32)], r"float32 \[8, 8, 3\]"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((4, 8, 3), np.uint8)], r"uint8 \[4, 8, 3\] and uint8 \[8, 8, 3\]"),
    ],
)
def test_frames_that_make_no_video(frames: list[np.ndarray], found: str, tmp_path: Path) -> None:
    with pytest.raises(O2OSpecError, match=rf"got frames that are {found}, expected uint8 \[H, W, 3\]"):
        write_video(tmp_path / "x.gif", frames, 10.0)
    with pytest.raises(O2OSpecError, match="fps"):
        write_video(tmp_path / "x.gif", [np.zeros((8, 8, 3), np.uint8)], 0.0)
    assert not any(tmp_path.iterdir())
