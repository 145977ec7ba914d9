# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from torchrl_o2o.data.datasets.actors import uniform_policy
from torchrl_o2o.data.datasets.rollout import roll_out


def test_time_limits_truncate_and_the_last_episode_is_cut() -> None:
    env = gymnasium.make("Pendulum-v1")
    parts = roll_out(env, uniform_policy(env.action_space), num_steps=450, seed=0)
    assert [len(part.rewards) for part in parts] == [200, 200, 50]
    for part in parts:
        assert len(part.observations) == len(part.actions) + 1
        assert part.truncations.nonzero()[0].tolist() == [len(part.rewards) - 1]
        assert not part.terminations.any()
        assert part.actions.dtype == np.float32


def test_terminal_states_end_episodes() -> None:
    pytest.importorskip("mujoco")
    env = gymnasium.make("Hopper-v5")
    parts = roll_out(env, uniform_policy(env.action_space), num_steps=300, seed=0)
    assert sum(len(part.rewards) for part in parts) == 300
    for part in parts[:-1]:
        assert part.terminations.nonzero()[0].tolist() == [len(part.rewards) - 1]
        assert not part.truncations.any()


def test_the_actors_draws_are_not_the_environments() -> None:
    """numpy's default_rng(seed) is also what gymnasium gives an environment seeded alike."""
    env = gymnasium.make("Pendulum-v1")
    seen = []

    def begin(rng: np.random.Generator) -> object:
        seen.append(rng.bit_generator.state["state"])
        return lambda observation: np.zeros(1)

    roll_out(env, begin, num_steps=1, seed=4)
    fresh, _ = gymnasium.utils.seeding.np_random(4)
    assert seen[0] != fresh.bit_generator.state["state"]
