# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from torchrl_o2o.envs import make_gym_env
from torchrl_o2o.envs.checks import layers_of
from torchrl_o2o.envs.flat_observations import concatenated_keys, flat_observation, is_vector, sees_images
from torchrl_o2o.envs.pixels import RenderedFrames
from torchrl_o2o.errors import O2OSpecError

CAMERA = spaces.Box(0, 255, (8, 8, 3), np.uint8)
STATE = spaces.Box(-1.0, 1.0, (2,), np.float64)


class TwoVectors(gymnasium.Env):
    """Observes two vectors by name, and renders black frames."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = spaces.Dict({"large": STATE, "small": STATE})
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, np.ndarray], dict]:
        super().reset(seed=seed)
        return {"large": np.full(2, 0.3), "small": np.full(2, 0.1)}, {}


def test_what_a_policy_could_read() -> None:
    both = spaces.Dict({"observation": STATE, "camera": CAMERA})
    assert (sees_images(CAMERA), sees_images(STATE), sees_images(both)) == (True, False, True)
    assert (is_vector(CAMERA), is_vector(STATE), is_vector(both)) == (False, True, True)


def test_entries_are_joined_in_the_order_asked_for_and_copied() -> None:
    inner = TwoVectors()
    env = flat_observation(inner, "TwoVectors-v0", ["small", "large"])
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation, np.array([0.1, 0.1, 0.3, 0.3], np.float32))
    assert concatenated_keys(env) == ("small", "large")
    assert concatenated_keys(inner) == ()


def test_a_vector_is_a_copy_in_float32() -> None:
    env = make_gym_env("Pendulum-v1")
    first, _ = env.reset(seed=0)
    kept = first.copy()
    env.step(env.action_space.sample())
    np.testing.assert_array_equal(first, kept)
    assert first.dtype == np.float32


@pytest.fixture
def two_vectors() -> Iterator[str]:
    """The id of a registered environment."""
    gymnasium.register("o2otest/TwoVectors-v0", entry_point=TwoVectors)
    yield "o2otest/TwoVectors-v0"
    del gymnasium.registry["o2otest/TwoVectors-v0"]


def test_frames_keep_the_chosen_entries_as_the_original_observation(two_vectors: str) -> None:
    """The entries were asked for and were ignored, because names are no observations of a dictionary space."""
    env = make_gym_env(two_vectors, render_size=8, observation_keys=("small",), allow_modules=(TwoVectors.__module__,))
    assert env.reset(seed=0)[0].shape == (9, 8, 8)
    frames = next(layer for layer in layers_of(env) if isinstance(layer, RenderedFrames))
    np.testing.assert_array_equal(frames.original, np.array([0.1, 0.1], np.float32))
    with pytest.raises(O2OSpecError, match=r"observes \['large', 'small'\], not \['other'\]"):
        make_gym_env(two_vectors, render_size=8, observation_keys=("other",), allow_modules=(TwoVectors.__module__,))
