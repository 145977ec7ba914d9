# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""sota-implementations/behavior_regularized/behavior_regularized.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from tests.kernels import without_kernels
from tests.scripts.compiling import assert_compiled_equals_written_out, assert_resumed_is_bit_for_bit
from tests.scripts.phases import PhasesContract, rows
from tests.scripts.running import compose
from torchrl_o2o.deploy import load_policy, save_policy
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives import BestAction, RecordedNoise
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.algorithms import BEHAVIOR_REGULARIZED, start_on_penalty

SMALL = ("actor.hidden_sizes=[16]", "qvalue.hidden_sizes=[16]", "vae.hidden_sizes=[16]")
LEARNT = ("multiplier.target=0.0", "temperature.target_entropy=-2.0", "temperature.init=0.1")


class TestBRAC(PhasesContract):
    """With learned weights, which have optimizers of their own."""

    script = "behavior_regularized"
    words = (*SMALL[1:], *LEARNT, "clone_steps=2", "warm_start=2", "best_of=3")
    optims = ("actor", "qvalue", "alpha", "multiplier")

    def test_the_clone_comes_first_and_then_the_divergence_alone(self, tmp_path: Path) -> None:
        self.train(tmp_path, "online.total_frames=1")
        logged = [row for row in rows(tmp_path / "offline") if any(key.startswith("train/loss_") for key in row)]
        assert ["train/loss_qvalue" in row for row in logged] == [False] * 2 + [True] * 4
        for row, warm in zip(logged[2:], (True, True, False, False), strict=True):
            weighted = row["train/multiplier"] * row["train/divergence"] + row["train/alpha"] * -row["train/entropy"]
            assert (abs(row["train/loss_actor"] - weighted) < 0.05) == warm


class TestBRACDual(PhasesContract):
    """Without a clone, with a critic of the divergence, and learned weights."""

    script = "behavior_regularized"
    words = (*SMALL[1:], *LEARNT, "method=brac_dual", "warm_start=2", "best_of=3")
    optims = ("actor", "qvalue", "divergence", "alpha", "multiplier")


class TestBEAR(PhasesContract):
    script = "behavior_regularized"
    words = (*SMALL[1:], "method=bear", "warm_start=2")
    optims = ("actor", "qvalue", "vae", "multiplier")


def test_bears_policy_chooses_among_ten_actions(tmp_path: Path) -> None:
    """What is saved is what is evaluated; online the actor itself collects."""
    made = learner("bear")
    assert isinstance(made.tester, BestAction)
    assert made.explorer is not made.actor
    loaded = load_policy(save_policy(tmp_path, made.actor, action_box=(-torch.ones(2), torch.ones(2))))
    seen, acted = torch.randn(6, 3), []
    for policy in (made.actor, loaded):
        torch.manual_seed(1)
        acted.append(policy(TensorDict({"observation": seen}, [6]))["action"])
    torch.manual_seed(1)
    made.loss.noise = RecordedNoise({"best_action": torch.randn(10, 6, 2)})
    acted.append(made.tester(TensorDict({"observation": seen}, [6]))["action"])
    assert torch.equal(acted[0], acted[1])
    assert torch.equal(acted[0], acted[2])


def learner(method: str, *words: str, compiled: bool = False) -> Any:
    torch.manual_seed(0)
    cfg = compose("behavior_regularized", f"method={method}", "preset=cpu", *SMALL, f"compile={compiled}", *words)
    made = BEHAVIOR_REGULARIZED[method](cfg, (3, 2))
    inner = made.update

    def warmed(batch: Any) -> Any:
        start_on_penalty(cfg, made)
        return inner(batch)

    made.update = warmed
    return made


@pytest.mark.parametrize("method", BEHAVIOR_REGULARIZED)
def test_compiled_equals_written_out(method: str) -> None:
    make = lambda compiled: learner(method, "warm_start=2", *LEARNT, compiled=compiled)  # noqa: E731
    with without_kernels():
        assert_compiled_equals_written_out(make, random_transitions(3 * 8, 3, 2), 4)


def test_compiled_is_resumed_in_the_warm_start() -> None:
    make = lambda compiled: learner("brac_v", "warm_start=4", compiled=compiled)  # noqa: E731
    with without_kernels():
        assert_resumed_is_bit_for_bit(make, random_transitions(16, 3, 2), 2, 6)


def test_the_clone_that_is_trained_is_the_one_that_is_read() -> None:
    brac, batch = learner("brac_v"), random_transitions(64, 3, 2)
    before = brac.loss.estimate_divergence(batch).mean()
    for _ in range(20):
        assert "loss_actor" in brac.further["behavior"](batch)
    assert brac.loss.estimate_divergence(batch).mean() != before
    assert {"behavior_optim", "actor_optim"} <= set(brac.objects())


def test_the_best_of_several_actions_is_evaluated() -> None:
    brac = learner("brac_v", "best_of=5")
    assert isinstance(brac.tester, BestAction)
    assert brac.explorer is not brac.actor
    assert "loc" in brac.explorer.out_keys, "the actor itself collects"
    mean = learner("brac_v")
    assert mean.tester is mean.actor


def test_the_dual_form_does_not_penalize_targets_in_the_script() -> None:
    with pytest.raises(O2OSpecError, match=r"value_penalty=true, .* method=brac_v .*add_next_action\(data\)"):
        learner("brac_dual", "loss.value_penalty=true")


def test_offline_batches_have_a_minibatch_for_each_step_of_the_divergence_s_critic(tmp_path: Path) -> None:
    """Twice seven rows; seven would not be divisible by two."""
    TestBRACDual().train(tmp_path, "offline.batch_size=7", "divergence_steps=2", "online.total_frames=1")
    logged = [row for row in rows(tmp_path / "offline") if "train/loss_divergence" in row]
    assert len(logged) == 6
    assert all({"train/loss_actor", "train/slope_penalty", "train/divergence"} <= set(row) for row in logged)


def test_more_clone_steps_than_offline_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(O2OSpecError, match="clone_steps"):
        TestBRAC().train(tmp_path / "run", "clone_steps=7")
    assert not (tmp_path / "run").exists()


def test_published_settings() -> None:
    """The authors' example; the paper tunes the weight and the actor's learning rate."""
    value, policy = compose("behavior_regularized"), compose("behavior_regularized", "method=brac_p")
    assert (value.loss.value_penalty, policy.loss.value_penalty) == (True, False)
    assert (value.loss.divergence_samples, value.multiplier.init, value.warm_start) == (4, 0.1, 20_000)
    assert (list(policy.actor.hidden_sizes), list(policy.qvalue.hidden_sizes)) == ([200, 200], [300, 300])
    dual = compose("behavior_regularized", "method=brac_dual")
    assert (dual.loss.value_penalty, dual.loss.divergence, dual.loss.gradient_penalty) == (False, "kl", 5.0)
    assert (dual.multiplier.init, dual.multiplier.target, dual.divergence_steps) == (10.0, None, 3)
    assert (dual.actor_optim.lr, dual.qvalue_optim.lr, dual.divergence_optim.lr) == (3e-6, 1e-3, 1e-3)
    assert (list(dual.divergence_critic.hidden_sizes), dual.offline.batch_size) == ([300, 300], 256)
    bear = compose("behavior_regularized", "method=bear")
    assert (list(bear.actor.hidden_sizes), list(bear.vae.hidden_sizes), bear.offline.batch_size) == (
        [400, 300],
        [750, 750],
        100,
    )
    assert (bear.multiplier.target, list(bear.multiplier.bounds), bear.best_of) == (0.05, [-5.0, 10.0], 10)
    assert (value.actor_optim.lr, value.qvalue_optim.lr, value.clone_steps) == (3e-4, 1e-3, 300_000)
