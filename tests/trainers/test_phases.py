# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The phases as contexts: what a run of them refuses and says before it begins."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from torchrl.data import TensorDictReplayBuffer

from tests.trainers.probe import AWAC, options
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.trainers.handover import HandOver
from torchrl_o2o.trainers.phases import Finetuning
from torchrl_o2o.trainers.problem import Problem

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


@pytest.mark.parametrize(
    ("total", "how", "others", "warns"),
    [
        (20, {"warmup_steps": 21}, {}, True),
        (20, {"warmup_steps": 20}, {}, False),
        (20, {}, {"init_random_frames": 20}, True),
        (20, {}, {"init_random_frames": 19}, False),
        (20, {"data": "none"}, {"batch_size": 21}, True),
        (20, {"data": "none"}, {"batch_size": 20}, False),
    ],
)
def test_a_run_that_will_make_no_update_says_so(
    tmp_path: Path, problem: Problem, total: int, how: dict[str, Any], others: dict[str, Any], warns: bool
) -> None:
    """As the first step is looked at, not at the end; and only if it is so."""
    settings = {"handover": HandOver(**how), "total_frames": total, "batch_size": 8} | others
    phase = Finetuning(problem, AWAC(), options(tmp_path / "run"), **settings)
    updates = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, total + 1):
            phase.buffer.extend(problem.offline[:1].select(*phase.learner.keys))
            updates += phase.may_update(step)
    said = [str(each.message) for each in caught if "makes no update" in str(each.message)]
    assert len(said) == warns
    assert (updates == 0) == warns
    assert all(f"total_frames={total}" in each for each in said)


def test_a_buffer_that_never_holds_a_batch_is_refused(tmp_path: Path, problem: Problem) -> None:
    settings = {"handover": HandOver(data="none"), "total_frames": 5000, "batch_size": 1024}
    with pytest.raises(O2OSpecError, match=r"online_capacity=100, .* 100 slots .* 1024 rows of a batch"):
        Finetuning(problem, AWAC(), options(tmp_path / "run"), online_capacity=100, **settings)
    assert not (tmp_path / "run").exists()
    Finetuning(problem, AWAC(), options(tmp_path / "run"), online_capacity=1024, **settings)


@pytest.mark.parametrize(
    ("total", "warmup", "refused"),
    [(7, 0, True), (7, 7, True), (7, 8, False), (8, 0, False)],  # a run that ends in its warm-up draws nothing
)
def test_fewer_online_steps_than_a_batch_has_online_rows_are_refused_before_the_first(
    tmp_path: Path, problem: Problem, total: int, warmup: int, refused: bool
) -> None:
    how = HandOver(data="symmetric", warmup_steps=warmup)
    settings: dict[str, Any] = {"handover": how, "total_frames": total, "batch_size": 16}
    expected = pytest.raises(O2OSpecError, match=r"16 at offline_fraction=0.5 needs 8 online rows, .* 7 online slots")
    with expected if refused else nullcontext():
        Finetuning(problem, AWAC(), options(tmp_path / "run"), **settings)
    assert (tmp_path / "run").exists() is not refused


def test_files_beside_a_buffer_in_memory_are_refused(tmp_path: Path, problem: Problem) -> None:
    how, buffer = HandOver(), TensorDictReplayBuffer()
    settings: dict[str, Any] = {
        "handover": how,
        "buffer": buffer,
        "total_frames": 1,
        "batch_size": 1,
        "scratch_dir": tmp_path / "a",
    }
    with pytest.raises(O2OSpecError, match="a buffer whose rows are in memory; leave it out"):
        Finetuning(problem, AWAC(), options(tmp_path / "run"), **settings)
