# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""sota-implementations/rebrac/rebrac.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels import without_kernels
from tests.scripts.compiling import assert_compiled_equals_written_out, assert_resumed_is_bit_for_bit
from tests.scripts.phases import PhasesContract, newest
from tests.scripts.running import compose
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.algorithms import make_rebrac

SMALL = ("actor.hidden_sizes=[16]", "qvalue.hidden_sizes=[16]")


class TestReBRAC(PhasesContract):
    script = "rebrac"
    words = (*SMALL[1:], "+online.online_capacity=24")

    def test_the_actors_penalty_falls_to_one_half(self, tmp_path: Path) -> None:
        self.train(tmp_path, "loss.actor_bc_coef=0.4")
        assert newest(tmp_path / "offline", "loss")["actor_bc_coef"].item() == pytest.approx(0.4)
        assert newest(tmp_path, "loss")["actor_bc_coef"].item() == pytest.approx(0.2)

    def test_targets_may_be_held_above_the_returns(self, tmp_path: Path) -> None:
        self.train(tmp_path, "loss.calibrate=true")
        assert "mc_return" in learner("loss.calibrate=true").keys
        online = make_rebrac(compose("rebrac", "preset=cpu", *SMALL, "loss.calibrate=true"), (3, 2), online=True)
        assert "mc_return" not in online.keys


def learner(*words: str, compiled: bool = False) -> Any:
    torch.manual_seed(0)
    return make_rebrac(compose("rebrac", "preset=cpu", *SMALL, f"compile={compiled}", *words), (3, 2))


def batch() -> Any:
    rows = random_transitions(16, 3, 2)
    return rows.set(("next", "action"), rows["action"].roll(-1, 0))


def test_compiled_equals_written_out() -> None:
    with without_kernels():
        assert_compiled_equals_written_out(lambda compiled: learner(compiled=compiled), batch(), 7)


def test_compiled_is_resumed_between_two_steps_of_the_actor() -> None:
    with without_kernels():
        assert_resumed_is_bit_for_bit(lambda compiled: learner(compiled=compiled), batch(), 3, 6)


def test_published_settings() -> None:
    """Tarasov et al. 2023."""
    cfg = compose("rebrac")
    assert (cfg.loss.policy_noise, cfg.loss.noise_clip, cfg.policy_delay, cfg.offline.batch_size) == (0.2, 0.5, 2, 1024)
    assert (cfg.actor_optim.lr, cfg.qvalue_optim.lr, cfg.target.tau) == (1e-3, 1e-3, 0.005)
    assert (cfg.qvalue.layer_norm, list(cfg.qvalue.hidden_sizes)) == ("after_activation", [256] * 3)
    maze = compose("rebrac", "task=antmaze-medium")
    assert (maze.value_estimator.gamma, maze.qvalue_optim.lr, maze.loss.critic_bc_coef) == (0.999, 5e-5, 0.0005)
