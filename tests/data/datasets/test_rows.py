# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from torchrl_o2o.data import load_offline
from torchrl_o2o.data.datasets.rows import cast_column, rows_from_episodes, rows_from_flat
from torchrl_o2o.data.datasets.ted import to_transitions
from torchrl_o2o.errors import O2ODataError, O2OSpecError

Arrays = dict[str, np.ndarray]


def transitions(rows: Any, shortest: int = 2) -> Any:
    return to_transitions(rows, min_episode_length=shortest, origin="toy")


def test_flat_with_next_observations_keeps_every_row(flat: Arrays) -> None:
    data, notes = transitions(rows_from_flat(flat, max_episode_steps=None, origin="toy"))
    assert len(data) == 12
    np.testing.assert_array_equal(data["next", "observation"], flat["next_observations"])
    np.testing.assert_array_equal(data["next", "reward"][:, 0], flat["rewards"])
    assert data["episode"].tolist() == [0] * 4 + [1] * 5 + [2] * 3
    assert data["next", "terminated"][:, 0].nonzero()[:, 0].tolist() == [3]
    # the last episode is unfinished: kept, marked truncated
    assert data["next", "truncated"][:, 0].nonzero()[:, 0].tolist() == [8, 11]
    assert data["next", "done"][:, 0].nonzero()[:, 0].tolist() == [3, 8, 11]
    assert [note.message for note in notes] == [
        "1 episodes end without a flag; their last transition is marked truncated."
    ]


def test_flat_without_next_observations_drops_only_unknown_successors(flat: Arrays) -> None:
    del flat["next_observations"]
    data, notes = transitions(rows_from_flat(flat, max_episode_steps=None, origin="toy"))
    kept = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]
    np.testing.assert_array_equal(data["observation"], flat["observations"][kept])
    # the terminal row 3 stays, its own observation standing in; never another episode's, never zeros
    np.testing.assert_array_equal(data["next", "observation"], flat["observations"][[1, 2, 3, 3, 5, 6, 7, 8, 10, 11]])
    assert data["next", "terminated"][:, 0].nonzero()[:, 0].tolist() == [3]
    assert data["next", "truncated"][:, 0].nonzero()[:, 0].tolist() == [7, 9]
    assert [(note.code, note.count) for note in notes] == [("no_next_observation", 2)]


def test_no_timeouts_needs_a_limit(flat: Arrays) -> None:
    del flat["timeouts"]
    with pytest.raises(O2ODataError, match=r"toy has no timeouts.*Pass max_episode_steps"):
        rows_from_flat(flat, max_episode_steps=None, origin="toy")
    rows = rows_from_flat(flat, max_episode_steps=3, origin="toy")
    # counted anew after the terminal in row 3
    assert rows.truncated.nonzero()[0].tolist() == [2, 6, 9]
    assert rows.lengths.tolist() == [3, 1, 3, 3, 2]


def test_episode_numbers_stand_in_for_timeouts(flat: Arrays) -> None:
    del flat["timeouts"]
    flat["episode"] = np.repeat([7, 7, 3, 5], 3)
    data, _ = transitions(rows_from_flat(flat, max_episode_steps=None, origin="toy"))
    assert data["episode"].tolist() == [0] * 6 + [1] * 3 + [2] * 3
    assert data["next", "done"][:, 0].nonzero()[:, 0].tolist() == [3, 5, 8, 11]


def test_a_flag_ends_an_episode_whose_number_goes_on(flat: Arrays) -> None:
    """The numbers may be those of workers: the row after a time limit is then the observation after a reset."""
    del flat["next_observations"]
    without, _ = transitions(rows_from_flat(flat, max_episode_steps=None, origin="toy"))
    flat["episode"] = np.zeros(12, int)
    data, notes = transitions(rows_from_flat(flat, max_episode_steps=None, origin="toy"))
    assert (data == without).all()
    assert [(note.code, note.count) for note in notes] == [("no_next_observation", 2)]


def split(arrays: Arrays, length: int) -> list[Arrays]:
    return [{name: values[at : at + length] for name, values in arrays.items()} for at in range(0, 8, length)]


@pytest.mark.parametrize("form", ["flat", "episodes"])
@pytest.mark.parametrize("limit", [100, 4, None])
def test_dones_that_are_timeouts_are_no_terminals(form: str, limit: int | None) -> None:
    arrays = {"observations": np.arange(8.0)[:, None], "next_observations": np.arange(1.0, 9)[:, None]}
    arrays |= {"actions": np.linspace(-1, 1, 8)[:, None], "rewards": np.arange(8.0)}
    arrays |= {"dones": np.isin(np.arange(8), (3, 6)), "timeouts": np.arange(8) == 3}
    source = arrays if form == "flat" else split(arrays, 4)
    data = load_offline(source, names={"dones": "dones"}, max_episode_steps=limit, min_episode_length=1)
    assert data["next", "terminated"][:, 0].nonzero()[:, 0].tolist() == [6]
    assert data["next", "truncated"][:, 0].nonzero()[:, 0].tolist() == [3, 7]
    with pytest.warns(UserWarning, match="Most time limits are terminal here: if the array of terminals marks every"):
        load_offline(source, names={"dones": "terminals"}, min_episode_length=1)


@pytest.mark.parametrize("terminal", [True, False])
def test_episodes_and_flat_arrays_keep_the_same_rows(terminal: bool) -> None:
    arrays = {"observations": np.arange(8.0)[:, None], "actions": np.linspace(-1, 1, 8)[:, None]}
    arrays |= {"rewards": np.eye(8)[3], "terminals": np.eye(8)[3] * terminal, "timeouts": np.eye(8)[3] * (not terminal)}
    data, notes = transitions(rows_from_episodes(split(arrays, 4), origin="toy"))
    flat, flat_notes = transitions(rows_from_flat(arrays, max_episode_steps=None, origin="toy"))
    assert (data == flat).all()
    told = [{note.code: note.count for note in each}["no_next_observation"] for each in (notes, flat_notes)]
    assert told == [1 if terminal else 2] * 2
    assert data["next", "reward"].sum().item() == terminal, "the reward of a terminal row is kept"


@pytest.mark.parametrize("shape", [(12,), (12, 1)])
def test_rewards_of_either_shape(flat: Arrays, shape: tuple[int, ...]) -> None:
    flat["rewards"] = flat["rewards"].reshape(shape)
    data, _ = transitions(rows_from_flat(flat, max_episode_steps=None, origin="toy"))
    assert data["next", "reward"].shape == (12, 1)


def test_lengths_that_differ_are_listed(flat: Arrays) -> None:
    flat["actions"] = flat["actions"][:-1]
    del flat["timeouts"]
    with pytest.raises(O2ODataError, match=r"differ in length: \{'observation': 12, 'action': 11, 'reward': 12"):
        rows_from_flat(flat, max_episode_steps=5, origin="toy")


def test_missing_arrays_are_named() -> None:
    with pytest.raises(O2ODataError, match=r"toy has no observations, actions; it holds \['rewards', 'x'\]"):
        rows_from_flat({"rewards": np.zeros(3), "x": np.zeros(3)}, max_episode_steps=None, origin="toy")


def test_parts_of_an_observation_have_to_be_joined_first(flat: Arrays) -> None:
    flat["joint"] = flat.pop("observations")
    with pytest.raises(O2ODataError, match=r"has no observations.* have to be joined first"):
        rows_from_flat(flat, max_episode_steps=5, origin="toy")
    names = {"joint": "observations", "rewards": "observations"}
    with pytest.raises(O2OSpecError, match=r"two arrays are observations.* or join them"):
        rows_from_flat(flat, max_episode_steps=5, origin="toy", names=names)


def test_episodes_with_one_more_observation_lose_nothing(episodes: list[Arrays]) -> None:
    data, notes = transitions(rows_from_episodes(episodes, origin="toy"))
    assert data["observation"][:, 0].tolist() == [0, 1, 2, 10, 11]
    assert data["next", "observation"][:, 0].tolist() == [1, 2, 3, 11, 12]
    assert data["next", "terminated"][:, 0].tolist() == [False, False, True, False, False]
    assert data["next", "truncated"][:, 0].tolist() == [False, False, False, False, True]
    assert [note.code for note in notes] == ["unfinished"]
    assert data["observation"].dtype == data["next", "reward"].dtype == torch.float32


def test_as_many_observations_as_actions_drops_the_last_unless_terminal(episodes: list[Arrays]) -> None:
    for episode in episodes:
        episode["observations"] = episode["observations"][:-1]
    data, notes = transitions(rows_from_episodes(episodes, origin="toy"), shortest=1)
    assert data["observation"][:, 0].tolist() == [0, 1, 2, 10]
    assert data["next", "observation"][:, 0].tolist() == [1, 2, 2, 11]  # nothing bootstraps from what follows row 2
    assert data["next", "terminated"][:, 0].tolist() == [False, False, True, False]
    assert data["next", "truncated"][:, 0].tolist() == [False, False, False, True]
    assert notes[0].message.startswith("1 transitions have no next observation in the data")


def test_other_counts_of_observations_name_the_episode(episodes: list[Arrays]) -> None:
    episodes[1]["observations"] = np.zeros((7, 2))
    with pytest.raises(
        O2ODataError, match=re.escape("toy, episode 1 has 7 observations for 2 actions; expected 3 (or")
    ):
        rows_from_episodes(episodes, origin="toy")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.bool_])
def test_numbers_are_cast_once_to_float32(dtype: type) -> None:
    assert cast_column(np.ones((3, 2), dtype), "x").dtype == np.float32


def test_images_stay_as_they_are() -> None:
    images = np.random.default_rng(0).integers(0, 255, (6, 4, 4, 3), dtype=np.uint8)
    episode = {"observations": images, "actions": np.linspace(-1, 1, 5)[:, None], "rewards": np.arange(5.0)}
    data = load_offline([episode])
    assert data["observation"].dtype == torch.uint8
    np.testing.assert_array_equal(data["next", "observation"], images[1:])


def test_objects_and_text_are_refused() -> None:
    with pytest.raises(O2ODataError, match="actions holds <U1; expected real numbers"):
        cast_column(np.array(["a"]), "actions")
    with pytest.raises(O2ODataError, match="holds object"):
        cast_column(np.array([None]), "actions")


def test_episodes_that_differ_in_width_are_named(episodes: list[Arrays]) -> None:
    episodes[1]["observations"] = np.zeros((3, 5))
    with pytest.raises(
        O2ODataError, match=r"toy: one observation has the shape \[5\] in episode 1 and \[2\] in episode 0"
    ):
        rows_from_episodes(episodes, origin="toy")


@pytest.mark.parametrize(
    "arrays",
    [{"is_terminated": "terminals", "is_truncated": "timeouts"}, {"discount": "masks"}],
    ids=["own", "acme"],
)
def test_advice_on_names_keeps_terminals_terminal(flat: Arrays, arrays: dict[str, str]) -> None:
    """The advice was 'ends' for all of them: terminal states would have become time limits, and bootstrap."""
    terminals, timeouts = flat.pop("terminals"), flat.pop("timeouts")
    values = {"terminals": terminals, "timeouts": timeouts, "masks": 1 - terminals.astype(float)}
    flat |= {name: values[role] for name, role in arrays.items()}
    with pytest.raises(O2ODataError, match=re.escape(f"pass names={arrays}")):
        rows_from_flat(flat, max_episode_steps=None, origin="toy")
    rows = rows_from_flat(flat, max_episode_steps=100, origin="toy", names=arrays)
    np.testing.assert_array_equal(rows.terminated.nonzero(), terminals.nonzero())


@pytest.mark.parametrize(
    "own",
    [
        {"observations": "obs", "actions": "act", "rewards": "rew", "next_observations": "obs_next"},
        {"observations": "obs", "terminals": "terminateds", "timeouts": "truncateds", "next_observations": "new_obs"},
    ],
    ids=["tianshou", "rllib"],
)
def test_names_of_other_libraries(flat: Arrays, own: dict[str, str]) -> None:
    flat["next_observations"] = flat["observations"] + 1.0
    expected = rows_from_flat(flat, max_episode_steps=None, origin="toy")
    rows = rows_from_flat(
        {own.get(name, name): values for name, values in flat.items()}, max_episode_steps=None, origin="toy"
    )
    for name in ("observation", "action", "next_observation", "reward", "terminated", "truncated", "lengths"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(expected, name))


@pytest.mark.parametrize("name", ["eps_id", "ep_idx", "ep", "rollout_id", "demo_id"])
def test_numbers_of_episodes_by_any_name_are_read_or_asked_about(flat: Arrays, name: str) -> None:
    """All timeouts are false, so without the numbers transitions would lead over resets."""
    flat |= {"terminals": np.zeros(12, bool), "timeouts": np.zeros(12, bool), name: np.repeat([7, 3], 6)}
    names = None if name == "eps_id" else {name: "episode"}
    rows = rows_from_flat(flat, max_episode_steps=None, origin="toy", names=names)
    assert rows.lengths.tolist() == [6, 6]
    if names:
        with pytest.raises(O2ODataError, match=f"{name} is not read, but it could mark the ends of episodes"):
            rows_from_flat(flat, max_episode_steps=None, origin="toy")


def test_columns_of_data_frames_hold_objects(flat: Arrays) -> None:
    expected = rows_from_flat(flat, max_episode_steps=None, origin="toy")
    column = np.empty(12, object)
    column[:] = list(flat["observations"])
    text = np.array(["a"] * 4 + ["b"] * 5 + ["c"] * 3, object)
    flat |= {"observations": column, "rewards": flat["rewards"].astype(object), "episode": text}
    rows = rows_from_flat(flat, max_episode_steps=None, origin="toy")
    np.testing.assert_array_equal(rows.observation, expected.observation)
    np.testing.assert_array_equal(rows.reward, expected.reward)
    column[3] = None
    with pytest.raises(O2ODataError, match="observations of toy"):
        rows_from_flat(flat, max_episode_steps=None, origin="toy")


@pytest.mark.parametrize(("dtype", "first"), [(np.float32, 2**24), (np.float64, 2**53)])
def test_numbers_of_episodes_that_were_rounded_are_refused(flat: Arrays, dtype: type, first: int) -> None:
    """Both numbers are the same in this type, so that two episodes were one."""
    flat |= {"terminals": np.zeros(12, bool), "timeouts": np.zeros(12, bool)}
    flat["episode"] = np.repeat([first, first + 1], 6).astype(dtype)
    with pytest.raises(O2ODataError, match=rf"episode of toy holds {first} in row 0, where float\d\d rounds whole"):
        rows_from_flat(flat, max_episode_steps=None, origin="toy")
    flat["episode"] = np.repeat([first - 2, first - 1], 6).astype(dtype)
    assert rows_from_flat(flat, max_episode_steps=None, origin="toy").lengths.tolist() == [6, 6]


@pytest.mark.parametrize("gamma", [0.9, 0.99])
def test_discounts_that_mark_nothing_or_terminals_are_no_news(flat: Arrays, gamma: float) -> None:
    expected = rows_from_flat(flat, max_episode_steps=None, origin="toy")
    for discount in (np.full(12, gamma), gamma * (1.0 - flat["terminals"])):
        rows = rows_from_flat(flat | {"discount": discount}, max_episode_steps=None, origin="toy")
        np.testing.assert_array_equal(rows.terminated, expected.terminated)
    wrong = gamma * (np.arange(12) != 1)
    with pytest.raises(O2ODataError, match="discount is not read, but it could mark the ends of episodes"):
        rows_from_flat(flat | {"discount": wrong}, max_episode_steps=None, origin="toy")


def test_the_array_that_could_say_where_episodes_end_is_named(flat: Arrays) -> None:
    ends = flat["terminals"] | flat.pop("timeouts")
    flat["episode_terminals"] = ends
    with pytest.raises(
        O2ODataError, match=r"'episode_terminals' could say it: pass names={'episode_terminals': 'ends'}"
    ):
        rows_from_flat(flat, max_episode_steps=None, origin="d3rlpy")
    rows = rows_from_flat(flat, max_episode_steps=None, origin="d3rlpy", names={"episode_terminals": "ends"})
    assert rows.lengths.tolist() == [4, 5, 3]
