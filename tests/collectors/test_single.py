# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase, TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import AdditiveGaussianModule

from tests.collectors.envs import Counter
from torchrl_o2o.checkpoint import Checkpointer
from torchrl_o2o.collectors import VectorCollector, make_vector_env
from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.data import TRANSITION, EpisodeRows, OnlineWriter
from torchrl_o2o.envs.make import make_env, make_gym_env, seed_everything
from torchrl_o2o.envs.outputs import EnvFaultError
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_deterministic_actor, make_gaussian_actor


def collected(total: int, seed: int = 0) -> tuple[StepCollector, list[TensorDict]]:
    seed_everything(seed)
    env = make_gym_env("Hopper-v5")
    actor = make_actor(11, 3, hidden_sizes=(16,))
    collector = StepCollector(env, actor, total_frames=total, init_random_frames=20, seed=seed)
    return collector, list(collector)


@pytest.mark.filterwarnings("ignore")
def test_numbers_are_those_of_torchrls_collector() -> None:
    """Random and policy actions, several episodes: the same transitions, bit for bit."""
    _, ours = collected(150)
    seed_everything(0)
    env = make_env("Hopper-v5", seed=0)
    actor = make_actor(11, 3, hidden_sizes=(16,))
    theirs = list(Collector(env, actor, frames_per_batch=1, total_frames=150, init_random_frames=20))
    assert sum(bool(row["next", "done"]) for row in ours) >= 3
    for mine, other in zip(ours, theirs, strict=True):
        for key in TRANSITION:
            assert torch.equal(mine[key], other[key]), key
            assert mine[key].dtype == other[key].dtype, key


@pytest.mark.parametrize("make", [make_deterministic_actor, make_gaussian_actor, make_actor, None])
def test_numbers_are_those_of_the_actor_itself(make: Callable[..., TensorDictModuleBase] | None) -> None:
    """What is called without its tensordict plumbing gives the bits of a call with it; the rest is called as it is."""
    torch.manual_seed(0)
    if make is None:
        plain = make_deterministic_actor(3, 1, hidden_sizes=(8,))
        actor = TensorDictSequential(plain, AdditiveGaussianModule(plain.spec, sigma_init=0.3, sigma_end=0.3))
    else:
        actor = make(3, 1, hidden_sizes=(8,))
    torch.manual_seed(5)
    rows = list(StepCollector(make_gym_env("Pendulum-v1"), actor, total_frames=20, seed=0))
    torch.manual_seed(5)
    for row in rows:
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            expected = actor(TensorDict({"observation": row["observation"][0]}))["action"]
        assert torch.equal(row["action"][0], expected)


def test_fast_acting_is_the_same_to_rounding() -> None:
    """The same noise, so the same actions until the environment magnifies the rounding."""

    def collect(fast_act: bool) -> TensorDict:
        torch.manual_seed(0)
        actor = make_actor(3, 1, hidden_sizes=(32,))
        env = make_gym_env("Pendulum-v1")
        options = {"total_frames": 40, "init_random_frames": 10, "seed": 0, "fast_act": fast_act}
        return torch.cat(list(StepCollector(env, actor, **options)))

    slow, fast = collect(False), collect(True)
    assert torch.equal(slow["action"][:10], fast["action"][:10]), "random actions are the same"
    torch.testing.assert_close(fast["action"], slow["action"], rtol=0.0, atol=1e-4)
    with pytest.raises(O2OSpecError, match="expected an actor from make_actor"):
        StepCollector(
            make_gym_env("Pendulum-v1"), TensorDictSequential(make_actor(3, 1)), total_frames=1, fast_act=True
        )


@pytest.mark.parametrize("how", ["in parts", "as it is", "fast"])
def test_an_actor_in_float64_acts_and_delivers_float32(how: str) -> None:
    """It computes in its own type, on what a buffer of float32 then holds."""
    torch.manual_seed(0)
    actor = make_deterministic_actor(3, 1, hidden_sizes=(8,)).double()
    called = TensorDictSequential(actor) if how == "as it is" else actor
    collector = StepCollector(make_gym_env("Pendulum-v1"), called, total_frames=3, seed=0, fast_act=how == "fast")
    rows = torch.cat(list(collector))
    assert {rows[key].dtype for key in ("observation", "action", ("next", "reward"))} == {torch.float32}
    expected = actor(TensorDict({"observation": rows["observation"].double()}, [3]))["action"]
    torch.testing.assert_close(rows["action"], expected.float())


def test_an_actor_replaced_between_two_collections_acts() -> None:
    torch.manual_seed(0)
    collector = StepCollector(
        make_gym_env("Pendulum-v1"), make_deterministic_actor(3, 1), total_frames=1, seed=0, fast_act=True
    )
    list(collector)
    collector.actor, collector.total_frames = make_deterministic_actor(3, 1), 2
    (row,) = list(collector)
    torch.testing.assert_close(row["action"], collector.actor(row.select("observation"))["action"].detach())


def test_transitions_go_to_the_device() -> None:
    """Where there is one; the meta device shows that every entry is moved."""
    collector = StepCollector(make_gym_env("Pendulum-v1"), make_actor(3, 1), total_frames=2, seed=0, device="meta")
    for row in collector:
        assert {value.device.type for value in row.values(include_nested=True, leaves_only=True)} == {"meta"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fast_act", [False, True])
def test_an_actor_on_the_gpu(fast_act: bool) -> None:
    actor = make_actor(3, 1).cuda()
    settings = {"total_frames": 3, "init_random_frames": 1, "seed": 0, "device": "cuda", "fast_act": fast_act}
    rows = list(StepCollector(make_gym_env("Pendulum-v1"), actor, **settings))
    assert all(row["next", "observation"].is_cuda and row["action"].is_cuda for row in rows)


def test_episode_sums() -> None:
    _, rows = collected(60)
    total, steps = 0.0, 0
    for row in rows:
        total, steps = total + row["next", "reward"].item(), steps + 1
        assert row["next", "episode_reward"].item() == pytest.approx(total, rel=1e-5)
        assert row["next", "step_count"].item() == steps
        if row["next", "done"]:
            total, steps = 0.0, 0


def test_time_limits_truncate_and_do_not_terminate() -> None:
    seed_everything(0)
    env = make_gym_env("HalfCheetah-v5", max_episode_steps=5)
    rows = list(StepCollector(env, make_actor(17, 6, hidden_sizes=(8,)), total_frames=10, seed=0))
    assert [bool(row["next", "truncated"]) for row in rows] == [False] * 4 + [True] + [False] * 4 + [True]
    assert not any(bool(row["next", "terminated"]) for row in rows)
    assert not torch.equal(rows[4]["next", "observation"], rows[5]["observation"]), "the true successor is kept"


def test_state_round_trip_in_mid_episode() -> None:
    first, _ = collected(50)
    state, rng = first.state_dict(), torch.get_rng_state()
    first.total_frames = 80
    expected = [row.clone() for row in first]
    seed_everything(9)
    other = StepCollector(make_gym_env("Hopper-v5"), first.actor, total_frames=80, seed=9)
    other.load_state_dict(state)
    torch.set_rng_state(rng)
    got = list(other)
    assert not other.restarted
    assert len(got) == len(expected) == 30
    for mine, theirs in zip(got, expected, strict=True):
        assert torch.equal(mine["next", "observation"], theirs["next", "observation"])
        assert torch.equal(mine["next", "episode_reward"], theirs["next", "episode_reward"])


def test_an_environment_that_cannot_be_captured_restarts_and_says_so() -> None:
    collector, _ = collected(30)
    state = collector.state_dict()
    state["env"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collector.load_state_dict(state)
    assert collector.restarted
    assert collector.frames == 30


def test_total_frames() -> None:
    with pytest.raises(O2OSpecError, match="total_frames=0"):
        StepCollector(make_gym_env("Pendulum-v1"), make_actor(3, 1), total_frames=0)


def test_a_torchrl_environment_is_refused() -> None:
    env = make_env("Pendulum-v1")
    with pytest.raises(O2OSpecError, match=r"got TorchRL's GymWrapper.* make_gym_env"):
        StepCollector(env, make_actor(3, 1, hidden_sizes=(8,)), total_frames=1)  # type: ignore[arg-type]


class Uncapturable(Counter):
    """Counts in a class attribute, which no state of the environment holds."""

    steps = 0

    def step(self, action: np.ndarray) -> tuple:
        Uncapturable.steps += 1
        return super().step(action)


@pytest.mark.filterwarnings("ignore:the state of")
@pytest.mark.parametrize("resumed_twice", [False, True])
@pytest.mark.parametrize("before", [3, 5])
def test_an_episode_that_a_resume_ends_is_marked_truncated(tmp_path: Path, before: int, resumed_twice: bool) -> None:
    """Every row is followed by its successor, or ends its episode, over a resume that begins a new episode."""

    def build(total: int) -> tuple[StepCollector, TensorDictReplayBuffer, Checkpointer]:
        writer = OnlineWriter(0)
        buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(20), writer=writer, batch_size=1)
        actor = make_actor(1, 1, hidden_sizes=(8,))
        collector = StepCollector(Uncapturable(), actor, total_frames=total, seed=0, on_cut=writer.truncate_last)
        return collector, buffer, Checkpointer(tmp_path, objects={"collector": collector}, buffer=buffer, config={})

    collector, buffer, checkpoint = build(before)
    for row in collector:
        buffer.extend(row.select(*TRANSITION))
    checkpoint.save(before)
    for _ in range(1 + resumed_twice):  # saved again before anything was collected
        collector, buffer, checkpoint = build(before + 4)
        checkpoint.restore()
        assert collector.restarted
        checkpoint.save(before + 1)
    for row in collector:
        buffer.extend(row.select(*TRANSITION))
    rows = buffer[:]
    goes_on = (rows["next", "observation"][:-1] == rows["observation"][1:]).flatten()
    assert torch.equal(goes_on, ~rows["next", "done"][:-1].flatten())
    assert not goes_on[before - 1]
    assert not rows["next", "terminated"].any()


def test_rows_held_back_end_with_the_episode_that_a_resume_ends() -> None:
    """Sums over several steps do not reach from one episode into the next."""

    def build() -> tuple[StepCollector, EpisodeRows]:
        rows, actor = EpisodeRows(2, 0.5), make_actor(1, 1, hidden_sizes=(8,))
        return StepCollector(Counter(), actor, total_frames=5, seed=0, on_cut=rows.cut), rows

    first, rows = build()
    for _, row in zip(range(2), first, strict=False):
        assert len(rows.add(row)) == 0
    resumed, resumed_rows = build()
    resumed.load_state_dict(first.state_dict() | {"env": None})
    resumed_rows.load_state_dict(rows.state_dict())
    ended = resumed_rows.add(next(iter(resumed)))
    assert ended["steps_to_next_obs"].flatten().tolist() == [2, 1]
    assert ended["next", "truncated"].all()


def test_rows_share_no_memory_with_the_environment() -> None:
    env = Counter()
    collector = StepCollector(env, make_actor(1, 1, hidden_sizes=(8,)), total_frames=4, seed=np.int64(0))
    rows = []
    for row in collector:
        rows.append(row)
        state = collector.state_dict()["observation"].clone()
        row["next", "observation"] += 0.0  # in place
        env.state[:] = env.state.copy()
        assert torch.equal(collector.state_dict()["observation"], state)
    pairs = [(row["observation"].item(), row["next", "observation"].item()) for row in rows]
    assert pairs == [(0, 1), (1, 2), (2, 3), (0, 1)]
    assert all(row["action"].abs() <= 1 for row in rows)
    assert [row["next", "reward"].item() for row in rows] == [0.5] * 4


def test_changing_a_delivered_row_changes_no_later_one() -> None:
    collector = StepCollector(Counter(), make_actor(1, 1, hidden_sizes=(8,)), total_frames=2, seed=0)
    first, second = (row for row in collector if row["next", "observation"].mul_(100.0) is not None)
    assert (first["next", "observation"].item(), second["observation"].item()) == (100.0, 1.0)


def test_without_a_guard_a_fault_is_an_error() -> None:
    env = Counter()
    collector = StepCollector(env, make_actor(1, 1, hidden_sizes=(8,)), total_frames=9, seed=0)
    env.state = np.full(1, np.nan, np.float32)
    with pytest.raises(EnvFaultError, match=r"Counter: step returned an observation that is not finite; .*GuardedEnv"):
        list(collector)
    env.state = np.zeros(3, np.float32)
    with pytest.raises(EnvFaultError, match=r"shape \(3,\) came back, expected \(1,\)"):
        list(collector)


def test_discrete_actions_are_refused() -> None:
    with pytest.raises(O2OSpecError, match=r"CartPole-v1 has discrete actions"):
        StepCollector(gymnasium.make("CartPole-v1"), make_actor(4, 1), total_frames=1)


def test_random_actions_need_bounds_and_are_float32() -> None:
    env = Counter()
    env.action_space = spaces.Box(-np.inf, np.inf, (1,))
    with pytest.raises(O2OSpecError, match="expected finite bounds"):
        StepCollector(env, make_actor(1, 1), total_frames=1, init_random_frames=1)
    env.action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)
    (row,) = StepCollector(env, make_actor(1, 1), total_frames=1, init_random_frames=1)
    assert row["action"].dtype == torch.float32


@pytest.mark.parametrize("seed", [1.5, "0", True])
def test_a_seed_is_an_integer(seed: object) -> None:
    with pytest.raises(O2OSpecError, match="expected an integer"):
        StepCollector(Counter(), make_actor(1, 1), total_frames=1, seed=seed)  # type: ignore[arg-type]


def test_an_action_for_each_of_several_vectors_is_refused() -> None:
    class Windows(Counter):
        observation_space = spaces.Box(-9, 9, (2, 3), np.float32)

        def reset(self, **_: object) -> tuple[np.ndarray, dict]:
            return np.zeros((2, 3), np.float32), {}

    collector = StepCollector(Windows(), make_actor(3, 1, hidden_sizes=(8,)), total_frames=1)
    with pytest.raises(O2OSpecError, match=r"an action of shape \[2, 1\] for observations of shape \[\[2, 3\]\]"):
        next(iter(collector))


def test_an_action_that_is_not_finite_is_refused() -> None:
    actor = make_actor(1, 1, hidden_sizes=(8,))
    next(iter(actor.parameters())).data.fill_(torch.nan)
    with pytest.raises(O2OSpecError, match=r"got the action \[nan\] from the actor, expected finite numbers"):
        next(iter(StepCollector(Counter(), actor, total_frames=1)))


def test_negative_numbers_of_frames_are_refused() -> None:
    actor = make_actor(3, 1, hidden_sizes=(8,))
    with pytest.raises(O2OSpecError, match="init_random_frames=-1"):
        StepCollector(make_gym_env("Pendulum-v1"), actor, total_frames=1, init_random_frames=-1)
    envs = make_vector_env(lambda: make_gym_env("Pendulum-v1"), 2)
    with pytest.raises(O2OSpecError, match="init_random_frames=-1"):
        VectorCollector(envs, actor, init_random_frames=-1)
