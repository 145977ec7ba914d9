# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""N folders of checkpoints come back at one step or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.checkpoint.folders import steps
from torchrl_o2o.errors import O2OCheckpointError
from torchrl_o2o.seeds import AgentCheckpointer, RandomStream, restore_together


def agents(tmp_path: Path, saved: list[list[int]]) -> tuple[list[AgentCheckpointer], list[dict[str, int]]]:
    """New agents on folders in which agents before them have saved these steps."""
    made, counters = [], []
    for position, own in enumerate(saved):
        for fresh in (False, True):
            counter = {"step": -1}
            checkpoint = Checkpointer(tmp_path / str(position), objects={"counter": counter}, keep=5)
            agent = AgentCheckpointer(checkpoint, RandomStream(), lambda: None)
            for step in () if fresh else own:
                counter["step"] = step
                agent.save(step)
        made.append(agent)
        counters.append(counter)
    return made, counters


def test_nothing_saved_is_nothing_restored(tmp_path: Path) -> None:
    assert restore_together(agents(tmp_path, [[], []])[0]) is None


def test_the_newest_common_step(tmp_path: Path) -> None:
    made, counters = agents(tmp_path, [[1, 2, 3], [1, 2]])
    with pytest.warns(UserWarning, match="goes back from step 3 to 2"):
        assert restore_together(made) == 2
    assert counters == [{"step": 2}, {"step": 2}]
    for agent in made:
        agent.save(3)
    assert steps(tmp_path / "0") == steps(tmp_path / "1") == [3, 2, 1]


def test_a_damaged_one_takes_all_back(tmp_path: Path) -> None:
    made, counters = agents(tmp_path, [[1, 2], [1, 2], [1, 2]])
    (tmp_path / "1" / "step-2" / "counter.pt").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="step-2"):
        assert restore_together(made) == 1
    assert counters == [{"step": 1}] * 3


def test_no_common_step_is_refused_and_nothing_is_set_aside(tmp_path: Path) -> None:
    made, _ = agents(tmp_path, [[3, 4], []])
    with pytest.raises(O2OCheckpointError, match="no valid checkpoint of one step"):
        restore_together(made)
    assert steps(tmp_path / "0") == [4, 3]


def test_each_agent_gets_its_own_random_state_back(tmp_path: Path) -> None:
    made, _ = agents(tmp_path, [[], []])
    for seed, agent in enumerate(made):
        agent.stream.generator.manual_seed(seed)
        agent.save(1)
    expected = [torch.rand(3, generator=agent.stream.generator) for agent in made]
    restored, _ = agents(tmp_path, [[], []])
    assert restore_together(restored) == 1
    for agent, numbers in zip(restored, expected, strict=True):
        assert torch.equal(torch.rand(3, generator=agent.stream.generator), numbers)


def test_before_save_comes_first(tmp_path: Path) -> None:
    counter = {"step": 0}
    checkpoint = Checkpointer(tmp_path, objects={"counter": counter})
    AgentCheckpointer(checkpoint, RandomStream(), lambda: counter.update(step=7)).save(1)
    counter["step"] = 0
    Checkpointer(tmp_path, objects={"counter": counter}).restore()
    assert counter["step"] == 7


@pytest.mark.parametrize("saved", [[[4], [], []], [[4], [4], []]])
def test_killed_in_the_first_round_of_saves_all_start_afresh(tmp_path: Path, saved: list[list[int]]) -> None:
    made, counters = agents(tmp_path, saved)
    with pytest.warns(UserWarning, match="goes back from step 4 to the start"):
        assert restore_together(made) is None
    assert counters == [{"step": -1}] * 3
    for agent in made:
        agent.save(4)
    assert restore_together(agents(tmp_path, [[], [], []])[0]) == 4
