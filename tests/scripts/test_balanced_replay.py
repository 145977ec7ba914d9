# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest

from tests.scripts.running import ROOT, load_script


@pytest.mark.parametrize("num_agents", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_example_runs_for_a_few_frames(num_agents: int, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("examples/balanced_replay.py")
    cfg = script.Config(
        num_agents=num_agents,
        offline_steps=3,
        total_frames=60,
        frames_per_epoch=20,
        first_epoch_factor=2,
        batch_size=16,
        hidden_sizes=(8, 8),
        eval_every=40,
        eval_episodes=1,
    )
    loss = script.main(cfg)
    assert loss.num_pairs == num_agents
    assert all(value.isfinite().all() for value in loss.parameters())
    lines = capsys.readouterr().out.splitlines()
    expected = [f"agent {k}, offline" for k in range(num_agents)] + ["ensemble, offline", "step 40, offline share"]
    assert [line for line in lines if "return" in line] == lines
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))


def test_example_is_short() -> None:
    assert len((ROOT / "examples/balanced_replay.py").read_text().splitlines()) <= 120
