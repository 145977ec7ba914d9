# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import pytest
from torchrl.envs import GymEnv

from torchrl_o2o.data.env_match import env_facts
from torchrl_o2o.errors import O2OSpecError


def test_the_facts_of_a_torchrl_environment() -> None:
    facts = env_facts(GymEnv("Pendulum-v1"))
    assert (facts.observation, facts.action) == ((3,), (1,))
    assert (facts.low.tolist(), facts.high.tolist()) == ([-2.0], [2.0])


def test_discrete_actions_are_refused_by_name() -> None:
    with pytest.raises(O2OSpecError, match=r"the actions of CartPole-v1 are OneHot, expected a continuous box"):
        env_facts(GymEnv("CartPole-v1"))
