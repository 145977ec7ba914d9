# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""sota-implementations/aca/aca.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from tests.scripts.phases import SHORT, PhasesContract, assert_equal, dying, newest, rows
from tests.scripts.running import compose, script_of
from torchrl_o2o.envs.make import seed_everything
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.alignment import interpolation_weight
from torchrl_o2o.modules import make_actor, make_deterministic_actor, make_gaussian_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import TD3BCLoss
from torchrl_o2o.trainers import HandOver, Learner, Pretrained, offline_phase, plain
from torchrl_o2o.trainers.algorithms import make_aca, make_sac_after_sac_ml, make_sac_ml
from torchrl_o2o.trainers.launch import load_problem

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
SMALL = ("qvalue.hidden_sizes=[16]", "compile=false", "++env.max_episode_steps=20")


def train(script: str, folder: Path, *words: str) -> None:
    """Train a script on the contract's small settings."""
    script_of(script).train(compose(script, *SHORT, *SMALL, f"run_dir={folder}", *words))


class TestACA(PhasesContract):
    script = "aca"
    words = SMALL
    optims = ("actor", "qvalue", "alpha")


@pytest.mark.parametrize("stop", [pytest.param(5, marks=pytest.mark.slow), 17])
def test_sac_resumed_equals_uninterrupted(tmp_path: Path, stop: int) -> None:
    words = ("learner=sac", f"schedule.checkpoint_every={stop}")
    train("aca", tmp_path / "whole", *words)
    with dying("online", stop):
        train("aca", tmp_path / "parts", *words)
    train("aca", tmp_path / "parts", *words, "resume=true")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert_equal(newest(tmp_path / "whole", "loss"), newest(tmp_path / "parts", "loss"), "loss")


def test_both_learners_start_from_one_pretraining_where_it_ended(tmp_path: Path) -> None:
    train("aca", tmp_path / "aca")
    start = f"pretrained={tmp_path / 'aca' / 'offline'}"
    train("aca", tmp_path / "sac", "learner=sac", "level=random", start)
    offline = rows(tmp_path / "aca" / "offline")[-1]["evaluation/return"]
    assert rows(tmp_path / "aca")[0]["evaluation/return"] == rows(tmp_path / "sac")[0]["evaluation/return"] == offline
    assert not (tmp_path / "sac" / "offline").exists()
    assert "reference_network_params.module.0.module.0.0.weight" not in newest(tmp_path / "sac", "loss")


def test_the_default_folder_names_the_learner() -> None:
    for learner in ("aca", "sac"):
        cfg = compose("aca", f"learner={learner}", "task=halfcheetah", "preset=cpu")
        assert cfg.run_dir == f"runs/aca-{learner}/halfcheetah-linear-medium-v0-cpu/seed0"


def test_sac_carries_actor_critics_and_temperature() -> None:
    cfg = compose("aca", *SHORT, *SMALL, "learner=sac")
    seed_everything(1)
    offline = make_sac_ml(cfg, (17, 6))
    with torch.no_grad():
        offline.loss.temperature.log_alpha.fill_(-2.0)
    online = make_sac_after_sac_ml(cfg, (17, 6), offline.loss.state_dict())
    fresh = HandOver(**plain(cfg.handover)).apply(offline.loss, online.loss)
    assert fresh == []
    assert online.loss.temperature.alpha.item() == pytest.approx(torch.tensor(-2.0).exp().item())
    source, target = offline.loss.state_dict(), online.loss.state_dict()
    for key in (key for key in target if key.startswith(("actor", "qvalue", "target_qvalue"))):
        assert torch.equal(source[key], target[key]), key


def test_alignment_throws_the_critics_away_and_starts_the_temperature_at_one() -> None:
    cfg = compose("aca", *SHORT, *SMALL)
    offline = make_sac_ml(cfg, (17, 6))
    with torch.no_grad():
        offline.loss.temperature.log_alpha.fill_(-2.0)
    online = make_aca(cfg, (17, 6), offline.loss.state_dict())
    assert (online.loss.temperature.alpha.item(), online.loss.interpolation.item()) == (1.0, 1.0)
    source, target = offline.loss.state_dict(), online.loss.state_dict()
    first = next(key for key in target if key.startswith("qvalue_network_params") and target[key].shape[-1] == 23)
    baseline = next(key for key in source if key.startswith("baseline_network_params") and source[key].shape[-1] == 17)
    assert torch.equal(target[first][..., :17], source[baseline])
    assert not target[first][..., 17:].any()
    assert torch.equal(target[f"target_{first}"], target[first])


def test_k_falls_with_the_updates_in_a_resumed_run_too(tmp_path: Path) -> None:
    """To the floor of 0.5 within 5 updates."""
    words = ("interpolation.horizon=0.01", "handover.num_top_episodes=0", "schedule.checkpoint_every=19")
    train("aca", tmp_path / "whole", *words)
    with dying("online", 19):
        train("aca", tmp_path / "parts", *words)
    train("aca", tmp_path / "parts", *words, "resume=true")
    for run in ("whole", "parts"):
        logged = [row["train/interpolation"] for row in rows(tmp_path / run) if "train/interpolation" in row]
        # The buffer holds a batch at step 16, and k falls after an update.
        expected = [interpolation_weight(count, horizon=0.01, floor=0.5) for count in range(9)]
        assert logged == pytest.approx(expected)
        assert newest(tmp_path / run, "update")["calls"] == 9


@pytest.mark.parametrize(
    ("script", "words", "family"),
    [("awac", ("qvalue.hidden_sizes=[16]",), "gaussian"), ("cql", ("algorithm=cql", "penalty.num_actions=2"), "tanh")],
)
def test_baselines_on_the_policy_of_another_script(
    tmp_path: Path, script: str, words: tuple[str, ...], family: str
) -> None:
    """Refused under another convention, kept as it is while its baselines are trained, then aligned with."""
    train(script, tmp_path / "other", "online.total_frames=1", *words)
    policy = f"policy={tmp_path / 'other' / 'offline'}"
    with pytest.raises(O2OSpecError, match="convention"):
        train("aca", tmp_path / "refused", policy)
    convention = "convention={normalize_observations: true}"
    train("aca", tmp_path / "run", policy, convention)
    source = Pretrained.read(tmp_path / "other" / "offline")
    stage = Pretrained.read(tmp_path / "run" / "offline")
    actor = {key: value for key, value in source.states["loss"].items() if key.startswith("actor_network_params")}
    assert all(torch.equal(stage.states["loss"][key], value) for key, value in actor.items())
    assert (stage.config["policy_family"], stage.config["actor"]) == (family, source.config["actor"])
    returns = [row["evaluation/return"] for row in rows(tmp_path / "run" / "offline") if "evaluation/return" in row]
    assert len(set(returns)) == 1, "the policy is frozen"
    train("aca", tmp_path / "again", policy, convention, f"pretrained={tmp_path / 'run' / 'offline'}")
    assert rows(tmp_path / "again") == rows(tmp_path / "run")
    with pytest.raises(O2OSpecError, match="got 'qvalue_network' to carry over"):  # which plain SAC needs
        train("aca", tmp_path / "sac", policy, convention, "learner=sac")


@pytest.mark.parametrize(
    ("make", "config", "family"),
    [
        (make_actor, {"actor": {}}, "tanh"),
        (make_actor, {"actor": {"std": "vector"}}, "tanh"),
        (make_gaussian_actor, {"actor": {}}, "gaussian"),
        (make_gaussian_actor, {"actor": {"std": "sigmoid"}}, "gaussian"),
        (make_actor, {"actor": {"std": "vector"}, "policy_family": "tanh"}, "tanh"),
        (make_gaussian_actor, {"actor": {}, "policy_family": "gaussian"}, "gaussian"),
    ],
)
def test_the_family_of_a_policy_is_told(make: Any, config: dict[str, Any], family: str) -> None:
    """Also where both have one standard deviation an action dimension."""
    state = make(3, 2, hidden_sizes=(8,), **config["actor"]).state_dict()
    assert script_of("aca").family_of(config, state) == family


class Deterministic(Learner):
    """TD3+BC, only to have its policy in a folder."""

    def __init__(self, cfg: object, dims: tuple[int, int]) -> None:
        self.actor = make_deterministic_actor(*dims, hidden_sizes=(16,))
        critics = make_qvalue_ensemble(*dims, num_qvalue_nets=2, hidden_sizes=(16,))
        self.loss = TD3BCLoss(self.actor, critics)
        self.optims = {}

    def update(self, batch: object) -> dict[str, torch.Tensor]:
        return {}


def test_a_deterministic_policy_is_refused_with_the_reason(tmp_path: Path) -> None:
    cfg = compose("aca", *SHORT, *SMALL, f"run_dir={tmp_path / 'td3_bc'}")
    cfg.algorithm = "td3_bc"
    with offline_phase(cfg, load_problem(cfg, "aca"), Deterministic) as offline:
        for _ in offline.steps():
            offline.log(offline.learner.update(offline.sample()))
    with pytest.raises(O2OSpecError, match=r"\(td3_bc\) is deterministic: it has no log-density"):
        train("aca", tmp_path / "run", f"policy={tmp_path / 'td3_bc' / 'offline'}")
    assert not (tmp_path / "run").exists()


def test_published_settings() -> None:
    """The paper's table of levels; AntMaze's policy and target entropy."""
    levels = {
        "random": (7.0, 10.0, 0.0, 0),
        "medium": (7.0, 40.0, 0.5, 0),
        "medium_replay": (7.0, 40.0, 0.5, 50),
        "medium_expert": (15.0, 100.0, 1.0, 50),
        "expert": (15.0, 100.0, 1.0, 50),
    }
    for level, expected in levels.items():
        cfg = compose("aca", f"level={level}")
        found = (cfg.alignment.beta, cfg.interpolation.horizon, cfg.interpolation.floor, cfg.handover.num_top_episodes)
        assert found == expected, level
    cfg, sac = compose("aca"), compose("aca", "learner=sac")
    assert (cfg.offline.num_steps, cfg.online.total_frames, cfg.optim.lr) == (500_000, 100_000, 3e-4)
    assert (cfg.sac_ml.ml_weight, cfg.target_entropy_per_dim) == (30.0, -1.0)
    assert (cfg.max_grad_norm, sac.max_grad_norm) == (0.25, None)
    maze = compose("aca", "task=antmaze-medium")
    assert (maze.level, maze.alignment.beta, maze.interpolation.horizon) == ("antmaze", 3.0, 200.0)
    assert (maze.policy_family, maze.actor.std, maze.target_entropy_per_dim) == ("gaussian", "sigmoid", -0.5)
    actor = make_sac_ml(maze, (29, 8)).actor
    scale = actor(TensorDict({"observation": torch.zeros(1, 29)}, [1]))["scale"]
    assert scale.tolist() == [[pytest.approx(math.exp(-2.5))] * 8]
