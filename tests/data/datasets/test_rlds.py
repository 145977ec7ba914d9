# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from torchrl_o2o.data import check_offline, load_offline
from torchrl_o2o.errors import O2ODataError


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
        ({"episode": np.arange(8) % 2}, "row 0 of episode 0 is not its last, but a row of another"),
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
