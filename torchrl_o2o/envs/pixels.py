# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Environments that observe images: frame stacks, rendered frames, and a task without a renderer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.envs.outputs import own_number, own_observation
from torchrl_o2o.envs.success import SUCCESS_KEYS, verdict
from torchrl_o2o.envs.video import draw
from torchrl_o2o.errors import O2OSpecError

__all__ = ["DotReachEnv", "RenderedFrames", "RepeatAction", "StackFrames", "chase_dot"]


class _Stack:
    """The last S frames of one camera, channels first, oldest first."""

    def __init__(self, space: spaces.Space, num_stack: int, key: str) -> None:
        what = f"observation[{key!r}] is" if key else "the observations are"
        if not isinstance(space, spaces.Box) or len(space.shape) != 3:
            vectors = " or a vector [n]; reshape single numbers to [1], or leave the entry out" if key else ""
            raise O2OSpecError(f"{what} {space}, expected uint8 images [H, W, 3]{vectors}")
        if space.dtype != np.uint8:
            raise O2OSpecError(
                f"{what} {space}, expected uint8 images [H, W, 3]; multiply floats in [0, 1] by 255 and cast them"
            )
        if space.shape[-1] not in (3, 4) or num_stack < 1:
            raise O2OSpecError(
                f"got images of shape {list(space.shape)} and num_stack={num_stack}, expected [H, W, 3] and at least "
                "1; move channels to the last dimension, or repeat a gray channel three times"
            )
        if space.shape[0] in (3, 4):
            raise O2OSpecError(
                f"{what} {space}, in which the first or the last dimension could be the channels, expected images "
                "[H, W, 3] whose height is not 3 or 4; move channels to the last dimension, and resize or pad images "
                "of that height"
            )
        self._camera = space
        self._frames = np.zeros((num_stack, 3, *space.shape[:2]), np.uint8)
        self.space = spaces.Box(0, 255, (3 * num_stack, *space.shape[:2]), np.uint8)

    def fill(self, frame: np.ndarray) -> np.ndarray:
        self._frames[:] = _first_channels(own_observation(frame, self._camera))
        return self._stacked()

    def push(self, frame: np.ndarray) -> np.ndarray:
        self._frames[:-1] = self._frames[1:].copy()
        self._frames[-1] = _first_channels(own_observation(frame, self._camera))
        return self._stacked()

    def _stacked(self) -> np.ndarray:
        return self._frames.reshape(self.space.shape).copy()


class StackFrames(gymnasium.Wrapper):
    """Observe the last S frames, channels first, oldest first; at reset, the first frame fills the stack.

    In observations by name (a dictionary), each image is stacked, and vectors become float32 and are not stacked.

    Args:
        env: environment that observes uint8 images [H, W, 3], or with a fourth channel (alpha), which is dropped; or
            images and vectors by name.
        num_stack: S, at least 1. Defaults to 3.

    Raises:
        O2OSpecError: if the observations are not such images and vectors.

    Examples:
        >>> env = StackFrames(DotReachEnv())
        >>> env.observation_space.shape, env.reset(seed=0)[0].shape
        ((9, 16, 16), (9, 16, 16))
    """

    @checked_arguments
    def __init__(self, env: gymnasium.Env, num_stack: int = 3) -> None:
        super().__init__(env)
        space = env.observation_space
        self._named = isinstance(space, spaces.Dict)
        parts = dict(space.items()) if isinstance(space, spaces.Dict) else {"": space}
        self._vectors = {key: part for key, part in parts.items() if self._named and len(part.shape or ()) == 1}
        self._stacks = {key: _Stack(part, num_stack, key) for key, part in parts.items() if key not in self._vectors}
        boxes: dict[str, spaces.Space] = {
            key: spaces.Box(-np.inf, np.inf, part.shape, np.float32)
            if key in self._vectors
            else self._stacks[key].space
            for key, part in parts.items()
        }
        self.observation_space = spaces.Dict(boxes) if self._named else boxes[""]

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(**kwargs)
        return self._observed(observation, _Stack.fill), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment; the reward is the environment's."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._observed(observation, _Stack.push), reward, terminated, truncated, info

    def _observed(self, observation: Any, put: Callable[[_Stack, np.ndarray], np.ndarray]) -> Any:
        if not self._named:
            return put(self._stacks[""], observation)
        with np.errstate(over="ignore"):  # a guard finds values that become infinite
            return {
                key: put(self._stacks[key], observation[key])
                if key in self._stacks
                else np.array(observation[key], np.float32)
                for key in cast(spaces.Dict, self.observation_space)  # a dictionary if there are several parts
            }


def _first_channels(frame: np.ndarray) -> np.ndarray:
    return np.moveaxis(frame[..., :3], -1, 0)


class RenderedFrames(gymnasium.ObservationWrapper):
    """Observe the rendered image of an environment instead of its observation, once per step.

    Args:
        env: made with ``render_mode="rgb_array"``.
        size: height and width of the frames, pixels; frames of another size are averaged over areas, separately for
            each side. ``None`` (default) keeps their size.

    Raises:
        O2OSpecError: if it does not render images, or the size is below 1.

    Examples:
        >>> env = RenderedFrames(DotReachEnv(render_mode="rgb_array"), size=8)
        >>> env.reset(seed=0)[0].shape, env.original.shape
        ((8, 8, 3), (16, 16, 3))
    """

    @checked_arguments
    def __init__(self, env: gymnasium.Env, size: int | None = None) -> None:
        super().__init__(env)
        if env.render_mode != "rgb_array":
            raise O2OSpecError(
                f"got an environment of render_mode={env.render_mode!r}, expected 'rgb_array'; build it with "
                "render_mode='rgb_array'"
            )
        if size is not None and size < 1:
            raise O2OSpecError(f"got frames of size {size}, expected at least 1 pixel")
        #: The last observation of the environment itself.
        self.original, _ = env.reset()
        frame = np.asarray(draw(env))
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] not in (3, 4):
            raise O2OSpecError(
                f"got an environment that renders {frame.dtype} of shape {frame.shape}, expected uint8 [H, W, 3]; "
                "change its render()"
            )
        shape = frame.shape[:2] if size is None else (size, size)
        self._areas = None if shape == frame.shape[:2] else tuple(map(_areas, frame.shape[:2], shape))
        self.observation_space = spaces.Box(0, 255, (*shape, frame.shape[-1]), np.uint8)

    def observation(self, observation: Any) -> np.ndarray:
        """The rendered image."""
        self.original = observation
        frame = np.asarray(draw(self.env))
        if self._areas is None:
            return frame.copy()  # an environment may draw the next one into the same array
        return np.rint(np.einsum("ih,hwc,jw->ijc", self._areas[0], frame, self._areas[1], optimize=True)).astype(
            np.uint8
        )


def _areas(old: int, new: int) -> np.ndarray:
    """The share of each new pixel that each old one covers along one side, [new, old]."""
    edges, pixels = np.arange(new + 1) * (old / new), np.arange(old)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(covered, 0.0, None) * (new / old)


class RepeatAction(gymnasium.Wrapper):
    """Take every action several times, until the episode ends; rewards are summed.

    Rewards are summed in double precision, whatever their type. The info is that of the last time, with a success at
    any of the times.

    Args:
        env: the environment.
        times: number of times, at least 1.

    Raises:
        O2OSpecError: if it is below 1.

    Examples:
        >>> env = RepeatAction(DotReachEnv(), 5)
        >>> _ = env.reset(seed=0)
        >>> bool((env.step(np.full(2, 0.5))[0] == DotReachEnv().reset(seed=0)[0]).all())
        False
    """

    @checked_arguments
    def __init__(self, env: gymnasium.Env, times: int) -> None:
        super().__init__(env)
        if times < 1:
            raise O2OSpecError(f"got action_repeat={times}, expected at least 1")
        self._times = times

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take the action several times."""
        # Copies, because an environment may change its argument in place.
        total, step, reached = 0.0, self.env.step(np.array(action)), dict[str, Any]()
        for _ in range(self._times - 1):
            if step[2] or step[3]:
                break
            if isinstance(step[4], Mapping):
                reached |= {key: step[4][key] for key in SUCCESS_KEYS if verdict(step[4].get(key)) == 1.0}
            total, step = total + own_number("the reward", step[1]), self.env.step(np.array(action))
        total += own_number("the reward", step[1])
        return step[0], total, *step[2:4], {**step[4], **reached} if reached else step[4]


class DotReachEnv(gymnasium.Env):
    r"""Steer a dot to a target, from 16x16 images, without a renderer; it is learned in a minute.

    Position p and target g are uniform in [-1, 1]^2 at reset; :math:`p\leftarrow\mathrm{clip}(p+0.2a)`, the reward is
    :math:`\max(0,1-2|p-g|)`. The first channel has a Gaussian blob, a pixel wide, at p, the second one at g. There is
    no terminal state; a time limit of 25 steps belongs to the registered task, ``"o2o/DotReach-v0"``.

    Args:
        render_mode: ``"rgb_array"`` or ``None`` (default).

    Examples:
        >>> env = DotReachEnv()
        >>> frame, _ = env.reset(seed=0)
        >>> frame.shape, int(frame.max(axis=(0, 1))[2])
        ((16, 16, 3), 0)
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    _SIZE = 16

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (self._SIZE, self._SIZE, 3), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._position, self._goal = np.zeros(2), np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Draw position and target."""
        super().reset(seed=seed)
        self._position, self._goal = self.np_random.uniform(-1.0, 1.0, (2, 2))
        return self._frame(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the dot."""
        self._position = np.clip(self._position + 0.2 * np.clip(action, -1.0, 1.0), -1.0, 1.0)
        reward = max(0.0, 1.0 - 2.0 * float(np.linalg.norm(self._position - self._goal)))
        return self._frame(), reward, False, False, {}

    def render(self) -> np.ndarray:
        """The image that is observed."""
        return self._frame()

    def _frame(self) -> np.ndarray:
        frame = np.zeros((self._SIZE, self._SIZE, 3), np.uint8)
        for channel, place in enumerate((self._position, self._goal)):
            across, down = (np.exp(-0.5 * np.square(np.arange(self._SIZE) - at)) for at in _pixel(place))
            frame[..., channel] = np.rint(255.0 * down[:, None] * across)
        return frame


def _pixel(place: np.ndarray) -> np.ndarray:
    """Convert from [-1, 1] to pixels."""
    return 0.5 * (place + 1.0) * (DotReachEnv._SIZE - 1)


def chase_dot(frame: np.ndarray) -> np.ndarray:
    """Steer the dot of :class:`DotReachEnv` straight to the target, from one of its images.

    Args:
        frame: uint8, shape [16, 16, 3].

    Returns:
        The action, shape [2].

    Examples:
        >>> env = DotReachEnv()
        >>> frame, _ = env.reset(seed=0)
        >>> for _ in range(15): frame, reward, *_ = env.step(chase_dot(frame))
        >>> reward > 0.8
        True
    """
    weight = frame[..., :2].astype(np.float64)
    weight /= np.maximum(weight.sum(axis=(0, 1)), 1e-9)
    index = np.arange(frame.shape[0])
    across, down = (np.einsum("hwc,w->c", weight, index), np.einsum("hwc,h->c", weight, index))
    away = np.array([across[1] - across[0], down[1] - down[0]]) * 2.0 / (frame.shape[0] - 1)
    return np.clip(away / 0.2, -1.0, 1.0).astype(np.float32)
