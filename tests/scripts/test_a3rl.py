# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/a3rl.py and sota-implementations/a3rl: every priority trains, resumes, and alpha = 0 is RLPD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from tests.scripts.running import ROOT, compose, load_script
from tests.scripts.test_rlpd import Stop, stop_at, train, without_times
from torchrl_o2o.record.recorder import read_metrics

pytestmark = [
    pytest.mark.filterwarnings("ignore:No target network updater"),
    pytest.mark.filterwarnings("ignore:.*gamma.*"),
]

FOLDER = ROOT / "sota-implementations/a3rl"
PRIORITIES = sorted(path.stem for path in (FOLDER / "priority").glob("*.yaml"))
TASKS = sorted(path.stem for path in (FOLDER / "task").glob("*.yaml"))
SHORT = (
    "task=halfcheetah-linear-mix-cpu",
    "training.batch_size=16",
    "actor.hidden_sizes=[16]",
    "qvalue.hidden_sizes=[16]",
    "collector.total_frames=60",
    "collector.init_random_frames=20",
    "evaluation.num_episodes=1",
    "eval_every=60",
    "log_every=10",
    "checkpoint_every=1000",
    "advantage.num_samples=2",
    "priority_from=0",
)


def sota(tmp_path: Path, *words: str) -> tuple[Any, Any]:
    script = load_script("sota-implementations/a3rl/a3rl.py")
    return script, script.make_run(compose("a3rl", *SHORT, f"run_dir={tmp_path}", *words))


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
    script, run = sota(tmp_path, "loss.ensemble_reduction=sum", "density_optim.lr=1e-3")
    train(script, run)
    theirs = run.learner.loss.state_dict()
    for name, value in loss.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("priority", PRIORITIES)
def test_every_priority_trains(tmp_path: Path, priority: str) -> None:
    script, run = sota(tmp_path, f"priority={priority}", "collector.total_frames=70", "eval_every=70")
    before = {name: value.clone() for name, value in run.learner.loss.named_parameters()}
    train(script, run)
    assert all(not torch.equal(value, before[name]) for name, value in run.learner.loss.named_parameters())
    rows = [row for row in read_metrics(tmp_path) if "train/offline_share" in row]
    assert rows
    if priority == "online_only":
        assert {row["train/offline_share"] for row in rows} == {0.0}
    if priority == "uniform":
        assert {row["train/offline_share"] for row in rows} == {0.5}
    else:
        assert all({"train/kl_to_uniform", "train/np_q95", "train/pool_clamped"} <= set(row) for row in rows)


def test_uniform_is_rlpd(tmp_path: Path) -> None:
    """priority=uniform without density updates ends in RLPD's parameters, bit for bit."""
    script, run = sota(tmp_path / "a3rl", "priority=uniform", "density_updates=0", "+pool.misaligned_weights=false")
    rlpd = load_script("sota-implementations/rlpd/rlpd.py")
    short = [word for word in SHORT if not word.startswith(("advantage", "priority"))]
    other = rlpd.make_run(compose("rlpd", *short, f"run_dir={tmp_path / 'rlpd'}"))
    other.learner.loss.load_state_dict(run.learner.loss.state_dict())
    for each in (run, other):
        torch.manual_seed(3)
        train(script if each is run else rlpd, each)
    for name, value in run.learner.loss.state_dict().items():
        torch.testing.assert_close(value, other.learner.loss.state_dict()[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("stop", [45])
def test_resumed_equals_uninterrupted(tmp_path: Path, stop: int) -> None:
    words = (f"checkpoint_every={stop}", "log_every=1")
    script, whole = sota(tmp_path / "whole", *words)
    train(script, whole)
    script, first = sota(tmp_path / "parts", *words)
    with pytest.raises(Stop):
        train(script, first, on_save=lambda step: stop_at(step, stop))
    script, second = sota(tmp_path / "parts", *words, "resume=true")
    train(script, second)
    for part in ("learner", "density"):
        state = getattr(second, part).loss.state_dict()
        for name, value in getattr(whole, part).loss.state_dict().items():
            assert torch.equal(value, state[name]), name
    volatile = {"train/pool_clamped"}
    rows = [without_times(tmp_path / name) for name in ("whole", "parts")]
    for first_row, second_row in zip(*rows, strict=True):
        assert {k: v for k, v in first_row.items() if k not in volatile} == {
            k: v for k, v in second_row.items() if k not in volatile
        }


@pytest.mark.parametrize(
    ("task", "priority"),
    [(task, "advantage_density") for task in TASKS] + [("halfcheetah-medium", priority) for priority in PRIORITIES],
)
def test_configurations_are_read_to_the_last_leaf(task: str, priority: str) -> None:
    cfg = compose("a3rl", f"task={task}", f"priority={priority}")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert cfg.algorithm == f"a3rl-{priority}", "what a report calls it"
    text = (FOLDER / "a3rl.py").read_text() + (ROOT / "sota-implementations/rlpd/rlpd.py").read_text()
    for key, value in cfg.items():
        if key in ("task_name", "algorithm", "priority", "num_threads", "matmul_route"):  # the last two: launch()
            continue
        assert f"cfg.{key}" in text, key
        whole = any(form in text for form in (f"plain(cfg.{key})", f"plain(self.cfg.{key})"))
        if isinstance(value, DictConfig) and not whole:
            assert all(f"cfg.{key}.{leaf}" in text for leaf in value), key


def test_paper_settings() -> None:
    cfg = compose("a3rl")
    assert (cfg.qvalue.num_qvalue_nets, cfg.loss.sub_sample_len, cfg.training.utd_ratio) == (10, 2, 20)
    assert (cfg.pool.alpha, cfg.beta_start, cfg.adv_temp, cfg.pool_multiplier) == (0.3, 0.4, 1.0, 4)
    assert cfg.collector.total_frames == 300_000
    code = compose("a3rl", "priority=authors_code")
    assert (code.advantage.num_samples, code.pool_multiplier, code.density_ratio.parametrization) == (100, None, "relu")
    assert code.density_updates == 20


def test_mazes_and_hands_have_the_papers_one_setting() -> None:
    """Table 2: two layers, two members, entropy backup everywhere; rewards are shifted once."""
    tasks = [task for task in TASKS if task.startswith(("antmaze", "adroit"))]
    assert len(tasks) == 9
    for task in tasks:
        cfg, rlpd = compose("a3rl", f"task={task}"), compose("rlpd", f"task={task}")
        assert (cfg.task_name, cfg.env, cfg.dataset, cfg.reward) == (task, rlpd.env, rlpd.dataset, rlpd.reward)
        assert (list(cfg.qvalue.hidden_sizes), cfg.loss.sub_sample_len, cfg.loss.entropy_backup) == ([256] * 2, 2, True)
        assert (cfg.collector.total_frames, cfg.evaluation.num_episodes) == (300_000, 100)
