# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import warnings

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector

from torchrl_o2o.collect import StepCollector
from torchrl_o2o.data import TRANSITION
from torchrl_o2o.envs import make_env, make_gym_env, seed_everything
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor


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
