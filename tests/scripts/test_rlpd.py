# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/rlpd.py and sota-implementations/rlpd/rlpd.py: one algorithm, written twice, must give one result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from tests.scripts.running import ROOT, compose, load_script, run_script
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.record.recorder import read_metrics
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.interrupt import graceful_exit

pytestmark = [
    pytest.mark.filterwarnings("ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore:.*gamma.*"),
]

TASKS = sorted(path.stem for path in (ROOT / "sota-implementations/rlpd/task").glob("*.yaml"))
ALGORITHMS = sorted(path.stem for path in (ROOT / "sota-implementations/rlpd/algorithm").glob("*.yaml"))
SHORT = (
    "task=halfcheetah-linear-mix-cpu",
    "training.batch_size=16",
    "actor.hidden_sizes=[16]",
    "qvalue.hidden_sizes=[16]",
    "collector.total_frames=60",
    "collector.init_random_frames=20",
    "evaluation.num_episodes=1",
    "eval_every=30",
    "log_every=10",
    "checkpoint_every=1000",
)


def sota(tmp_path: Path, *words: str) -> tuple[Any, Any]:
    script = load_script("sota-implementations/rlpd/rlpd.py")
    run = script.make_run(compose("rlpd", *SHORT, f"run_dir={tmp_path}", *words))
    return script, run


class Stop(Exception):
    pass


def stop_at(step: int, stop: int) -> None:
    if step == stop:
        raise Stop


def train(script: Any, run: Any, on_save: Callable[[int], None] | None = None) -> None:
    with graceful_exit() as interrupt, run.recorder:
        checkpoint = script.make_checkpointer(run)
        if on_save is not None:
            save = checkpoint.save
            checkpoint.save = lambda step: (save(step), on_save(step))
        if not (run.cfg.resume and checkpoint.restore() is not None):
            run.evaluate(-run.cfg.training.pretrain_steps)
        run.pretrain(interrupt, checkpoint)
        run.finetune(interrupt, checkpoint)
    run.collector.shutdown()


def test_twins_end_in_the_same_parameters(tmp_path: Path) -> None:
    """The example on TorchRL's collector, the script on ours: every parameter equal, bit for bit."""
    example = load_script("examples/rlpd.py")
    loss = example.main(
        example.Config(
            total_frames=60, init_random_frames=20, batch_size=16, hidden_sizes=(16,), eval_every=30, eval_episodes=1
        )
    )
    script, run = sota(tmp_path, "loss.ensemble_reduction=sum")
    train(script, run)
    theirs = run.learner.loss.state_dict()
    for name, value in loss.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_trains(tmp_path: Path, algorithm: str) -> None:
    script, run = sota(tmp_path, f"algorithm={algorithm}", "training.pretrain_steps=10", "log_every=5")
    before = {name: value.clone() for name, value in run.learner.loss.named_parameters()}
    train(script, run)
    assert all(not torch.equal(value, before[name]) for name, value in run.learner.loss.named_parameters())
    rows = read_metrics(tmp_path)
    assert rows[0]["step"] == -10
    assert rows[-1]["step"] == 60
    shares = {row["train/offline_share"] for row in rows if "train/offline_share" in row}
    expected = {"rlpd": {0.5}, "sac": {0.0}, "redq": {0.0}}
    assert shares == expected[algorithm] if algorithm in expected else all(share > 0.9 for share in shares)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_configurations_are_read_to_the_last_leaf(task: str, algorithm: str) -> None:
    """Every section is the keyword arguments of its constructor, and every other leaf stands in the script."""
    cfg = compose("rlpd", f"task={task}", f"algorithm={algorithm}")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    text = (ROOT / "sota-implementations/rlpd/rlpd.py").read_text()
    for key, value in cfg.items():
        if key in ("task_name", "algorithm", "num_threads", "matmul_route"):  # the last two: launch()
            continue
        assert f"cfg.{key}" in text, key
        whole = any(form in text for form in (f"plain(cfg.{key})", f"plain(self.cfg.{key})"))
        if isinstance(value, DictConfig) and not whole:
            assert all(f"cfg.{key}.{leaf}" in text for leaf in value), key


def test_paper_settings() -> None:
    """RLPD's Table 1 and the domains' switches (SPEC of the paper: locomotion, AntMaze, Adroit)."""
    cfg = compose("rlpd")
    assert (cfg.qvalue.num_qvalue_nets, cfg.loss.sub_sample_len, cfg.training.utd_ratio) == (10, 2, 20)
    assert (cfg.training.batch_size, cfg.optim.lr, cfg.target.tau, cfg.value_estimator.gamma) == (
        256,
        3e-4,
        0.005,
        0.99,
    )
    assert (cfg.collector.init_random_frames, cfg.offline_fraction, cfg.temperature.init) == (5000, 0.5, 1.0)
    maze = compose("rlpd", "task=antmaze-large-play")
    assert (maze.loss.sub_sample_len, maze.loss.entropy_backup, maze.reward.shift) == (1, False, -1.0)
    assert list(maze.qvalue.hidden_sizes) == [256, 256, 256]
    hand = compose("rlpd", "task=adroit-door")
    assert (hand.loss.sub_sample_len, hand.loss.entropy_backup, hand.collector.total_frames) == (2, False, 1_000_000)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    result = run_script("sota-implementations/rlpd/rlpd.py", "task=halfcheeta", cwd=tmp_path)
    assert result.returncode != 0
    assert "halfcheetah-linear-mix" in result.stderr, "the message lists what there is"
    result = run_script("sota-implementations/rlpd/rlpd.py", "trainig.utd_ratio=3", cwd=tmp_path)
    assert result.returncode != 0
    assert "trainig" in result.stderr


def test_data_of_another_environment_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises((O2OSpecError, O2ODataError), match="17"):
        sota(folder, "env.env_id=Hopper-v5")
    assert not folder.exists()


def test_capacity_below_the_batch_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(O2OSpecError, match="online slots"):
        sota(tmp_path / "run", "training.batch_size=256")
    assert not (tmp_path / "run").exists()


def without_times(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "time"} for row in read_metrics(folder)]


@pytest.mark.parametrize(("every", "stop"), [(3, 3), (5, 5), (8, 13), (40, 45)])
def test_resumed_equals_uninterrupted(tmp_path: Path, every: int, stop: int) -> None:
    """Stopped offline (3), at the hand-over (5), before the first update (13) and in mid-episode (45): bit for bit."""
    words = ("training.pretrain_steps=5", f"checkpoint_every={every}", "log_every=1")
    script, whole = sota(tmp_path / "whole", *words)
    train(script, whole)

    script, first = sota(tmp_path / "parts", *words)
    with pytest.raises(Stop):
        train(script, first, on_save=lambda step: stop_at(step, stop))

    script, second = sota(tmp_path / "parts", *words, "resume=true")
    train(script, second)
    for name, value in whole.learner.loss.state_dict().items():
        assert torch.equal(value, second.learner.loss.state_dict()[name]), name
    for key in whole.buffer.storage[:].keys(True, True):
        assert torch.equal(whole.buffer.storage[:][key], second.buffer.storage[:][key]), key
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "parts")


def test_sigterm_saves_and_prints_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*SHORT, "collector.total_frames=100000", "checkpoint_every=100000", f"run_dir={folder}"]
    command = [sys.executable, str(ROOT / "sota-implementations/rlpd/rlpd.py"), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(
        row["step"] >= 40 for row in (read_metrics(folder) if (folder / "metrics.jsonl").exists() else [])
    ):
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "resume=true" in out
    assert any(path.name.startswith("step-") for path in (folder / "checkpoints").iterdir())
    config = json.loads((folder / "run.json").read_text())["config"]
    assert config["seed"] == 0


def test_override_grammar_of_the_readme() -> None:
    """The words that README and docstrings give are valid Hydra overrides."""
    parser = OverridesParser.create()
    parser.parse_overrides(["task=halfcheetah-linear-mix", "seed=0,1,2", "algorithm=rlpd,sac"])


@pytest.mark.slow
@pytest.mark.compiler
def test_compiled_equals_written_out() -> None:
    """Algorithm 1 as it stands in the script, and compiled: the same numbers to rounding, importance weights too."""
    script, ends = load_script("sota-implementations/rlpd/rlpd.py"), []
    batch = random_transitions(4 * 16, 17, 6).set("priority_weight", torch.linspace(0.5, 1.5, 64))
    for compiled in ("false", "true"):
        torch.manual_seed(0)
        _, learner = script.make_learner(compose("rlpd", *SHORT, f"compile={compiled}"), 17, 6)
        metrics = [learner.update(batch, 16) for _ in range(5)][-1]
        ends.append(learner.loss.state_dict() | metrics)
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5)
    batch["next", "reward"][40] = float("nan")
    with pytest.raises(NonFiniteError, match="loss_qvalue"):
        learner.update(batch, 16)
