# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import random
import threading

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit, TransformObservation
from PIL import Image
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.envs.utils import exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal

from torchrl_o2o.collectors import StepCollector
from torchrl_o2o.envs.make import make_env, make_gym_env
from torchrl_o2o.envs.outputs import EnvFaultError
from torchrl_o2o.envs.scores import Reference, normalized_score
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor
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
        return TimeLimit(TransformObservation(Goal(), lambda seen: seen, FLAT), 3)  # as make_gym_env flattens

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


def test_environments_that_draw_from_global_generators_are_reproducible():
    class Careless(SeededLength):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, random.random() + np.random.rand() + torch.rand(()).item(), *rest

    found = []
    for seed in (3, 3, 2**40):
        random.random(), np.random.rand(), torch.rand(1)  # a training loop draws between two evaluations
        found.append(evaluate(linear_actor(), Careless, num_episodes=2, seed=seed).returns.tolist())
    assert found[0] == found[1] != found[2]


@pytest.mark.filterwarnings("ignore:.*built anew|.*tried again")
def test_state_is_restored_after_a_failure():
    class Broken(SeededLength):
        def step(self, action):
            np.random.rand()
            raise RuntimeError("broken")

    actor = linear_actor().train()
    before = np.random.get_state()[1].tolist()
    with pytest.raises(EnvFaultError, match=r"RuntimeError\('broken'\), after 3 rebuilds"):
        evaluate(actor, Broken, num_episodes=1, seed=0)
    assert np.random.get_state()[1].tolist() == before
    assert actor.module.training


FAULTS = {
    "exception": lambda result: 1 / 0,
    "nan reward": lambda result: (result[0], np.nan, *result[2:]),
    "reward beyond float32": lambda result: (result[0], 1e39, *result[2:]),
    "infinite observation": lambda result: (result[0] + np.inf, *result[1:]),
    "another shape": lambda result: (result[0][:1], *result[1:]),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_an_episode_that_fails_is_run_again_from_its_seed(fault, num_envs):
    class Once(SeededLength):
        log, steps = [], 0

        def step(self, action):
            Once.steps += 1
            result = super().step(action)
            return FAULTS[fault](result) if Once.steps == 11 else result

    with pytest.warns(UserWarning, match=r"evaluation's episode with seed \d+: .*tried again \(failure 1 of 3\)"):
        result = evaluate(linear_actor(), Once, num_episodes=8, seed=2, num_envs=num_envs)
    seeds = np.arange(2, 10)
    np.testing.assert_array_equal(result.lengths, 1 + seeds % 7)
    np.testing.assert_array_equal(result.returns, seeds * (1 + seeds % 7))
    assert len(Once.log) == 9


@pytest.mark.filterwarnings("ignore:.*left out|.*tried again")
def test_a_reward_that_is_never_a_number_is_refused():
    class Poor(SeededLength):
        def step(self, action):
            result = super().step(action)
            return (result[0], np.nan, *result[2:]) if self.left == 2 else result

    with pytest.raises(EnvFaultError, match=r"step 4 of the evaluation's episode with seed 5: .*reward nan, after 2"):
        evaluate(linear_actor(), Poor, num_episodes=1, seed=5, max_retries=2)


def test_a_hanging_environment_ends_in_a_sentence():
    release = threading.Event()

    class Hanging(SeededLength):
        def step(self, action):
            release.wait(20)

    with pytest.raises(EnvFaultError, match=r"has not answered for 0\.2 s"):
        evaluate(linear_actor(), Hanging, num_episodes=1, seed=0, timeout=0.2)
    release.set()


def test_a_constructor_may_fail_once_and_not_for_ever():
    left = [OSError("port in use"), OSError("port in use")]

    def build():
        if left:
            raise left.pop()
        return SeededLength()

    with pytest.warns(
        UserWarning, match=r"could not be built \(OSError\('port in use'\)\): tried again \(failure 2 of 3\)"
    ):
        assert evaluate(linear_actor(), build, num_episodes=1, seed=0).lengths.tolist() == [1]
    left.extend([OSError("port in use")] * 9)
    with (
        pytest.warns(UserWarning, match="could not be built"),
        pytest.raises(EnvFaultError, match=r"could not be built .*after 3 other failures"),
    ):
        evaluate(linear_actor(), build, num_episodes=1, seed=0)


def test_the_policys_own_mistakes_are_no_fault_of_the_environment(env_class):
    with pytest.raises(O2OSpecError, match="of shape \\(3,\\)"):
        evaluate(linear_actor(outputs=3), env_class, num_episodes=1, seed=0)
    actor = linear_actor()
    actor.module.bias.data.fill_(float("nan"))
    with pytest.raises(O2OSpecError, match=r"the policy gave the actions \[\[nan\]\], expected finite numbers"):
        evaluate(actor, env_class, num_episodes=1, seed=0)
    with pytest.raises(O2OSpecError, match=r"acts in \[-1.0, -1.0\]..\[1.0, 1.0\], the environment takes \[-1.0\]"):
        evaluate(make_actor(2, 2, hidden_sizes=(8,)), env_class, num_episodes=1, seed=0)
    flat = TensorDictModule(lambda seen: seen[..., 0], in_keys=["observation"], out_keys=["action"])
    with pytest.raises(O2OSpecError, match=r"gave actions \(1,\) for 1 observations, expected \[n, A\]"):
        evaluate(flat, env_class, num_episodes=1, seed=0)
    with pytest.raises(O2OSpecError, match="has discrete actions"):
        evaluate(linear_actor(4), "CartPole-v1", num_episodes=1, seed=0)
    with pytest.raises(O2OSpecError, match="expected an integer"):
        evaluate(linear_actor(), env_class, num_episodes=1, seed=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_observations_come_in_the_policys_type(env_class, dtype):
    env_class.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    result = evaluate(linear_actor().to(dtype), env_class, num_episodes=3, seed=np.int64(0))
    assert result.lengths.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([False, np.nan], np.nan),
        ([np.nan, False], np.nan),
        ([np.nan, True], 1.0),
        ([True, np.nan], 1.0),
        ([0.3, False], np.nan),
        ([np.array([1.0]), None], 1.0),
        ([np.float32(0.0), 0], 0.0),
        (["yes", -1], np.nan),
    ],
)
def test_success_is_what_says_so(flags, expected):
    class Flags(gymnasium.Env):
        observation_space, action_space = FLAT, SeededLength.action_space

        def reset(self, *, seed=None, options=None):
            self.left = list(flags)
            return np.zeros(2, np.float32), {}

        def step(self, action):
            return np.zeros(2, np.float32), 0.0, len(self.left) == 1, False, {"success": self.left.pop(0)}

    result = evaluate(linear_actor(), Flags, num_episodes=2, seed=0)
    np.testing.assert_array_equal(result.success, [expected, expected])
    assert result.success.dtype == (np.float64 if np.isnan(expected) else bool)
    np.testing.assert_equal(result.metrics()["evaluation/success"], expected)


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


class Shaded(SeededLength):
    """Draws the episode's seed."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    render_mode = "rgb_array"

    def render(self):
        return np.full((8, 8, 3), 10 * self.seed, np.uint8)


def shade(path):
    with Image.open(path) as image:
        return image.convert("RGB").getpixel((0, 0))[0] // 10, getattr(image, "n_frames", 1)


def test_videos_of_the_best_the_median_and_the_worst_episode(tmp_path):
    """Seeds 3 to 6 last 4 to 7 steps and pay their seed at each."""
    result = evaluate(linear_actor(), Shaded, num_episodes=4, seed=3, num_envs=2, video=tmp_path / "seen.gif")
    assert result.returns.tolist() == [12.0, 20.0, 30.0, 42.0]
    assert {name: shade(path)[0] for name, path in result.videos.items()} == {"best": 6, "median": 4, "worst": 3}
    assert result.videos["best"] == tmp_path / "seen-best.gif"


def test_a_video_is_refused_before_the_first_episode(env_class, tmp_path):
    env_class.log = []
    with pytest.raises(O2OSpecError, match="cannot be rendered here"):
        evaluate(linear_actor(), env_class, num_episodes=4, seed=3, video=tmp_path / "seen.gif")
    assert env_class.log == [0]
    with pytest.raises(O2OSpecError, match="ends in"):
        evaluate(linear_actor(), env_class, num_episodes=4, seed=3, video="seen.mov")


def test_a_video_that_fails_or_differs_costs_no_evaluation(tmp_path, monkeypatch):
    class Forgetful(Shaded):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, float(np.random.rand()), *rest

    with pytest.warns(UserWarning, match="THE VIDEO SHOWS ANOTHER EPISODE"):
        evaluate(linear_actor(), Forgetful, num_episodes=1, seed=3, video=tmp_path / "seen.gif")
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="a video beside .*seen.gif cannot be made"):
        result = evaluate(linear_actor(), Shaded, num_episodes=1, seed=3, video=tmp_path / "file" / "seen.gif")
    assert result.returns.tolist() == [12.0]
    assert result.videos == {}


def test_one_environment_cannot_run_several_episodes_at_once(env_class):
    env = env_class()
    with pytest.raises(O2OSpecError, match=r"got the same \w+ twice .* build a new one in each call"):
        evaluate(linear_actor(), lambda: env, num_episodes=3, num_envs=2, seed=0)
    assert len(evaluate(linear_actor(), lambda: env, num_episodes=3, num_envs=1, seed=0).returns) == 3


def test_an_environment_in_place_of_its_builder_is_named(env_class):
    with pytest.raises(O2OSpecError, match=r"got env=.*, expected a word or"):
        evaluate(linear_actor(), env_class(), num_episodes=1, seed=0)


def test_an_episode_that_may_never_end_is_told(env_class, monkeypatch):
    monkeypatch.setattr("torchrl_o2o.trainers.evaluation._LONG", 6)
    with pytest.warns(UserWarning, match=r"continues after 6 steps; .* wrap it in gymnasium.wrappers.TimeLimit"):
        evaluate(linear_actor(), env_class, num_episodes=1, seed=6)  # of seven steps


def test_what_is_not_one_fresh_environment_is_refused() -> None:
    env = make_gym_env("Pendulum-v1")
    actor = make_actor(3, 1, hidden_sizes=(8,))
    collector = StepCollector(env, actor, total_frames=3, seed=0)
    rows = iter(collector)
    next(rows)
    with pytest.raises(O2OSpecError, match=r"that a StepCollector collects from \(1 of 3 transitions so far\)"):
        evaluate(actor, lambda: env, num_episodes=1, seed=0)
    before = collector.env.unwrapped.state.copy()
    evaluate(actor, "Pendulum-v1", num_episodes=1, seed=0)
    assert np.array_equal(collector.env.unwrapped.state, before)
    assert len(list(rows)) == 2
    assert evaluate(actor, lambda: env, num_episodes=1, seed=0).lengths.tolist() == [200]  # nobody needs it any more
    for wrong in (3, gymnasium.make_vec("Pendulum-v1", num_envs=2), make_env("Pendulum-v1")):
        with pytest.raises(O2OSpecError, match=r"env\(\) gave"):
            evaluate(actor, lambda wrong=wrong: wrong, num_episodes=1, seed=0)
