# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import GymEnv, TransformedEnv

from tests.data.transforms.rows import golden_data, steps_of_two_episodes
from torchrl_o2o.data.transforms import (
    AffineReward,
    ObservationStats,
    add_mc_return,
    add_next_action,
    end_at_success,
    locomotion_reward,
    mc_return,
    n_step,
)
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.testing import random_transitions

# The golden rows have no actions, and their observations do not continue.
pytestmark = pytest.mark.filterwarnings("ignore:the dictionary")


def test_whole_rewards_are_discounted_in_floating_point() -> None:
    reward = torch.tensor([1, 2, 3])
    torch.testing.assert_close(mc_return(reward, torch.zeros(3, dtype=torch.long), 0.5), torch.tensor([2.75, 3.5, 3.0]))
    data = random_transitions(3, 3, 1).set("episode", torch.zeros(3, dtype=torch.long))
    data["next", "done"] = torch.zeros(3, 1, dtype=torch.bool)
    data["next", "reward"] = reward.unsqueeze(-1)
    expected = torch.tensor([[2.0], [3.5], [3.0]])
    torch.testing.assert_close(n_step(data, n=2, gamma=0.5)["next", "reward"], expected)
    expected = torch.tensor([[2.75], [3.5], [3.0]])
    torch.testing.assert_close(add_mc_return(data, gamma=0.5)["mc_return"], expected)


def test_the_environment_gets_the_same_transforms() -> None:
    env = GymEnv("Pendulum-v1")
    env.set_seed(0)
    torch.manual_seed(0)
    data = env.rollout(20)
    stats = ObservationStats(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0]))
    reward = AffineReward(10.0, -5.0)
    transformed = TransformedEnv(GymEnv("Pendulum-v1"), stats.transform()).append_transform(reward.transform())
    transformed.set_seed(0)
    torch.manual_seed(0)
    online = transformed.rollout(20)
    offline = reward(stats(data))
    torch.testing.assert_close(online["next", "reward"], offline["next", "reward"])
    torch.testing.assert_close(online["next", "observation"], offline["next", "observation"], rtol=1e-5, atol=1e-5)


def test_inputs_stay_as_they_are() -> None:
    data = golden_data("misc/reward_A")
    before = data.clone()
    AffineReward(2.0, 1.0)(data)
    ObservationStats.of(data)(data)
    add_mc_return(data, gamma=0.9)
    assert (data == before).all()
    assert "mc_return" not in data


@pytest.mark.parametrize(
    "function",
    [
        functools.partial(n_step, n=3, gamma=0.5),
        add_next_action,
        lambda data: end_at_success(data, torch.arange(6) % 3 == 1),
        lambda data: add_mc_return(data, gamma=0.5),
        AffineReward(2.0, 1.0),
    ],
)
def test_a_lazy_stack_of_rows_gives_the_same_and_stays_as_it_is(function: Callable[[TensorDict], TensorDict]) -> None:
    """Rows that are taken from a lazy stack are the stack's own, so that writing into them would change the input."""
    data = steps_of_two_episodes()
    stacked = TensorDict.lazy_stack(list(data.clone()))
    expected, found = function(data), function(stacked).contiguous()
    torch.testing.assert_close(found.to_dict(), expected.to_dict(), rtol=0, atol=0)
    torch.testing.assert_close(stacked.contiguous().to_dict(), data.to_dict(), rtol=0, atol=0)


def test_refusals() -> None:
    for scale in ("2", None, [2.0], torch.ones(2), 1j, float("inf")):
        with pytest.raises(O2OSpecError, match=r"got scale=.*, expected a finite number above 0"):
            AffineReward(scale)  # pyright: ignore[reportArgumentType]
    data = golden_data("misc/reward_A")
    data["next", "reward"][:] = 0.0
    with pytest.raises(O2ODataError, match="all 4 episodes return 0; expected returns that differ"):
        locomotion_reward(data)
    data["observation"] = torch.zeros(27, 4, 4, dtype=torch.uint8)
    with pytest.raises(O2OSpecError, match=r"observations are torch\.uint8"):
        ObservationStats.of(data)


def test_rewards_that_are_not_finite_and_observations_by_name_are_refused() -> None:
    data = random_transitions(4, 3, 2).set("episode", torch.tensor([0, 0, 1, 1]))
    data["next", "reward"][3] = torch.nan
    with pytest.raises(O2ODataError, match=r"episode \d+ returns nan; expected finite rewards"):
        locomotion_reward(data)
    parts = TensorDict({"observation": {"image": torch.zeros(4, 2), "state": torch.zeros(4, 2)}}, [4])
    with pytest.raises(O2OSpecError, match=r"several entries, \['image', 'state'\]"):
        ObservationStats.of(parts)
