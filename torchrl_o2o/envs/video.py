# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Videos of episodes: environments that render, films of episodes, GIF and mp4 files."""

from __future__ import annotations

import ctypes.util
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from torchrl_o2o.durable import replace_durably
from torchrl_o2o.errors import O2OSpecError, check_number

__all__ = ["Film", "check_video", "draw", "drawing_arguments", "drawing_env", "film_episode", "write_video"]

_FPS = 25  # most viewers play GIFs no faster
_EXTRA = "pip install torchrl_o2o[video]"
_RENDERERS = (
    f"classic control and Box2D need pygame ({_EXTRA}), MuJoCo and dm_control one of the OpenGL libraries EGL (on "
    "Debian and Ubuntu apt install libegl1 libegl-mesa0) and OSMesa (libosmesa6), which MUJOCO_GL=egl or osmesa chooses"
)
_DRAWS = (
    "an environment that renders has the argument render_mode and 'rgb_array' in its metadata's render_modes, and its "
    "render() returns an image [height, width, 3]"
)


@dataclass(frozen=True)
class Film:
    """The frames and the outcome of a filmed episode.

    Args:
        frames: uint8, each [H, W, 3].
        fps: frames per second at the environment's own speed.
        total: return of the filmed steps.
        length: number of filmed steps.

    Examples:
        >>> film = Film([np.zeros((16, 16, 3), np.uint8)] * 26, fps=20.0, total=3.5, length=25)
        >>> len(film.frames), film.total / film.length
        (26, 0.14)
    """

    frames: Sequence[np.ndarray]
    fps: float
    total: float
    length: int


def drawing_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`~torchrl_o2o.envs.make_gym_env` for an environment that renders.

    Args:
        arguments: arguments of an environment.

    Returns:
        The arguments with ``render_mode``; the given ones are not changed.

    Examples:
        >>> drawing_arguments({"env_id": "Pendulum-v1"})
        {'env_id': 'Pendulum-v1', 'env_kwargs': {'render_mode': 'rgb_array'}}
    """
    return {**arguments, "env_kwargs": {**(arguments.get("env_kwargs") or {}), "render_mode": "rgb_array"}}


def drawing_env(make: Callable[[], gymnasium.Env], name: str, *, plainly: bool = True) -> gymnasium.Env:
    """Build an environment and check that it renders, before the first step.

    On Linux without a screen, MuJoCo is set to render with EGL or OSMesa, whichever is installed, unless ``MUJOCO_GL``
    is set. It renders without shadows and smooth edges, which takes a seventh of the time on a CPU.

    Args:
        make: builds the environment with ``render_mode="rgb_array"``.
        name: its name in messages.

    Keyword Args:
        plainly: whether MuJoCo renders without shadows and smooth edges. Defaults to ``True``.

    Returns:
        The environment, reset once.

    Raises:
        O2OSpecError: if it does not render images; the message says what to install.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> drawing_env(lambda: make_gym_env(**drawing_arguments({"env_id": "o2o/DotReach-v0"})), "it").render().shape
        (16, 16, 3)
    """
    choose_renderer(("EGL",))
    try:
        env = make()
        if plainly:
            _draw_plainly(env)
        env.reset(seed=0)
        _draw(env)
    except O2OSpecError:  # the environment cannot be built
        raise
    except Exception as error:  # renderers raise all kinds of errors
        # An environment without rendering raises one of these two; a missing renderer never does.
        hint = _DRAWS if isinstance(error, TypeError | AssertionError) else _RENDERERS
        raise O2OSpecError(f"{name} cannot be rendered here ({type(error).__name__}: {error}); {hint}") from error
    return env


def choose_renderer(otherwise: Sequence[str] = ()) -> None:
    """Set MuJoCo to render without a screen, on Linux if there is none, unless ``MUJOCO_GL`` is set.

    Args:
        otherwise: renderers to use if neither EGL nor OSMesa is installed. Defaults to nothing.
    """
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        found = [*(library for library in ("EGL", "OSMesa") if ctypes.util.find_library(library)), *otherwise]
        if found:  # MuJoCo reads this at its first rendering, dm_control when it is imported
            os.environ.setdefault("MUJOCO_GL", found[0].lower())


def _draw_plainly(env: gymnasium.Env) -> None:
    """Turn off costly rendering effects of a MuJoCo model that has not been rendered yet."""
    quality = getattr(getattr(getattr(env.unwrapped, "model", None), "vis", None), "quality", None)
    if quality is not None:
        quality.shadowsize = quality.offsamples = 0


def _draw(env: gymnasium.Env) -> np.ndarray:
    if env.render_mode != "rgb_array":
        raise TypeError(f"its render_mode is {env.render_mode!r}, expected 'rgb_array' among its env_kwargs")
    frame = draw(env)
    if getattr(frame, "ndim", 0) != 3:
        raise TypeError(f"it renders {type(frame).__name__}, expected an image [height, width, 3]")
    return np.array(frame)  # an environment may draw the next one into the same array


def draw(env: gymnasium.Env) -> Any:
    """Render an environment with its own textures, even if others were rendered in this process.

    MuJoCo's environments render with the current OpenGL context, that of the last built environment, because gymnasium
    makes a context current only once. A second environment's ground or sky would appear in the first one's images.

    Args:
        env: any environment.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> env = make_gym_env(**drawing_arguments({"env_id": "o2o/DotReach-v0"}))
        >>> _ = env.reset(seed=0)
        >>> draw(env).shape
        (16, 16, 3)
    """
    inside = env.unwrapped
    for owner in (inside, *vars(inside).values()):  # gymnasium-robotics' mazes render through their robot
        viewer = getattr(getattr(owner, "mujoco_renderer", None), "viewer", None)
        if viewer is not None:
            viewer.make_context_current()
    return env.render()


def film_episode(
    env: gymnasium.Env, act: Callable[[np.ndarray], np.ndarray], *, seed: int, max_steps: int | None = None
) -> Film:
    """Run an episode and film it with about 25 frames per second, including its last state.

    Args:
        env: of :func:`drawing_env`.
        act: from an observation to an action.

    Keyword Args:
        seed: of the reset.
        max_steps: largest number of steps; ``None`` (default) films the whole episode.

    Returns:
        The frames, and the return and length of the filmed steps.

    Examples:
        >>> from torchrl_o2o.envs import make_gym_env
        >>> env = make_gym_env(**drawing_arguments({"env_id": "o2o/DotReach-v0"}))
        >>> film = film_episode(env, lambda observation: np.zeros(2), seed=0)
        >>> film.length, len(film.frames), film.fps
        (25, 26, 10.0)
    """
    rate = float(env.metadata.get("render_fps") or _FPS)
    every = max(1, round(rate / _FPS))
    observation, _ = env.reset(seed=seed)
    frames, total, length, over = [_draw(env)], 0.0, 0, False
    while not over and length != max_steps:
        observation, reward, terminated, truncated, _ = env.step(act(observation))
        total, length, over = total + float(np.asarray(reward).item()), length + 1, terminated or truncated
        if length % every == 0 or over or length == max_steps:
            frames.append(_draw(env))
    return Film(frames, rate / every, total, length)


def check_video(path: str | Path) -> Path:
    """Check that a video can be written under a name, before anything is filmed.

    Args:
        path: ends in ``.gif`` or ``.mp4``.

    Raises:
        O2OSpecError: if it has another suffix, or a package is missing.

    Examples:
        >>> check_video("policy.avi")
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: got the video policy.avi, expected a name that ends in .gif or .mp4
    """
    path = Path(path)
    needed = {".gif": ("PIL", "a GIF needs pillow"), ".mp4": ("imageio_ffmpeg", "an mp4 needs imageio-ffmpeg")}
    if path.suffix not in needed:
        raise O2OSpecError(f"got the video {path}, expected a name that ends in .gif or .mp4")
    module, reason = needed[path.suffix]
    if importlib.util.find_spec(module) is None:
        raise O2OSpecError(f"writing {reason}; install it with {_EXTRA}")
    return path


def write_video(path: str | Path, frames: Sequence[np.ndarray], fps: float) -> Path:
    """Write frames as a GIF or mp4; the file is replaced atomically.

    Args:
        path: ends in ``.gif`` or ``.mp4``.
        frames: uint8, each [H, W, 3], at least one.
        fps: frames per second.

    Returns:
        The file.

    Raises:
        O2OSpecError: as :func:`check_video`, or if there is no frame, frames differ in shape or type, or ``fps`` is not
            above 0.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "gray.gif"
        >>> write_video(path, [np.full((8, 8, 3), shade, np.uint8) for shade in (0, 100)], 10.0).exists()
        True
    """
    path = check_video(path)
    check_number("fps", fps, above=0)
    kinds = {(frame.shape, str(frame.dtype)) for frame in map(np.asarray, frames)}
    if len(kinds) != 1 or any(len(shape) != 3 or shape[2] != 3 or kind != "uint8" for shape, kind in kinds):
        found = " and ".join(f"{kind} {list(shape)}" for shape, kind in sorted(kinds)[:2]) or "none"
        raise O2OSpecError(
            f"got frames that are {found}, expected uint8 [H, W, 3], all of one size, at least one; draw them as "
            f"render_mode='rgb_array' does"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(path, _gif(frames, fps) if path.suffix == ".gif" else _mp4(frames, fps))
    return path


def _gif(frames: Sequence[np.ndarray], fps: float) -> bytes:
    from PIL import Image

    # A GIF has times in hundredths of a second, and viewers show one of a hundredth for a tenth: frames that come less
    # than two after the last one are left out, and the rounding of one time is made up for by the next.
    starts, shown = np.rint(np.arange(len(frames) + 1) * (100.0 / fps)).astype(int), [0]
    for index in range(1, len(frames)):
        if starts[index] >= starts[shown[-1]] + 2:
            shown.append(index)
    times = np.maximum(np.diff([*starts[shown], starts[-1]]), 2)
    images, stream = [Image.fromarray(frames[index]) for index in shown], io.BytesIO()
    durations = (10 * times).tolist()
    images[0].save(stream, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return stream.getvalue()


def _mp4(frames: Sequence[np.ndarray], fps: float) -> bytes:
    import imageio.v3

    height, width = (2 * (size // 2) for size in frames[0].shape[:2])  # its colors are stored for blocks of two pixels
    even = np.stack(frames)[:, :height, :width]
    return imageio.v3.imwrite("<bytes>", even, extension=".mp4", plugin="FFMPEG", fps=fps, macro_block_size=2)
