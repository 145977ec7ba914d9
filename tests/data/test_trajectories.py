# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_o2o.data import TrajectoryReplay, returns_to_go
from torchrl_o2o.errors import O2ODataError, O2OSpecError


def rows() -> TensorDict:
    """Three episodes of 4, 3 and 5 steps with rewards 1, 5 and 2 a step; the observation is the row's number."""
    numbers = torch.tensor([0] * 4 + [1] * 3 + [2] * 5)
    reward = torch.tensor([1.0, 5.0, 2.0])[numbers].unsqueeze(-1)
    observation = torch.arange(12.0).unsqueeze(-1)
    return TensorDict(
        {"episode": numbers, "observation": observation, "action": torch.ones(12, 2), "next": {"reward": reward}}, [12]
    )


def test_returns_by_hand() -> None:
    assert returns_to_go(torch.tensor([1.0, -2.0, 4.0])).tolist() == [3.0, 2.0, 4.0]


def test_the_best_episodes_are_kept_and_the_worst_goes_first() -> None:
    replay = TrajectoryReplay(2, return_scale=0.5)
    replay.load(rows())
    assert [float(each["return_to_go"][0]) for each in replay.episodes] == [5.0, 7.5]
    replay.append(torch.zeros(2, 1), torch.zeros(2, 2), torch.ones(2))
    assert [float(each["return_to_go"][0]) for each in replay.episodes] == [1.0, 7.5]
    assert replay.episodes[1]["action"].max() < 1.0


def test_returns_beyond_a_type_are_scaled_first_or_refused() -> None:
    replay, (observation, action) = TrajectoryReplay(return_scale=0.001), (torch.zeros(1000, 1), torch.zeros(1000, 2))
    replay.append(observation, action, torch.full((1000,), 100.0, dtype=torch.float16))  # their sum is beyond float16
    assert replay.episodes[0]["return_to_go"][[0, -1]].flatten().tolist() == pytest.approx([100.0, 0.1], rel=1e-3)
    assert replay.episodes[0]["return_to_go"].dtype == torch.float16
    with pytest.raises(O2OSpecError, match="all finite, including the sums of rewards"):
        replay.append(observation, action, torch.full((1000,), 1e38))
    assert len(replay.episodes) == 1


def test_slices_of_all_trajectories_have_one_type() -> None:
    replay = TrajectoryReplay()
    for dtype in (torch.float32, torch.float64, torch.int64):
        replay.append(torch.ones(3, 2, dtype=dtype), torch.zeros(3, 1, dtype=torch.float64), torch.ones(3, dtype=dtype))
    assert {value.dtype for value in replay.sample(8, 2).exclude("action").values()} == {torch.float32}


def test_slices_are_whole_and_every_start_alike() -> None:
    torch.manual_seed(0)
    replay = TrajectoryReplay()
    replay.load(rows())
    drawn = replay.sample(6_000, 4)
    assert drawn.shape == (6_000, 4)
    first = drawn["observation"][:, 0, 0]
    steps = drawn["observation"][..., 0] - first.unsqueeze(-1)
    assert (steps == torch.arange(4.0)).all()
    starts, counts = first.unique(return_counts=True)
    assert starts.tolist() == [0.0, 7.0, 8.0], "the episode of three steps is too short"
    assert counts.sub(2_000).abs().max() < 200


def test_what_cannot_be_drawn_is_refused() -> None:
    replay = TrajectoryReplay()
    replay.load(rows())
    with pytest.raises(O2OSpecError, match="context=6"):
        replay.sample(1, 6)
    with pytest.raises(O2OSpecError, match="capacity=0"):
        TrajectoryReplay(0)
    with pytest.raises(O2ODataError, match="episode"):
        replay.load(rows().exclude("episode"))
    with pytest.raises(O2ODataError, match="n_step last"):
        replay.load(rows().set("steps_to_next_obs", torch.ones(12)))
    with pytest.raises(O2ODataError, match="got no transitions, expected at least one episode"):
        replay.load(rows()[:0])


def test_a_state_holds_what_was_appended_and_fits_its_data_alone() -> None:
    def filled(loaded: int) -> TrajectoryReplay:
        replay = TrajectoryReplay(capacity=3, return_scale=1.0)
        for reward in range(loaded):
            replay.append(torch.zeros(2, 1), torch.zeros(2, 1), torch.full((2,), float(reward)))
        replay._appended.clear()  # as load() does
        return replay

    replay = filled(2)
    for reward in (10.0, 20.0):  # the second takes the place of the oldest
        replay.append(torch.ones(3, 1), torch.zeros(3, 1), torch.full((3,), reward))
    state = replay.state_dict()
    assert sorted(state["appended"]) == [0, 2]
    other = filled(2)
    other.load_state_dict(state)
    assert [each["return_to_go"].flatten().tolist() for each in other.episodes] == [
        each["return_to_go"].flatten().tolist() for each in replay.episodes
    ]
    for each in (replay, other):
        each.append(torch.ones(1, 1), torch.zeros(1, 1), torch.full((1,), 30.0))
    assert [len(each) for each in other.episodes] == [len(each) for each in replay.episodes] == [3, 1, 3]
    with pytest.raises(O2OSpecError, match="other data"):
        filled(1).load_state_dict(state)


@pytest.mark.parametrize(
    "wrong",
    [
        (torch.zeros(3, 2), torch.zeros(3, 1), torch.ones(3, 1)),
        (torch.zeros(4, 2), torch.zeros(3, 1), torch.ones(3)),
        (torch.zeros(3, 2), torch.zeros(3, 1), torch.tensor([1.0, float("nan"), 1.0])),
    ],
)
def test_an_episode_is_one_of_each_a_step(wrong: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(O2OSpecError, match=r"expected \[T, o\], \[T, A\] and \[T\] with T"):
        TrajectoryReplay().append(*wrong)


def test_appended_episodes_are_copies() -> None:
    """A rollout that writes every episode into one array would have changed what was stored."""
    replay, observation = TrajectoryReplay(3), torch.zeros(3, 1)
    for number in (1.0, 2.0):
        replay.append(observation.fill_(number), torch.zeros(3, 2), torch.ones(3))
    assert [each["observation"].flatten().tolist() for each in replay.episodes] == [[1.0] * 3, [2.0] * 3]


def test_empty_episodes_and_slices_are_refused() -> None:
    replay = TrajectoryReplay(3)
    for episode in ((0, 0.0), (2, float("nan"))):
        with pytest.raises(O2OSpecError, match="with T at least 1, all finite"):
            replay.append(torch.full((episode[0], 1), episode[1]), torch.zeros(episode[0], 2), torch.zeros(episode[0]))
    replay.load(rows())
    with pytest.raises(O2OSpecError, match="got context=0, expected a whole number of at least 1"):
        replay.sample(2, context=0)
    for size in (0, -1, 1.5):
        with pytest.raises(O2OSpecError, match=rf"got batch_size={size}, expected a whole number of at least 1"):
            replay.sample(size, context=1)  # type: ignore[arg-type]


def test_trajectories_of_another_environment_are_refused() -> None:
    replay = TrajectoryReplay()
    replay.append(torch.zeros(3, 2), torch.zeros(3, 1), torch.ones(3))
    with pytest.raises(O2OSpecError, match=r"got observations \[3, 3\] and .*'observation': \[2\], 'action': \[1\]"):
        replay.append(torch.zeros(3, 3), torch.zeros(3, 1), torch.ones(3))
    assert len(replay.episodes) == 1


def test_arrays_are_read_like_tensors() -> None:
    """Logs of others are arrays; torch's message was about a missing method."""
    assert returns_to_go(np.array([1.0, 2.0])).tolist() == returns_to_go([1.0, 2.0]).tolist() == [3.0, 2.0]
    replay = TrajectoryReplay(capacity=1, return_scale=1.0)
    replay.append(np.zeros((2, 3), np.float32), np.zeros((2, 1), np.float32), np.ones(2, np.float32))
    assert replay.episodes[0]["return_to_go"].tolist() == [[2.0], [1.0]]
