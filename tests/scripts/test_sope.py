# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/sope.py and sota-implementations/sope/sope.py: phases, resume, one algorithm written twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.scripts.phases import assert_equal, dying, newest, rows
from tests.scripts.running import DOMAIN_TASKS, compose, load_script, script_of
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.trainers.algorithms import check_phases, make_sope

SHORT = (
    "task=halfcheetah",
    "preset=cpu",
    "compile=false",
    "actor.hidden_sizes=[16]",
    "qvalue.hidden_sizes=[16]",
    "online.total_frames=44",
    "online.init_random_frames=8",
    "online.batch_size=16",
    "phases.every=20",
    "phases.rule.max_updates=6",
    "phases.rule.check_every=2",
    "evaluation.num_episodes=1",
    "schedule.eval_every=44",
    "schedule.log_every=1",
    "schedule.checkpoint_every=1000",
)


def train(folder: Path, *words: str) -> Any:
    script_of("sope").train(compose("sope", *SHORT, f"run_dir={folder}", *words))
    return newest(folder, "loss")


def test_phases_follow_every_so_many_steps(tmp_path: Path) -> None:
    train(tmp_path)
    logged = rows(tmp_path)
    phases = {row["step"]: row["train/phase_updates"] for row in logged if "train/phase_updates" in row}
    assert phases == {20: 6.0, 40: 6.0}
    steps = {name: int(newest(tmp_path, f"{name}_optim")["state"][0]["step"]) for name in ("qvalue", "actor", "alpha")}
    assert steps["actor"] == steps["alpha"] == 44 - 8
    assert steps["qvalue"] == steps["actor"] + 2 * 6


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    words = ("schedule.checkpoint_every=13", "qvalue.dropout=0.1")
    train(tmp_path / "whole", *words)
    with dying("online", 26):
        train(tmp_path / "parts", *words)
    train(tmp_path / "parts", *words, "resume=true")
    for name in ("loss", "buffer", "rng", "qvalue_optim"):
        assert_equal(newest(tmp_path / "whole", name), newest(tmp_path / "parts", name), name)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


@pytest.mark.parametrize("algorithm", ["speq_o2o", "speq"])
def test_relatives(tmp_path: Path, algorithm: str) -> None:
    train(tmp_path, f"algorithm={algorithm}")
    assert not any("train/validation_loss" in row for row in rows(tmp_path)), "their phases are not watched"


def test_that_dropout_keeps_an_update_from_being_compiled_is_said() -> None:
    with pytest.warns(UserWarning, match=r"dropout=0\.005: this update of EnsembleSACLoss is not compiled"):
        assert not make_sope(compose("sope", "task=halfcheetah"), (3, 2)).update.compiled


WATCHED = ("phases.rule.patience=2", "phases.rule.max_updates=6", "phases.rule.check_every=2")


@pytest.mark.parametrize(
    ("words", "rows", "told"),
    [
        ("phases.held_out=2", 40, r"got phases\.held_out=2, expected a number between 0 and 1"),
        ("phases.held_out=null", 40, r"got phases\.held_out=None"),
        ("phases.rule.check_every=0", 40, "check_every=0"),
        ("online.batch_size=1", 40, r"got online\.batch_size=1, expected at least 2, of which half are offline"),
        ("online.batch_size=64", 63, "got 63 offline rows and 20 online ones at the first phase, expected 64 of one"),
        ("+online.online_capacity=15", 0, "got 0 offline rows and 15 online ones at the first phase, expected 32"),
    ],
)
def test_phases_that_cannot_be_made_are_refused_before_the_first_step(words: str, rows: int, told: str) -> None:
    with pytest.raises(O2OSpecError, match=told):
        check_phases(compose("sope", *SHORT, *WATCHED, words), rows)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("phases.every=50",), "this run makes no phase: the first one would follow step 50 .*total_frames=44"),
        (("online.init_random_frames=40",), "the first one would follow step 60 .* after the first 40 steps"),
        (("+handover.warmup_steps=41",), "the first one would follow step 60 .* after the first 40 steps"),
        (("phases.rule.patience=5",), "no phase can end early: phases.rule.patience=5, checked every 2 updates"),
        (("phases.rule.check_every=6",), "no phase can end early"),
    ],
)
def test_phases_that_never_come_or_never_end_early_are_warned_of(words: tuple[str, ...], told: str) -> None:
    with pytest.warns(UserWarning, match=told):
        check_phases(compose("sope", *SHORT, *WATCHED, *words), 40)


@pytest.mark.parametrize(
    "words", [(), ("online.init_random_frames=39",), ("+handover.warmup_steps=40",), ("phases.rule.patience=4",)]
)
def test_phases_as_they_should_be(words: tuple[str, ...], recwarn: pytest.WarningsRecorder) -> None:
    """The phase after step 40 is the last that this run can make; 4 of 6 updates are the longest wait that ends one."""
    check_phases(compose("sope", *SHORT, *WATCHED, *words), 40)
    for algorithm in ("sope", "speq_o2o", "speq"):
        for preset in ("paper", "cpu"):
            check_phases(compose("sope", f"algorithm={algorithm}", f"preset={preset}"), 1_000_000)
    assert not recwarn


def test_the_command_line_wins_over_an_algorithm(tmp_path: Path) -> None:
    """SPEQ's phases end early and its batches have the size that one writes, if one does."""
    words = ("algorithm=speq", "phases.rule.patience=2", "phases.rule.max_updates=600", "online.batch_size=4")
    train(tmp_path, *words, "schedule.checkpoint_every=44")
    logged = rows(tmp_path)
    assert any("train/validation_loss" in row for row in logged)
    assert all(row["train/phase_updates"] < 600 for row in logged if "train/phase_updates" in row)
    cfg = compose("sope", *SHORT, *words)
    assert (cfg.phases.rule.patience, cfg.online.batch_size, cfg.handover.data) == (2, 4, "none")
    assert compose("sope", "algorithm=speq", "handover.data=symmetric").handover.data == "symmetric"


def test_twins_end_in_the_same_parameters(tmp_path: Path) -> None:
    example = load_script("examples/sope.py")
    phases = {"phase_every": 20, "max_updates": 6, "check_every": 2, "patience": 100, "batch_size": 8}
    steps = {"total_frames": 44, "init_random_frames": 8, "eval_every": 44, "eval_episodes": 1}
    data = "o2o/halfcheetah/linear-medium-v0"  # the script's
    loss = example.main(example.Config(dataset=data, hidden_sizes=(16,), **phases, **steps))
    theirs = train(tmp_path)
    for name, value in loss.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_every_task_composes() -> None:
    for task in DOMAIN_TASKS:
        OmegaConf.to_container(compose("sope", f"task={task}"), resolve=True, throw_on_missing=True)


def test_published_settings() -> None:
    cfg = compose("sope")
    assert (cfg.phases.every, cfg.phases.rule.max_updates, cfg.phases.rule.patience) == (10_000, 75_000, 10_000)
    assert (cfg.phases.rule.check_every, cfg.phases.held_out, cfg.online.batch_size) == (1_000, 0.1, 512)
    assert (cfg.online.init_random_frames, cfg.online.total_frames, cfg.optim.lr) == (5_000, 300_000, 3e-4)
    assert (cfg.qvalue.num_qvalue_nets, cfg.qvalue.dropout, cfg.qvalue.layer_norm_eps) == (2, 0.005, 1e-5)
    assert (cfg.loss.actor_q, cfg.target_entropy, cfg.phases.rule.sope_code) == ("mean", None, False)
    for preset, whole in (("paper", 512), ("cpu", 256)):
        one, other, alone = (
            compose("sope", f"algorithm={name}", f"preset={preset}") for name in ("sope", "speq_o2o", "speq")
        )
        assert (one.online.batch_size, other.online.batch_size, alone.online.batch_size) == (whole, whole, whole // 2)
        assert (other.phases.rule.patience, alone.phases.rule.patience) == (None, None)
        assert (other.handover.data, alone.handover.data) == ("symmetric", "none")
