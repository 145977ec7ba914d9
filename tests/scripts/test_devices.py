# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""`device=...` of the scripts: on a pretended accelerator they compute what they compute on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.on_accelerator import NETWORKS, RUNS, SMALL
from tests.scripts.running import ROOT, compose, script_of
from torchrl_o2o.trainers import launch


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What went wrong in each run, in a process of their own."""
    command = [sys.executable, "-m", "tests.scripts.on_accelerator", str(tmp_path_factory.mktemp("runs"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))


@pytest.mark.parametrize("run", RUNS)
def test_scripts_compute_the_same_on_another_device(run: str, outcomes: dict[str, str | None]) -> None:
    assert run in outcomes
    assert outcomes[run] is None, outcomes[run]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", r"got device=gpu, expected cpu, or an accelerator such as cuda"),
        ("meta", r"got device=meta, expected cpu, or an accelerator"),
        ("cuda:99", r"got device=cuda:99, but torch .* finds \d+ devices of that kind"),
        ("null", r"got device=None, expected cpu"),
    ],
)
def test_devices_that_are_not_there(device: str, message: str, tmp_path: Path) -> None:
    cfg = compose("rlpd", *SMALL, *NETWORKS, f"run_dir={tmp_path}/run", f"device={device}")
    with pytest.raises(SystemExit, match=message):
        launch(cfg, script_of("rlpd").train)
    assert not (tmp_path / "run").exists()
