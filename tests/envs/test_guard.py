# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Environments that fail on purpose: what reaches the buffer, what is counted, when the run ends."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torchrl.collectors import Collector
from torchrl.data import TensorDictReplayBuffer
from torchrl.envs import GymWrapper
from torchrl.envs.gym_like import default_info_dict_reader

from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.data import TRANSITION, OnlineWriter
from torchrl_o2o.data.storage import offline_online_storage
from torchrl_o2o.envs.guard import EnvFaultError, GuardedEnv
from torchrl_o2o.envs.make import make_gym_env, seed_everything
from torchrl_o2o.envs.snapshot import env_state, restore_env_state
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor

LENGTH = 10


class Failing(gymnasium.Env):
    """Counts its steps; ``fault(episode, step)`` may raise, or return an observation and a reward to pass on."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, fault: Callable[[int, int], object] | None = None) -> None:
        self.fault = (lambda episode, step: None) if fault is None else fault
        self.episode = self.count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        self.start = self.np_random.random()
        return self.observe(), {}

    def observe(self):
        return np.array([self.episode, self.count, self.start], dtype=np.float32)

    def step(self, action):
        self.count += 1
        harm = self.fault(self.episode, self.count)
        observation, reward = (self.observe(), 1.0) if harm is None else harm
        return observation, reward, False, self.count == LENGTH, {}


def raising(*places):
    """Raise at each (episode, step) once, over all environments built."""
    left = list(places)

    def fault(episode, step):
        if (episode, step) in left:
            left.remove((episode, step))
            raise RuntimeError("the simulator is gone")

    return fault


def guarded(fault=None, **limits):
    return GuardedEnv(lambda: Failing(fault), **limits)


def collect(env, frames=30, seed=0, **options):
    return StepCollector(env, make_actor(3, 1, hidden_sizes=(4,)), total_frames=frames, seed=seed, **options)


def online_buffer(capacity=50):
    torch.manual_seed(0)  # a resumed run has to have the same data
    offline = torch.cat(list(collect(Failing(), frames=5))).select(*TRANSITION)
    writer = OnlineWriter(5)
    return TensorDictReplayBuffer(storage=offline_online_storage(offline, capacity), writer=writer, batch_size=4)


def fill(buffer, collector):
    for transition in collector:
        buffer.extend(transition.select(*TRANSITION))


def test_without_faults_the_numbers_are_the_environments():
    seed_everything(0)
    plain = torch.cat(list(collect(make_gym_env("Pendulum-v1"), frames=210)))
    for timeout in (None, 30.0):
        seed_everything(0)
        env = GuardedEnv(lambda: make_gym_env("Pendulum-v1"), timeout=timeout)
        torch.testing.assert_close(torch.cat(list(collect(env, frames=210))).to_dict(), plain.to_dict(), rtol=0, atol=0)


def test_an_exception_ends_the_episode_and_loses_no_transition():
    buffer = online_buffer()
    env = guarded(raising((2, 7)))  # the collector's seeding reset is the first episode
    collector = collect(env, frames=12, on_cut=buffer.writer.truncate_last)
    with pytest.warns(UserWarning, match=r"step raised RuntimeError\('the simulator is gone'\).*rebuild 1 of 3"):
        fill(buffer, collector)
    rows = buffer.storage[5:17]
    assert rows["observation"][:, 1].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    assert rows["next", "observation"][:, 1].tolist() == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]
    assert rows["next", "truncated"].nonzero()[:, 0].tolist() == [5]
    assert rows["next", "done"].nonzero()[:, 0].tolist() == [5]
    assert not rows["next", "terminated"].any()
    assert (rows["next", "reward"] == 1).all()
    assert (env.num_rebuilt, collector.frames) == (1, 12)


def test_too_many_exceptions_are_an_error_with_the_first_cause():
    env = guarded(raising(*[(1, 5)] * 9), max_rebuilds=2)
    collector = collect(env, seed=None)
    with (
        pytest.warns(UserWarning, match="rebuild 2 of 2"),
        pytest.raises(EnvFaultError, match=r"step raised .*after 2 rebuilds \(max_rebuilds\)") as caught,
    ):
        list(collector)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert collector.frames == 12


def test_constructor_and_reset_may_fail_too():
    built = iter([Failing(raising((1, 2))), None, Failing(), Failing()])

    def make():
        env = next(built)
        if env is None:
            raise OSError("port in use")
        return env

    env = GuardedEnv(make, max_rebuilds=2)
    with pytest.warns(UserWarning, match="constructor raised OSError"):
        assert len(list(collect(env, frames=20, seed=None))) == 20
    assert env.num_rebuilt == 2
    env.env.reset = lambda **options: 1 / 0
    with pytest.raises(EnvFaultError, match="reset raised ZeroDivisionError"):
        env.reset()


BAD = {
    "observation": lambda env: (np.array([0, np.nan, 0], np.float32), 1.0),
    "infinite observation": lambda env: (np.array([np.inf, 0, 0], np.float32), 1.0),
    "reward": lambda env: (np.zeros(3, np.float32), float("inf")),
    "nan reward": lambda env: (np.zeros(3, np.float32), float("nan")),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_finite_is_left_out_and_counted(kind):
    buffer = online_buffer()
    env = guarded(lambda episode, step: BAD[kind](None) if (episode, step) in ((2, 4), (3, 1)) else None)
    with pytest.warns(UserWarning, match=r"it is rejected and the episode ends \(2 so far\)"):
        fill(buffer, collect(env, frames=13, on_cut=buffer.writer.truncate_last))
    rows = buffer.storage[5:18]
    assert all(rows[key].isfinite().all() for key in TRANSITION)
    assert rows["observation"][:, 0].tolist() == [2] * 3 + [4] * 10
    assert rows["next", "truncated"].nonzero()[:, 0].tolist() == [2, 12]
    assert (env.num_rejected, env.num_rebuilt) == (2, 0)


@pytest.mark.filterwarnings("ignore:step returned")
def test_too_many_in_a_row_are_an_error_and_good_steps_start_the_count_anew():
    env = guarded(lambda episode, step: BAD["reward"](None) if step == 2 else None, max_rejected=1)
    assert len(list(collect(env, frames=20))) == 20
    env = guarded(lambda episode, step: BAD["reward"](None), max_rejected=3)
    with pytest.raises(EnvFaultError, match=r"the reward inf, 4 times in a row \(max_rejected=3\)"):
        list(collect(env))


def test_a_reset_that_is_not_finite_is_repeated():
    env = guarded()
    observations = iter([np.full(3, np.nan, np.float32), np.zeros(3, np.float32)])
    env.env.observe = lambda: next(observations)
    with pytest.warns(UserWarning, match="reset returned an observation that is not finite"):
        assert env.reset(seed=3)[0].tolist() == [0, 0, 0]


def test_a_hanging_step_is_an_error_in_time():
    release = threading.Event()
    env = guarded(lambda episode, step: release.wait(30) and None if step == 3 else None, timeout=0.2)
    collector = collect(env)
    began = time.monotonic()
    with pytest.raises(EnvFaultError, match=r"has not answered for 0\.2 s \(timeout\)"):
        list(collector)
    assert time.monotonic() - began < 5
    assert collector.frames == 2
    release.set()
    assert env.reset()[0][1] == 0, "a later call is answered again"


def test_exceptions_pass_through_the_watchdog():
    env = guarded(raising((1, 1)), timeout=30.0)
    env.reset()
    with pytest.warns(UserWarning, match="the simulator is gone"):
        assert env.step(np.zeros(1))[4] == {"rejected": True}


def interrupt(episode, step):
    raise KeyboardInterrupt


def test_ctrl_c_is_no_fault_of_the_environment():
    env = guarded(interrupt)
    env.reset()
    with pytest.raises(KeyboardInterrupt):
        env.step(np.zeros(1))


@pytest.mark.filterwarnings("ignore:the environment's step raised")
def test_rebuilt_environments_are_seeded_and_differ_from_the_first():
    def starts(seed):
        env = guarded(raising((2, 2), (1, 2)))
        rows = torch.cat(list(collect(env, frames=25, seed=seed)))
        return rows["observation"][:, 2].unique(sorted=False).tolist()

    first = starts(3)
    assert first == starts(3)
    assert first != starts(4)
    assert len(first) >= 4


@pytest.mark.filterwarnings("ignore:.*left out")
def test_counters_are_part_of_the_environments_state_and_limits_are_not():
    fault = lambda episode, step: BAD["reward"](None) if step == 2 else None  # noqa: E731
    env = guarded(fault)
    list(collect(env, frames=3))
    other = guarded(fault, max_rejected=99)
    other.reset()
    restore_env_state(other, env_state(env))
    assert (other.num_rejected, other.max_rejected) == (env.num_rejected, 99)
    assert other.num_rejected >= 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert env_state(guarded(timeout=1.0)) is not None, "the watchdog does not stand in the way"


@pytest.mark.filterwarnings("ignore:.*not finite|.*the reward")
def test_a_cut_after_a_save_is_in_the_next_checkpoint(tmp_path):
    buffer = online_buffer()
    env = guarded(lambda episode, step: BAD["reward"](None) if (episode, step) == (2, 4) else None)
    checkpoint = Checkpointer(tmp_path, objects={}, buffer=buffer)
    for transition in collect(env, frames=8, on_cut=buffer.writer.truncate_last):
        buffer.extend(transition.select(*TRANSITION))
        checkpoint.save(buffer.writer.total_written)
    copy = online_buffer()
    assert Checkpointer(tmp_path, objects={}, buffer=copy).restore() == 8
    torch.testing.assert_close(copy.storage[:].to_dict(), buffer.storage[:].to_dict(), rtol=0, atol=0)
    assert copy.storage[5:]["next", "truncated"].nonzero()[:, 0].tolist() == [2]


def test_truncating_wants_a_transition_and_respects_terminals():
    buffer = online_buffer(capacity=2)
    with pytest.raises(O2OSpecError, match="got no written transition"):
        buffer.writer.truncate_last()
    row = buffer.storage[:1].clone()
    for terminated in (False, False, True):
        row["next", "terminated"] = torch.tensor([[terminated]])
        buffer.extend(row)
        buffer.writer.truncate_last()
    last = buffer.storage[5]["next"]  # the third row, after a wrap
    assert (last["terminated"].item(), last["truncated"].item(), last["done"].item()) == (True, False, True)
    assert buffer.storage[6]["next", "truncated"].item()


@pytest.mark.filterwarnings("ignore")
def test_under_torchrls_wrapper_the_rejected_rows_are_marked():
    env = GymWrapper(guarded(raising((3, 4))))
    env.set_info_dict_reader(default_info_dict_reader(["rejected"]))
    rows = torch.cat(list(Collector(env, None, frames_per_batch=10, total_frames=40)))
    rejected = rows["next", "rejected"].bool().squeeze(-1)
    assert int(rejected.sum()) == 1
    kept = rows[~rejected]
    assert (kept["next", "reward"] == 1).all()
    assert rows["next", "truncated"][rejected].all()
    position = int(rejected.nonzero())
    assert rows["observation"][position + 1, 1] == 0, "a new episode follows"


@pytest.mark.parametrize("limits", [{"max_rebuilds": -1}, {"max_rejected": -1}, {"timeout": 0.0}])
def test_limits_out_of_range(limits):
    with pytest.raises(O2OSpecError, match="expected max_rebuilds >= 0"):
        guarded(**limits)


def test_observations_have_to_be_arrays():
    env = Failing()
    env.observation_space = spaces.Dict({"a": spaces.Box(0, 1)})
    with pytest.raises(O2OSpecError, match="expected a Box"):
        GuardedEnv(lambda: env)


@pytest.mark.parametrize("seed", ["abc", 1.5, -1, True, [3]])
def test_a_seed_of_the_wrong_type_is_the_callers_mistake(seed):
    env = guarded()
    with pytest.raises(O2OSpecError, match="expected an integer"):
        env.reset(seed=seed)
    assert (env.num_rebuilt, env.num_rejected) == (0, 0)


def test_numpys_integers_are_seeds():
    first, second = guarded(), guarded()
    assert first.reset(seed=np.int64(3))[0][2] == second.reset(seed=3)[0][2]


@pytest.mark.parametrize("action", [np.zeros(2), 0.0, np.array([np.nan]), np.array(["a"]), None])
def test_a_wrong_action_is_the_callers_mistake(action):
    env = guarded()
    env.reset()
    with pytest.raises(O2OSpecError, match="correct the caller"):
        env.step(action)
    assert (env.num_rebuilt, env.num_rejected, env.env.count) == (0, 0, 0)


def test_a_step_before_a_reset_is_the_callers_mistake():
    env = GuardedEnv(lambda: gymnasium.make("Pendulum-v1"))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(1))
    assert env.num_rebuilt == 0


def test_an_action_scaled_in_place_stays_the_callers():
    env, action = guarded(), np.ones(1)
    env.reset()
    env.env.fault = lambda episode, step: None
    step = env.env.step
    env.env.step = lambda given: step(np.multiply(given, 9.0, out=given))
    env.step(action)
    assert action.tolist() == [1.0]


def test_what_ends_the_process_passes_through_the_watchdog():
    def leave(episode, step):
        raise SystemExit(7)

    env = guarded(leave, timeout=30.0)
    env.reset()
    with pytest.raises(SystemExit):
        env.step(np.zeros(1))
