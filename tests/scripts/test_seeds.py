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

import pytest
import torch

from tests.scripts import test_a3rl, test_rlpd
from tests.scripts.running import compose, load_script, run_script
from tests.scripts.test_rlpd import without_times
from torchrl_o2o.checkpoint.folders import step_folder
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.record.recorder import read_metrics
from torchrl_o2o.record.runs import find_runs, group_runs, load_run
from torchrl_o2o.trainers.launch import load_script as load_shared

pytestmark = [
    pytest.mark.filterwarnings("ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore:.*gamma.*"),
]

# A point in a maze, whose path does not multiply rounding differences as a cheetah's does.
MAZE = (
    "task=pointmaze-medium-cpu",
    "compile=false",
    "training.utd_ratio=2",
    "eval_every=60",
    "log_every=1",
    "+env.max_episode_steps=40",
)
SHORT = {
    "rlpd": (*(word for word in test_rlpd.SHORT if not word.startswith("task")), *MAZE),
    "a3rl": (*(word for word in test_a3rl.SHORT if not word.startswith("task")), *MAZE),
}
SEEDS = (0, 1, 2)


def words(algorithm: str, folder: Path, *more: str) -> list[str]:
    return [*SHORT[algorithm], f"run_dir={folder}/seed${{seed}}", *more]


def many(algorithm: str, folder: Path, *more: str, stop: int | None = None) -> Any:
    """Train all seeds; with ``stop``, be told to at that environment step."""
    script = load_script(f"sota-implementations/{algorithm}/{algorithm}_seeds.py")
    shared = getattr(script, "rlpd_seeds", script)
    single = load_shared(algorithm)

    class Stopped(script.SeedRuns):
        def update(self, batches: list) -> dict:
            if stop is not None and self.collector.frames == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().update(batches)

    cfg = compose(algorithm, *words(algorithm, folder, f"+seeds={list(SEEDS)}", *more))
    seeds = shared.make_runs(cfg, single, Stopped)
    if stop is None:
        shared.train(seeds, single)
        return seeds
    with pytest.raises(SystemExit) as ended:
        shared.train(seeds, single)
    assert ended.value.code == 143
    return seeds


def alone(algorithm: str, folder: Path, seed: int, *more: str) -> Any:
    script = load_script(f"sota-implementations/{algorithm}/{algorithm}.py")
    run = script.make_run(compose(algorithm, *words(algorithm, folder, f"seed={seed}", *more)))
    test_rlpd.train(script, run)
    return run


def close(first: Any, second: Any, tolerance: float) -> None:
    """Parameters and rows of two runs."""
    ours, theirs = first.learner.loss.state_dict(), second.learner.loss.state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=tolerance, atol=tolerance, msg=name)
    ours, theirs = first.buffer.storage[:], second.buffer.storage[:]
    for key in ours.keys(True, True):
        torch.testing.assert_close(ours[key], theirs[key], rtol=tolerance, atol=tolerance, msg=str(key))


@pytest.mark.parametrize("algorithm", SHORT)
def test_every_seed_is_its_single_run(tmp_path: Path, algorithm: str) -> None:
    more = ("training.pretrain_steps=3",) if algorithm == "rlpd" else ()
    seeds = many(algorithm, tmp_path / "many", *more)
    for position, seed in enumerate(SEEDS[:2] if algorithm == "a3rl" else SEEDS):
        single = alone(algorithm, tmp_path / "single", seed, *more)
        close(single, seeds.runs[position], 1e-4)
        folders = [tmp_path / name / f"seed{seed}" for name in ("single", "many")]
        for ours, theirs in zip(*map(without_times, folders), strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                assert value == pytest.approx(theirs[name], rel=1e-2, abs=1e-2), (name, ours["step"])
        configs = [json.loads((folder / "run.json").read_text())["config"] for folder in folders]
        assert configs[0] == configs[1], "so that a report groups them"
        policy = torch.load(folders[1] / "policy.pt", weights_only=True)
        for name, value in single.actor.state_dict().items():
            torch.testing.assert_close(policy[name], value, rtol=1e-4, atol=1e-4)
    (group,) = group_runs([load_run(folder) for folder in find_runs([tmp_path / "many"])])
    assert [run.seed for run in group.runs] == list(SEEDS)
    assert group.label == {"a3rl": "a3rl-advantage_density"}.get(algorithm, algorithm), "not the script's name"


def equal(first: Any, second: Any, folders: list[Path]) -> None:
    for ours, theirs in zip(first.runs, second.runs, strict=True):
        for name, value in ours.learner.loss.state_dict().items():
            assert torch.equal(value, theirs.learner.loss.state_dict()[name]), name
        rows = ours.buffer.storage[:] == theirs.buffer.storage[:]
        assert bool(rows.all())
    for seed in SEEDS:
        whole, parts = (without_times(folder / f"seed{seed}") for folder in folders)
        for one, other in zip(whole, parts, strict=True):
            assert {**one, "train/pool_clamped": 0} == {**other, "train/pool_clamped": 0}


@pytest.mark.parametrize(
    ("algorithm", "stop"), [("rlpd", 45), ("a3rl", 45), ("rlpd", 0)], ids=["rlpd", "a3rl", "offline"]
)
def test_resumed_equals_uninterrupted(tmp_path: Path, algorithm: str, stop: int) -> None:
    """Told to stop in mid-episode or while training offline: bit for bit, for every seed."""
    folders = [tmp_path / "whole", tmp_path / "parts"]
    more = ("training.pretrain_steps=4",) if stop == 0 else ()
    whole = many(algorithm, folders[0], *more)
    many(algorithm, folders[1], *more, stop=stop)
    equal(whole, many(algorithm, folders[1], *more, "resume=true"), folders)


def test_compiled_each_is_its_single_run_and_resumes_bit_for_bit(tmp_path: Path, captured: list[Any]) -> None:
    folders = [tmp_path / "whole", tmp_path / "parts"]
    whole = many("rlpd", folders[0], "compile=true")
    many("rlpd", folders[1], "compile=true", stop=45)
    equal(whole, many("rlpd", folders[1], "compile=true", "resume=true"), folders)
    close(alone("rlpd", tmp_path / "single", SEEDS[1]), whole.runs[1], 1e-4)


def test_killed_while_saving_goes_back_to_the_common_step(tmp_path: Path) -> None:
    folders = [tmp_path / "whole", tmp_path / "parts"]
    whole = many("rlpd", folders[0], "checkpoint_every=20")
    many("rlpd", folders[1], "checkpoint_every=20")
    shutil.rmtree(step_folder(folders[1] / "seed1" / "checkpoints", 60))
    with pytest.warns(UserWarning, match="goes back from step 60 to 40"):
        second = many("rlpd", folders[1], "checkpoint_every=20", "resume=true")
    equal(whole, second, folders)


def test_one_of_many_goes_on_alone(tmp_path: Path) -> None:
    """The folders are single runs': rlpd.py resumes one of them."""
    many("rlpd", tmp_path / "many", stop=45)
    resumed = alone("rlpd", tmp_path / "many", 1, "resume=true")
    close(alone("rlpd", tmp_path / "single", 1), resumed, 1e-4)


def test_folders_are_checked_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(O2OSpecError, match="several seeds"):
        many("rlpd", tmp_path, f"run_dir={tmp_path}/one")
    taken = tmp_path / "seed2"
    taken.mkdir()
    (taken / "run.json").write_text("{}")
    with pytest.raises(O2OSpecError, match="seed2"):
        many("rlpd", tmp_path)
    assert not (tmp_path / "seed0").exists()


@pytest.mark.parametrize("algorithm", ["rlpd", pytest.param("a3rl", marks=pytest.mark.slow)])
def test_from_the_command_line(tmp_path: Path, algorithm: str) -> None:
    arguments = [*words(algorithm, tmp_path), "seeds=[3,4]", "collector.total_frames=40"]
    result = run_script(f"sota-implementations/{algorithm}/{algorithm}_seeds.py", *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for seed in (3, 4):
        assert read_metrics(tmp_path / f"seed{seed}")[-1]["step"] == 40
