# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Data sets from pixels: stacks, conversion and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_o2o.data import load_offline, make_local_dataset, pixel_data, stack_rows
from torchrl_o2o.data.pixels import as_frames
from torchrl_o2o.errors import O2ODataError


def test_images_are_converted_or_refused() -> None:
    last, first = np.zeros((2, 8, 9, 3), np.uint8), np.zeros((2, 3, 8, 9), np.uint8)
    assert as_frames(last).shape == as_frames(first).shape == (2, 3, 8, 9)
    assert as_frames(np.zeros((2, 8, 9, 4), np.uint8)).shape == (2, 3, 8, 9)
    with pytest.raises(O2ODataError, match="convert values in"):
        as_frames(last / 255.0)
    with pytest.raises(O2ODataError, match="gray"):
        as_frames(np.zeros((2, 8, 9), np.uint8))
    good: dict[str, Any] = {"observation": last, "action": np.zeros((1, 2)), "reward": np.zeros(1)}
    with pytest.raises(O2ODataError, match="add the missing frames"):
        pixel_data([good | {"observation": last[:1]}])
    with pytest.raises(O2ODataError, match="one size"):
        pixel_data([good, good | {"observation": np.zeros((2, 8, 8, 3), np.uint8)}])
    with pytest.raises(O2ODataError, match="no \\['reward'\\]"):
        pixel_data([{key: good[key] for key in ("observation", "action")}])


@pytest.mark.parametrize("shape", [(2, 4, 64, 3), (2, 3, 64, 4), (2, 4, 4, 3), (2, 3, 3, 3)])
def test_images_of_which_two_dimensions_could_be_the_channels_are_refused(shape: tuple[int, ...]) -> None:
    """Both readings are possible. With 5 pixels a side, the number of channels decides."""
    images = np.zeros(shape, np.uint8)
    with pytest.raises(O2ODataError, match=r"'observation' of episode 0 of shape \[2, .*no side has 3 or 4 pixels"):
        pixel_data([{"observation": images, "action": np.zeros((1, 2)), "reward": np.ones(1)}])
    columns = {"observation": torch.as_tensor(images), "episode": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(O2ODataError, match="no side has 3 or 4 pixels"):
        stack_rows(TensorDict({**columns, "next": {"observation": columns["observation"]}}, [2]))
    padded = np.pad(images, [(0, 0), (0, 5 - shape[1]), (0, 0), (0, 0)], "edge")
    assert as_frames(padded).shape == (2, 3, 5, shape[2])


def test_images_with_one_narrow_side_are_read() -> None:
    """Only the number of channels can be a channel's: the side of 4 pixels is neither the first nor the last."""
    wide, seen = np.zeros((2, 8, 4, 3), np.uint8), np.zeros((2, 3, 4, 8), np.uint8)
    wide[:, 7, 3, 2] = seen[:, 2, 3, 7] = 9
    assert as_frames(wide)[0, 2, 7, 3] == as_frames(seen)[0, 2, 3, 7] == 9


def test_recorded_images_become_stacks(tmp_path: Path) -> None:
    """What ``o2o data make`` writes, read and stacked as the environment stacks them."""
    folder = make_local_dataset("o2o/dotreach/chase-v0", num_steps=60, root=tmp_path)
    data = stack_rows(load_offline(folder, cache=False))
    rows = data.stacks(torch.arange(len(data)))
    assert rows["observation"].shape == (60, 9, 16, 16)
    assert data.frames["observation"].shape == (63, 3, 16, 16)
    assert torch.equal(rows["observation"][0, :3], rows["observation"][0, 6:])
    assert torch.equal(rows["next", "observation"][3], rows["observation"][4])
    assert rows["next", "truncated"].squeeze(-1).nonzero().squeeze(-1).tolist() == [24, 49, 59]


def test_frames_of_rows_several_steps_ahead_are_refused() -> None:
    image = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    columns = {"observation": image, "episode": torch.zeros(4, dtype=torch.long), "next": {"observation": image}}
    rows = TensorDict(columns, [4]).set("steps_to_next_obs", torch.full((4,), 3))
    with pytest.raises(O2ODataError, match="n_step last"):
        stack_rows(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": np.array([0.0, np.nan])}, r"'reward' of episode 1 is nan at step 1, expected finite numbers"),
        ({"action": np.array([[0.0], [3.0]])}, r"'action' of episode 1 is 3 at step 1, expected \[-1, 1\]"),
        ({"state": np.array([[0.0], [np.inf], [0.0]])}, r"'state' of episode 1 is inf at step 1"),
        ({"is_terminal": np.array([0, 0, 1])}, r"'is_terminal' of episode 1 is not read, but it could mark how"),
        ({"reward": np.zeros((2, 2))}, r"'reward' of episode 1 has the shape \[2, 2\], expected one number per step"),
        ({"terminated": np.array([0.0, np.nan])}, "'terminated' of episode 1 holds other values than 0 and 1"),
        ({"discount": np.ones(3)}, r"'discount' of episode 1 is not read"),
        ({"reward": 1.0}, r"'reward' of episode 1 is one value, expected one row per step"),
    ],
)
def test_numbers_that_nothing_else_looks_at(change: dict[str, np.ndarray], message: str) -> None:
    """Episodes from pixels do not go through the audit; flags of T+1 rows were taken for observations."""
    good = {"observation": np.zeros((3, 8, 8, 3), np.uint8), "action": np.zeros((2, 1)), "reward": np.zeros(2)}
    good |= {"state": np.zeros((3, 1))}
    assert len(pixel_data([good, good]).rows) == 4
    with pytest.raises(O2ODataError, match=message):
        pixel_data([good, good | change])


def test_one_flag_may_be_that_of_the_whole_episode() -> None:
    rows = {"observation": np.zeros((4, 8, 8, 3), np.uint8), "action": np.zeros((3, 1)), "reward": np.zeros(3)}
    data = pixel_data([rows | {"terminated": True}, rows | {"terminated": np.bool_(False)}]).rows["next"]
    assert data["terminated"].flatten().tolist() == [False, False, True, False, False, False]
    assert data["truncated"].flatten().tolist() == [False, False, False, False, False, True]


def test_what_is_no_list_of_episodes() -> None:
    rows = TensorDict({"observation": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}, [2])
    with pytest.raises(O2ODataError, match="got a TensorDict, expected a list of episodes; take stack_rows"):
        pixel_data(rows)  # pyright: ignore[reportArgumentType]
    with pytest.raises(O2ODataError, match="got a dict, expected a list of episodes; put it into a list"):
        pixel_data({"observation": np.zeros(1)})  # pyright: ignore[reportArgumentType]


def test_an_episode_without_transitions_is_refused() -> None:
    empty = {"observation": np.zeros((1, 8, 8, 3), np.uint8), "action": np.zeros((0, 2)), "reward": np.zeros(0)}
    with pytest.raises(O2ODataError, match="episode 0 has no transition"):
        pixel_data([empty])


def test_an_entry_that_some_episodes_lack_is_refused() -> None:
    episode = {"observation": np.zeros((3, 8, 8, 3), np.uint8), "action": np.zeros((2, 2)), "reward": np.ones(2)}
    with pytest.raises(O2ODataError, match="1 of 2 episodes have 'state'"):
        pixel_data([episode, {**episode, "state": np.zeros((3, 1))}])
