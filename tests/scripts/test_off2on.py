# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""sota-implementations/off2on/off2on.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tests.scripts.phases import PhasesContract, assert_equal, dying, newest, rows
from tests.scripts.running import compose
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.objectives import DensityRatioLoss
from torchrl_o2o.scripts import script_config
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.algorithms import make_off2on_agent, make_off2on_ensemble, replay_priority
from torchrl_o2o.trainers.handover import stack_agents
from torchrl_o2o.trainers.pipeline import Pretrained

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


class TestOff2On(PhasesContract):
    misfits = ()
    script = "off2on"
    words = (
        "qvalue.hidden_sizes=[16]",
        "penalty.num_actions=2",
        "online.frames_per_epoch=8",
        "online.first_epoch_factor=2",
    )
    optims = ("alpha", "actor", "qvalue", "density_ratio")
    offline = ("offline/agent0", "offline/agent1")

    def start(self, run: Path) -> Any:
        return stack_agents([Pretrained.read(run / folder).states["loss"] for folder in self.offline])

    def test_resumed_in_the_second_agent(self, tmp_path: Path) -> None:
        words = ("schedule.checkpoint_every=3", "online.total_frames=1")
        self.train(tmp_path / "whole", *words)
        with dying("agent1", 3):
            self.train(tmp_path / "parts", *words)
        self.train(tmp_path / "parts", *words, "resume=true")
        for folder in (*self.offline, "."):
            assert rows(tmp_path / "whole" / folder) == rows(tmp_path / "parts" / folder)

    def test_epochs_density_ratio_and_priorities(self, tmp_path: Path) -> None:
        """Updates come in epochs, 16 after 8 frames, then 8 each; all state of replay continues where it was."""
        every = "schedule.checkpoint_every=17"
        self.train(tmp_path / "whole", every)
        trained = [row for row in rows(tmp_path / "whole") if "train/loss_qvalue" in row]
        assert [row["step"] for row in trained] == [8, 16, 24]
        assert {"train/offline_share", "train/priority", "train/loss_density_ratio"} <= set(trained[0])
        steps = {int(state["step"]) for state in newest(tmp_path / "whole", "qvalue_optim")["state"].values()}
        assert steps == {32}
        with dying("online", 17):
            self.train(tmp_path / "parts", every)
        sampler = newest(tmp_path / "parts", "buffer")["sampler"]
        assert (sampler["num_updates"], sampler["max_priority"]) == (24, 4_000 / 8)
        self.train(tmp_path / "parts", every, "resume=true")
        assert_equal(
            newest(tmp_path / "whole", "density_ratio_loss"),
            newest(tmp_path / "parts", "density_ratio_loss"),
            "density",
        )

    def test_rows_in_files_train_the_same_networks(self, tmp_path: Path) -> None:
        self.train(tmp_path / "memory")
        self.train(tmp_path / "files", f"+online.scratch_dir={tmp_path}/scratch")
        assert (tmp_path / "scratch" / "observation.memmap").exists()
        assert rows(tmp_path / "memory") == rows(tmp_path / "files")

    def test_agents_may_be_named_one_by_one_and_be_more_than_needed(self, tmp_path: Path) -> None:
        self.train(tmp_path / "one")
        agents = [str(tmp_path / "one" / folder) for folder in self.offline]
        self.train(tmp_path / "list", f"pretrained=[{','.join(agents)}]")
        assert rows(tmp_path / "one") == rows(tmp_path / "list")
        folder = tmp_path / "one" / "offline"
        self.train(tmp_path / "single", f"pretrained={folder}", "num_agents=1", "online.total_frames=8")
        weights = newest(tmp_path / "single", "loss")["qvalue_network_params.module.head.weight"]
        assert weights.shape[0] == 2
        with pytest.raises(O2OSpecError, match="with 2 agents, expected num_agents=3"):
            self.train(tmp_path / "three", f"pretrained={folder}", "num_agents=3")


def test_one_agent_hands_over_its_own_policy_and_critics(tmp_path: Path) -> None:
    """Before the first update the ensemble of one is the agent, targets included."""
    case = TestOff2On()
    case.train(tmp_path, "num_agents=1", "online.total_frames=1")
    agent = Pretrained.read(tmp_path / "offline" / "agent0").states["loss"]
    state = newest(tmp_path, "loss")
    for key in ("qvalue_network_params", "target_qvalue_network_params"):
        head = f"{key}.module.head.weight"
        assert torch.equal(state[head], agent["qvalue_network_params.module.head.weight"])
    learner = make_off2on_ensemble(case.config(tmp_path, "num_agents=1"), (17, 6))
    learner.loss.load_state_dict(state)
    cfg = case.config(tmp_path)
    single = make_off2on_agent(cfg, (17, 6))
    single.loss.load_state_dict(agent)
    observation = torch.randn(5, 17)
    got, expected = learner.actor[0].module(observation), single.actor[0].module(observation)
    torch.testing.assert_close(got, expected)


def test_published_settings() -> None:
    """The authors' defaults (Off2OnRL, examples/ours.py)."""
    cfg = compose("off2on")
    assert (cfg.num_agents, cfg.offline.num_steps, cfg.online.total_frames) == (5, 1_000_000, 250_000)
    assert (cfg.online.frames_per_epoch, cfg.online.first_epoch_factor) == (1000, 10)
    assert (cfg.online_optim.lr, cfg.density_optim.lr, cfg.target.tau, cfg.online.batch_size) == (
        3e-4,
        3e-4,
        0.005,
        256,
    )
    assert (cfg.sampler.init_online_fraction, cfg.priority.temperature, cfg.temperature.init) == (0.5, 5.0, 1.0)
    maze = compose("off2on", "task=antmaze-medium")
    assert (maze.penalty.target_gap, maze.penalty.weight, maze.loss.max_target_backup) == (0.8, 5.0, True)


def test_priorities_do_not_contain_the_constant_of_the_network() -> None:
    """A setting of its own followed the loss's constant, which the network need not have: w = 0 counted as 1e-10."""
    cfg = script_config("off2on", ["preset=cpu", "compile=false", "density_ratio.parametrization=relu"])
    assert cfg.density_loss.eps == 0.0
    learner = make_off2on_ensemble(cfg, (3, 2))
    network = cast(DensityRatioLoss, learner.further["density_ratio"].loss).density_ratio_network_params
    with torch.no_grad():
        for value in network.values(True, True):
            value.zero_()
    rows = random_transitions(4, 3, 2)  # the network says w = 0 everywhere
    assert replay_priority(cfg, learner, rows, rows).tolist() == pytest.approx([cfg.priority.minimum] * 4)


def test_the_multiplier_of_mazes_is_trained(tmp_path: Path) -> None:
    case = TestOff2On()
    case.train(tmp_path, "penalty.target_gap=0.8", "num_agents=1", "online.total_frames=1")
    agent = Pretrained.read(tmp_path / "offline" / "agent0")
    assert agent.states["loss"]["penalty.log_multiplier"] != 1.0
    assert "alpha_prime_optim" in agent.states
