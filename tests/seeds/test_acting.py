# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Stacked collectors deliver what the single ones would."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_o2o.collectors.single import StepCollector
from torchrl_o2o.envs.guard import GuardedEnv
from torchrl_o2o.envs.make import make_gym_env, seed_everything
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.seeds import RandomStream, StackedActor, StackedCollector, stack_losses

pytestmark = pytest.mark.filterwarnings("ignore:No target network updater")


class Faulty(gymnasium.Wrapper):
    """Delivers a NaN at its fourth step; the guard around it rejects that step. Draws from numpy's global generator."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.steps = 0

    def step(self, action: np.ndarray) -> tuple:
        self.steps += 1
        observation, reward, *rest = self.env.step(action)
        reward = float("nan") if self.steps == 4 else float(reward) + np.random.rand()
        return observation, reward, *rest


def make(seed: int, faulty: bool) -> tuple[StepCollector, EnsembleSACLoss]:
    seed_everything(seed)
    actor = make_actor(3, 1, hidden_sizes=(8,))
    loss = EnsembleSACLoss(actor, make_qvalue_ensemble(3, 1, num_qvalue_nets=2, hidden_sizes=(8,)))
    env = GuardedEnv(lambda: Faulty(make_gym_env("Pendulum-v1"))) if faulty else make_gym_env("Pendulum-v1")
    return StepCollector(env, actor, total_frames=12, init_random_frames=2, seed=seed), loss


@pytest.mark.parametrize("faulty", [False, True])
@pytest.mark.filterwarnings("ignore:.*reject")
def test_equals_the_single_collectors(faulty: bool) -> None:
    """Random actions first, then the policies'; a rejected step in mid-round costs no agent its order of draws."""
    expected: list[list[TensorDict]] = []
    for seed in range(3):
        expected.append(list(make(seed, faulty and seed == 1)[0]))
    made, streams = [], []
    for seed in range(3):
        made.append(make(seed, faulty and seed == 1))
        streams.append(RandomStream())
    act = StackedActor(stack_losses([loss for _, loss in made]), streams, action_dim=1)
    collector = StackedCollector([single for single, _ in made], act, foreign_envs=faulty)
    rounds = []
    while collector.frames < 12:
        rounds.append(collector.step())
    for agent in range(3):
        for ours, theirs in zip([each[agent] for each in rounds], expected[agent], strict=True):
            for key in theirs.keys(True, True):
                torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-4, msg=str(key))


def test_collectors_out_of_step_are_refused() -> None:
    made = [make(seed, False) for seed in range(2)]
    next(iter(made[0][0]))
    act = StackedActor(stack_losses([loss for _, loss in made]), [RandomStream() for _ in made], action_dim=1)
    with pytest.raises(O2OSpecError, match=r"\[0, 1\]"):
        StackedCollector([single for single, _ in made], act).step()
    with pytest.raises(O2OSpecError, match="1 collectors for 2 agents"):
        StackedCollector([made[0][0]], act)
