# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from torchrl_o2o.data import load_offline
from torchrl_o2o.data.datasets.tables import csv_arrays
from torchrl_o2o.errors import O2ODataError


@pytest.mark.parametrize("form", ["obs_{}", "obs.{}", "obs[{}]", "obs{}"])
@pytest.mark.parametrize("first", [0, 1])
def test_numbered_columns_are_one_array_in_order(tmp_path: Path, form: str, first: int) -> None:
    names = [form.format(number) for number in (first + 1, first, first + 2)]
    path = tmp_path / "log.csv"
    path.write_text(",".join([*names, "reward"]) + "\n1,2,3,0.5\n4,5,6,\n")
    arrays = csv_arrays(path)
    assert arrays["obs"].tolist() == [[2, 1, 3], [5, 4, 6]]
    assert arrays["reward"][0] == 0.5
    assert arrays["reward"][1] != arrays["reward"][1], "an empty cell is NaN"


def test_a_table_without_names_is_told(tmp_path: Path) -> None:
    """Its first row was taken for names, whose digits were the numbers of columns."""
    path = tmp_path / "log.csv"
    path.write_text("0.1420,1.5,0\n0.3,1.2,1\n")
    with pytest.raises(O2ODataError, match="line 1: the first line holds numbers, not names; expected a line of names"):
        csv_arrays(path)


def test_words_are_flags(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("done\nTrue\nfalse\n")
    assert csv_arrays(tmp_path / "log.csv")["done"].tolist() == [1, 0]


@pytest.mark.parametrize("first", [2**60, 2**63, -(2**60)])
def test_whole_numbers_keep_their_digits(tmp_path: Path, first: int) -> None:
    """As float64 both were one number, and so two episodes were one."""
    path = tmp_path / "log.csv"
    path.write_text(f"episode,obs_0,obs_1\n{first},1,2\n{first + 1},3,4\n{first + 1}.0,5,6\n".replace(".0", ""))
    arrays = csv_arrays(path)
    assert arrays["episode"].tolist() == [first, first + 1, first + 1]
    assert arrays["obs"].dtype == np.float64


def test_texts_name_episodes(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("episode,time,obs,action,reward\n" + "".join(f"run {i // 3},12:0{i},{i},0.5,1\n" for i in range(6)))
    with pytest.warns(UserWarning, match="time: arrays with one row per step that are not read"):
        data = load_offline(path)
    assert data["episode"].tolist() == [0, 0, 1, 1]


def test_numbers_in_other_names_do_not_make_a_table_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("obs_0,obs_1,joint_7,lidar,lidar90\n1,2,3,4,5\n6,7,8,9,10\n")
    arrays = csv_arrays(path)
    assert {name: values.tolist() for name, values in arrays.items()} == {
        "obs": [[1, 2], [6, 7]], "joint_7": [3, 8], "lidar": [4, 9], "lidar90": [5, 10],
    }  # fmt: skip
