# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""sota-implementations/bc/bc.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from tests.kernels import without_kernels
from tests.scripts.compiling import (
    assert_compiled_equals_written_out,
    assert_resumed_is_bit_for_bit,
    assert_what_is_not_finite_is_refused,
)
from tests.scripts.phases import SHORT, PhasesContract, newest
from tests.scripts.running import compose, script_of
from torchrl_o2o.data.conventions import FittedConvention
from torchrl_o2o.data.transforms import AffineReward
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.algorithms import make_bc, make_sac_of_clone
from torchrl_o2o.trainers.problem import Problem

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


class TestBC(PhasesContract):
    script = "bc"
    words = ("policy=gaussian",)  # a deterministic policy's own actions teach it nothing, so little moves online
    optims = ("actor",)


class TestSACWithBCStart(PhasesContract):
    script = "bc"
    words = (
        "policy=tanh_gaussian",
        "learner=sac",
        "sac.qvalue.hidden_sizes=[16]",
        "online.batch_size=8",
        "sac.utd_ratio=2",
    )
    optims = ("actor", "qvalue", "alpha")

    test_one_pretraining_serves_many_fine_tunings = None  # pyright: ignore[reportAssignmentType]
    test_a_pretraining_that_does_not_fit_is_refused = None  # pyright: ignore[reportAssignmentType]
    test_every_task_composes = None  # pyright: ignore[reportAssignmentType]

    def test_the_actor_goes_over_and_nothing_else(self, tmp_path: Path) -> None:
        """No update online: the actor is the clone, the critics are their targets, the optimizers are new."""
        self.train(tmp_path, "online.total_frames=2", "handover.warmup_steps=3")
        clone, online = newest(tmp_path / "offline", "loss"), newest(tmp_path, "loss")
        names = [name for name, value in clone.items() if isinstance(value, torch.Tensor) and "actor" in name]
        assert names
        assert all(torch.equal(clone[name], online[name]) for name in names)
        assert newest(tmp_path, "actor_optim")["state"] == {}


@dataclass
class Case:
    """Three episodes of one step with these recorded rewards, as the learner sees them under a transform."""

    rewards: tuple[float, ...]
    scale: float = 1.0
    shift: float = 0.0

    def problem(self) -> Problem:
        reward = AffineReward(self.scale, self.shift)
        lengths = torch.tensor([1, 4, 2])
        episode = torch.arange(3).repeat_interleave(lengths)
        recorded = torch.tensor(self.rewards)[episode].unsqueeze(-1)
        data = TensorDict({"episode": episode, "next": {"reward": recorded}}, [7])
        return Problem({}, reward(data), FittedConvention(reward, None))


@pytest.mark.parametrize(("share", "kept"), [(1.0, [0, 1, 2]), (0.7, [1, 2]), (0.34, [1]), (0.01, [1])])
def test_ten_percent_bc_keeps_the_best_episodes(share: float, kept: list[int]) -> None:
    best = script_of("bc").best_only(Case((1.0, 1.0, 1.0)).problem(), share)
    assert best.offline["episode"].unique().tolist() == kept


def test_best_is_by_what_the_environment_paid() -> None:
    """A shift of the reward punishes long episodes: under r - 1 the longest, best one would come last."""
    problem = Case((0.1, 0.1, 0.1), scale=2.0, shift=-1.0).problem()
    assert script_of("bc").best_only(problem, 0.34).offline["episode"].unique().tolist() == [1]
    with pytest.raises(O2OSpecError, match="best_episodes"):
        script_of("bc").best_only(problem, 0.0)


def train(folder: Path, *words: str) -> None:
    script_of("bc").train(compose("bc", *SHORT, f"run_dir={folder}", *words))


def learner(kind: str, *words: str, compiled: bool = False) -> Any:
    torch.manual_seed(0)
    small = ("actor.hidden_sizes=[16]", "sac.qvalue.hidden_sizes=[16]", "sac.utd_ratio=2")
    cfg = compose("bc", "task=halfcheetah", "preset=cpu", *small, f"compile={compiled}", *words)
    return {"BC": make_bc, "SAC": make_sac_of_clone}[kind](cfg, (3, 2))


@pytest.mark.parametrize(
    "policy", ["tanh_gaussian", *(pytest.param(each, marks=pytest.mark.slow) for each in ("deterministic", "gaussian"))]
)
def test_compiled_equals_written_out(policy: str) -> None:
    make = lambda compiled: learner("BC", f"policy={policy}", compiled=compiled)  # noqa: E731
    with without_kernels():
        assert_compiled_equals_written_out(make, random_transitions(16, 3, 2), 5)
        assert_resumed_is_bit_for_bit(make, random_transitions(16, 3, 2), 2, 4)
        assert_what_is_not_finite_is_refused(make, random_transitions(16, 3, 2), "action")


def test_compiled_sac_equals_written_out() -> None:
    """Two critic steps to one of the actor and the temperature."""
    make = lambda compiled: learner("SAC", "policy=gaussian", "learner=sac", compiled=compiled)  # noqa: E731
    with without_kernels():
        assert_compiled_equals_written_out(make, random_transitions(16, 3, 2), 4)


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_kernels_equal_written_out(policy: str) -> None:
    """The generated code itself."""
    make = lambda compiled: learner("BC", f"policy={policy}", compiled=compiled)  # noqa: E731
    assert_compiled_equals_written_out(make, random_transitions(16, 3, 2), 5)


def test_offline_only(tmp_path: Path) -> None:
    train(tmp_path / "run", "learner=none", "best_episodes=0.1")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["offline"]


def test_a_deterministic_clone_is_no_start_for_sac(tmp_path: Path) -> None:
    with pytest.raises(O2OSpecError, match="stochastic"):
        train(tmp_path / "run", "learner=sac")
    assert not (tmp_path / "run").exists()


def test_published_settings() -> None:
    """CORL's: a deterministic policy of 2x256, squared error, 1M steps, observations standardized."""
    cfg = compose("bc")
    assert (cfg.policy, list(cfg.actor.hidden_sizes), cfg.optim.lr, cfg.offline.num_steps, cfg.best_episodes) == (
        "deterministic",
        [256, 256],
        3e-4,
        1_000_000,
        1.0,
    )
    sac: Any = compose("bc", "policy=tanh_gaussian", "learner=sac")
    assert (sac.sac.target_entropy_per_dim, sac.sac.loss.actor_q, list(sac.handover.carry)) == (
        -1.0,
        "min",
        ["actor_network"],
    )
