# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""rlpd_seeds.py and a3rl_seeds.py: each of many seeds is its single run, resumes, and reports as one."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.scripts import test_a3rl, test_rlpd
from tests.scripts.phases import assert_equal, dying, newest
from tests.scripts.running import compose, run_script, script_of
from tests.scripts.test_rlpd import without_times
from torchrl_o2o.checkpoint.folders import step_folder
from torchrl_o2o.deploy import load_policy
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.record.files import read_metrics
from torchrl_o2o.record.runs import find_runs, group_runs, load_run
from torchrl_o2o.trainers import Seeds

pytestmark = [
    pytest.mark.filterwarnings("ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore:.*gamma.*"),
]

# A point in a maze, whose path does not multiply rounding differences as a cheetah's does.
MAZE = (
    "task=pointmaze-medium",
    "preset=cpu",
    "compile=false",
    "utd_ratio=2",
    "schedule.eval_every=60",
    "schedule.log_every=1",
    "+env.max_episode_steps=40",
)
SHORT = {
    "rlpd": (*(word for word in test_rlpd.SHORT if not word.startswith(("task", "data", "preset"))), *MAZE),
    "a3rl": (*(word for word in test_a3rl.SHORT if not word.startswith(("task", "data", "preset"))), *MAZE),
}
SEEDS = (0, 1, 2)


def words(algorithm: str, folder: Path, *more: str) -> list[str]:
    return [*SHORT[algorithm], f"run_dir={folder}/seed${{seed}}", *more]


def many(algorithm: str, folder: Path, *more: str, stop: int | None = None) -> None:
    """Train all seeds; with ``stop``, be told to at that environment step."""
    script = script_of(f"{algorithm}/{algorithm}_seeds")
    cfg = compose(algorithm, *words(algorithm, folder, f"+seeds={list(SEEDS)}", *more))
    learn = Seeds.learn

    def stopping(self: Seeds, update: Any, batches: Any) -> Any:
        if self.runs[0].collector.frames == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(self, update, batches)

    if stop is None:
        script.train(cfg)
        return
    with patch.object(Seeds, "learn", stopping), pytest.raises(SystemExit) as ended:
        script.train(cfg)
    assert ended.value.code == 143


def alone(algorithm: str, folder: Path, seed: int, *more: str) -> None:
    script_of(algorithm).train(compose(algorithm, *words(algorithm, folder, f"seed={seed}", *more)))


def close(first: Path, second: Path, tolerance: float) -> None:
    """Parameters of two runs."""
    ours, theirs = newest(first, "loss"), newest(second, "loss")
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(theirs[name], value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("algorithm", ["rlpd", pytest.param("a3rl", marks=pytest.mark.slow)])
def test_every_seed_is_its_single_run(tmp_path: Path, algorithm: str) -> None:
    more = ("offline.num_steps=3",) if algorithm == "rlpd" else ()
    many(algorithm, tmp_path / "many", *more)
    for seed in SEEDS[:2] if algorithm == "a3rl" else SEEDS:
        alone(algorithm, tmp_path / "single", seed, *more)
        folders = [tmp_path / name / f"seed{seed}" for name in ("single", "many")]
        close(*folders, 1e-4)
        for ours, theirs in zip(*map(without_times, folders), strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                assert value == pytest.approx(theirs[name], rel=1e-2, abs=1e-2), (name, ours["step"])
        configs = [json.loads((folder / "run.json").read_text())["config"] for folder in folders]
        assert configs[0] == configs[1], "so that a report groups them"
        actors = [load_policy(folder) for folder in folders]
        for ours, theirs in zip(*(actor.state_dict().values() for actor in actors), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    (group,) = group_runs([load_run(folder) for folder in find_runs([tmp_path / "many"])])
    assert [run.seed for run in group.runs] == list(SEEDS)
    assert group.label == {"a3rl": "a3rl-advantage_density"}.get(algorithm, algorithm), "not the script's name"


def equal(whole: Path, parts: Path) -> None:
    """Parameters, rows, random numbers and logs of all seeds, bit for bit."""
    for seed in SEEDS:
        folders = [whole / f"seed{seed}", parts / f"seed{seed}"]
        for name in ("loss", "buffer", "rng"):
            assert_equal(newest(folders[0], name), newest(folders[1], name), name)
        for one, other in zip(*map(without_times, folders), strict=True):
            assert {**one, "train/pool_clamped": 0} == {**other, "train/pool_clamped": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "stop"),
    [("rlpd", 45), ("a3rl", 45), ("rlpd", 0)],
    ids=["rlpd", "a3rl", "offline"],
)
def test_resumed_equals_uninterrupted(tmp_path: Path, algorithm: str, stop: int) -> None:
    """Told to stop in mid-episode or while training offline: bit for bit, for every seed."""
    more = ("offline.num_steps=4",) if stop == 0 else ()
    many(algorithm, tmp_path / "whole", *more)
    many(algorithm, tmp_path / "parts", *more, stop=stop)
    many(algorithm, tmp_path / "parts", *more, "resume=true")
    equal(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_compiled_each_is_its_single_run_and_resumes_bit_for_bit(tmp_path: Path, captured: list[Any]) -> None:
    many("rlpd", tmp_path / "whole", "compile=true")
    many("rlpd", tmp_path / "parts", "compile=true", stop=45)
    many("rlpd", tmp_path / "parts", "compile=true", "resume=true")
    equal(tmp_path / "whole", tmp_path / "parts")
    alone("rlpd", tmp_path / "single", SEEDS[1])
    close(tmp_path / "single" / "seed1", tmp_path / "whole" / "seed1", 1e-4)


def test_killed_while_saving_goes_back_to_the_common_step(tmp_path: Path) -> None:
    every = "schedule.checkpoint_every=20"
    many("rlpd", tmp_path / "whole", every)
    many("rlpd", tmp_path / "parts", every)
    shutil.rmtree(step_folder(tmp_path / "parts" / "seed1" / "checkpoints", 60))
    with pytest.warns(UserWarning, match="goes back from step 60 to 40"):
        many("rlpd", tmp_path / "parts", every, "resume=true")
    equal(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_killed_in_the_first_round_of_saves_begins_anew(tmp_path: Path) -> None:
    every = "schedule.checkpoint_every=40"
    many("rlpd", tmp_path / "whole", every)
    with dying("online", 40):
        many("rlpd", tmp_path / "parts", every)
    assert [bool(list((tmp_path / f"parts/seed{seed}/checkpoints").glob("step-*"))) for seed in SEEDS] == [
        True,
        False,
        False,
    ]
    with pytest.warns(UserWarning, match="goes back from step 40 to the start"):
        many("rlpd", tmp_path / "parts", every, "resume=true")
    equal(tmp_path / "whole", tmp_path / "parts")


def test_one_of_many_goes_on_alone(tmp_path: Path) -> None:
    """The folders are single runs': rlpd.py resumes one of them."""
    many("rlpd", tmp_path / "many", stop=45)
    alone("rlpd", tmp_path / "many", 1, "resume=true")
    alone("rlpd", tmp_path / "single", 1)
    close(tmp_path / "single" / "seed1", tmp_path / "many" / "seed1", 1e-4)


def test_folders_are_checked_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(O2OSpecError, match="several seeds"):
        many("rlpd", tmp_path, f"run_dir={tmp_path}/one")
    taken = tmp_path / "seed2"
    taken.mkdir()
    (taken / "run.json").write_text("{}")
    with pytest.raises(O2OSpecError, match="seed2"):
        many("rlpd", tmp_path)
    assert not (tmp_path / "seed0").exists()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rlpd", "a3rl"])
def test_from_the_command_line(tmp_path: Path, algorithm: str) -> None:
    arguments = [*words(algorithm, tmp_path), "seeds=[3,4]", "online.total_frames=40"]
    result = run_script(f"sota-implementations/{algorithm}/{algorithm}_seeds.py", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for seed in (3, 4):
        assert read_metrics(tmp_path / f"seed{seed}")[-1]["step"] == 40
