# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/pex.py and sota-implementations/pex/pex.py, with its baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels import without_kernels
from tests.scripts.compiling import assert_compiled_equals_written_out
from tests.scripts.phases import PhasesContract, newest
from tests.scripts.running import compose, load_script
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.algorithms import make_pex

SMALL = ("actor.hidden_sizes=[16]", "qvalue.hidden_sizes=[16]", "value.hidden_sizes=[16]")


class TestPEX(PhasesContract):
    script = "pex"
    words = (*SMALL[1:], "handover.warmup_steps=10", "+online.online_capacity=24")
    optims = ("actor", "qvalue", "value")

    def test_the_offline_policy_is_frozen_and_a_new_one_begins(self, tmp_path: Path) -> None:
        self.train(tmp_path)
        before, after = newest(tmp_path / "offline", "loss"), newest(tmp_path, "loss")
        names = [name for name in before if name.startswith("actor_network_params.")]
        assert names
        for name in names:
            assert torch.equal(after[f"offline_{name}"], before[name])
        assert not all(torch.equal(after[name], before[name]) for name in names)

    @pytest.mark.parametrize("algorithm", ["direct", "buffer", "scratch"])
    def test_baselines_train(self, tmp_path: Path, algorithm: str) -> None:
        self.train(tmp_path, f"algorithm={algorithm}")
        after = newest(tmp_path, "loss")
        assert not any(name.startswith("offline_actor") for name in after)
        assert (tmp_path / "offline").exists() == (algorithm == "direct")
        assert int(newest(tmp_path, "update")["calls"]) == (15 if algorithm != "scratch" else 9)


def test_the_command_line_wins_over_a_baseline() -> None:
    cfg = compose("pex", "algorithm=scratch", "handover.data=all", "handover.carry=[qvalue_network]")
    assert (cfg.handover.data, cfg.handover.carry) == ("all", ["qvalue_network"])


def test_the_example_ends_where_the_script_does(tmp_path: Path) -> None:
    """Offline bit for bit; the policies that begin then are drawn in another order."""
    example = load_script("examples/pex.py")
    steps = {"offline_steps": 6, "total_frames": 24, "warmup_steps": 10, "eval_every": 24, "eval_episodes": 1}
    data = "o2o/halfcheetah/linear-medium-v0"  # the script's
    loss = example.main(example.Config(dataset=data, hidden_sizes=(16,), batch_size=16, **steps))
    TestPEX().train(tmp_path, "decay_actor_lr=false")
    before = newest(tmp_path / "offline", "loss")
    frozen = {
        name: value for name, value in loss.state_dict().items() if name.startswith("offline_actor_network_params.")
    }
    assert frozen
    for name, value in frozen.items():
        assert torch.equal(value, before[name.removeprefix("offline_")]), name


def test_compiled_equals_written_out() -> None:
    def learner(compiled: bool) -> Any:
        torch.manual_seed(0)
        return make_pex(compose("pex", "preset=cpu", *SMALL, f"compile={compiled}"), (3, 2))

    with without_kernels():
        assert_compiled_equals_written_out(learner, random_transitions(16, 3, 2), 3)


def test_published_settings() -> None:
    """Zhang et al. 2023: the command in the authors' README."""
    cfg = compose("pex")
    assert (cfg.loss.expectile, cfg.loss.beta, cfg.expansion.inv_temperature, cfg.eval_eps) == (0.9, 10.0, 10.0, 0.1)
    assert (cfg.handover.warmup_steps, cfg.handover.data, cfg.handover.keep_optimizers) == (5001, "symmetric", False)
    assert (cfg.optim.lr, cfg.online.batch_size, cfg.schedule.eval_every) == (3e-4, 256, 10_000)
    assert compose("pex", "task=antmaze-medium").evaluation.num_episodes == 100
