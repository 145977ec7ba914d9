# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Cases 24 to 26, 28 and 32: failing environments, priorities that are no numbers, small buffers; and the tally.

Those with a letter are of the second list, what broke when the package was used: A wrong numbers, B runs that end.
"""

from __future__ import annotations

import ast
import os
import re
import signal
import time
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.collectors.vector import VectorCollector, make_vector_env
from torchrl_o2o.data import (
    TRANSITION,
    BalancedSampler,
    OnlineWriter,
    PoolSampler,
    load_offline,
    offline_online_storage,
)
from torchrl_o2o.data.env_match import match_environment
from torchrl_o2o.data.samplers import PrioritizedReplaySampler
from torchrl_o2o.envs.guard import EnvFaultError, GuardedEnv
from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.envs.snapshot import env_state, restore_env_state
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.functional.diagnostics import effective_sample_size
from torchrl_o2o.modules import make_actor
from torchrl_o2o.testing import counting_storage, random_transitions
from torchrl_o2o.trainers.evaluation import evaluate

AT = 37


class Sabotage(gymnasium.Wrapper):
    """Does ``harm(result)`` to the 37th step of its life; a rebuilt environment lives anew."""

    def __init__(self, env, harm):
        super().__init__(env)
        self.harm, self.count = harm, 0

    def step(self, action):
        self.count += 1
        result = self.env.step(action)
        return self.harm(result) if self.count == AT else result


def collect(harm, frames: int, **limits):
    """Rows of a guarded Pendulum as a buffer holds them, and the environment."""
    env = GuardedEnv(lambda: Sabotage(make_gym_env("Pendulum-v1"), harm), **limits)
    offline = random_transitions(4, 3, 1).select(*TRANSITION)
    buffer = TensorDictReplayBuffer(storage=offline_online_storage(offline, 200), writer=OnlineWriter(4), batch_size=1)
    collector = StepCollector(env, make_actor(3, 1), total_frames=frames, seed=0, on_cut=buffer.writer.truncate_last)
    try:
        for transition in collector:
            buffer.extend(transition.select(*TRANSITION))
    finally:
        env.rows = buffer.storage[4 : len(buffer)]
    return env


def broken(result):
    raise ConnectionError("lost the robot")


def nan_observation(result):
    return (result[0] * np.nan, *result[1:])


def infinite_reward(result):
    return (result[0], np.inf, *result[2:])


def hang(result):
    time.sleep(3)
    return result


@pytest.mark.filterwarnings("ignore:the environment's step raised")
def test_case_24_step_raises() -> None:
    env = collect(broken, frames=60, max_rebuilds=1)
    assert (len(env.rows), env.num_rebuilt) == (60, 1)
    assert env.rows["next", "truncated"].nonzero()[:, 0].tolist() == [AT - 2], "the 36 before it are kept"
    assert not env.rows["next", "terminated"].any()
    assert torch.equal(env.rows["observation"][1 : AT - 1], env.rows["next", "observation"][: AT - 2])
    with pytest.raises(EnvFaultError, match=r"ConnectionError\('lost the robot'\), after 1 rebuilds"):
        collect(broken, frames=200, max_rebuilds=1)


@pytest.mark.parametrize("harm", [nan_observation, infinite_reward])
def test_case_25_numbers_that_are_none(harm) -> None:
    with pytest.warns(UserWarning, match=r"rejected and the episode ends \(1 so far\)"):
        env = collect(harm, frames=60)
    assert (len(env.rows), env.num_rejected, env.num_rebuilt) == (60, 1, 0)
    assert all(env.rows[key].isfinite().all() for key in TRANSITION)
    assert env.rows["next", "truncated"].nonzero()[:, 0].tolist() == [AT - 2]
    with pytest.raises(EnvFaultError, match="1 times in a row"):
        collect(harm, frames=60, max_rejected=0)


def test_case_26_step_hangs() -> None:
    began = time.monotonic()
    with pytest.raises(EnvFaultError, match=r"has not answered for 0\.5 s \(timeout\)"):
        collect(hang, frames=60, timeout=0.5)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_case_28_priorities_that_are_no_numbers(bad: float) -> None:
    sampler = PoolSampler(lambda rows: torch.where(rows["index"] > 50, bad, 0.0), 40, pool_size=128)
    storage = counting_storage(40, 24, 400)
    buffer = TensorDictReplayBuffer(storage=storage, sampler=sampler, writer=OnlineWriter(40), batch_size=64)
    batch = buffer.sample()
    assert batch["priority_weight"].isfinite().all()
    assert sampler.num_clamped > 0
    assert 0 < sampler.metrics()["effective_sample_size"] <= 1, "logged"
    assert effective_sample_size(torch.tensor([1e30, 1.0])).isfinite()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_case_28_stored_priorities_are_never_poisoned(bad: float) -> None:
    sampler = PrioritizedReplaySampler(64, alpha=0.6, beta=0.4)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(64), sampler=sampler, batch_size=16)
    buffer.extend(random_transitions(40, 3, 1))
    with pytest.raises(O2OSpecError):
        buffer.update_priority(torch.tensor([3]), torch.tensor([bad]))
    assert buffer.sample()["priority_weight"].isfinite().all()


def test_case_32_counts_at_the_edges() -> None:
    storage = counting_storage(40, 24, 24)  # full
    for fraction, batch_size, expected in ((0.01, 16, 1), (0.99, 16, 16), (0.5, 7, 4), (0.0, 8, 0), (1.0, 8, 8)):
        sampler = BalancedSampler(40, fraction)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 0.99 rounds to all rows: said once, tested elsewhere
            index, _ = sampler.sample(storage, batch_size)
        assert int((index < 40).sum()) == expected
    with pytest.raises(O2OSpecError, match="needs 32 online rows, but the storage has 24 online slots"):
        BalancedSampler(40, 0.5).sample(storage, 64)
    buffer = TensorDictReplayBuffer(storage=storage, writer=OnlineWriter(40), batch_size=4)
    before = storage[:40].clone()
    buffer.extend(storage[:10].clone())  # full: the oldest online rows go first
    assert len(buffer) == 64
    assert (storage[:40] == before).all()


class Own(gymnasium.Env):
    """Returns its own arrays, rewards of shape (1,), and does ``harm(result)`` in the step after ``after``."""

    observation_space, action_space = spaces.Box(-99, 99, (1,), np.float32), spaces.Box(-1, 1, (1,), np.float32)
    after, steps = 10**9, 0

    def __init__(self, harm=None):
        self.harm, self.state, self.reward = harm, np.zeros(1, np.float32), np.ones(1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state[:] = 0.0
        return self.state, {}

    def step(self, action):
        type(self).steps += 1
        self.state += 1.0
        result = self.state, self.reward, False, bool(self.state[0] >= 5), {}
        return self.harm(result) if self.harm and self.steps == self.after + 1 else result


def own_actor():
    return make_actor(1, 1, hidden_sizes=(4,))


@pytest.mark.parametrize("collector", ["single", "guarded", "vector", "other processes"])
def test_case_a01_an_environments_own_arrays(collector: str) -> None:
    if collector in ("single", "guarded"):
        env = Own() if collector == "single" else GuardedEnv(Own)
        rows = torch.cat(list(StepCollector(env, own_actor(), total_frames=12, seed=0)))
    else:
        envs = make_vector_env(Own, 1, asynchronous=collector == "other processes")
        vector = VectorCollector(envs, own_actor(), total_frames=12)
        rows = torch.cat(list(vector))
        vector.shutdown()
    assert rows["observation"].flatten().tolist() == [0, 1, 2, 3, 4] * 2 + [0, 1]
    assert rows["next", "observation"].flatten().tolist() == [1, 2, 3, 4, 5] * 2 + [1, 2]
    assert (rows["next", "reward"] == 1).all()


class Hidden(gymnasium.Env):
    """Keeps a view of its own array, a list under two names, a closure, and slots."""

    __slots__ = ("_slot",)
    observation_space, action_space = Own.observation_space, Own.action_space

    def __init__(self):
        self.both, self.log, self.state = np.zeros(4), [], np.zeros(1, np.float32)
        self.half, self.same = self.both[:2], self.log
        total = 0.0

        def add(push):
            nonlocal total
            total += push
            return total

        self.add, self._slot = add, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.both[:] = self.np_random.normal(size=4)
        return self.state, {}

    def step(self, action):
        self.both[0] += action[0]
        self.log.append(self.half[0])
        self._slot += 1
        self.state[:] = self.add(sum(self.same)) + self._slot
        return self.state, 0.0, False, False, {}


def test_case_a02_state_that_only_looks_captured() -> None:
    push = np.ones(1, np.float32)
    env, fresh = Hidden(), Hidden()
    env.reset(seed=0)
    env.step(push)
    restore_env_state(fresh, env_state(env))
    pairs = [(env.step(push)[0].item(), fresh.step(push)[0].item()) for _ in range(5)]
    assert all(mine == other for mine, other in pairs), pairs
    with pytest.warns(UserWarning, match=r"cannot be captured: the class attribute Own\.steps is assigned"):
        assert env_state(Own()) is None


HARMS = {
    "raises": broken,
    "nan reward": lambda result: (result[0], np.nan, *result[2:]),
    "infinite in float32": lambda result: (result[0], 1e39, *result[2:]),
    "another shape": lambda result: (np.zeros(3, np.float32), *result[1:]),
    "no flag": lambda result: (*result[:2], None, *result[3:]),
    "no array": lambda result: ([[1.0], [1.0, 2.0]], *result[1:]),
}


@pytest.mark.filterwarnings("ignore:.*episode ends")
@pytest.mark.parametrize("harm", HARMS)
def test_case_a06_a17_evaluation_is_guarded(harm: str) -> None:
    """No reward that is not a number becomes a return, and one fault ends no run."""
    cls = type("Once", (Own,), {"after": 7, "steps": 0})
    with pytest.warns(UserWarning, match=r"tried again \(failure 1 of 3\)"):
        result = evaluate(own_actor(), lambda: cls(HARMS[harm]), num_episodes=4, num_envs=2, seed=0)
    assert result.returns.tolist() == [5.0] * 4
    assert result.lengths.tolist() == [5] * 4
    cls = type("Always", (Own,), {})
    cls.step = lambda self, action: HARMS[harm]((self.state, self.reward, False, False, {}))
    with (
        pytest.warns(UserWarning, match="the episode ends"),
        pytest.raises(EnvFaultError, match=r"after 3 (rebuilds|other failures)"),
    ):
        evaluate(own_actor(), cls, num_episodes=4, num_envs=2, seed=0)


@pytest.mark.parametrize("flag", [np.nan, -1, 0.3, "yes"])
def test_case_a06_success_that_is_no_verdict(flag: object) -> None:
    cls = type("Flag", (Own,), {})
    cls.step = lambda self, action: (*Own.step(self, action)[:4], {"success": flag})
    result = evaluate(own_actor(), cls, num_episodes=2, seed=0)
    assert np.isnan(result.success).all()
    assert np.isnan(result.metrics()["evaluation/success"])


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (spaces.Box(0, 10, (1,), np.int64), [0, 5, 10]),
        (spaces.Box(3.0, 3.0, (1,), np.float32), [3.0, 3.0, 3.0]),
        (spaces.Box(-0.1, 0.7, (1,), np.float32), [np.float32(-0.1), np.float32(0.3), np.float32(0.7)]),
    ],
)
def test_case_a11_boxes_of_actions(box: spaces.Box, expected: list) -> None:
    got = []

    def step(self, action):
        assert action in box
        got.append(action[0])
        return Own.step(self, action)

    gymnasium.register("o2otest/Own-v0", entry_point=type("Boxed", (Own,), {"action_space": box, "step": step}))
    try:
        env = make_gym_env("o2otest/Own-v0", allow_modules=(__name__,))
        env.reset()
        for value in (-1.0, 0.0, 1.0, 9.0):
            env.step(np.array([value], np.float32))
    finally:
        del gymnasium.registry["o2otest/Own-v0"]
    np.testing.assert_allclose(got, [*expected, expected[-1]], rtol=1e-6)


def test_case_a11_discrete_actions_get_one_sentence_everywhere() -> None:
    cart_pole = lambda: gymnasium.make("CartPole-v1")  # noqa: E731
    actor = make_actor(4, 1, hidden_sizes=(4,))
    calls = (
        lambda: make_gym_env("CartPole-v1"),
        lambda: GuardedEnv(cart_pole),
        lambda: StepCollector(cart_pole(), actor, total_frames=1),
        lambda: make_vector_env(cart_pole, 2),
        lambda: evaluate(actor, cart_pole, num_episodes=1, seed=0),
        lambda: match_environment(random_transitions(4, 4, 1), cart_pole(), torch.tensor(-1.0), torch.tensor(1.0)),
    )
    for call in calls:
        with pytest.raises(O2OSpecError, match=r"CartPole-v1 has discrete actions.*for continuous actions only"):
            call()
    log = {"observations": np.zeros((9, 4)), "next_observations": np.ones((9, 4)), "rewards": np.zeros(9)}
    for actions in (np.arange(9) % 2, np.arange(9) % 2 == 0):
        rows = {**log, "actions": actions, "terminals": np.arange(9) % 3 == 2, "timeouts": np.zeros(9, bool)}
        with pytest.raises(O2ODataError, match=r"whole numbers .*a discrete choice.*for continuous actions only"):
            load_offline(rows)
    rows["actions"] = np.arange(9) % 3
    loaded = load_offline(rows, action_bounds=(0, 2))["action"].flatten()
    assert loaded.tolist() == [-1, 0, 1] * 3
    assert load_offline({**rows, "actions": np.full(9, 3.0)}, action_bounds=(3, 3))["action"].eq(0).all()


def test_case_a12_the_callers_mistakes_are_the_callers() -> None:
    env = GuardedEnv(lambda: make_gym_env("Pendulum-v1"), max_rebuilds=0)
    for wrong in ("abc", 1.5, True):
        with pytest.raises(O2OSpecError, match="expected an integer"):
            env.reset(seed=wrong)
    first = env.reset(seed=np.int64(3))[0]
    for wrong in (np.zeros(3), np.array([np.nan])):
        with pytest.raises(O2OSpecError, match="correct the caller"):
            env.step(wrong)
    assert (env.num_rebuilt, env.num_rejected) == (0, 0)
    assert np.array_equal(first, make_gym_env("Pendulum-v1").reset(seed=3)[0])


@pytest.mark.filterwarnings("ignore:.*episode ends")
@pytest.mark.parametrize("harm", [harm for harm in HARMS if harm != "raises"])
def test_case_a12_what_comes_back_is_checked(harm: str) -> None:
    cls = type("Once", (Own,), {"after": 7, "steps": 0})
    env = GuardedEnv(lambda: cls(HARMS[harm]))
    rows = torch.cat(list(StepCollector(env, own_actor(), total_frames=12)))
    assert rows["observation"].flatten().tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3, 4]
    assert env.num_rebuilt + env.num_rejected == 1


def odd(space: spaces.Box, info: dict) -> type[gymnasium.Env]:
    """The environment above, with other observations and infos."""

    class Odd(Own):
        observation_space = space

        def reset(self, **settings):
            return super().reset(**settings)[0].astype(space.dtype), {}

        def step(self, action):
            observation, *rest, _ = super().step(action)
            return observation.astype(space.dtype), *rest, dict(info)

    return Odd


@pytest.mark.parametrize(
    ("space", "info"),
    [
        (Own.observation_space, {"rejected": True}),  # an environment's own word, no guard's
        (Own.observation_space, {"final_info": "lap 3", "final_obs": np.ones(7)}),
        (spaces.Box(0, 9, (1,), np.int64), {}),
        (spaces.Box(0, 9, (1,), np.uint8), {}),
    ],
    ids=["rejected", "final info", "whole numbers", "bytes"],
)
def test_case_a12_infos_and_observations_that_are_unusual(space: spaces.Box, info: dict) -> None:
    cls = odd(space, info)
    rows = list(StepCollector(cls(), own_actor(), total_frames=7))
    vector = VectorCollector(make_vector_env(cls, 1))
    rows = torch.cat(rows), torch.cat([vector.step(torch.zeros(1, 1)) for _ in range(7)])
    for each in rows:
        assert each["next", "observation"].flatten().tolist() == [1, 2, 3, 4, 5, 1, 2]
        assert each["observation"].dtype == torch.float32
    assert vector.accepted.all()
    assert evaluate(own_actor(), cls, num_episodes=2, seed=0).lengths.tolist() == [5, 5]


def test_case_a12_observations_without_a_dimension_are_refused() -> None:
    cls = type("Scalar", (Own,), {"observation_space": spaces.Box(-9, 9, (), np.float32)})
    for run in (lambda: evaluate(own_actor(), cls, seed=0), lambda: StepCollector(cls(), own_actor(), total_frames=1)):
        with pytest.raises(O2OSpecError, match="expected a Box of vectors"):
            run()


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_case_b19_ctrl_c_leaves_worker_processes_alone() -> None:
    collector = VectorCollector(make_vector_env(Own, 2, asynchronous=True))
    for worker in collector.envs.processes:
        os.kill(worker.pid, signal.SIGINT)
    rows = [collector.step(torch.zeros(2, 1)) for _ in range(7)]
    assert torch.stack(rows)["next", "observation"][:, 1, 0].tolist() == [1, 2, 3, 4, 5, 1, 2]
    collector.shutdown()


def test_every_case_has_a_test() -> None:
    names = [
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    numbers = {int(match[1]) for name in names if (match := re.match(r"test_case_(\d\d)_", name))}
    assert numbers == set(range(1, 33))
    lettered = {
        each for name in names if name.startswith("test_case_") for each in re.findall(r"_([abc]\d\d)(?=_)", name)
    }
    required = "a01 a02 a03 a06 a07 a11 a12 a13 a14 a17 b18 b19 b20 b21 c24 c25 c27"
    assert lettered >= set(required.split())
