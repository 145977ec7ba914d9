# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""sota-implementations/td3_bc/td3_bc.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from tests.kernels import without_kernels
from tests.scripts.compiling import (
    assert_compiled_equals_written_out,
    assert_resumed_is_bit_for_bit,
    assert_what_is_not_finite_is_refused,
)
from tests.scripts.phases import PhasesContract, newest, rows
from tests.scripts.running import compose
from tests.scripts.test_published_settings import convention_of
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.algorithms import make_td3_bc

SMALL = ("actor.hidden_sizes=[16]", "qvalue.hidden_sizes=[16]")


class TestTD3BC(PhasesContract):
    script = "td3_bc"
    words = SMALL[1:]

    def test_the_delay_goes_on_where_the_run_stopped(self, tmp_path: Path) -> None:
        """The contract's odd stops are resumed bit for bit; here is what the count says."""
        self.train(tmp_path, "policy_delay=4")
        assert newest(tmp_path / "offline", "update") == {"calls": 6, "counts": {1: 6}}
        assert newest(tmp_path, "update") == {"calls": 24, "counts": {1: 24}}
        steps = [row["step"] for row in rows(tmp_path) if "train/loss_actor" in row]
        assert steps == [4, 8, 12, 16, 20, 24]


class Compiled(TestTD3BC):
    words = (*SMALL[1:], "compile=true")


def learner(*words: str, compiled: bool = False) -> Any:
    torch.manual_seed(0)
    cfg = compose("td3_bc", "task=halfcheetah", "preset=cpu", *SMALL, f"compile={compiled}", *words)
    return make_td3_bc(cfg, (3, 2))


def parameters(learner: Any, name: str) -> torch.Tensor:
    values = getattr(learner.loss, name).flatten_keys(".").values()
    return torch.cat([value.detach().flatten() for value in values])


def test_actor_and_targets_move_at_every_second_update() -> None:
    td3, batch = learner(), random_transitions(8, 3, 2)
    watched = ("qvalue_network_params", "actor_network_params", "target_qvalue_network_params")
    watched += ("target_actor_network_params",)
    moved = []
    for _ in range(4):
        before = [parameters(td3, name).clone() for name in watched]
        td3.update(batch)
        moved.append([not torch.equal(was, parameters(td3, name)) for was, name in zip(before, watched)])
    assert moved == [[True, False, False, False], [True] * 4] * 2


@pytest.mark.parametrize("delay", [1, 3])
def test_compiled_equals_written_out(delay: int) -> None:
    make = lambda compiled: learner(f"policy_delay={delay}", compiled=compiled)  # noqa: E731
    with without_kernels() as graphs:
        assert_compiled_equals_written_out(make, random_transitions(16, 3, 2), 7)
    assert len(graphs) == (1 if delay == 1 else 2), "the critics alone, and all; each once"


def test_compiled_refuses_what_is_not_finite() -> None:
    with without_kernels():
        make = lambda compiled: learner(compiled=compiled)  # noqa: E731
        assert_what_is_not_finite_is_refused(make, random_transitions(16, 3, 2), ("next", "reward"))


def test_compiled_is_resumed_between_two_steps_of_the_actor() -> None:
    make = lambda compiled: learner(compiled=compiled)  # noqa: E731
    with without_kernels():
        assert_resumed_is_bit_for_bit(make, random_transitions(16, 3, 2), 3, 6)


@pytest.mark.slow
def test_a_compiled_run_is_resumed(tmp_path: Path) -> None:
    """The same through both phases of the pipeline."""
    with without_kernels():
        Compiled().test_resumed_equals_uninterrupted(tmp_path, "offline", 3)
        Compiled().test_resumed_equals_uninterrupted(tmp_path / "online", "online", 5)


def test_it_explores_with_noise_and_is_evaluated_without() -> None:
    td3 = learner()
    observation = TensorDict({"observation": torch.zeros(2000, 3)}, [2000])
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        noise = td3.explorer(observation.clone())["action"] - td3.actor(observation.clone())["action"]
    assert noise.std(0) == pytest.approx([0.1, 0.1], rel=0.1)
    assert noise.mean(0) == pytest.approx([0.0, 0.0], abs=0.01)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        assert torch.equal(td3.explorer(observation.clone())["action"], td3.actor(observation.clone())["action"])


def test_published_settings() -> None:
    """Fujimoto & Gu 2021; mazes and hands as in CORL."""
    cfg = compose("td3_bc")
    assert (cfg.loss.alpha, cfg.loss.policy_noise, cfg.loss.noise_clip, cfg.policy_delay) == (2.5, 0.2, 0.5, 2)
    assert (cfg.optim.lr, cfg.offline.batch_size, cfg.offline.num_steps) == (3e-4, 256, 1_000_000)
    assert (list(cfg.actor.hidden_sizes), list(cfg.qvalue.hidden_sizes), cfg.qvalue.layer_norm) == (
        [256, 256],
        [256, 256],
        False,
    )
    assert compose("td3_bc", "task=antmaze-medium").evaluation.num_episodes == 100
    assert convention_of("td3_bc", "task=adroit-pen").normalize_observations
