# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""sota-implementations/spot/spot.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict.utils import NestedKey

from tests.kernels import without_kernels
from tests.scripts.compiling import (
    assert_compiled_equals_written_out,
    assert_resumed_is_bit_for_bit,
    assert_what_is_not_finite_is_refused,
)
from tests.scripts.phases import PhasesContract, assert_equal, dying, newest, rows
from tests.scripts.running import compose, script_of
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers import Learner
from torchrl_o2o.trainers.algorithms import decay_constraint, make_spot

SMALL = ("actor.hidden_sizes=[16]", "qvalue.hidden_sizes=[16]", "vae.hidden_sizes=[16]")


class TestSPOT(PhasesContract):
    script = "spot"
    words = (*SMALL[1:], "vae_steps=2")
    optims = ("vae", "actor", "qvalue")

    def test_resumed_inside_the_vae_part(self, tmp_path: Path) -> None:
        """The contract's offline stops lie behind it."""
        words = ("vae_steps=4", "schedule.checkpoint_every=2", "online.total_frames=1")
        self.train(tmp_path / "whole", *words)
        with dying("offline", 2):
            self.train(tmp_path / "parts", *words)
        self.train(tmp_path / "parts", *words, "resume=true")
        whole, parts = tmp_path / "whole" / "offline", tmp_path / "parts" / "offline"
        assert rows(whole) == rows(parts)
        for name in ("loss", "vae_optim", "actor_optim", "qvalue_optim", "update", "vae_update"):
            assert_equal(newest(whole, name), newest(parts, name), name)
        logged = ["vae" if "train/loss_vae" in row else "td3" for row in rows(whole) if "train/loss_vae" in row
                  or "train/loss_qvalue" in row]  # fmt: skip
        assert logged == ["vae"] * 4 + ["td3"] * 2

    def test_the_constraint_cools_online_under_a_vae_that_stays(self, tmp_path: Path) -> None:
        self.train(tmp_path, "cooling_floor=0.5")
        weights = {row["step"]: row["train/density_weight"] for row in rows(tmp_path) if "train/density_weight" in row}
        assert weights[6] == pytest.approx(5.0 * 0.75)
        assert weights[24] == pytest.approx(5.0 * 0.5)
        offline, online = newest(tmp_path / "offline", "loss"), newest(tmp_path, "loss")
        names = [name for name in offline if name.startswith("vae_network_params") and "weight" in name]
        assert names
        assert all(torch.equal(offline[name], online[name]) for name in names)
        steps = newest(tmp_path, "qvalue_optim")["state"][0]["step"]
        assert float(steps) == 24.0, "the optimizers start anew at the hand-over"


def learner(*words: str, online: bool = False, compiled: bool = False) -> Any:
    torch.manual_seed(0)
    cfg = compose("spot", "task=halfcheetah", "preset=cpu", *SMALL, f"compile={compiled}", *words)
    made = make_spot(cfg, (3, 2), online=online)
    if online:
        inner = made.update

        def cooled(batch: Any) -> Any:
            decay_constraint(cfg, made)
            return inner(batch)

        made.update = cooled
    return made


def vae_learner(*words: str, compiled: bool = False) -> Learner:
    """The VAE's own update behind the interface of a learner."""
    spot = learner(*words, compiled=compiled)
    return Learner(spot.actor, spot.further["vae"].loss, spot.further["vae"])


def test_the_vae_that_is_trained_is_the_one_that_is_read() -> None:
    spot, batch = learner("vae_steps=20"), random_transitions(64, 3, 2)
    penalty = [float(spot.loss.data_penalty(batch).mean())]
    actor = spot.actor(batch.select("observation").clone())["action"].clone()
    for _ in range(20):
        assert set(spot.further["vae"](batch)) == {"loss_vae", "kl", "reconstruction_error", "finite"}
    penalty.append(float(spot.loss.data_penalty(batch).mean()))
    assert penalty[1] < penalty[0]
    assert torch.equal(actor, spot.actor(batch.select("observation").clone())["action"])
    assert "loss_qvalue" in spot.update(batch)


@pytest.mark.parametrize("online", [pytest.param(False, marks=pytest.mark.slow), True], ids=["offline", "online"])
def test_compiled_equals_written_out(online: bool) -> None:
    """Online the weight falls from update to update, with one compilation of the critics' part and one of all."""
    words = ("online.total_frames=10", "cooling_floor=0.5")
    make = lambda compiled: learner(*words, online=online, compiled=compiled)  # noqa: E731
    with without_kernels() as graphs:
        assert_compiled_equals_written_out(make, random_transitions(16, 3, 2), 8)
    assert len(graphs) == 2
    if not online:
        with without_kernels() as graphs:
            vae = lambda compiled: vae_learner(compiled=compiled)  # noqa: E731
            assert_compiled_equals_written_out(vae, random_transitions(16, 3, 2), 3)
        assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.compiler
def test_kernels_equal_written_out() -> None:
    """The generated code itself, of the VAE and of SPOT."""
    for make in (lambda compiled: learner(compiled=compiled), lambda compiled: vae_learner(compiled=compiled)):
        assert_compiled_equals_written_out(make, random_transitions(16, 3, 2), 6)


@pytest.mark.parametrize(("of", "key"), [(learner, ("next", "reward")), (vae_learner, "action")], ids=["td3", "vae"])
def test_compiled_refuses_what_is_not_finite(of: Callable[..., Any], key: NestedKey) -> None:
    make = lambda compiled: of(compiled=compiled)  # noqa: E731
    with without_kernels():
        assert_what_is_not_finite_is_refused(make, random_transitions(16, 3, 2), key)


def test_compiled_is_resumed_while_the_constraint_cools() -> None:
    make = lambda compiled: learner("online.total_frames=10", online=True, compiled=compiled)  # noqa: E731
    with without_kernels():
        assert_resumed_is_bit_for_bit(make, random_transitions(16, 3, 2), 3, 6)


def test_gamma_is_another_one_online() -> None:
    offline, online = learner("gamma_online=0.995"), learner("gamma_online=0.995", online=True)
    gammas = [float(side.loss.value_estimator.gamma) for side in (offline, online)]
    assert gammas == pytest.approx([0.99, 0.995])


def test_more_vae_steps_than_offline_ones_are_refused(tmp_path: Path) -> None:
    cfg = compose(
        "spot", "task=halfcheetah", "preset=cpu", "vae_steps=7", "offline.num_steps=6", f"run_dir={tmp_path / 'run'}"
    )
    with pytest.raises(O2OSpecError, match="vae_steps"):
        script_of("spot").train(cfg)
    assert not (tmp_path / "run").exists()


def test_published_settings() -> None:
    """The authors' configurations for fine-tuning, as in CORL."""
    maze, hand = compose("spot", "task=antmaze-medium"), compose("spot", "task=adroit-pen")
    assert (maze.loss.density_weight, maze.cooling_floor, maze.gamma_online) == (0.05, 0.2, 0.995)
    assert (hand.loss.density_weight, hand.cooling_floor, hand.gamma_online) == (1.0, 0.5, 0.99)
    assert (maze.vae_steps, list(maze.vae.hidden_sizes), maze.vae_optim.lr, maze.loss.vae_beta) == (
        100_000,
        [750, 750],
        1e-3,
        0.5,
    )
    assert (maze.actor_optim.lr, maze.qvalue_optim.lr, maze.offline.num_steps) == (1e-4, 3e-4, 1_100_000)
    assert not maze.handover.keep_optimizers
