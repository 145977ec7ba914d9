# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""rlpd_async.py: RLPD's learner and run folder, with actors in other processes."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.scripts import test_rlpd
from tests.scripts.phases import newest
from tests.scripts.running import compose, script_of
from torchrl_o2o.deploy import load_policy
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.record.recorder import read_metrics
from torchrl_o2o.trainers import accept_actors

pytestmark = [
    pytest.mark.filterwarnings("ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore:.*gamma.*"),
]
SHORT = (*test_rlpd.SHORT, "+env.max_episode_steps=20", "schedule.log_every=1", "recorder.tensorboard=false")


def train(folder: Path, *words: str) -> None:
    script_of("rlpd/rlpd_async").train(compose("rlpd", *SHORT, f"run_dir={folder}", *words))


def test_it_learns_counts_and_goes_on_with_other_actors(tmp_path: Path) -> None:
    train(tmp_path, "+actors=2", "+fleet.slack=4")
    collector, writer = newest(tmp_path, "collector"), newest(tmp_path, "buffer")["writer"]
    assert collector["frames"] == writer["total_written"] == 60
    learned = 40 - collector["owed"]  # 20 of the 60 transitions are random and without updates
    assert collector["version"] == newest(tmp_path, "update")["calls"] == learned
    assert -4 <= collector["owed"] <= 4
    rows = [row for row in read_metrics(tmp_path) if "train/staleness" in row]
    assert rows
    assert all(row["train/offline_share"] == 0.5 and row["train/staleness"] >= 0 for row in rows)
    assert load_policy(tmp_path / "policy.pt") is not None
    train(tmp_path, "+actors=1", "online.total_frames=60", "resume=true")
    assert newest(tmp_path, "collector") == collector, "there was nothing left to do"


def test_settings_that_a_fleet_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(O2OSpecError, match=r"got fleet\.speed, expected one of"):
        train(tmp_path, "+fleet.speed=3")
    with pytest.raises(O2OSpecError, match="got num_actors=0"):
        train(tmp_path / "other", "+actors=0")


def test_the_command_line_says_actors() -> None:
    with patch.object(sys, "argv", ["rlpd_async.py", "actors=4", "fleet.slack=5", "seed=1"]):
        accept_actors()
        assert sys.argv[1:] == ["+actors=4", "+fleet.slack=5", "seed=1"]
