# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/rlpd.py and sota-implementations/rlpd/rlpd.py: one algorithm, written twice, must give one result."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from tests.scripts.phases import assert_equal, dying, newest
from tests.scripts.running import DOMAIN_TASKS, ROOT, TASKS, compose, load_script, run_script, script_of
from torchrl_o2o.envs import seed_everything
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.functional.diagnostics import NonFiniteError
from torchrl_o2o.record.files import read_metrics
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.algorithms import make_rlpd

pytestmark = [
    pytest.mark.filterwarnings("ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore:.*gamma.*"),
]

ALGORITHMS = sorted(path.stem for path in (ROOT / "sota-implementations/rlpd/algorithm").glob("*.yaml"))
SHORT = (
    "task=halfcheetah",
    "data=linear-mix-v0",
    "preset=cpu",
    "compile=false",
    "online.batch_size=16",
    "actor.hidden_sizes=[16]",
    "qvalue.hidden_sizes=[16]",
    "online.total_frames=60",
    "online.init_random_frames=20",
    "evaluation.num_episodes=1",
    "schedule.eval_every=30",
    "schedule.log_every=10",
    "schedule.checkpoint_every=1000",
)


def train(folder: Path, *words: str) -> None:
    script_of("rlpd").train(compose("rlpd", *SHORT, f"run_dir={folder}", *words))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_cpu_preset_keeps_what_tells_algorithms_apart(algorithm: str) -> None:
    paper, cpu = (compose("rlpd", f"algorithm={algorithm}", f"preset={preset}") for preset in ("paper", "cpu"))
    assert (cpu.loss, cpu.handover) == (paper.loss, paper.handover)
    assert cpu.qvalue.layer_norm == paper.qvalue.layer_norm == (algorithm == "rlpd")
    assert cpu.temperature.form == paper.temperature.form
    assert paper.utd_ratio == (1 if algorithm == "sac" else 20)


def test_twins_end_in_the_same_parameters(tmp_path: Path) -> None:
    """The example on TorchRL's collector, the script on ours: every parameter equal, bit for bit."""
    example = load_script("examples/rlpd.py")
    loss = example.main(
        example.Config(
            total_frames=60, init_random_frames=20, batch_size=16, hidden_sizes=(16,), eval_every=30, eval_episodes=1
        )
    )
    train(tmp_path / "run", "loss.ensemble_reduction=sum")
    theirs = newest(tmp_path / "run", "loss")
    for name, value in loss.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize(
    "algorithm",
    [each if each in ("rlpd", "sacfd") else pytest.param(each, marks=pytest.mark.slow) for each in ALGORITHMS],
)
def test_every_algorithm_trains(tmp_path: Path, algorithm: str) -> None:
    words = (f"algorithm={algorithm}", "offline.num_steps=10", "schedule.log_every=5")
    train(tmp_path / "run", *words)
    seed_everything(0)
    before = make_rlpd(compose("rlpd", *SHORT, *words), (17, 6)).loss
    after = newest(tmp_path / "run", "loss")
    trained = [name for name, value in before.named_parameters() if value.requires_grad]
    assert trained
    assert all(not torch.equal(value, after[name]) for name, value in before.state_dict().items() if name in trained)
    rows = read_metrics(tmp_path / "run")
    assert rows[0]["step"] == -10
    assert rows[-1]["step"] == 60
    shares = {row["train/offline_share"] for row in rows if "train/offline_share" in row}
    expected = {"rlpd": {0.5}, "sac": {0.0}, "redq": {0.0}}
    assert shares == expected[algorithm] if algorithm in expected else all(share > 0.9 for share in shares)


@pytest.mark.parametrize(
    ("algorithm", "task"),
    [("rlpd", task) for task in TASKS]
    + [(each, task) for each in ALGORITHMS if each != "rlpd" for task in DOMAIN_TASKS],
)
def test_configurations_are_read_to_the_last_leaf(algorithm: str, task: str) -> None:
    """Every section is the keyword arguments of its constructor, and every other leaf stands in the script."""
    cfg = compose("rlpd", f"task={task}", f"algorithm={algorithm}")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert_read(cfg, "rlpd")


def assert_read(cfg: DictConfig, script: str) -> None:
    """Every section is handed to a constructor, or each of its leaves is named."""
    files = [ROOT / f"sota-implementations/{script}/{script}.py", *(ROOT / "torchrl_o2o/trainers").rglob("*.py")]
    text = "".join(path.read_text() for path in files)
    for key, value in cfg.items():
        if key in ("task_name", "algorithm", "priority", "preset", "data", "collection"):
            continue
        assert re.search(rf"(cfg|section)\.{key}\b", text) or f'get("{key}")' in text, key
        whole = re.search(rf"plain\((cfg|section)\.{key}\)", text)
        if isinstance(value, DictConfig) and not whole:
            assert all(f"cfg.{key}.{leaf}" in text for leaf in value), key


def test_paper_settings() -> None:
    """RLPD's Table 1 and the domains' switches (SPEC of the paper: locomotion, AntMaze, Adroit)."""
    cfg = compose("rlpd")
    assert (cfg.qvalue.num_qvalue_nets, cfg.loss.sub_sample_len, cfg.utd_ratio) == (10, 2, 20)
    assert (cfg.online.batch_size, cfg.optim.lr, cfg.target.tau, cfg.value_estimator.gamma) == (
        256,
        3e-4,
        0.005,
        0.99,
    )
    assert (cfg.online.init_random_frames, cfg.handover.offline_fraction, cfg.temperature.init) == (5000, 0.5, 1.0)
    maze = compose("rlpd", "task=antmaze-large")
    assert (maze.loss.sub_sample_len, maze.loss.entropy_backup, maze.convention.reward_shift) == (1, False, -1.0)
    assert list(maze.qvalue.hidden_sizes) == [256, 256, 256]
    hand = compose("rlpd", "task=adroit-door")
    assert (hand.loss.sub_sample_len, hand.loss.entropy_backup, hand.online.total_frames) == (2, False, 1_000_000)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    result = run_script("sota-implementations/rlpd/rlpd.py", "task=halfcheeta", cwd=tmp_path)
    assert result.returncode != 0
    assert "halfcheetah" in result.stderr, "the message lists what there is"
    with pytest.raises(O2OSpecError, match="trainig"):
        compose("rlpd", "trainig=3")


def test_data_of_another_environment_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises((O2OSpecError, O2ODataError), match="17"):
        train(folder, "env.env_id=Hopper-v5")
    assert not folder.exists()


def test_capacity_below_the_batch_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(O2OSpecError, match="online slots"):
        train(tmp_path / "run", "online.batch_size=256")
    assert not (tmp_path / "run").exists()


def without_times(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "time"} for row in read_metrics(folder)]


@pytest.mark.parametrize(
    ("every", "stop"),
    [
        pytest.param(3, 3, marks=pytest.mark.slow),
        pytest.param(5, 5, marks=pytest.mark.slow),
        pytest.param(8, 13, marks=pytest.mark.slow),
        (40, 45),
    ],
)
def test_resumed_equals_uninterrupted(tmp_path: Path, every: int, stop: int) -> None:
    """Stopped offline (3), at the hand-over (5), before the first update (13) and in mid-episode (45): bit for bit."""
    words = ("offline.num_steps=5", f"schedule.checkpoint_every={every}", "schedule.log_every=1")
    train(tmp_path / "whole", *words)
    with dying("online", stop):
        train(tmp_path / "parts", *words)
    train(tmp_path / "parts", *words, "resume=true")
    for name in ("loss", "buffer", "rng", "qvalue_optim", "actor_optim", "alpha_optim"):
        assert_equal(newest(tmp_path / "whole", name), newest(tmp_path / "parts", name), name)
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "parts")


def test_sigterm_saves_and_prints_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*SHORT, "online.total_frames=100000", "schedule.checkpoint_every=100000", f"run_dir={folder}"]
    command = [sys.executable, str(ROOT / "sota-implementations/rlpd/rlpd.py"), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(
        row["step"] >= 40 for row in (read_metrics(folder) if (folder / "metrics.jsonl").exists() else [])
    ):
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "resume=true" in err
    assert any(path.name.startswith("step-") for path in (folder / "checkpoints").iterdir())
    config = json.loads((folder / "run.json").read_text())["config"]
    assert config["seed"] == 0


def test_override_grammar_of_the_readme() -> None:
    """The words that README and docstrings give are valid Hydra overrides."""
    parser = OverridesParser.create()
    parser.parse_overrides(["task=halfcheetah", "data=linear-mix-v0", "seed=0,1,2", "algorithm=rlpd,sac"])


@pytest.mark.slow
@pytest.mark.compiler
def test_compiled_equals_written_out() -> None:
    """Algorithm 1 as it stands in the script, and compiled: the same numbers to rounding, importance weights too."""
    ends = []
    batch = random_transitions(2 * 32, 17, 6).set("priority_weight", torch.linspace(0.5, 1.5, 64))
    for compiled in ("false", "true"):
        torch.manual_seed(0)
        learner = make_rlpd(compose("rlpd", *SHORT, f"compile={compiled}", "+loss.weight_actor=true"), (17, 6))
        metrics = [learner.update(batch) for _ in range(5)][-1]
        ends.append(learner.loss.state_dict() | metrics)
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5)
    batch["next", "reward"][40] = float("nan")
    with pytest.raises(NonFiniteError, match="loss_qvalue"):
        learner.update(batch)
