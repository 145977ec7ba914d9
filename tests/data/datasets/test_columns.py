# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from torchrl_o2o.data import check_offline, load_offline
from torchrl_o2o.data.datasets.columns import (
    NAMES,
    StoredArray,
    cast_episode,
    cast_flags,
    check_size,
    find_columns,
    joined,
)
from torchrl_o2o.errors import O2ODataError, O2OSpecError

BASE = {"observations": np.zeros((6, 2)), "actions": np.zeros((6, 1)), "rewards": np.zeros(6)}


def test_no_name_means_two_things() -> None:
    aliases = [alias for names in NAMES.values() for alias in names]
    assert len(aliases) == len(set(aliases))


@pytest.mark.parametrize(("role", "alias"), [(role, alias) for role, aliases in NAMES.items() for alias in aliases])
def test_every_name_is_read(role: str, alias: str) -> None:
    values = np.arange(12.0).reshape(6, 2) if role in ("observations", "next_observations") else np.arange(6.0)
    source = {name: array for name, array in BASE.items() if name != role} | {alias: values}
    np.testing.assert_array_equal(find_columns(source, origin="toy").arrays[role], values)


def test_stand_ins_are_read_where_nothing_else_says_the_same() -> None:
    source = BASE | {
        "masks": np.ones(6),
        "terminals": np.zeros(6),
        "episode_starts": np.zeros(6),
        "timeouts": np.ones(6),
    }
    found = find_columns(source, origin="toy")
    assert set(found.arrays) == {*BASE, "terminals", "timeouts"}
    assert set(found.doubtful) == {"masks", "episode_starts"}


def test_only_what_is_needed_is_read() -> None:
    def read() -> np.ndarray:
        raise AssertionError("it was read")

    extra = StoredArray((6, 1000), np.dtype("f4"), read)
    objects = StoredArray((6,), np.dtype(object), read)
    found = find_columns(BASE | {"pixels": extra, "episode_infos": objects}, origin="toy")
    assert found.unread == ("pixels", "episode_infos")


def test_lengths_are_compared_before_anything_is_read() -> None:
    def read() -> np.ndarray:
        raise AssertionError("it was read")

    with pytest.raises(O2ODataError, match=r"differ in length: \{'observation': 9, 'action': 6"):
        find_columns(BASE | {"observations": StoredArray((9, 2), np.dtype("f4"), read)}, origin="toy")


@pytest.mark.parametrize("name", ["rewards", "terminals", "timeouts", "episode"])
def test_several_numbers_per_step_are_not_read_in_a_row(name: str) -> None:
    """Two columns of half as many rows have as many numbers as there are steps."""
    steps = len(BASE["actions"])
    pairs, column = np.zeros((steps // 2, 2)), np.zeros((steps, 1))
    with pytest.raises(
        O2ODataError, match=rf"{name} of toy has the shape \[{steps // 2}, 2\]; expected one number per"
    ):
        find_columns(BASE | {name: pairs}, origin="toy")
    assert len(find_columns(BASE | {name: column}, origin="toy").arrays[name]) == steps


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_flags_of_any_number(dtype: type) -> None:
    assert cast_flags(np.array([[0], [1]], dtype), "x").tolist() == [False, True]


@pytest.mark.parametrize(("value", "said"), [(np.nan, "nan"), (0.3, "0.3"), (-1.0, "-1.0")])
def test_flags_that_are_none(value: float, said: str) -> None:
    with pytest.raises(O2ODataError, match=rf"x holds {said} in row 2; expected 0 or 1"):
        cast_flags([0.0, 1.0, value, value], "x")


def test_bools_of_damaged_bytes_are_bools() -> None:
    assert cast_flags(np.array([0, 1, 7], np.uint8).view(bool), "x").tolist() == [False, True, True]


def test_episode_numbers_and_names() -> None:
    assert cast_episode([[1], [2]], "x").tolist() == [1, 2]
    assert cast_episode(["a", "b"], "x").tolist() == ["a", "b"]
    with pytest.raises(O2ODataError, match="x holds inf in row 1"):
        cast_episode([0.0, np.inf], "x")


def test_sizes() -> None:
    check_size(1 << 20, 1 << 10, "x")
    check_size(2 << 30, 1 << 30, "x")
    with pytest.raises(O2ODataError, match="x is damaged: it declares 2000000 bytes in 1000"):
        check_size(2_000_000, 1_000, "x")
    with pytest.raises(O2ODataError, match="numbers do not compress like that"):
        check_size(2 << 30, 4 << 20, "x")


def test_observations_are_joined_in_the_stated_order() -> None:
    node = {"b": np.ones((2, 1)), "a": {"y": np.full(2, 3.0), "x": np.full((2, 1), 2.0)}}
    assert joined(node, ("b", "a"), "toy").tolist() == [[1, 2, 3]] * 2
    assert joined(node, None, "toy", usual=("c", "b")).tolist() == [[1]] * 2
    with pytest.raises(O2ODataError, match=r"only vectors with one row per step can be joined"):
        joined({"a": np.zeros((2, 1)), "b": np.zeros((3, 1))}, ("a", "b"), "toy")


def test_keys_of_an_observation_without_keys_are_refused() -> None:
    source = {"observations": np.zeros((4, 2)), "actions": np.zeros((4, 1)), "rewards": np.zeros(4)}
    with pytest.raises(O2OSpecError, match=r"got obs_keys=\['state'\], but observations of toy is one array"):
        find_columns(source, obs_keys=("state",), origin="toy")


def steps_of_rlds(length: int = 4) -> dict[str, Any]:
    """Two episodes as RLDS writes them: the first ends in a terminal state, the second is cut."""
    row = np.arange(2 * length)
    last = row % length == length - 1
    return {
        "observation": row[:, None].astype(np.float32),
        "action": np.where(last, 0, 0.1 * row)[:, None],
        "reward": np.where(last, 0, row + 1.0),
        "discount": np.where(row == length - 2, 0.0, 1.0),
        "is_first": row % length == 0,
        "is_last": last,
        "is_terminal": row == length - 1,
    }


@pytest.mark.parametrize("form", ["flat", "numbered", "episodes"])
def test_the_last_step_of_rlds_is_only_an_observation(form: str) -> None:
    steps = steps_of_rlds()
    episodes = [{name: values[at : at + 4] for name, values in steps.items()} for at in (0, 4)]
    numbered = steps | {"episode_id": np.repeat([3, 3], 4)}
    source: Any = {"flat": steps, "numbered": numbered, "episodes": episodes}[form]
    data = load_offline(source)
    assert data["observation"][:, 0].tolist() == [0, 1, 2, 4, 5, 6]
    assert data["next", "observation"][:, 0].tolist() == [1, 2, 3, 5, 6, 7]
    assert data["next", "reward"][:, 0].tolist() == [1, 2, 3, 5, 6, 7]
    assert data["next", "terminated"][:, 0].nonzero()[:, 0].tolist() == [2]
    assert data["next", "truncated"][:, 0].nonzero()[:, 0].tolist() == [5]
    assert "rlds" in check_offline(source).codes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reward": np.arange(8.0)}, "2 such steps have a reward, first row 3 with 3. If each row is a transition"),
        ({"is_terminal": np.arange(8) == 2}, "row 2 is terminal but not the last row of its episode"),
        ({"truncated": np.arange(8) == 7}, "and also truncated; expected one row per step and nothing else"),
        ({"episode": np.arange(8) % 2}, "row 0 of episode 0 is not its last and is followed by one of another"),
    ],
)
def test_what_only_looks_like_rlds_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(O2ODataError, match=message):
        load_offline(steps_of_rlds() | changed)


def test_rows_that_are_transitions_are_said_to_be() -> None:
    said = {"is_first": "starts", "is_last": "ends", "is_terminal": "terminals", "discount": "ignore"}
    data = load_offline(steps_of_rlds() | {"reward": np.arange(8.0)}, names=said)
    assert data["next", "reward"][:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6], "of the cut row nothing says what followed"
    assert data["next", "terminated"][:, 0].nonzero()[:, 0].tolist() == [3]


def test_tensors_that_numpy_does_not_take(flat: dict[str, np.ndarray]) -> None:
    """With gradients, in bfloat16: read as they are from a dictionary, and from TED."""
    wide = {name: torch.as_tensor(values) for name, values in flat.items()}
    tensors = {name: value.bfloat16() if value.is_floating_point() else value for name, value in wide.items()}
    tensors["rewards"] = wide["rewards"].clone().requires_grad_()
    data = load_offline(tensors)
    assert torch.equal(data["observation"], wide["observations"].bfloat16().float())
    assert torch.equal(data["next", "reward"], wide["rewards"].unsqueeze(-1))
    half = data.apply(lambda value: value.bfloat16() if value.is_floating_point() else value)
    assert torch.equal(load_offline(half)["observation"], data["observation"])
