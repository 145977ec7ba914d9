# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/awr.py: a few steps of both phases."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scripts.running import load_script

SHORT: dict[str, Any] = {
    "env": "Hopper-v5",
    "dataset": "o2o/hopper/linear-mix-v0",
    "offline_iterations": 1,
    "online_iterations": 1,
    "frames_per_iteration": 10,
    "critic_steps": 2,
    "actor_steps": 2,
    "batch_size": 16,
    "hidden_sizes": (8,),
    "eval_every": 1,
    "eval_episodes": 1,
}


def test_both_phases_run_and_the_width_stays(capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("examples/awr.py")
    loss = script.main(script.Config(**SHORT))
    assert all(value.isfinite().all() for value in loss.parameters())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("iteration")]
    assert [line.split(":")[0] for line in lines] == ["iteration 0", "iteration 1"]
    widths = [value for name, value in loss.state_dict().items() if name.endswith("log_std")]
    assert [value.exp().mean().item() for value in widths] == pytest.approx([0.4])
