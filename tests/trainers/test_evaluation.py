# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import random

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.envs.utils import exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal

from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.envs.scores import Reference, normalized_score
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.trainers.evaluation import EvaluationResult, evaluate

FLAT = spaces.Box(-np.inf, np.inf, (2,), np.float32)
GOAL = spaces.Dict({"observation": FLAT, "desired_goal": FLAT})


class SeededLength(gymnasium.Env):
    """An episode of seed ``s`` lasts ``1 + s % 7`` steps and pays ``s`` at each: every result tells its episode."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    observation_space = FLAT
    info_key: str | None = None
    log: list[int] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        assert seed is not None, "an evaluation episode started without a seed of its own"
        self.log.append(seed)
        self.seed, self.left = seed, 1 + seed % 7
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.left -= 1
        assert self.left >= 0, "stepped beyond the end of an episode"
        info = {} if self.info_key is None else {self.info_key: self.left == 1}  # reached once, then left again
        np.random.rand()
        return np.zeros(2, np.float32), float(self.seed), self.left == 0, False, info


@pytest.fixture
def env_class():
    """The environment above with a log of its own."""
    return type("Logged", (SeededLength,), {"log": []})


def linear_actor(inputs=2, outputs=1):
    torch.manual_seed(0)
    return TensorDictModule(nn.Linear(inputs, outputs), in_keys=["observation"], out_keys=["action"])


def gaussian_actor(inputs=3, outputs=1):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(inputs, 8), nn.Dropout(0.5), nn.Linear(8, 2 * outputs), NormalParamExtractor())
    return ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
    )


@pytest.mark.parametrize("num_envs", [1, 3, 8, 50])
def test_every_episode_counts_once_with_its_own_seed(env_class, num_envs):
    result = evaluate(linear_actor(), env_class, num_episodes=20, seed=100, num_envs=num_envs)
    seeds = np.arange(100, 120)
    np.testing.assert_array_equal(result.lengths, 1 + seeds % 7)
    np.testing.assert_array_equal(result.returns, seeds * (1 + seeds % 7))
    assert sorted(env_class.log) == seeds.tolist()
    assert result.success is None
    assert result.normalized_score is None


@pytest.mark.parametrize("key", ["success", "is_success"])
def test_success_is_reaching_the_goal_at_any_time(env_class, key):
    env_class.info_key = key
    result = evaluate(linear_actor(), env_class, num_episodes=7, seed=0)
    np.testing.assert_array_equal(result.success, [False] + [True] * 6)  # an episode of one step never has left == 1


def test_a_goal_task_that_terminates_has_succeeded():
    class Goal(SeededLength):
        observation_space = GOAL

    def build():
        return TimeLimit(Goal(), 3)

    result = evaluate(flat_reader(), build, num_episodes=7, seed=0)
    np.testing.assert_array_equal(result.lengths, [1, 2, 3, 3, 3, 3, 3])
    np.testing.assert_array_equal(result.success, [True, True, True, False, False, False, False])


def flat_reader():
    """A policy that ignores what it reads."""
    return TensorDictModule(
        lambda observation: torch.zeros(len(observation), 1), in_keys=["observation"], out_keys=["action"]
    )


def test_falling_over_is_not_success(env_class):
    assert evaluate(linear_actor(), env_class, num_episodes=2, seed=0).success is None


def test_actions_are_deterministic_and_equal_a_plain_loop():
    actor = gaussian_actor()
    result = evaluate(actor, "Pendulum-v1", num_episodes=3, seed=40, num_envs=2)
    again = evaluate(actor, "Pendulum-v1", num_episodes=3, seed=40, num_envs=2)
    np.testing.assert_array_equal(result.returns, again.returns)
    network = actor.module[0].module.eval()
    for k in range(3):
        env = make_gym_env("Pendulum-v1")
        observation, _ = env.reset(seed=40 + k)
        total, done = 0.0, False
        while not done:
            with torch.no_grad():
                loc, _ = network(torch.from_numpy(observation))
            observation, reward, terminated, truncated, _ = env.step(torch.tanh(loc).numpy())
            total, done = total + reward, terminated or truncated
        # Other batch sizes round differently in the last bits, which the swing-up amplifies a little.
        assert result.returns[k] == pytest.approx(total, rel=1e-3)


def test_nothing_global_changes():
    actor = gaussian_actor()
    actor.train()
    actor.module[0].module[0].eval()  # a part frozen by its owner
    modes = [module.training for module in actor.modules()]
    env = make_gym_env("Pendulum-v1")

    def noisy():
        random.random(), np.random.rand(), torch.rand(1)
        return env

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    kind = exploration_type()
    evaluate(actor, noisy, num_episodes=1, seed=0)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert [module.training for module in actor.modules()] == modes
    assert exploration_type() == kind
    assert torch.is_grad_enabled()


def test_state_is_restored_after_a_failure():
    class Broken(SeededLength):
        def step(self, action):
            np.random.rand()
            raise RuntimeError("broken")

    actor = linear_actor().train()
    before = np.random.get_state()[1].tolist()
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(actor, Broken, num_episodes=1, seed=0)
    assert np.random.get_state()[1].tolist() == before
    assert actor.module.training


def test_environments_are_closed(env_class):
    closed = []
    env_class.close = lambda self: closed.append(self)
    evaluate(linear_actor(), env_class, num_episodes=5, seed=0, num_envs=2)
    assert len(set(closed)) == 2


def test_normalized_scores_come_with_the_environment_or_by_name(env_class):
    pytest.importorskip("mujoco")
    actor = linear_actor(11, 3)
    result = evaluate(actor, "Hopper-v5", num_episodes=2, seed=0)
    np.testing.assert_allclose(result.normalized_score, normalized_score(result.returns, "Hopper-v5"))
    named = evaluate(linear_actor(), env_class, num_episodes=2, seed=1, reference=Reference(0.0, 2.0, "by hand"))
    np.testing.assert_allclose(named.normalized_score, [100.0, 300.0])
    np.testing.assert_allclose(named.returns, [2.0, 6.0])


def test_an_unknown_reference_fails_before_anything_runs(env_class):
    with pytest.raises(O2OSpecError, match="no reference"):
        evaluate(linear_actor(), env_class, num_episodes=2, seed=0, reference="Hopper-v4")
    assert env_class.log == []


def test_own_maze_reports_success_and_score():
    pytest.importorskip("gymnasium_robotics")

    def build():
        return make_gym_env("o2o/PointMaze-UMaze-v0", max_episode_steps=5)

    result = evaluate(linear_actor(6, 2), build, num_episodes=2, seed=0, reference="o2o/PointMaze-UMaze-v0")
    assert result.success.tolist() == [False, False]
    assert result.normalized_score.tolist() == [0.0, 0.0]
    assert result.lengths.tolist() == [5, 5]


def test_one_line_for_people():
    plain = EvaluationResult(np.array([1.0, 2.0]), np.array([5, 5]))
    assert str(plain) == "return 1.5"
    full = EvaluationResult(plain.returns, plain.lengths, np.array([True, False]), np.array([10.0, 30.0]))
    assert str(full) == "return 1.5, success 0.50, normalized score 20.0"


def test_metrics_are_averages():
    result = EvaluationResult(
        returns=np.array([1.0, 3.0]),
        lengths=np.array([10, 20]),
        success=np.array([True, False]),
        normalized_score=np.array([0.0, 50.0]),
    )
    assert result.metrics() == {
        "evaluation/return": 2.0,
        "evaluation/return_std": 1.0,
        "evaluation/length": 15.0,
        "evaluation/success": 0.5,
        "evaluation/normalized_score": 25.0,
    }


@pytest.mark.parametrize("counts", [{"num_episodes": 0}, {"num_envs": 0}])
def test_counts_below_one_are_refused(counts):
    with pytest.raises(O2OSpecError, match="at least 1"):
        evaluate(linear_actor(), SeededLength, seed=0, **counts)
