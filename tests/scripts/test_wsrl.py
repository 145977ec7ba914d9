# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""examples/wsrl.py and sota-implementations/wsrl/wsrl.py: hand-over, frozen start, one algorithm written twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels import without_kernels
from tests.scripts.compiling import assert_compiled_equals_written_out, assert_resumed_is_bit_for_bit
from tests.scripts.phases import PhasesContract, newest
from tests.scripts.running import compose, load_script
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers import HandOver
from torchrl_o2o.trainers.algorithms import ghostless_lr, make_cal_ql, make_cql, make_wsrl
from torchrl_o2o.trainers.pipeline import hand_over
from torchrl_o2o.trainers.settings import plain

SMALL = ("actor.hidden_sizes=[16]", "qvalue.hidden_sizes=[16]", "penalty.num_actions=2")
WORDS = (*SMALL[1:], "utd_ratio=2", "online.batch_size=4", "handover.warmup_steps=10")


class TestWSRL(PhasesContract):
    script = "wsrl"
    words = WORDS
    optims = ("actor", "qvalue", "alpha")

    def test_the_policy_is_frozen_at_first_and_no_data_are_kept(self, tmp_path: Path) -> None:
        self.train(tmp_path, "online.total_frames=9")
        before, after = newest(tmp_path / "offline", "loss"), newest(tmp_path, "loss")
        assert all(torch.equal(value, before[name]) for name, value in after.items())
        self.train(tmp_path / "more", "online.total_frames=11", f"pretrained={tmp_path / 'offline'}")
        assert int(newest(tmp_path / "more", "update")["calls"]) == 2
        assert int(newest(tmp_path / "more", "qvalue_optim")["state"][0]["step"]) == 6 + 2 * 2, "moments went over"


def test_twins_end_in_the_same_parameters(tmp_path: Path) -> None:
    """The example and the script: every parameter equal, bit for bit."""
    example = load_script("examples/wsrl.py")
    shape = {"hidden_sizes": (16,), "num_qvalue_nets": 4, "num_actions": 2, "batch_size": 4, "utd_ratio": 2}
    steps = {"offline_steps": 6, "total_frames": 24, "warmup_steps": 10, "eval_every": 24, "eval_episodes": 1}
    world = {"dataset": "o2o/halfcheetah/linear-medium-v0", "tau": 0.005}  # the script's
    loss = example.main(example.Config(**world, **shape, **steps))
    script = TestWSRL()
    script.train(tmp_path, "offline.batch_size=4", "~env.max_episode_steps", "schedule.eval_every=24")
    theirs = newest(tmp_path, "loss")
    for name, value in loss.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def learner(*words: str, compiled: bool = False) -> Any:
    torch.manual_seed(0)
    return make_wsrl(compose("wsrl", "preset=cpu", *SMALL, f"compile={compiled}", *words), (3, 2))


@pytest.mark.parametrize("ghosts", ["false", "true"])
def test_compiled_equals_written_out(ghosts: str) -> None:
    words = (f"ghost_steps={ghosts}", "online_loss.num_target_actions=3")
    with without_kernels():
        assert_compiled_equals_written_out(
            lambda compiled: learner(*words, compiled=compiled), random_transitions(16, 3, 2), 3
        )


def test_compiled_is_resumed_bit_for_bit() -> None:
    with without_kernels():
        assert_resumed_is_bit_for_bit(
            lambda compiled: learner("ghost_steps=true", compiled=compiled), random_transitions(16, 3, 2), 2, 4
        )


@pytest.mark.parametrize("make", [make_cql, make_cal_ql])
def test_everything_goes_over_but_the_penalty(make: Any) -> None:
    cfg = compose("wsrl", "preset=cpu", *SMALL, "compile=false", "penalty.target_gap=0.8")
    offline, online = make(cfg, (3, 2)), make_wsrl(cfg, (3, 2))
    batch = random_transitions(16, 3, 2)
    offline.update(batch.set("mc_return", batch["next", "reward"]))
    assert hand_over(offline, online, HandOver(**plain(cfg.handover))) == []
    theirs = offline.loss.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in online.loss.state_dict().items())
    for name, optim in online.optims.items():
        moments, before = optim.state_dict()["state"], offline.optims[name].state_dict()["state"]
        assert torch.equal(moments[0]["exp_avg"], before[0]["exp_avg"])


def test_rates_without_ghost_steps() -> None:
    """SPEC: 2.236 and 1.118 times the authors'."""
    rates = {name: optim.param_groups[0]["lr"] for name, optim in learner("actor_lr=1e-4").optims.items()}
    assert rates == pytest.approx({"qvalue": 3e-4 * 1.25**0.5, "actor": 1e-4 * 5**0.5, "alpha": 1e-4 * 5**0.5})
    own = learner("actor_lr=1e-4", "ghost_steps=true").optims
    assert [optim.param_groups[0]["lr"] for optim in own.values()] == [3e-4, 1e-4, 1e-4]


def test_the_larger_rate_does_what_ghost_steps_do_in_the_long_run() -> None:
    """Adam on gradients of one sign and many sizes: the ratio of the ways is the root that is said."""
    ways = {}
    for ghosts in (0, 4):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.zeros(200))
        optim = torch.optim.Adam([weight], lr=ghostless_lr(1e-3, 1, 4) if not ghosts else 1e-3)
        for _ in range(1500):
            weight.grad = torch.randn(200) + 0.5
            optim.step()
            for _ in range(ghosts):
                weight.grad = torch.zeros(200)
                optim.step()
        ways[ghosts] = weight.mean().item()
    assert ways[0] == pytest.approx(ways[4], rel=0.03)


def test_published_settings() -> None:
    """Zhou et al. 2024, the authors' code."""
    run, maze, hand = (compose("wsrl", f"task={task}") for task in ("hopper", "antmaze-medium", "adroit-door"))
    assert [cfg.algorithm for cfg in (run, maze, hand)] == ["cql", "cal_ql", "cal_ql"]
    assert [cfg.offline.num_steps for cfg in (run, maze, hand)] == [250_000, 1_000_000, 20_000]
    assert [list(cfg.qvalue.hidden_sizes) for cfg in (run, maze, hand)] == [[256] * 2, [256] * 4, [512] * 3]
    assert [list(cfg.actor.hidden_sizes) for cfg in (run, maze, hand)] == [[256] * 2, [256] * 2, [512] * 2]
    assert [cfg.online_loss.num_target_actions for cfg in (run, maze, hand)] == [1, 10, 1]
    assert [cfg.actor.std for cfg in (run, maze, hand)] == ["head", "vector", "head"]
    assert (run.actor_lr, run.qvalue_lr, run.utd_ratio, run.online.batch_size) == (1e-4, 3e-4, 4, 256)
    assert [(cfg.schedule.eval_every, cfg.evaluation.num_episodes) for cfg in (run, maze, hand)] == [(20_000, 20)] * 3
    assert (run.handover.warmup_steps, run.handover.data, run.handover.keep_optimizers) == (5000, "none", True)
    assert (run.qvalue.num_qvalue_nets, run.online_loss.sub_sample_len, run.qvalue.shared_head) == (10, 2, True)
    torch.testing.assert_close(torch.tensor(list(run.actor.log_std_bounds)).exp(), torch.tensor([1e-5, 10.0]))
