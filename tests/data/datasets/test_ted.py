# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from torchrl_o2o.data import EPISODE, TRANSITION
from torchrl_o2o.data.datasets.rows import rows_from_episodes, rows_from_flat
from torchrl_o2o.data.datasets.ted import to_transitions
from torchrl_o2o.errors import O2ODataError

Arrays = dict[str, np.ndarray]


def transitions(rows: Any, shortest: int = 2) -> Any:
    return to_transitions(rows, min_episode_length=shortest, origin="toy")


def test_layout(flat: Arrays) -> None:
    data, _ = transitions(rows_from_flat(flat, max_episode_steps=None, origin="toy"))
    assert set(data.keys(include_nested=True, leaves_only=True)) == {*TRANSITION, EPISODE}
    assert data.batch_size == torch.Size([12])
    for key in ("reward", "terminated", "truncated", "done"):
        assert data["next", key].shape == (12, 1)
    assert data["next", "done"].dtype == torch.bool
    assert data["episode"].dtype == torch.int64


def test_terminal_and_timeout_in_one_row_is_terminal(flat: Arrays) -> None:
    flat["timeouts"][3] = True
    data, notes = transitions(rows_from_flat(flat, max_episode_steps=None, origin="toy"))
    assert data["next", "terminated"][3]
    assert not data["next", "truncated"][3]
    assert notes[0].message == "1 transitions are terminal and at their time limit; they count as terminated."


def test_short_episodes_are_skipped_and_counted(episodes: list[Arrays]) -> None:
    empty = {"observations": np.zeros((1, 2)), "actions": np.zeros((0, 1)), "rewards": np.zeros(0)}
    single = {"observations": np.zeros((2, 2)), "actions": np.zeros((1, 1)), "rewards": np.zeros(1)}
    rows = rows_from_episodes([empty, episodes[0], single, episodes[1]], origin="toy")
    data, notes = transitions(rows)
    assert data["episode"].tolist() == [0, 0, 0, 1, 1]
    told = {note.code: note for note in notes}
    assert told["silent_episodes"].count == 2
    assert told["short_episodes"].message.startswith(
        "2 episodes have fewer than 2 transitions and were skipped; pass min_episode_l"
    )
    data, notes = transitions(rows, shortest=1)
    assert data["episode"].tolist() == [0, 0, 0, 1, 2, 2]
    told = {note.code: note for note in notes}
    assert told["short_episodes"].count == 1
    assert told["short_episodes"].message == "1 episodes have fewer than 1 transitions and were skipped."


def test_nothing_left_is_an_error() -> None:
    empty = {"observations": np.zeros((1, 2)), "actions": np.zeros((0, 1)), "rewards": np.zeros(0)}
    with pytest.raises(O2ODataError, match="toy has 1 episodes, all shorter than min_episode_length=2"):
        transitions(rows_from_episodes([empty], origin="toy"))
    with pytest.raises(O2ODataError, match=r"all shorter than min_episode_length=1; .*; check those\."):
        transitions(rows_from_episodes([empty], origin="toy"), shortest=1)
    with pytest.raises(O2ODataError, match="toy holds no episodes"):
        rows_from_episodes([], origin="toy")
    none = {"observations": np.zeros((0, 2)), "actions": np.zeros((0, 1)), "rewards": np.zeros(0), "timeouts": []}
    with pytest.raises(O2ODataError, match="toy is empty"):
        transitions(rows_from_flat(none, max_episode_steps=None, origin="toy"))
