# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Episodes are told apart in one way, whatever numbers they have; rows that are no episodes are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import NestedKey, TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_o2o.data import Convention, OnlineWriter, load_offline, n_step, reserve_slots, stack_rows
from torchrl_o2o.data.buffers import offline_buffer, starting_buffer, top_episodes
from torchrl_o2o.data.episodes import number_episodes
from torchrl_o2o.data.torchrl_datasets import select_transition
from torchrl_o2o.data.trajectories import TrajectoryReplay
from torchrl_o2o.data.transforms import (
    add_mc_return,
    add_next_action,
    end_at_success,
    episode_returns,
    locomotion_reward,
)
from torchrl_o2o.errors import O2ODataError


def rows(numbers: list[int], rewards: list[float], ends: list[int]) -> TensorDict:
    """Transitions whose observation counts them; ``ends`` are rows that are truncated."""
    count = torch.arange(float(len(numbers))).unsqueeze(-1)
    cut = torch.zeros(len(numbers), 1, dtype=torch.bool)
    cut[ends] = True
    following = {"observation": count + 1, "reward": torch.tensor(rewards).unsqueeze(-1)}
    following |= {"terminated": torch.zeros_like(cut), "truncated": cut, "done": cut.clone()}
    columns = {"observation": count, "action": count / 100, "episode": torch.tensor(numbers), "next": following}
    return TensorDict(columns, [len(numbers)])


def two_sets() -> TensorDict:
    """Two data sets in one, each with its episodes 0 and 1."""
    first = rows([0, 0, 1, 1], [1.0, 1.0, 2.0, 2.0], [1, 3])
    return torch.cat([first, rows([0, 0, 1, 1], [10.0, 10.0, 20.0, 20.0], [1, 3])])


def test_data_sets_put_together_keep_their_episodes() -> None:
    data = two_sets()
    assert number_episodes(data).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert episode_returns(data).tolist() == [2.0, 4.0, 20.0, 40.0]
    assert locomotion_reward(data, max_episode_steps=38).scale == 1.0
    assert Convention(scale_by_returns=True).fit(data).reward.scale == 1000 / 38
    assert top_episodes(data, 2)["next", "reward"].flatten().tolist() == [10.0, 10.0, 20.0, 20.0]
    assert add_mc_return(data, gamma=1.0)["mc_return"].flatten().tolist() == [2, 1, 4, 2, 20, 10, 40, 20]
    replay = TrajectoryReplay(return_scale=1.0)
    replay.load(data)
    assert [float(each["return_to_go"][0]) for each in replay.episodes] == [2.0, 4.0, 20.0, 40.0]


def test_two_single_episodes_of_one_number_are_two_where_the_first_is_done() -> None:
    data = torch.cat([rows([0, 0], [1.0, 2.0], [1]), rows([0, 0], [3.0, 4.0], [1])])
    assert episode_returns(data).tolist() == [3.0, 7.0]


@pytest.mark.parametrize("numbers", [[3, 3, 7], [7, 7, 3], [-1, -1, 4]])
def test_numbers_may_have_gaps_and_any_order(numbers: list[int]) -> None:
    data = rows(numbers, [-2.0, -3.0, -1.0], [1, 2])
    assert episode_returns(data).tolist() == [-5.0, -1.0]
    assert locomotion_reward(data, max_episode_steps=4).scale == 1.0
    assert top_episodes(data, 1)["next", "reward"].tolist() == [[-1.0]]


def test_frames_of_data_sets_put_together_are_not_mixed() -> None:
    image = torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1).expand(4, 3, 8, 8)
    data = torch.cat([rows([1, 1], [0.0, 0.0], [1]), rows([0, 0], [0.0, 0.0], [1])])
    data["observation"], data["next", "observation"] = image, image + 10
    stacked = stack_rows(data)
    assert stacked.rows["observation"].tolist() == [[0, 0, 0], [0, 0, 1], [3, 3, 3], [3, 3, 4]]
    assert stacked.frames["observation"][:, 0, 0, 0].tolist() == [0, 1, 11, 2, 3, 13]


SUMS: list[Callable[[TensorDict], Any]] = [
    episode_returns,
    lambda data: n_step(data, n=2, gamma=0.9),
    lambda data: add_mc_return(data, gamma=0.9),
    add_next_action,
    lambda data: end_at_success(data, data["next", "reward"] > 0),
    lambda data: top_episodes(data, 1),
    lambda data: TrajectoryReplay().load(data),
]


@pytest.mark.parametrize("form", SUMS)
def test_shuffled_rows_are_refused(form: Callable[[TensorDict], Any]) -> None:
    data = rows([0, 0, 0, 1, 1, 1], [1.0] * 6, [2, 5])
    with pytest.raises(O2ODataError, match="episode 1 breaks off after row 0 and continues further down"):
        form(data[torch.tensor([3, 0, 4, 1, 5, 2])])


def chained(lengths: list[int]) -> TensorDict:
    """Rows of episodes whose observations count the steps."""
    data = rows([number for number, length in enumerate(lengths) for _ in range(length)], [1.0] * sum(lengths), [])
    step = torch.cat([torch.arange(float(length)) for length in lengths]).unsqueeze(-1)
    data["observation"], data["next", "observation"] = step, step + 1
    return data


@pytest.mark.parametrize("form", SUMS[:2])
def test_rows_that_were_left_out_are_told(form: Callable[[TensorDict], Any], recwarn: pytest.WarningsRecorder) -> None:
    data = chained([6, 4])
    form(data)
    form(data[data["episode"] == 1])
    assert not [each for each in recwarn if "do not continue" in str(each.message)]
    with pytest.warns(UserWarning, match="3 of 3 rows examined, the first in row 0, do not continue in the next row"):
        form(data[::2])
    with pytest.warns(UserWarning, match="1 of 7 rows examined, the first in row 2, do not continue in the next row"):
        form(data[torch.arange(10) != 3])


def test_other_observations_show_gaps_too_and_actions_do_not() -> None:
    data = chained([6])
    data["state"], data["next", "state"] = data["observation"] * 2, data["next", "observation"] * 2
    data = add_next_action(data.exclude("observation", ("next", "observation")))
    with pytest.warns(UserWarning, match="2 of 2 rows examined"):
        episode_returns(data[::2])


@pytest.mark.parametrize("form", SUMS)
@pytest.mark.parametrize("wrong", [torch.zeros(3, 1, dtype=torch.long), torch.zeros(3), torch.zeros(3) > 0])
def test_numbers_that_are_none_are_refused(form: Callable[[TensorDict], Any], wrong: torch.Tensor) -> None:
    data = rows([0, 0, 0], [1.0] * 3, [2]).exclude("episode").set("episode", wrong)
    with pytest.raises(O2ODataError, match="expected one integer per row"):
        form(data)


def test_rewards_that_are_not_one_a_row_are_refused() -> None:
    data = rows([0, 0, 0], [1.0] * 3, [2])
    data["next", "reward"] = torch.zeros(3, 2)
    for form in (episode_returns, lambda data: add_mc_return(data, gamma=0.9)):
        with pytest.raises(O2ODataError, match="got 'reward' of shape"):
            form(data)


def test_a_time_limit_in_the_middle_of_a_number_has_no_next_action() -> None:
    data = rows([0, 0, 0, 0], [1.0] * 4, [1, 3])
    torch.testing.assert_close(add_next_action(data)["next", "action"].flatten(), torch.tensor([0.01, 0.03]))


@pytest.mark.parametrize("flags", [("terminated", "truncated", "done"), ("truncated",)])
def test_episodes_end_with_their_successes(flags: tuple[str, ...]) -> None:
    """Cal-QL's demonstrations: returns do not lead over a success, and nothing follows the last one."""
    rewards = [-1.0, 0.0, -1.0, 0.0, -1.0, -1.0, -1.0, -1.0, 0.0]
    data = rows([4, 4, 4, 4, 4, 7, 7, 2, 2], rewards, [4, 6, 8])
    data = data.exclude(*(("next", name) for name in ("terminated", "truncated", "done") if name not in flags))
    before = data.clone()
    cut = end_at_success(data, data["next", "reward"] == 0)
    assert (data == before).all(), "the input keeps its own entries"
    assert cut["observation"].flatten().tolist() == [0, 1, 2, 3, 7, 8]
    assert cut["episode"].tolist() == [0, 0, 1, 1, 2, 2]
    for name in ("terminated", "done"):
        assert cut["next", name].flatten().tolist() == [False, True] * 3
    returns = add_mc_return(cut, gamma=0.5, failure_reward=-1.0)["mc_return"]
    assert returns.flatten().tolist() == [-1, 0, -1, 0, -1, 0]


def test_data_without_success_are_refused() -> None:
    data = rows([0, 0], [-1.0, -1.0], [1])
    with pytest.raises(O2ODataError, match="none of the 2 steps succeeds"):
        end_at_success(data, data["next", "reward"] == 0)


@pytest.mark.parametrize(("success", "said"), [([-1.0, 0.0], "-1.0 in row 0"), ([0.0, float("nan")], "nan in row 1")])
def test_successes_are_flags_and_no_rewards(success: list[float], said: str) -> None:
    """A reward of -1, or NaN, is true as a bool, so that every failed step would have been a success."""
    with pytest.raises(O2ODataError, match=f"'success' is {said}, expected flags, 0 or 1; compare the numbers first"):
        end_at_success(rows([0, 0], [-1.0, -1.0], [1]), torch.tensor(success))
    assert len(end_at_success(rows([0, 0], [-1.0, -1.0], [1]), torch.tensor([0.0, 1.0]))) == 2


STATISTICS = Convention(normalize_observations=True)


@pytest.mark.parametrize(
    "function",
    [
        STATISTICS.fit,
        lambda data: starting_buffer(data, 5),
        offline_buffer,
        lambda data: n_step(data, n=2, gamma=0.9),
        lambda data: reserve_slots(data, 2),
    ],
)
def test_rows_are_flat(function: Callable[[TensorDict], object]) -> None:
    """Otherwise each step of an episode would have its own statistics, and a row of a buffer would be an episode."""
    data = rows([0, 0, 1, 1], [1.0] * 4, [1, 3]).reshape(2, 2)
    with pytest.raises(O2ODataError, match=r"got transitions of batch shape \[2, 2\], expected \[N\]; flatten them"):
        function(data)


@pytest.mark.parametrize(
    ("key", "function"),
    [
        (("next", "reward"), lambda data: add_mc_return(data, gamma=0.9)),
        (("next", "reward"), lambda data: n_step(data, n=2, gamma=0.9)),
        (("next", "reward"), Convention(reward_shift=-1.0).fit(rows([0], [1.0], [0])).online),
        (("next", "reward"), episode_returns),
        ("observation", STATISTICS.fit),
        (("next", "observation"), STATISTICS.fit(rows([0], [1.0], [0])).data),
        ("action", add_next_action),
        (("next", "terminated"), add_next_action),
        ("action", TrajectoryReplay().load),
    ],
)
def test_a_missing_entry_is_named(key: NestedKey, function: Callable[[TensorDict], object]) -> None:
    data = rows([0, 0], [1.0, 1.0], [1]).exclude(key)
    with pytest.raises(O2ODataError, match=re.escape(f"the transitions have no {key!r}, expected it; they have ")):
        function(data)


def test_returns_that_are_not_finite_rank_no_episodes() -> None:
    """NaN would be the highest."""
    data = rows([7, 7, 9, 9], [1.0, 1.0, float("nan"), 1.0], [1, 3])
    with pytest.raises(O2ODataError, match="episode 9 returns nan, expected finite returns to rank episodes by"):
        top_episodes(data, 1)


def test_ends_are_flags() -> None:
    data = rows([0, 0], [1.0, 1.0], [1])
    data["next", "done"] = torch.tensor([[0.0], [0.99]])
    with pytest.raises(O2ODataError, match=r"'done' is 0.99\d* in row 1, expected flags"):
        n_step(data, n=2, gamma=0.9)
    data["next", "done"] = torch.tensor([[1], [1]], dtype=torch.uint8)
    assert n_step(data, n=2, gamma=0.9)["steps_to_next_obs"].tolist() == [1, 1]


def test_no_rows_have_no_episodes() -> None:
    data = rows([0], [1.0], [0])[:0]
    assert episode_returns(data).tolist() == []
    with pytest.raises(O2ODataError, match="got no transitions"):
        locomotion_reward(data)


@pytest.mark.parametrize("flags", [("terminated", "truncated"), ("truncated",), ("done",)])
def test_any_flag_ends_an_episode(flags: tuple[str, ...]) -> None:
    """Also where ``done`` is absent: a sum must not lead over a time limit."""
    data = rows([0, 0, 0, 0], [1.0, 2.0, 4.0, 8.0], [1])
    data["next"] = data["next"].select("observation", "reward", *flags)
    assert number_episodes(data).tolist() == [0, 0, 1, 1]
    assert n_step(data, n=3, gamma=1.0)["next", "reward"].squeeze(-1).tolist() == [3.0, 2.0, 12.0, 8.0]
    marked = data.exclude("episode").set(("collector", "traj_ids"), torch.zeros(4, dtype=torch.int64))
    assert n_step(marked, n=3, gamma=1.0)["steps_to_next_obs"].tolist() == [2, 1, 2, 1]


@pytest.mark.parametrize("mask", [("collector", "mask"), "mask"])
def test_rows_that_fill_trajectories_up_are_refused(mask: NestedKey) -> None:
    """TorchRL's ``split_trajectories`` pads: [2, 3] of a trajectory of two rows and one of three."""
    data = rows([0, 0, 0, 1, 1, 1], [1.0] * 6, [1, 5])
    data[mask] = torch.tensor([True, True, False, True, True, True])
    data["collector", "traj_ids"] = data["episode"]
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(10), writer=OnlineWriter(0), batch_size=2)
    calls = [
        lambda: n_step(data, n=2, gamma=1.0),
        lambda: n_step(data.exclude("episode"), n=2, gamma=1.0),
        lambda: add_mc_return(data, gamma=1.0),
        lambda: load_offline(data),
        lambda: select_transition(data),
        lambda: buffer.extend(data),
    ]
    for call in calls:
        with pytest.raises(O2ODataError, match="1 of 6 rows, the first in row 2, are padding"):
            call()
    whole = data[data[mask]]
    assert n_step(whole, n=2, gamma=1.0)["next", "reward"].squeeze(-1).tolist() == [2.0, 1.0, 2.0, 2.0, 1.0]


def test_masks_of_actions_are_no_padding() -> None:
    data = rows([0, 0, 1], [1.0] * 3, [1, 2])
    data["mask"] = torch.tensor([[True, False], [False, True], [True, True]])
    assert episode_returns(data).tolist() == [2.0, 1.0]
