# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Tests of the environments that actors in other processes step."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from tests.collectors.actors import Numbered
from tests.collectors.envs import Counter, Rejecting
from torchrl_o2o.collectors.actors import actor_env
from torchrl_o2o.data.interventions import INTERVENED
from torchrl_o2o.envs import CheckedEnv, EnvFaultError, GuardedEnv
from torchrl_o2o.errors import O2OSpecError


@pytest.mark.parametrize("make", [Counter, lambda: CheckedEnv(Counter()), lambda: GuardedEnv(Counter)])
def test_an_environment_that_writes_into_its_arrays_changes_no_row(make: Any):
    rows = actor_env(make, 0).rollout(4, break_when_any_done=False)
    assert rows["observation"].flatten().tolist() == [0, 1, 2, 0]
    assert rows["next", "observation"].flatten().tolist() == [1, 2, 3, 1]
    assert (rows["action"].abs() <= 1).all(), "the environment writes 9 into the action that it gets"


def test_an_own_entry_rejected_is_not_read_as_a_guards():
    class AtReset(Rejecting):
        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
            return super().reset(seed=seed)[0], {"rejected": True}

    assert not actor_env(AtReset, 0).rollout(3)["next", "rejected"].any()


def test_values_that_are_not_finite_pass_to_the_receiver_which_leaves_them_out():
    rewards = actor_env(partial(Numbered, wrong="nan", at=2), 0).rollout(3)["next", "reward"]
    assert rewards.isnan().flatten().tolist() == [False, True, False]


def test_actions_in_other_units_are_refused():
    with pytest.raises(O2OSpecError, match=r"the environment takes \[-2.0\]..\[2.0\]"):
        actor_env(partial(gymnasium.make, "Pendulum-v1"), 0)


class Intervening(Counter):
    """Writes what it is given as the intervention."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.given = given

    def step(self, action: np.ndarray) -> tuple:
        return *super().step(action)[:4], {"intervened": self.given}


@pytest.mark.parametrize(("given", "read"), [(None, float("nan")), ([0.5], 0.5), (np.array([0.25]), 0.25)])
def test_an_intervention_is_an_action_or_none(given: Any, read: float):
    data = actor_env(partial(Intervening, given), 0, intervened=True).rollout(2)
    torch.testing.assert_close(data[INTERVENED].flatten(), torch.full((2,), read), equal_nan=True)


@pytest.mark.parametrize("given", [0.5, [0.5, 0.5], [[0.5]], "left", {"action": [0.5]}])
def test_an_intervention_that_is_no_action_is_named(given: Any):
    env = actor_env(partial(Intervening, given), 0, intervened=True)
    with pytest.raises(EnvFaultError, match=r"Intervening: got the intervention .*, expected an action of shape"):
        env.rollout(2)
