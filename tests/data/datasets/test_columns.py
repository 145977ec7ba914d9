# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import numpy as np
import pytest

from torchrl_o2o.data.datasets.casting import StoredArray
from torchrl_o2o.data.datasets.columns import find_columns
from torchrl_o2o.data.datasets.names import NAMES
from torchrl_o2o.errors import O2ODataError, O2OSpecError

BASE = {"observations": np.zeros((6, 2)), "actions": np.zeros((6, 1)), "rewards": np.zeros(6)}


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


def test_keys_of_an_observation_without_keys_are_refused() -> None:
    source = {"observations": np.zeros((4, 2)), "actions": np.zeros((4, 1)), "rewards": np.zeros(4)}
    with pytest.raises(O2OSpecError, match=r"got obs_keys=\['state'\], but observations of toy is one array"):
        find_columns(source, obs_keys=("state",), origin="toy")
