# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Tasks of dm_control's suite as gymnasium environments."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled

from torchrl_o2o.envs.video import choose_renderer
from torchrl_o2o.errors import O2OSpecError

__all__ = ["DMControlEnv"]

_EXTRA = "pip install torchrl_o2o[dm_control]"
_CAMERAS = {"quadruped": 2}  # elsewhere 0, as in DrQ-v2 and V-D4RL


class DMControlEnv(gymnasium.Env):
    """A task of dm_control's suite, with its observations concatenated in the suite's order.

    Its ids are those of shimmy: ``make_gym_env("dm_control/walker-walk-v0")``. An end is terminal if the suite's
    discount is 0; otherwise, it is the suite's time limit.

    Source: Tunyasuvunakool et al. 2020 (dm_control), arXiv:2006.12983.

    Args:
        domain: such as ``"walker"``.
        task: such as ``"walk"``.
        render_mode: ``"rgb_array"`` or ``None`` (default).
        width: width of rendered images in pixels. Defaults to 240. height: their height. Defaults to 240. camera_id:
            number of the camera; ``None`` (default) is 0, or 2 for the quadruped.

    Raises:
        DependencyNotInstalled: if dm_control is not installed, or does not work with the installed MuJoCo.
        O2OSpecError: if the suite has no such task.

    Examples:
        >>> env = DMControlEnv("walker", "walk")  # doctest: +SKIP
        >>> env.reset(seed=0)[0].shape  # doctest: +SKIP
        (24,)
    """

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        domain: str,
        task: str,
        render_mode: str | None = None,
        width: int = 240,
        height: int = 240,
        camera_id: int | None = None,
    ) -> None:
        self._env = _load(domain, task)
        # The state of an episode, at a place where a snapshot finds it. A new terrain would have to be sent to the
        # renderer again, so such a task cannot be captured, and a snapshot reports this.
        inside = self._env.task if self.model.nhfield else vars(self._env.task)
        self._changing = self.model, self._env.physics.data.ptr, inside
        self._steps = 0
        self.metadata = {**self.metadata, "render_fps": 1.0 / self._env.control_timestep()}
        self.render_mode = render_mode
        camera = _CAMERAS.get(domain, 0) if camera_id is None else camera_id
        self._picture = {"width": width, "height": height, "camera_id": camera}
        size = sum(int(np.prod(spec.shape)) for spec in self._env.observation_spec().values())
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float64)
        action = self._env.action_spec()
        low, high = (np.broadcast_to(edge, action.shape) for edge in (action.minimum, action.maximum))
        self.action_space = spaces.Box(low.astype(action.dtype), high.astype(action.dtype), dtype=action.dtype)

    @property
    def model(self) -> Any:
        """MuJoCo's model."""
        return self._env.physics.model.ptr

    @property
    def picture(self) -> dict[str, Any]:
        """Rendering settings: size, camera, and no shadows and reflections if the model's shadows have size 0."""
        plain = self.model.vis.quality.shadowsize == 0
        return {**self._picture, "render_flag_overrides": {"shadow": False, "reflection": False} if plain else {}}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode."""
        super().reset(seed=seed)
        if seed is not None:
            self._env.task.random.seed(seed)
        self._steps = 0
        return _joined(self._env.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Make one control step."""
        self._env._step_count, self._env._reset_next_step = self._steps, False
        step = self._env.step(action)
        self._steps += 1
        terminated = step.last() and step.discount == 0.0
        return _joined(step.observation), float(step.reward), terminated, step.last() and not terminated, {}

    def render(self) -> np.ndarray:
        """The camera's image."""
        physics = self._env.physics
        physics.contexts.gl._platform_make_current()  # dm_control assumes that its context is still current
        return physics.render(**self.picture)

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()


def _joined(observation: Mapping[str, Any]) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float64)


def _load(domain: str, task: str) -> Any:
    choose_renderer()
    try:
        suite = importlib.import_module("dm_control.suite")
        if (domain, task) in suite.ALL_TASKS:
            return suite.load(domain, task)
    except ImportError as error:
        raise DependencyNotInstalled(f"dm_control cannot be imported ({error}); {_EXTRA}") from error
    except AttributeError as error:  # from MuJoCo's structures, which dm_control wraps field by field
        raise DependencyNotInstalled(f"dm_control does not work with this MuJoCo ({error}); {_EXTRA}") from error
    known = ["-".join(each) for each in suite.ALL_TASKS]
    close = difflib.get_close_matches(f"{domain}-{task}", known, n=3) or known
    raise O2OSpecError(f"dm_control's suite has no {domain}-{task}, expected one such as {', '.join(close)}")
