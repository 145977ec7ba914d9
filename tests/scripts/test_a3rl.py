# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/a3rl.py and sota-implementations/a3rl: every priority trains, resumes, and alpha = 0 is RLPD."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from omegaconf import OmegaConf

from tests.scripts.phases import assert_equal, dying, newest
from tests.scripts.running import ROOT, TASKS, compose, load_script, script_of
from tests.scripts.test_rlpd import assert_read, without_times
from torchrl_o2o.data import Convention, PoolSampler
from torchrl_o2o.envs import seed_everything
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.record.files import read_metrics
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers import Problem
from torchrl_o2o.trainers.algorithms import anneal_pool, make_a3rl, make_pool, make_rlpd

pytestmark = [
    pytest.mark.filterwarnings("ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore:.*gamma.*"),
]

FOLDER = ROOT / "sota-implementations/a3rl"
PRIORITIES = sorted(path.stem for path in (FOLDER / "priority").glob("*.yaml"))
#: The others are trained by the slow tests.
FEW = ("advantage_density", "authors_code", "uniform")
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
    "schedule.eval_every=60",
    "schedule.log_every=10",
    "schedule.checkpoint_every=1000",
    "advantage.num_samples=2",
    "priority_from=0",
)


def train(folder: Path, *words: str) -> None:
    script_of("a3rl").train(compose("a3rl", *SHORT, f"run_dir={folder}", *words))


def test_twins_end_in_the_same_parameters(tmp_path: Path) -> None:
    """The example on TorchRL's collector, the script on ours: every parameter equal, bit for bit."""
    example = load_script("examples/a3rl.py")
    loss = example.main(
        example.Config(
            total_frames=60,
            init_random_frames=20,
            batch_size=16,
            hidden_sizes=(16,),
            num_samples=2,
            eval_every=60,
            eval_episodes=1,
        )
    )
    train(tmp_path / "run", "loss.ensemble_reduction=sum", "density_optim.lr=1e-3")
    theirs = newest(tmp_path / "run", "loss")
    for name, value in loss.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("word", ["handover.data=none", "+online.online_capacity=30"])
def test_another_buffer_is_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(O2OSpecError, match="A3RL's pool holds all"):
        train(tmp_path / "run", word)


def test_rows_in_files_train_the_same_networks(tmp_path: Path) -> None:
    train(tmp_path / "memory")
    train(tmp_path / "files", f"+online.scratch_dir={tmp_path}/scratch")
    assert (tmp_path / "scratch" / "observation.memmap").exists()
    assert_equal(newest(tmp_path / "memory", "loss"), newest(tmp_path / "files", "loss"), "loss")


@pytest.mark.parametrize(
    "priority",
    [each if each in FEW else pytest.param(each, marks=pytest.mark.slow) for each in PRIORITIES],
)
def test_every_priority_trains(tmp_path: Path, priority: str) -> None:
    words = (f"priority={priority}", "online.total_frames=70", "schedule.eval_every=70")
    train(tmp_path, *words)
    seed_everything(0)
    before = make_a3rl(compose("a3rl", *SHORT, *words), (17, 6)).loss
    after, state = newest(tmp_path, "loss"), before.state_dict()
    trained = [name for name, value in before.named_parameters() if value.requires_grad]
    assert trained
    assert all(not torch.equal(state[name], after[name]) for name in trained)
    rows = [row for row in read_metrics(tmp_path) if "train/offline_share" in row]
    assert rows
    if priority == "online_only":
        assert {row["train/offline_share"] for row in rows} == {0.0}
    if priority == "uniform":
        assert {row["train/offline_share"] for row in rows} == {0.5}
    else:
        assert all({"train/kl_to_uniform", "train/np_q95", "train/pool_clamped"} <= set(row) for row in rows)


def test_uniform_is_rlpd(tmp_path: Path) -> None:
    """priority=uniform without density updates ends in RLPD's parameters, up to the rounding of weights of one."""
    short = [word for word in SHORT if not word.startswith(("advantage", "priority"))]
    ends = []
    for name, make in (("a3rl", make_a3rl), ("rlpd", make_rlpd)):
        words = ("priority=uniform", "density_updates=0") if name == "a3rl" else ()
        with patch.object(script_of(name), f"make_{name}", seeded_again(make)):
            cfg = compose(name, *(SHORT if name == "a3rl" else short), f"run_dir={tmp_path / name}", *words)
            script_of(name).train(cfg)
        ends.append(newest(tmp_path / name, "loss"))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-6, atol=1e-7, msg=name)


def seeded_again(make: Callable[..., Any]) -> Callable[..., Any]:
    """The density ratio's initialization takes random numbers; both runs continue from the same state."""

    def made(*arguments: Any) -> Any:
        learner = make(*arguments)
        torch.manual_seed(3)
        return learner

    return made


def exponents(*words: str, without: tuple[str, ...] = ()) -> list[float]:
    """alpha of each step of a run, whose configuration lacks some settings."""
    whole = compose("a3rl", *SHORT, *words)
    cfg = OmegaConf.masked_copy(whole, [key for key in whole if key not in without])
    made = make_a3rl(cfg, (3, 2))
    rows = random_transitions(100, 3, 2)
    buffer = make_pool(cfg, Problem({"env_id": "Pendulum-v1"}, rows, Convention().fit(rows)), made)
    out = []
    for step in range(1, 61):
        anneal_pool(cfg, buffer, step)
        assert isinstance(buffer.sampler, PoolSampler)
        out.append(buffer.sampler.alpha)
    return out


def authors_exponent(step: int, start: int, final_p: float, turns: tuple[int, int] | None) -> float:
    """As train_finetuning_all.py has it for i = step - 1; it begins behind i = start, one step later."""
    i, alpha = step - 1, 0.3
    if turns is not None and not 0 <= i % (turns[0] + turns[1]) <= turns[0] - 1:
        return 0.0
    return alpha + (i - start) / (60 - start) * (alpha * final_p - alpha) if i >= start else 0.0


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("turns", [None, (2, 3), (1, 1)])
@pytest.mark.parametrize("final_p", [1.0, 0.5, 0.0])
def test_alpha_is_the_authors(start: int, turns: tuple[int, int] | None, final_p: float) -> None:
    words = [f"priority_from={start}"]
    words += [] if final_p == 1.0 else [f"alpha_final={0.3 * final_p}"]
    words += [] if turns is None else [f"alternate=[{turns[0]},{turns[1]}]"]
    expected = [authors_exponent(step, start, final_p, turns) for step in range(1, 61)]
    assert exponents(*words) == pytest.approx(expected)


@pytest.mark.parametrize("start", [0, 3])
def test_the_first_step_by_score(start: int) -> None:
    """i = start, for i = step - 1: by default the very first. The authors' code has i > start."""
    assert exponents(f"priority_from={start}")[: start + 1] == [0.0] * start + [0.3]


@pytest.mark.parametrize("word", ["alternate=[5]", "alternate=[5,0]", "alternate=[0.5,1]", "alpha_final=-0.1"])
def test_schedules_that_are_none_are_refused(word: str) -> None:
    with pytest.raises(O2OSpecError, match=word.partition("=")[0]):
        exponents(word)


def test_a_run_of_an_earlier_version_continues() -> None:
    assert exponents(without=("alternate", "alpha_final")) == [0.3] * 60


def test_by_turns_rows_are_scored_and_uniform(tmp_path: Path) -> None:
    """The pool's metrics are logged in steps by score alone; the ratio learns in all."""
    train(tmp_path, "alternate=[2,1]", "schedule.log_every=1", "online.total_frames=32")
    rows = [row for row in read_metrics(tmp_path) if "train/loss_qvalue" in row]
    assert all("train/loss_density_ratio" in row for row in rows)
    scored = {int(row["step"]): "train/kl_to_uniform" in row for row in rows}
    assert len(scored) > 8
    assert scored == {step: (step - 1) % 3 < 2 for step in scored}


@pytest.mark.parametrize("stop", [45])
def test_resumed_equals_uninterrupted(tmp_path: Path, stop: int) -> None:
    words = (f"schedule.checkpoint_every={stop}", "schedule.log_every=1")
    train(tmp_path / "whole", *words)
    with dying("online", stop):
        train(tmp_path / "parts", *words)
    train(tmp_path / "parts", *words, "resume=true")
    for name in ("loss", "density_ratio_loss", "density_ratio_optim", "rng"):
        assert_equal(newest(tmp_path / "whole", name), newest(tmp_path / "parts", name), name)
    volatile = {"train/pool_clamped"}
    rows = [without_times(tmp_path / name) for name in ("whole", "parts")]
    for first_row, second_row in zip(*rows, strict=True):
        assert {k: v for k, v in first_row.items() if k not in volatile} == {
            k: v for k, v in second_row.items() if k not in volatile
        }


@pytest.mark.parametrize(
    ("task", "priority"),
    [(task, "advantage_density") for task in TASKS] + [("halfcheetah", priority) for priority in PRIORITIES],
)
def test_configurations_are_read_to_the_last_leaf(task: str, priority: str) -> None:
    cfg = compose("a3rl", f"task={task}", f"priority={priority}")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert cfg.algorithm == f"a3rl-{priority}", "what a report calls it"
    assert_read(cfg, "a3rl")


def test_paper_settings() -> None:
    cfg = compose("a3rl")
    assert (cfg.qvalue.num_qvalue_nets, cfg.loss.sub_sample_len, cfg.utd_ratio) == (10, 2, 20)
    assert (cfg.pool.alpha, cfg.beta_start, cfg.adv_temp, cfg.pool_multiplier) == (0.3, 0.4, 1.0, 4)
    assert cfg.online.total_frames == 300_000
    code = compose("a3rl", "priority=authors_code")
    assert (code.advantage.num_samples, code.pool_multiplier, code.density_ratio.parametrization) == (100, None, "relu")
    assert code.density_updates == 20


def test_mazes_and_hands_have_the_papers_one_setting() -> None:
    """Table 2: two layers, two members, entropy backup everywhere; rewards are shifted once."""
    tasks = [task for task in TASKS if task.startswith(("antmaze", "adroit"))]
    assert len(tasks) == 7
    for task in tasks:
        cfg, rlpd = compose("a3rl", f"task={task}"), compose("rlpd", f"task={task}")
        assert (cfg.task_name, cfg.env, cfg.dataset) == (rlpd.task_name, rlpd.env, rlpd.dataset)
        if task == "adroit-pen-dense":  # where RLPD has no settings
            continue
        assert cfg.convention == rlpd.convention
        assert (list(cfg.qvalue.hidden_sizes), cfg.loss.sub_sample_len, cfg.loss.entropy_backup) == ([256] * 2, 2, True)
        assert (cfg.online.total_frames, cfg.evaluation.num_episodes) == (300_000, 100)
