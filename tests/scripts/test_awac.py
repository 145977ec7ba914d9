# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""sota-implementations/awac/awac.py."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.scripts.phases import SHORT, PhasesContract, rows
from tests.scripts.running import ROOT, compose
from tests.scripts.test_published_settings import convention_of
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.algorithms import make_awac

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


class TestAWAC(PhasesContract):
    script = "awac"
    words = ("qvalue.hidden_sizes=[16]",)

    def test_the_first_updates_clone_the_data(self, tmp_path: Path) -> None:
        self.train(tmp_path, "bc_steps=1", "schedule.log_every=1")
        logged = [row for row in rows(tmp_path / "offline") if "train/loss_actor" in row]
        assert ["train/imitation_error" in row for row in logged[:3]] == [True, False, False]
        assert ["train/advantage" in row for row in logged[:3]] == [False, True, True]
        with pytest.raises(O2OSpecError, match="which counts the 9999 of bc_steps"):
            self.train(tmp_path / "other", "bc_steps=9999")


def test_cloning_moves_the_policy_by_its_own_optimizer() -> None:
    torch.manual_seed(0)
    words = ("actor.hidden_sizes=[16]", "qvalue.hidden_sizes=[16]", "bc_steps=1", "compile=false")
    learner = make_awac(compose("awac", "task=halfcheetah", "preset=cpu", *words), (17, 6))
    plain, batch = copy.deepcopy(learner.actor), random_transitions(32, 17, 6)
    critics = [value.clone() for value in learner.loss.qvalue_network_params.values(True, True)]
    optim = torch.optim.Adam(plain.parameters(), lr=3e-4)
    (-plain.get_dist(batch).log_prob(batch["action"]).mean()).backward()
    optim.step()
    learner.further["cloning"](batch)
    for one, other in zip(learner.actor.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert learner.further["cloning"].optims["actor"] is learner.optims["actor"]
    after = learner.loss.qvalue_network_params.values(True, True)
    assert all(torch.equal(one, other) for one, other in zip(critics, after, strict=True))


def test_jaxrls_settings() -> None:
    cfg = compose("awac", "reference=jaxrl", "compile=false")
    assert (cfg.loss.weight, cfg.loss.awac_lambda, cfg.loss.action_clip) == ("softmax", 2.0, 0.99999)
    assert (cfg.online.batch_size, list(cfg.actor.log_std_bounds), cfg.order) == (256, [-10.0, 2.0], "corl")
    optim = make_awac(cfg, (17, 6)).optims["actor"]
    assert (type(optim), optim.param_groups[0]["weight_decay"]) == (torch.optim.AdamW, 1e-4)
    assert type(make_awac(compose("awac", "compile=false"), (17, 6)).optims["actor"]) is torch.optim.Adam


def test_published_settings() -> None:
    """CORL's; the authors' by ``reference``."""
    cfg = compose("awac")
    assert (cfg.loss.awac_lambda, cfg.optim.lr, cfg.offline.num_steps, cfg.online.total_frames) == (
        0.3333,
        3e-4,
        1_000_000,
        1_000_000,
    )
    maze = compose("awac", "task=antmaze-medium")
    assert (maze.domain, maze.loss.awac_lambda, maze.evaluation.num_episodes) == ("antmaze", 0.1, 100)
    hand = compose("awac", "task=adroit-pen", "reference=authors_hand")
    assert (hand.loss.weight, hand.loss.q_max, hand.loss.score_clip, hand.online.batch_size) == (
        "softmax",
        0.0,
        0.5,
        1024,
    )
    assert (hand.order, hand.qvalue.initialization) == ("authors", "fanin")
    assert not convention_of("awac", "task=adroit-pen", "reference=authors_hand").normalize_observations


def test_the_authors_take_all_gradients_at_the_old_parameters() -> None:
    """In CORL's order the actor learns from critics that have just been moved, so its parameters end elsewhere."""
    actors = []
    for order in ("corl", "authors"):
        torch.manual_seed(0)
        sizes = ("actor.hidden_sizes=[16]", "qvalue.hidden_sizes=[16]", f"order={order}", "compile=false")
        learner = make_awac(compose("awac", "task=halfcheetah", "preset=cpu", *sizes), (17, 6))
        batch = random_transitions(32, 17, 6)
        before = [value.clone() for value in learner.loss.qvalue_network_params.values(True, True)]
        learner.update(batch)
        actors.append([value.clone() for value in learner.loss.actor_network_params.values(True, True)])
        after = learner.loss.qvalue_network_params.values(True, True)
        assert not all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(*actors, strict=True))
    with pytest.raises(O2OSpecError, match="order='other'"):
        make_awac(compose("awac", "order=other"), (17, 6))


@pytest.mark.slow
@pytest.mark.compiler
def test_compiled_equals_eager(tmp_path: Path) -> None:
    """The script's update as it is written, and the compiled one: the same numbers to rounding."""
    losses = []
    batch = random_transitions(32, 17, 6)
    for compiled in ("false", "true"):
        torch.manual_seed(0)
        sizes = ("actor.hidden_sizes=[16]", "qvalue.hidden_sizes=[16]")
        learner = make_awac(compose("awac", "task=halfcheetah", "preset=cpu", f"compile={compiled}", *sizes), (17, 6))
        metrics = [learner.update(batch) for _ in range(5)][-1]
        losses.append(learner.loss.state_dict() | {name: metrics[name] for name in ("loss_qvalue", "loss_actor")})
    eager, fast = losses
    for name, value in eager.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_sigterm_in_the_offline_phase_saves_and_prints_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*SHORT, "qvalue.hidden_sizes=[16]", "offline.num_steps=1000000", f"run_dir={folder}"]
    words = [*words, "schedule.checkpoint_every=1000000", "schedule.eval_every=1000000"]
    command = [sys.executable, str(ROOT / "sota-implementations/awac/awac.py"), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    metrics, deadline = folder / "offline" / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and (not metrics.exists() or metrics.read_text().count("\n") < 20):
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "resume=true" in err
    assert list((folder / "offline" / "checkpoints").glob("step-*"))
    assert not (folder / "run.json").exists(), "the online phase did not begin"
