# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.checkpoint.folders import steps
from torchrl_o2o.checkpoint.lockstep import common_step
from torchrl_o2o.errors import O2OCheckpointError


def folders(tmp_path: Path, saved: list[list[int]]) -> list[Path]:
    """Checkpoint folders in which runs have saved these steps."""
    made = [tmp_path / str(position) for position in range(len(saved))]
    for folder, own in zip(made, saved, strict=True):
        folder.mkdir()
        counter = {"step": -1}
        checkpoint = Checkpointer(folder, objects={"counter": counter}, keep=5)
        for step in own:
            counter["step"] = step
            checkpoint.save(step)
    return made


def test_nothing_saved_is_nothing_restored(tmp_path: Path) -> None:
    assert common_step(folders(tmp_path, [[], []])) is None


def test_the_newest_common_step(tmp_path: Path) -> None:
    made = folders(tmp_path, [[1, 2, 3], [1, 2]])
    with pytest.warns(UserWarning, match="goes back from step 3 to 2"):
        assert common_step(made) == 2
    assert steps(made[0]) == steps(made[1]) == [2, 1]


def test_a_damaged_one_takes_all_back(tmp_path: Path) -> None:
    made = folders(tmp_path, [[1, 2], [1, 2], [1, 2]])
    (made[1] / "step-2" / "counter.pt").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="step-2"):
        assert common_step(made) == 1


def test_no_common_step_is_refused_and_nothing_is_set_aside(tmp_path: Path) -> None:
    made = folders(tmp_path, [[3, 4], []])
    with pytest.raises(O2OCheckpointError, match="expected a common step"):
        common_step(made)
    assert steps(made[0]) == [4, 3]


def test_a_first_round_of_saves_that_was_not_finished_begins_anew(tmp_path: Path) -> None:
    made = folders(tmp_path, [[3], [], []])
    with pytest.warns(UserWarning, match="goes back from step 3 to the start"):
        assert common_step(made) is None
    assert steps(made[0]) == []
