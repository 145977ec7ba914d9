# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Rows over n steps that come when their episode has ended."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from torchrl_o2o.data import EpisodeRows, n_step
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.testing import random_transitions


def stream(ends: list[int], terminal: int) -> TensorDictBase:
    rows = random_transitions(7, 2, 1)
    row = torch.arange(7)
    ended = torch.isin(row, torch.tensor(ends)).unsqueeze(-1)
    rows["next", "terminated"] = (row == terminal).unsqueeze(-1)
    rows["next", "truncated"], rows["next", "done"] = ended & ~rows["next", "terminated"], ended
    following = torch.where(ended, rows["next", "observation"], rows["observation"].roll(-1, 0))
    rows["next", "observation"][:-1] = following[:-1]
    return rows


def same(left: TensorDictBase, right: TensorDictBase) -> bool:
    return all(torch.equal(left[key], right[key]) for key in right.keys(True, True) if key != "episode")


def test_they_are_those_of_the_whole() -> None:
    rows = stream([3, 6], 3)
    expected = n_step(rows.copy().set("episode", torch.tensor([0] * 4 + [1] * 3)), n=3, gamma=0.9)
    keeper = EpisodeRows(3, 0.9)
    found = [keeper.add(row) for row in rows.split(1)]
    assert [len(part) for part in found] == [0, 0, 0, 4, 0, 0, 3]
    assert same(torch.cat([part for part in found if len(part)]), expected)


def test_a_cut_ends_an_episode_and_state_is_kept() -> None:
    rows = stream([6], -1)
    keeper = EpisodeRows(2, 0.9)
    for row in rows[:2].split(1):
        assert len(keeper.add(row)) == 0
    keeper.cut()
    again = EpisodeRows(2, 0.9)
    again.load_state_dict(keeper.state_dict())
    ended = again.add(rows[2:3])
    assert ended["next", "truncated"].all()
    assert ended["next", "done"].tolist() == [[True], [True]]
    assert ended["steps_to_next_obs"].tolist() == [2, 1]
    other = EpisodeRows(2, 0.9)
    other.load_state_dict(again.state_dict())
    for row in rows[3:6].split(1):
        other.add(row)
    assert other.add(rows[6:])["steps_to_next_obs"].tolist() == [2, 2, 2, 2, 1]
    assert other.state_dict() == {}
    assert isinstance(keeper.state_dict()["ended"], dict)
    assert not isinstance(keeper.state_dict()["ended"], TensorDict)


@pytest.mark.parametrize("wrong", [random_transitions(2, 1, 1), random_transitions(1, 1, 1)[0]])
def test_one_transition_at_a_time(wrong: TensorDict) -> None:
    with pytest.raises(O2OSpecError, match=r"expected \[1\]; add one at a time"):
        EpisodeRows(2, 0.9).add(wrong)


def test_rows_over_several_steps_are_refused() -> None:
    """Their number of steps would be lost, and so the discount."""
    row = random_transitions(1, 1, 1).set("steps_to_next_obs", torch.tensor([3]))
    with pytest.raises(O2ODataError, match="the transitions have 'steps_to_next_obs'"):
        EpisodeRows(2, 0.9).add(row)


def test_observations_may_have_other_names() -> None:
    rows = stream([2, 6], 2)[:3]
    expected = n_step(rows.copy().set("episode", torch.zeros(3, dtype=torch.long)), n=2, gamma=0.9)
    for each in (rows, expected):
        each["pixels"], each["next", "pixels"] = each["observation"] + 1, each["next", "observation"] + 1
        each.rename_key_("observation", "state").rename_key_(("next", "observation"), ("next", "state"))
    rows["next", "step_count"] = torch.arange(3)
    keeper = EpisodeRows(2, 0.9)
    found = [keeper.add(row) for row in rows.split(1)][-1]
    assert same(found, expected)
    assert ("next", "step_count") not in found.keys(True, True)


def test_what_was_added_is_a_copy() -> None:
    """A loop may write each transition into the one before."""
    rows, keeper = stream([2, 6], 2), EpisodeRows(2, 0.9)
    expected = n_step(rows[:3].copy().set("episode", torch.zeros(3, dtype=torch.long)), n=2, gamma=0.9)
    same_place = rows[:1].clone()
    found = [keeper.add(same_place.update_(row)) for row in rows[:3].split(1)]
    assert same(found[-1], expected)
