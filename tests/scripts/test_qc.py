# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""sota-implementations/qc/qc.py and examples/qc.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels import without_kernels
from tests.scripts.compiling import assert_compiled_equals_written_out
from tests.scripts.phases import SHORT, PhasesContract, newest, rows
from tests.scripts.running import compose, load_script, script_of
from torchrl_o2o.deploy import load_policy
from torchrl_o2o.modules import chunk_length
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.algorithms import make_qc

ALGORITHMS = ("fql", "fql_n", "qc_fql", "bfn", "bfn_n", "qc", "rlpd_ac", "qc_rlpd")
SMALL = ("hidden_sizes=[16]", "phases.flow.warmup=0", "phases.rlpd.random=4")


class TestQC(PhasesContract):
    script = "qc"
    words = (*SMALL, "algorithm=qc_fql")
    optims = ("actor", "flow", "qvalue")


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "qc_fql"])
def test_every_variant_runs(algorithm: str, tmp_path: Path) -> None:
    cfg = compose("qc", *SHORT, *SMALL, f"algorithm={algorithm}", f"run_dir={tmp_path}", "variants.qc.num_samples=2")
    script_of("qc").train(cfg)
    logged = rows(tmp_path)
    assert logged[-1]["step"] == 24
    assert any("train/loss_qvalue" in row for row in logged)
    assert (tmp_path / "offline").exists() == (not algorithm.endswith(("_ac", "_rlpd")))
    acted = 1 if algorithm in ("fql", "fql_n", "bfn", "bfn_n") else 5
    assert chunk_length(load_policy(tmp_path)) == acted


@pytest.mark.filterwarnings("ignore:.*gamma.*")
@pytest.mark.parametrize("phase", ["offline", "online"])
def test_twins_end_in_the_same_parameters(phase: str, tmp_path: Path) -> None:
    """The example and the script: every parameter equal, bit for bit, after either phase alone."""
    updates, frames = (6, 1) if phase == "offline" else (0, 24)
    example = load_script("examples/qc.py")
    world = {"env": "HalfCheetah-v5", "dataset": "o2o/halfcheetah/linear-medium-v0", "reward_shift": 0.0}
    shape = {"hidden_sizes": (16,), "num_samples": 2, "flow_steps": 2, "batch_size": 16, "warmup_steps": 4}
    steps = {"offline_steps": updates, "total_frames": frames, "eval_every": 24, "eval_episodes": 1, "tau": 0.005}
    loss = example.main(example.Config(**world, **shape, **steps))
    small = ("hidden_sizes=[16]", "variants.qc.num_samples=2", "loss.best_of_n.flow_steps=2", "phases.flow.warmup=4")
    words = (f"offline.num_steps={updates}", f"online.total_frames={frames}", "~env.max_episode_steps")
    script_of("qc").train(compose("qc", *SHORT, *small, *words, "schedule.eval_every=24", f"run_dir={tmp_path}"))
    theirs = newest(tmp_path if phase == "online" else tmp_path / "offline", "loss")
    for name, value in loss.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("algorithm", ["fql", "qc", "qc_rlpd"])
def test_compiled_equals_written_out(algorithm: str) -> None:
    def learner(compiled: bool) -> Any:
        torch.manual_seed(0)
        words = (f"algorithm={algorithm}", f"compile={compiled}", "horizon=2", "variants.qc.num_samples=2")
        return make_qc(compose("qc", "preset=cpu", *SMALL, *words), (3, 1))

    batch = random_transitions(16, 3, 2)  # chunks of two actions
    with without_kernels():
        assert_compiled_equals_written_out(learner, batch, 3)


def test_the_weight_of_the_distillation_may_be_another_one_online() -> None:
    cfg = compose("qc", "algorithm=fql", "preset=cpu", *SMALL, "compile=false", "alpha_online=3")
    assert make_qc(cfg, (3, 1)).loss.alpha.item() == 10
    assert make_qc(cfg, (3, 1), online=True).loss.alpha.item() == 3


def test_published_settings() -> None:
    """Park et al. 2025; Li et al. 2025; the authors' codes."""
    cfg = compose("qc")
    assert (cfg.policy, cfg.horizon, cfg.loss.best_of_n.num_samples, cfg.handover.warmup_steps) == (
        *("best_of_n", 5, 32, 5_000),
    )
    assert (list(cfg.hidden_sizes), cfg.optim.lr, cfg.target.tau, cfg.offline.num_steps) == (
        [512] * 4,
        3e-4,
        5e-3,
        10**6,
    )
    fql = compose("qc", "algorithm=fql")
    assert (fql.policy, fql.horizon, fql.handover.data, fql.loss.one_step.flow_steps) == ("one_step", 1, "all", 10)
    assert compose("qc", "algorithm=bfn").loss.best_of_n.num_samples == 4
    rlpd = compose("qc", "algorithm=qc_rlpd")
    assert (rlpd.pretrain, rlpd.handover.data, rlpd.online.init_random_frames) == (False, "symmetric", 5_000)
    assert (rlpd.loss.gaussian.bc_alpha, rlpd.qvalue.num_qvalue_nets, rlpd.qvalue.layer_norm) == (0.01, 10, True)


@pytest.mark.filterwarnings("ignore:.*gamma.*")
def test_the_example_runs_both_phases(capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("examples/qc.py")
    short = {"offline_steps": 10, "total_frames": 10, "warmup_steps": 0, "batch_size": 16, "hidden_sizes": (8, 8)}
    words = {"env": "Hopper-v5", "dataset": "o2o/hopper/linear-mix-v0", "eval_every": 10, "eval_episodes": 1}
    loss = script.main(script.Config(**short, **words, num_samples=2, flow_steps=2))
    assert all(value.isfinite().all() for value in loss.parameters())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [re.match(r"step (-?\d+): return", line).group(1) for line in lines] == ["0", "10"]
