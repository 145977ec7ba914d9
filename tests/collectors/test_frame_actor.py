# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Acting from raw frames equals acting from the stacks that the environment makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_o2o.collectors import FastActor, FrameActor
from torchrl_o2o.envs import DotReachEnv, StackFrames
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_pixel_actor, make_pixel_encoder


@pytest.fixture
def act() -> FrameActor:
    torch.manual_seed(0)
    encoder = make_pixel_encoder((9, 16, 16), features=(4, 4), strides=(2, 2), latent_dim=5)
    return FrameActor(make_pixel_actor(encoder, 2, hidden_sizes=(8,)))


def test_raw_frames_are_stacked_as_in_training(act: FrameActor) -> None:
    """Over two episodes, one by one and as rows that end at different times; alpha is left out."""
    stacking, rng = StackFrames(DotReachEnv()), np.random.default_rng(0)
    both = FrameActor(act.actor)
    for episode in range(2):
        act.reset()
        both.reset(np.array([True, False]))
        stack, _ = stacking.reset(seed=episode)
        for _ in range(5):
            frame = stacking.unwrapped.render()  # type: ignore[attr-defined]
            expected = act(stack)
            np.testing.assert_array_equal(act(frame), expected)
            rows = np.stack([np.concatenate([frame, frame[..., :1]], -1), np.zeros((16, 16, 4), np.uint8)])
            np.testing.assert_allclose(both(rows)[0], expected, atol=1e-6)
            stack, *_ = stacking.step(rng.uniform(-1, 1, 2))
    assert act(np.stack([stack, stack])).shape == (2, 2)


@pytest.mark.parametrize("frame", [np.zeros((16, 16, 3)), np.zeros((8, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)])
def test_other_frames_are_refused(act: FrameActor, frame: np.ndarray) -> None:
    with pytest.raises(O2OSpecError, match=r"expected uint8 frames \[16, 16, 3\] or stacks \[9, 16, 16\]"):
        act(frame)


def test_each_kind_of_actor_names_the_other(act: FrameActor) -> None:
    with pytest.raises(O2OSpecError, match="use FrameActor"):
        FastActor(act.actor)
    with pytest.raises(O2OSpecError, match="use FastActor"):
        FrameActor(make_actor(3, 1))


@pytest.mark.parametrize("mask", [[0, 2], [0, 1, 1], [1.0, 0.0, 0.0], [True], [[True, False, False]]])
def test_a_mask_has_a_flag_for_each_row(act: FrameActor, mask: list) -> None:
    """Numbers of rows were read as flags, and one flag reset all rows."""
    act(np.zeros((3, 16, 16, 3), np.uint8))
    with pytest.raises(O2OSpecError, match=r"expected bool \[3\], one flag for each row"):
        act.reset(np.array(mask))


def test_no_action_is_given_that_is_not_finite(act: FrameActor) -> None:
    with torch.no_grad():
        next(act.actor.parameters()).fill_(torch.nan)
    with pytest.raises(O2OSpecError, match="expected finite numbers; load a policy with finite parameters"):
        act(np.ones((16, 16, 3), np.uint8))
