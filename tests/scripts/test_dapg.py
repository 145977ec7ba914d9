# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/dapg.py: a few iterations."""

from __future__ import annotations

import pytest

from tests.scripts.running import load_script


def test_a_few_iterations(capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("examples/dapg.py")
    short = {"iterations": 1, "episodes_per_iteration": 1, "clone_epochs": 1, "num_demos": 1, "eval_every": 1}
    settings = {"env": "Hopper-v5", "dataset": "o2o/hopper/linear-mix-v0", "eval_episodes": 1, **short}
    loss = script.main(script.Config(**settings))
    assert all(value.isfinite().all() for value in loss.actor_network_params.parameters())
    assert loss.iteration == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("iteration")]
    assert [line.split(":")[0] for line in lines] == ["iteration 0", "iteration 1"]
