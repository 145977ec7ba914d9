# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""actors=N of rlpd.py, a3rl.py and awac.py: their learners and run folders, with actors in other processes."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest

from tests.scripts import phases, test_a3rl, test_rlpd
from tests.scripts.phases import dying, newest
from tests.scripts.running import ROOT, compose, load_script, script_of
from tests.trainers.test_continuing import record
from torchrl_o2o.deploy import load_policy
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.record.files import read_metrics
from torchrl_o2o.scripts import script_command
from torchrl_o2o.trainers import accept_actors, online_phase
from torchrl_o2o.trainers.algorithms import make_a3rl

pytestmark = [
    pytest.mark.filterwarnings("ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore:.*gamma.*"),
]
#: Of the data set.
ROWS = 38
FEW = ("+env.max_episode_steps=20", "schedule.log_every=1", "schedule.eval_every=60", "schedule.checkpoint_every=20")
#: Of each script that takes actors: what is short in it, and how many of its 60 transitions come without updates.
SCRIPTS = {
    "rlpd": ((*test_rlpd.SHORT, *FEW), 20),
    "a3rl": ((*test_a3rl.SHORT, *FEW), 20),
    "awac": ((*phases.SHORT, "qvalue.hidden_sizes=[16]", *FEW[1:], "online.total_frames=60"), 0),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("data") / "log.npz", steps=ROWS)


def train(script: str, folder: Path, recorded: Path, *words: str) -> None:
    source = f"dataset.source=path:{recorded}"
    script_of(script).train(compose(script, *SCRIPTS[script][0], source, f"run_dir={folder}", *words))


def check_counts(script: str, folder: Path, slack: int) -> dict[str, Any]:
    """Each transition was stored once, and updates follow them within the slack, over all restarts of the run."""
    collector, writer = newest(folder, "collector"), newest(folder, "buffer")["writer"]
    written = writer["total_written"] - (ROWS if script == "awac" else 0)  # the same writer has written the data
    assert collector["frames"] == written == 60
    assert -slack <= collector["owed"] <= slack
    learned = 60 - SCRIPTS[script][1] - collector["owed"]
    assert collector["version"] == newest(folder, "update")["calls"] == learned
    return collector


@pytest.mark.parametrize("script", ["rlpd", "a3rl", pytest.param("awac", marks=pytest.mark.slow)])
def test_it_learns_counts_and_goes_on_with_other_actors(tmp_path: Path, recorded: Path, script: str) -> None:
    with dying("online", 40):  # in the middle; the rows that were on their way are lost with it
        train(script, tmp_path, recorded, "+actors=2", "+fleet.slack=4", "schedule.checkpoint_every=40")
    train(script, tmp_path, recorded, "+actors=1", "+fleet.slack=4", "resume=true")
    collector = check_counts(script, tmp_path, 4)
    rows = [row for row in read_metrics(tmp_path) if "train/staleness" in row]
    assert rows
    assert all(row["train/staleness"] >= 0 for row in rows)
    assert script == "awac" or all(row["train/offline_share"] >= 0 for row in rows)
    pool = [row for row in rows if "train/unique_share" in row]  # where an update was made at the step that is logged
    assert pool or script != "a3rl"
    assert load_policy(tmp_path / "policy.pt") is not None
    train(script, tmp_path, recorded, "+actors=3", "resume=true")
    assert newest(tmp_path, "collector") == collector, "there was nothing left to do"


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_learner_that_is_killed_goes_on(tmp_path: Path, recorded: Path, script: str) -> None:
    """As a user runs it: killed twice at a random place, and every count is exact in the end."""
    words = ["actors=2", "fleet.slack=4", "schedule.checkpoint_every=5", "resume=true", f"run_dir={tmp_path}"]
    command = script_command(script, [*SCRIPTS[script][0], *words, f"dataset.source=path:{recorded}"])
    for goal in (12, 33):
        child = subprocess.Popen(command, cwd=ROOT)
        while not [step for step in (tmp_path / "checkpoints").glob("step-*[0-9]") if number_of(step) >= goal]:
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(random.Random(goal).random() * 0.1)
        child.kill()
        child.wait()
    subprocess.run(command, cwd=ROOT, check=True)
    check_counts(script, tmp_path, 4)


def number_of(step: Path) -> int:
    return int(step.name.split("-")[1])


def test_settings_that_do_not_fit(tmp_path: Path, recorded: Path) -> None:
    for words, said in {
        ("+fleet.speed=3", "+actors=2"): r"got fleet\.speed, expected one of",
        ("+actors=0",): "got num_actors=0",
        ("+fleet.slack=2",): "without actors; set their number, for example actors=4",
    }.items():
        with pytest.raises(O2OSpecError, match=said):
            train("rlpd", tmp_path, recorded, *words)
    cfg = compose("a3rl", *SCRIPTS["a3rl"][0], f"run_dir={tmp_path}", "+actors=4")
    with pytest.raises(O2OSpecError, match="got actors=4, this script steps a single environment; leave it out"):
        online_phase(cfg, Mock(), None, make_a3rl)


def test_the_script_whose_default_is_two_actors(tmp_path: Path) -> None:
    with patch.object(sys, "path", [str(ROOT / "sota-implementations/rlpd"), *sys.path]):
        script = load_script("sota-implementations/rlpd/rlpd_async.py")
    for words, actors in ((), 2), (("+actors=4",), 4):
        with patch.object(script, "launch") as launch:
            script.main.__wrapped__(compose("rlpd", *words))
        (cfg, function), _ = launch.call_args
        assert (cfg.actors, function.__module__, function.__name__) == (actors, "rlpd", "train")


def test_the_command_line_says_actors() -> None:
    with patch.object(sys, "argv", ["rlpd.py", "actors=4", "fleet.slack=5", "seed=1"]):
        accept_actors()
        assert sys.argv[1:] == ["+actors=4", "+fleet.slack=5", "seed=1"]
