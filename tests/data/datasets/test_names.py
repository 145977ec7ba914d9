# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import numpy as np
import pytest

from torchrl_o2o.data.datasets.names import NAMES, says_something_new


def test_no_name_means_two_things() -> None:
    aliases = [alias for names in NAMES.values() for alias in names]
    assert len(aliases) == len(set(aliases))


@pytest.mark.parametrize(
    ("name", "values", "row"),
    [
        ("done", [0, 1, 0, 1], None),  # the ends of episodes
        ("discount", [1, 0, 1, 1], None),  # 0 in terminal states
        ("step_type", [1, 2, 1, 2], None),  # dm_env's: first, mid, last
        ("episode_number", [7, 7, 8, 8], None),
        ("done", [0, 0, 1, 0], 1),
        ("step_type", [1, 1, 2, 2], 1),
    ],
)
def test_what_an_array_says_is_compared(name: str, values: list[int], row: int | None) -> None:
    terminals, ends = np.array([False, True, False, False]), np.array([False, True, False, True])
    assert says_something_new(np.array(values), name, terminals, ends, True) == row
