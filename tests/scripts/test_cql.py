# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""sota-implementations/cql/cql.py."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from tests.scripts.phases import SHORT, PhasesContract, assert_equal, dying, newest, rows
from tests.scripts.running import compose, script_of
from torchrl_o2o.checkpoint.manifest import load
from torchrl_o2o.data import TRANSITION
from torchrl_o2o.data.conventions import get_convention
from torchrl_o2o.envs.make import make_gym_env, seed_everything
from torchrl_o2o.envs.success import EndAtSuccess
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.testing import random_transitions
from torchrl_o2o.trainers.algorithms import make_cal_ql, make_sac_after_cql
from torchrl_o2o.trainers.evaluation import EvaluationResult
from torchrl_o2o.trainers.handover import HandOver
from torchrl_o2o.trainers.launch import load_problem
from torchrl_o2o.trainers.pipeline import Pretrained, hand_over
from torchrl_o2o.trainers.problem import Problem
from torchrl_o2o.trainers.settings import overlay_convention, plain
from torchrl_o2o.trainers.trajectories import Trajectory, end_episodes_at_success, returns_of
from torchrl_o2o.updates import MoveTargets, Update

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")
SMALL = ("qvalue.hidden_sizes=[16]", "penalty.num_actions=2", "compile=false", "++env.max_episode_steps=20")


def config(*words: str) -> Any:
    """The contract's small settings."""
    return compose("cql", *SHORT, *SMALL, *words)


def train(folder: Path, *words: str) -> None:
    """Train on them."""
    script_of("cql").train(config(f"run_dir={folder}", *words))


class TestCalQL(PhasesContract):
    """Episodes last 20 steps: all stops of the contract lie within the first."""

    script = "cql"
    words = (*SMALL, "penalty.target_gap=0.8")
    optims = ("actor", "qvalue", "alpha", "alpha_prime")


def test_resumed_in_the_second_trajectory(tmp_path: Path) -> None:
    """Its rows are not in the buffer yet, and the metrics are those of the first one's last update."""
    every = "schedule.checkpoint_every=22"
    train(tmp_path / "whole", every)
    with dying("online", 22):
        train(tmp_path / "parts", every)
    step = tmp_path / "parts" / "checkpoints" / "step-22"
    assert load((step / "trajectory.pt").read_bytes())["rows"]["action"].shape == (2, 6)
    train(tmp_path / "parts", every, "resume=true")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert any("train/loss_qvalue" in row for row in rows(tmp_path / "parts") if row["step"] == 23)
    for name in ("loss", "buffer", "trajectory", "rng"):
        assert_equal(newest(tmp_path / "whole", name), newest(tmp_path / "parts", name), name)


@pytest.mark.parametrize("base", ["algorithm=cql", "algorithm=cql learner=sac", "learner=cql handover.data=symmetric"])
def test_step_by_step_resumed_equals_uninterrupted(tmp_path: Path, base: str) -> None:
    words = (*base.split(), "schedule.checkpoint_every=17")
    train(tmp_path / "whole", *words)
    with dying("online", 17):
        train(tmp_path / "parts", *words)
    train(tmp_path / "parts", *words, "resume=true")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    for name in ("loss", "buffer", "rng", "qvalue_optim"):
        assert_equal(newest(tmp_path / "whole", name), newest(tmp_path / "parts", name), name)


def test_a_trajectory_is_learned_from_when_it_is_over(tmp_path: Path) -> None:
    kept = []
    update = Update.__call__

    def keep(self: Any, batch: Any) -> Any:
        kept.append(batch)
        return update(self, batch)

    train(tmp_path / "offline", "online.total_frames=8")
    with patch.object(Update, "__call__", keep):
        train(tmp_path / "run", "utd_ratio=2", f"pretrained={tmp_path / 'offline' / 'offline'}")
    assert len(kept) == 2 * 20
    number = len(load_problem(config(), "cal_ql").offline)
    for batch in kept:
        assert int((batch["index"] < number).sum()) == 8, "half of each batch is offline"
    online = torch.cat([batch[batch["index"] >= number] for batch in kept])
    found, position = torch.unique(online["index"], return_inverse=True)
    assert found.tolist() == list(range(number, number + 20)), "the last four steps are no trajectory"
    first = torch.stack([(position == index).nonzero()[0, 0] for index in range(20)])
    reward, returns = (online[key].squeeze(-1)[first].double() for key in (("next", "reward"), "mc_return"))
    discount = 0.99 ** torch.arange(20.0, dtype=torch.double)
    expected = [(reward[start:] * discount[: 20 - start]).sum().item() for start in range(20)]
    assert returns.tolist() == pytest.approx(expected, rel=1e-5)


def test_episodes_of_binary_hands_end_with_success() -> None:
    """Collected ones do, evaluated ones continue, and what the data hold after a success is left out."""
    data = random_transitions(4, 3, 1).set("episode", torch.zeros(4, dtype=torch.long))
    for name in ("terminated", "truncated", "done"):
        data["next", name] = torch.zeros(4, 1, dtype=torch.bool)
    data["next", "reward"] = torch.tensor([[-0.1], [-0.1], [10.0], [-0.1]])
    cfg = compose("cql", "task=adroit-pen")
    fitted = overlay_convention(get_convention("cal_ql", cfg.domain), cfg).fit(data)
    problem = end_episodes_at_success(cfg, Problem({"env_id": "Pendulum-v1"}, fitted.data(data), fitted))
    assert problem.offline["next", "reward"].flatten().tolist() == pytest.approx([-5.0, -5.0, 5.0], abs=1e-4)
    assert problem.offline["next", "terminated"].flatten().tolist() == [False, False, True]
    collected, evaluated = problem.env_factory(), problem.make_env()
    assert isinstance(collected, EndAtSuccess)
    assert not isinstance(evaluated, EndAtSuccess)
    sent = pickle.dumps(problem.env_factory)
    assert isinstance(pickle.loads(sent)(), EndAtSuccess), "in other processes too"
    assert len(sent) < 10_000, "without the data"
    with pytest.raises(O2OSpecError, match="without failure_reward"):
        end_episodes_at_success(compose("cql", "end_at_success=true"), problem)
    for words in (("task=adroit-pen-dense",), ("task=antmaze-umaze",), ()):
        assert end_episodes_at_success(compose("cql", *words), problem) is problem


def test_no_trajectory_is_learned_from_before_the_warm_up_is_over(tmp_path: Path) -> None:
    """Two trajectories of 20 steps end within the warm-up, the third behind it."""
    calls = []
    update = Update.__call__

    def count(self: Any, batch: Any) -> Any:
        calls.append(1)
        return update(self, batch)

    train(tmp_path / "offline", "online.total_frames=8")
    start = f"pretrained={tmp_path / 'offline' / 'offline'}"
    with patch.object(Update, "__call__", count):
        train(tmp_path / "run", start, "online.total_frames=60", "handover.warmup_steps=50")
    assert len(calls) == 20


def test_a_failure_of_the_environment_ends_the_trajectory(tmp_path: Path) -> None:
    """The environment breaks in its eighth step: seven rows, the last one truncated, then seven updates."""
    train(tmp_path / "offline", "online.total_frames=8")
    words = (
        f"pretrained={tmp_path / 'offline' / 'offline'}",
        "online.total_frames=10",
        "handover.keep_optimizers=false",
    )
    calls: list[Any] = []

    def breaking(**settings: Any) -> Any:
        env = make_gym_env(**settings)
        step = env.step

        def broken(action: Any) -> Any:
            calls.append(action)
            if len(calls) == 8:
                raise RuntimeError("the simulator fell over")
            return step(action)

        env.step = broken
        return env

    with (
        patch("torchrl_o2o.trainers.problem.make_gym_env", breaking),
        patch(
            "torchrl_o2o.trainers.options.evaluate",
            lambda *_, **__: EvaluationResult(np.zeros(1), np.ones(1, dtype=int)),
        ),
        pytest.warns(UserWarning, match="fell over"),
    ):
        train(tmp_path / "run", *words)
    assert int(newest(tmp_path / "run", "qvalue_optim")["state"][0]["step"]) == 7
    assert newest(tmp_path / "run", "trajectory")["rows"]["action"].shape == (3, 6)


def test_trajectory() -> None:
    trajectory = Trajectory()
    trajectory.truncate()
    assert not trajectory.over
    assert trajectory.state_dict() == {"rows": None, "metrics": {}}
    batch = random_transitions(4, 3, 2).select(*TRANSITION)
    for key in ("terminated", "truncated", "done"):
        batch["next", key] = torch.zeros(4, 1, dtype=torch.bool)
    trajectory.rows = list(batch.split(1))
    assert not trajectory.over
    other = Trajectory()
    other.load_state_dict(trajectory.state_dict())
    other.truncate()
    assert other.over
    taken = other.take()
    assert taken["next", "truncated"].squeeze(-1).tolist() == [False, False, False, True]
    assert torch.equal(taken["observation"], batch["observation"])
    assert not other.over


def test_one_update_takes_all_gradients_at_the_same_parameters() -> None:
    """The authors': one backward pass of the sum, then every step, then the targets."""
    cfg = config("penalty.target_gap=0.8")
    batch = random_transitions(16, 5, 2)
    batch["mc_return"] = batch["next", "reward"]
    learners = []
    for _ in range(2):
        seed_everything(3)
        learners.append(make_cal_ql(cfg, (5, 2)))
    one, other = learners
    seed_everything(4)
    one.update(batch.clone())
    seed_everything(4)
    out = other.loss(batch.clone())
    torch.stack([out[f"loss_{name}"] for name in other.optims]).sum().backward()
    for optim in other.optims.values():
        optim.step()
    moving = other.update.steps[-1]
    assert isinstance(moving, MoveTargets)
    moving.updater.step()
    assert sorted(one.optims) == ["actor", "alpha", "alpha_prime", "qvalue"]
    assert_equal(one.loss.state_dict(), other.loss.state_dict(), "loss")


def test_failing_for_ever() -> None:
    """A trajectory without success has the return of failing forever, on rewards as a task's convention makes them."""
    for task, paid in (("adroit-pen", -0.1), ("pointmaze-medium", 0.0)):
        cfg = compose("cql", f"task={task}", "algorithm=cal_ql")
        data = random_transitions(6, 3, 2).set("episode", torch.tensor([0, 0, 0, 1, 1, 1]))
        for key in ("terminated", "truncated", "done"):
            data["next", key] = torch.tensor([[False], [False], [True]] * 2)
        data["next", "reward"] = torch.full((6, 1), paid)
        data["next", "reward"][5] = 10.0 if task == "adroit-pen" else 1.0
        convention = overlay_convention(get_convention("cal_ql", cfg.domain), cfg)
        problem = Problem({}, data, convention.fit(data))
        returns = returns_of(cfg, problem)(problem.convention.data(data))["mc_return"].squeeze(-1)
        assert returns[:3].tolist() == pytest.approx([-500.0] * 3, rel=1e-5)
        assert returns[3:].tolist() == pytest.approx([-5 + 0.99 * (-5 + 0.99 * 5), -5 + 0.99 * 5, 5.0], rel=1e-5)


def test_corls_rule_of_failure_looks_at_the_last_step() -> None:
    data = random_transitions(3, 3, 2).set("episode", torch.zeros(3, dtype=torch.long))
    for key in ("terminated", "truncated", "done"):
        data["next", key] = torch.tensor([[False], [False], [key != "terminated"]])
    data["next", "reward"] = torch.tensor([[-0.1], [10.0], [-0.1]])
    for words, first in (((), -5 + 0.99 * (5 - 0.99 * 5)), (("failure_rule=last",), -500.0)):
        cfg = compose("cql", "task=adroit-pen", *words)
        convention = overlay_convention(get_convention("cal_ql", cfg.domain), cfg)
        problem = Problem({}, data, convention.fit(data))
        returns = returns_of(cfg, problem)(problem.convention.data(data))["mc_return"].squeeze(-1)
        assert returns[0].item() == pytest.approx(first, rel=1e-5)


def test_sac_goes_on_with_actor_critics_and_temperature(tmp_path: Path) -> None:
    train(tmp_path / "cql", "algorithm=cql", "online.total_frames=1")
    pretrained = Pretrained.read(tmp_path / "cql" / "offline")
    cfg = config("algorithm=cql", "learner=sac")
    learner = make_sac_after_cql(cfg, (17, 6))
    assert hand_over(pretrained, learner, HandOver(**plain(cfg.handover))) == []
    assert all(torch.equal(value, pretrained.states["loss"][key]) for key, value in learner.loss.state_dict().items())
    assert cfg.run_dir == "runs/cql-sac/halfcheetah-linear-medium-v0-cpu/seed0"


def test_the_multiplier_goes_on_where_it_was() -> None:
    cfg = config("penalty.target_gap=0.8")
    offline, online = make_cal_ql(cfg, (5, 2)), make_cal_ql(cfg, (5, 2))
    with torch.no_grad():
        offline.loss.penalty.log_multiplier.fill_(2.5)
    HandOver(**plain(cfg.handover)).apply(
        offline.loss, online.loss, [(offline.optims["actor"], online.optims["actor"])]
    )
    assert online.loss.penalty.log_multiplier.item() == 2.5


def test_calibration_needs_trajectories(tmp_path: Path) -> None:
    with pytest.raises(O2OSpecError, match="collect=trajectory, or learner=cql"):
        train(tmp_path / "run", "collect=step")
    assert not (tmp_path / "run").exists()


def test_published_settings() -> None:
    """Cal-QL's authors' on mazes and hands, CORL's on locomotion."""
    maze, hand, run = (compose("cql", f"task={task}") for task in ("antmaze-medium", "adroit-pen", "hopper"))
    found = [(cfg.penalty.weight, cfg.penalty.target_gap, cfg.loss.max_target_backup) for cfg in (maze, hand, run)]
    assert found == [(5.0, 0.8, True), (1.0, None, True), (10.0, None, False)]
    assert (maze.actor.hidden_sizes, maze.qvalue.hidden_sizes) == ([256] * 2, [256] * 4)
    assert (hand.actor.hidden_sizes, hand.qvalue.hidden_sizes) == ([512] * 2, [512] * 3)
    assert [cfg.offline.num_steps for cfg in (maze, hand, run)] == [1_000_000, 20_000, 1_000_000]
    frames = {task: compose("cql", f"task=adroit-{task}").online.total_frames for task in ("pen", "door", "relocate")}
    assert frames == {"pen": 200_000, "door": 1_000_000, "relocate": 1_000_000}
    assert compose("cql", "task=adroit-door", "preset=cpu").online.total_frames == 5_000
    assert [(cfg.actor_lr, cfg.qvalue_lr) for cfg in (maze, hand, run)] == [(1e-4, 3e-4), (1e-4, 3e-4), (3e-5, 3e-4)]
    assert (maze.algorithm, maze.learner, maze.collect, maze.handover.data) == (
        "cal_ql",
        "cal_ql",
        "trajectory",
        "symmetric",
    )
    plain = compose("cql", "algorithm=cql")
    assert (plain.collect, plain.handover.data, plain.penalty.num_actions) == ("step", "all", 10)
    assert list(compose("cql", "task=antmaze-medium", "domain=antmaze_corl").penalty.gap_bounds) == [
        -200.0,
        float("inf"),
    ]
