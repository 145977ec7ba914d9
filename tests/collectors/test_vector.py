# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList, NormalizeReward
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.modules import ValueOperator

from tests.collectors.envs import Counter, Rejecting
from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.collectors.vector import VectorCollector, make_vector_env
from torchrl_o2o.data import TRANSITION
from torchrl_o2o.envs.guard import GuardedEnv
from torchrl_o2o.envs.make import make_gym_env
from torchrl_o2o.envs.outputs import CheckedEnv, EnvFaultError
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_deterministic_actor

KEYS = (*TRANSITION, ("next", "episode_reward"), ("next", "step_count"))


def hopper() -> gymnasium.Env:
    return make_gym_env("Hopper-v5", max_episode_steps=15)


def small_actor() -> torch.nn.Module:
    torch.manual_seed(7)
    return make_actor(11, 3, hidden_sizes=(16,))


def single(seed: int, total: int, init_random: int = 0) -> TensorDict:
    actor = small_actor()
    torch.manual_seed(seed)
    collector = StepCollector(hopper(), actor, total_frames=total, init_random_frames=init_random, seed=seed)
    return torch.cat(list(collector))


def build(kind: str, num_envs: int) -> VectorEnv:
    if kind == "other processes":
        return make_vector_env(hopper, num_envs, asynchronous=True)
    mode = AutoresetMode.SAME_STEP if kind == "same step" else AutoresetMode.DISABLED
    return SyncVectorEnv([hopper] * num_envs, autoreset_mode=mode)


@pytest.mark.parametrize("kind", ["same step", "disabled", "other processes"])
def test_each_environment_is_the_one_of_a_single_collector(kind: str) -> None:
    """The same actions from outside give the same transitions, bit for bit, over terminations and time limits."""
    seeds, total = [3, 11], 60
    expected = [single(seed, total) for seed in seeds]
    collector = VectorCollector(build(kind, 2), seeds=seeds)
    rows = [collector.step(torch.stack([one["action"][t] for one in expected])) for t in range(total)]
    collector.load_state_dict(collector.state_dict())
    assert collector.restarted == (kind == "other processes"), "whose environments cannot be captured"
    collector.shutdown()
    got = torch.stack(rows)
    for i, one in enumerate(expected):
        assert one["next", "truncated"].any()
        assert one["next", "terminated"].any()
        for key in KEYS:
            assert torch.equal(got[:, i][key], one[key]), key
            assert got[key].dtype == one[key].dtype, key
    assert collector.frames == 2 * total


def test_episodes_that_a_resume_ends_are_cut() -> None:
    """Only where one was under way, and once, at the next step."""
    collector = VectorCollector(build("disabled", 3))
    collector.step(torch.zeros(3, 3))
    state = collector.state_dict()
    state["envs"], state["step_count"] = None, torch.tensor([4, 0, 2])
    cut: list[int] = []
    resumed = VectorCollector(build("disabled", 3), on_cut=cut.append)
    resumed.load_state_dict(state)
    assert resumed.restarted
    assert cut == []
    assert (resumed.state_dict()["step_count"] > 0).tolist() == [True, False, True]
    for _ in range(2):
        resumed.step(torch.zeros(3, 3))
    assert cut == [0, 2]
    resumed.load_state_dict(collector.state_dict())
    resumed.step(torch.zeros(3, 3))
    assert cut == [0, 2]


def test_noise_is_each_seeds_own() -> None:
    """Random and policy actions are those of single runs, to the rounding of a batched product."""
    seeds = [3, 11, 5]
    envs, actor = make_vector_env(hopper, 3), small_actor()
    collector = VectorCollector(envs, actor, total_frames=36, init_random_frames=15, seeds=seeds)
    before = torch.get_rng_state()
    got = torch.stack(list(collector))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    for i, seed in enumerate(seeds):
        one = single(seed, 12, init_random=5)
        assert torch.equal(got["action"][:5, i], one["action"][:5])
        torch.testing.assert_close(got["action"][:, i], one["action"], rtol=0.0, atol=1e-4)


def test_without_seeds_the_global_generator_decides() -> None:
    def collect() -> TensorDict:
        envs = make_vector_env(lambda: make_gym_env("Pendulum-v1"), 2)
        envs.reset(seed=[0, 1])
        torch.manual_seed(0)
        return torch.cat(list(VectorCollector(envs, make_actor(3, 1), total_frames=8, init_random_frames=2)))

    assert torch.equal(collect()["action"], collect()["action"])


def test_other_actors() -> None:
    """A deterministic actor has no noise; one that is not of this package is called as it is."""
    envs = make_vector_env(lambda: make_gym_env("Pendulum-v1"), 2)
    foreign = ValueOperator(torch.nn.Linear(3, 1), in_keys=["observation"], out_keys=["action"])
    for actor in (make_deterministic_actor(3, 1), foreign):
        (data,) = VectorCollector(envs, actor, total_frames=2, seeds=[0, 1])
        torch.testing.assert_close(data["action"], actor(data.select("observation"))["action"].detach())
    collector = VectorCollector(envs)
    with pytest.raises(O2OSpecError, match="without actor"):
        next(iter(collector))


class Faulty(gymnasium.Wrapper):
    """Returns a NaN observation in the third step of the second episode."""

    episodes = steps = 0

    def reset(self, **settings: object) -> tuple:
        self.episodes, self.steps = self.episodes + 1, 0
        return super().reset(**settings)

    def step(self, action: np.ndarray) -> tuple:
        self.steps += 1
        observation, *rest = super().step(action)
        wrong = self.episodes == 3 and self.steps == 3  # seeding resets once more
        return observation * np.nan if wrong else observation, *rest


@pytest.mark.filterwarnings("ignore:step returned")
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_rejected_steps_are_left_out(mode: AutoresetMode) -> None:
    limited = lambda: make_gym_env("Pendulum-v1", max_episode_steps=5)  # noqa: E731
    makers = [lambda: GuardedEnv(lambda: Faulty(limited())), lambda: GuardedEnv(limited)]
    cut: list[int] = []
    actor = make_actor(3, 1, hidden_sizes=(4,))
    envs = SyncVectorEnv(makers, autoreset_mode=mode)
    collector = VectorCollector(envs, actor, total_frames=20, seeds=[0, 1], on_cut=cut.append)
    batches = list(collector)
    assert [len(batch) for batch in batches] == [2] * 7 + [1] + [2] * 3
    assert cut == [0]
    data = torch.cat(batches)
    assert data["next", "observation"].isfinite().all()
    assert len(data) == collector.frames == 21
    assert batches[8]["next", "step_count"].flatten().tolist() == [1, 4]


def test_state_round_trip_in_mid_episode() -> None:
    """Also where the restored environments are reset by a mask, which returns what the others last observed."""
    for kind in ("same step", "disabled"):
        seeds, actor = [0, 1], small_actor()
        first = VectorCollector(build(kind, 2), actor, total_frames=40, seeds=seeds)
        list(first)
        state = first.state_dict()
        first.total_frames = 100
        expected = torch.stack(list(first))
        other = VectorCollector(build(kind, 2), actor, total_frames=100, seeds=[8, 9])
        other.load_state_dict(state)
        got = torch.stack(list(other))
        assert not other.restarted
        assert (got == expected).all()


def test_transitions_go_to_the_device() -> None:
    envs = make_vector_env(lambda: make_gym_env("Pendulum-v1"), 2)
    data = VectorCollector(envs, device="meta").step(np.zeros((2, 1)))
    assert {value.device.type for value in data.values(include_nested=True, leaves_only=True)} == {"meta"}


def test_what_does_not_fit_is_refused() -> None:
    pendulum = lambda: make_gym_env("Pendulum-v1")  # noqa: E731
    with pytest.raises(O2OSpecError, match="SAME_STEP"):
        VectorCollector(SyncVectorEnv([pendulum]))
    envs = make_vector_env(pendulum, 2)
    with pytest.raises(O2OSpecError, match="1 seeds for 2 environments"):
        VectorCollector(envs, seeds=[0])
    with pytest.raises(O2OSpecError, match="got seeds=3 for 2 environments, expected one for each"):
        VectorCollector(envs, seeds=3)
    with pytest.raises(O2OSpecError, match="got infos as a list, expected a dictionary"):
        VectorCollector(DictInfoToList(envs)).step(torch.zeros(2, 1))
    with pytest.raises(O2OSpecError, match="total_frames=0"):
        VectorCollector(envs, total_frames=0)
    with pytest.raises(O2OSpecError, match=r"expected \(2, 1\)"):
        VectorCollector(envs).step(torch.zeros(2, 2))
    with pytest.raises(O2OSpecError, match="num_envs=0"):
        make_vector_env(pendulum, 0)
    seeded, other = VectorCollector(envs, seeds=[0, 1]), VectorCollector(envs)
    with pytest.raises(O2OSpecError, match=r"2 environments and seeds, this one has 2 and no seeds"):
        other.load_state_dict(seeded.state_dict())


def own_vector(kind: str) -> VectorEnv:
    if kind in ("same step", "disabled"):
        mode = AutoresetMode.SAME_STEP if kind == "same step" else AutoresetMode.DISABLED
        return SyncVectorEnv([Counter] * 2, autoreset_mode=mode)
    return make_vector_env(Counter, 2, asynchronous=kind == "other processes")


@pytest.mark.parametrize("kind", ["same step", "disabled", "ours", "other processes"])
def test_a_reset_overwrites_no_final_observation(kind: str) -> None:
    collector = VectorCollector(own_vector(kind), seeds=np.array([0, 1]))
    action = torch.ones(2, 1)
    rows = []
    for _ in range(4):
        rows.append(collector.step(action))
        rows[-1]["next", "observation"] += 0.0
        action *= 1.0
    collector.shutdown()
    data = torch.stack(rows)
    assert data["observation"][:, 0, 0].tolist() == [0, 1, 2, 0]
    assert data["next", "observation"][:, 1, 0].tolist() == [1, 2, 3, 1]
    assert data["next", "reward"].flatten().tolist() == [0.5] * 8
    assert data["next", "truncated"][:, 0, 0].tolist() == [False, False, True, False]
    assert (data["action"] == 1.0).all()


def test_what_is_delivered_is_the_callers() -> None:
    """Neither a row, an action nor a saved state shares memory with the collector."""
    collector = VectorCollector(own_vector("ours"))
    action = torch.ones(2, 1)
    row, state = collector.step(action), collector.state_dict()
    row["next", "observation"].fill_(50.0)
    collector.observation.fill_(50.0)
    action.fill_(0.0)
    assert collector.observation.tolist() == [[1.0], [1.0]]
    assert (row["action"] == 1.0).all()
    collector.step(action)
    assert state["observation"].tolist() == [[1.0], [1.0]]


def test_actions_have_to_be_continuous_and_finite() -> None:
    with pytest.raises(O2OSpecError, match="has discrete actions"):
        make_vector_env(lambda: gymnasium.make("CartPole-v1"), 2)
    envs = SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(O2OSpecError, match="has discrete actions"):
        VectorCollector(envs)
    with pytest.raises(O2OSpecError, match="expected finite ones"):
        VectorCollector(own_vector("ours")).step(torch.full((2, 1), torch.nan))
    for seeds in ([0, 1.5], ["a", 0], [0, True]):
        with pytest.raises(O2OSpecError, match="expected an integer"):
            VectorCollector(own_vector("ours"), seeds=seeds)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_processes_of_environments_do_not_get_ctrl_c() -> None:
    """A terminal sends it to every process; only the run's own is to answer it, and one that is dead says so."""
    collector = VectorCollector(make_vector_env(Counter, 2, asynchronous=True))
    workers = collector.envs.processes
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
    for _ in range(3):
        collector.step(torch.zeros(2, 1))
    assert all(worker.is_alive() for worker in workers)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    workers[0].kill()
    workers[0].join()
    with pytest.raises(EnvFaultError, match=r"a process of the vector environment has died .*resume"):
        collector.step(torch.zeros(2, 1))
    collector.shutdown()


def test_one_environment_is_no_vector() -> None:
    env = make_gym_env("Pendulum-v1")
    with pytest.raises(O2OSpecError, match="got the same Pendulum-v1 twice"):
        make_vector_env(lambda: env, 2)
    twice = SyncVectorEnv([lambda: env, lambda: env], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(O2OSpecError, match="got the same Pendulum-v1 twice"):
        VectorCollector(twice)


def test_a_state_that_is_none_changes_nothing() -> None:
    collector = VectorCollector(make_vector_env(lambda: make_gym_env("Pendulum-v1"), 2), seeds=[0, 1])
    for change, told in (({"frames": -1}, "'frames' is -1"), ({"frames": None}, "'frames' is None")):
        with pytest.raises(O2OSpecError, match=told):
            collector.load_state_dict(collector.state_dict() | change)
    state = collector.state_dict()
    del state["frames"]
    with pytest.raises(O2OSpecError, match="no 'frames'"):
        collector.load_state_dict(state)


def builds_here_only() -> gymnasium.Env:
    if multiprocessing.parent_process() is not None:
        raise RuntimeError("not here")
    return make_gym_env("Pendulum-v1")


def test_a_process_that_cannot_build_its_environment() -> None:
    with pytest.raises(O2OSpecError, match=r"ended before it had built its environment; .*register them in make_env"):
        make_vector_env(builds_here_only, 1, asynchronous=True)


class Plain(VectorEnv):
    """Two environments of someone else's making, which count their steps and begin anew at the third."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
    single_observation_space = spaces.Box(-9.0, 9.0, (2,), np.float32)
    single_action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    num_envs, broken_at, says_final, says_rejected = 2, 0, True, False

    def reset(self, **_: Any) -> tuple[np.ndarray, dict]:
        self.count = 0
        return np.zeros((2, 2), np.float32), {}

    def step(self, actions: np.ndarray) -> tuple[Any, Any, Any, Any, dict]:
        self.count += 1
        done = self.count % 3 == 0
        infos = {"final_obs": np.full((2, 2), 3.0)} if done and self.says_final else {}
        infos |= {"rejected": np.ones(2)} if self.says_rejected else {}
        state = np.full((2, 2), np.nan if self.count == self.broken_at else self.count % 3)
        return torch.from_numpy(state), [1.0, 2.0], [done, done], np.zeros((2, 1)), infos


def test_a_vector_of_another_kind_may_return_lists_and_tensors() -> None:
    collector = VectorCollector(Plain())
    rows = [collector.step(torch.zeros(2, 1)) for _ in range(4)]
    assert [row["next", "observation"][0, 0].item() for row in rows] == [1.0, 2.0, 3.0, 1.0]
    assert [row["next", "terminated"][0].item() for row in rows] == [False, False, True, False]
    assert rows[2]["next", "episode_reward"].squeeze(-1).tolist() == [3.0, 6.0]


def test_only_a_guard_rejects_steps() -> None:
    """An info of this name left out the last rows of all episodes, or was a KeyError."""
    plain = Plain()
    plain.says_rejected = True
    mode = AutoresetMode.SAME_STEP
    for envs in (AsyncVectorEnv([Rejecting] * 2, autoreset_mode=mode), plain):
        collector = VectorCollector(envs)
        for _ in range(4):
            collector.step(torch.zeros(2, 1))
            assert collector.accepted.all()
        assert collector.frames == 8
        collector.shutdown()


def test_what_a_vector_of_another_kind_returns_is_looked_at() -> None:
    silent, broken = Plain(), Plain()
    silent.says_final, broken.broken_at = False, 2
    collector = VectorCollector(silent)
    for _ in range(2):
        collector.step(torch.zeros(2, 1))
    with pytest.raises(EnvFaultError, match=r"environments \[0, 1\] were reset, but infos has no 'final_obs'"):
        collector.step(torch.zeros(2, 1))
    collector = VectorCollector(broken)
    collector.step(torch.zeros(2, 1))
    with pytest.raises(
        EnvFaultError, match=r"environments \[0, 1\] returned an observation or a reward that is not fin"
    ):
        collector.step(torch.zeros(2, 1))


def test_wrappers_of_vectors_are_looked_into() -> None:
    envs = SyncVectorEnv([lambda: make_gym_env("Pendulum-v1")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.warns(UserWarning, match=r"Pendulum-v1 normalizes by running statistics \(NormalizeReward\)"):
        VectorCollector(NormalizeReward(envs))
    assert all(isinstance(env, CheckedEnv) for env in envs.envs)


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_actor_in_float64_acts_and_delivers_float32(wrapped: bool) -> None:
    actor = make_actor(3, 1, hidden_sizes=(8,)).double()
    called = TensorDictSequential(actor) if wrapped else actor
    envs = make_vector_env(lambda: make_gym_env("Pendulum-v1"), 2)
    rows = torch.cat(list(VectorCollector(envs, called, total_frames=4, seeds=[0, 1])))
    assert {rows[key].dtype for key in ("observation", "action", ("next", "reward"))} == {torch.float32}
