# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict

from tests.data.transforms.rows import golden_data, load
from tests.golden_vectors import hp
from torchrl_o2o.data.transforms import (
    AffineReward,
    add_mc_return,
    episode_returns,
    locomotion_reward,
    mc_return,
)
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.testing import random_transitions

# The golden rows have no actions, and their observations do not continue.
pytestmark = pytest.mark.filterwarnings("ignore:the dictionary")


@pytest.mark.parametrize("case", ["rtg_A", "rtg_B", "rtg_C_timeout_split"])
@pytest.mark.parametrize(
    ("rule", "out"), [("all", "return_to_go_calql_official_per_trajectory"), ("last", "return_to_go_corl")]
)
def test_mc_return_is_the_references(case: str, rule: str, out: str) -> None:
    tree = load(f"misc/{case}")
    lengths = tree["dataset/trajectory_length"].tolist()
    if rule == "last" and case.endswith("timeout_split"):
        lengths = None  # CORL sees only terminals, jumps and the time limit
    data = golden_data(f"misc/{case}", lengths)
    failure = hp(tree, "reward_neg") if hp(tree, "sparse") else None
    value = add_mc_return(data, gamma=hp(tree, "discount"), failure_reward=failure, failure_rule=rule)["mc_return"]
    torch.testing.assert_close(value.squeeze(-1), tree[f"out/{out}"], rtol=1e-12, atol=1e-12)


def test_mc_return_is_the_backward_sum_for_any_lengths() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 2, 3, 7, 8, 9, 64, 1, 1000])
    segment = torch.arange(len(lengths)).repeat_interleave(lengths)
    reward = torch.randn(len(segment), generator=generator, dtype=torch.float64)
    expected, following = reward.clone(), 0.0
    for row in reversed(range(len(reward))):
        last = row == len(reward) - 1 or segment[row + 1] != segment[row]
        following = expected[row] = reward[row] + (0.0 if last else 0.99 * following)
    torch.testing.assert_close(mc_return(reward, segment, 0.99), expected, rtol=1e-12, atol=1e-12)


def test_mc_return_edge_cases() -> None:
    reward, segment = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, dtype=torch.long)
    assert mc_return(reward, segment, 0.0).tolist() == [1.0, 2.0, 3.0]
    assert mc_return(reward, segment, 1.0).tolist() == [6.0, 5.0, 3.0]
    assert mc_return(reward[:1], segment[:1], 0.9).tolist() == [1.0]
    with pytest.raises(O2OSpecError, match=r"gamma=1 with failure_reward=-1\.0"):
        add_mc_return(TensorDict({}, [3]), gamma=1, failure_reward=-1.0)


def test_locomotion_scaling_is_corls() -> None:
    tree = load("misc/reward_A")
    data = golden_data("misc/reward_A")
    returns = episode_returns(data)
    torch.testing.assert_close(returns.min(), tree["out/min_return"], rtol=1e-12, atol=0)
    torch.testing.assert_close(returns.max(), tree["out/max_return"], rtol=1e-12, atol=0)
    scaled = locomotion_reward(data, max_episode_steps=int(tree["hp/max_episode_steps"]))(data)
    torch.testing.assert_close(scaled["next", "reward"].squeeze(-1), tree["out/reward"], rtol=1e-12, atol=1e-12)


def test_antmaze_shift_is_corls() -> None:
    tree = load("misc/reward_antmaze_A")
    data = golden_data("misc/reward_antmaze_A")
    shifted = AffineReward(shift=-1.0)(data)["next", "reward"].squeeze(-1)
    torch.testing.assert_close(shifted, tree["out/reward"])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_rewards_of_whole_numbers_are_scaled_as_real_ones(dtype: torch.dtype) -> None:
    """200 in uint8, times 2, was 144."""
    data = random_transitions(2, 3, 1)
    data["next", "reward"] = torch.tensor([[200], [0]]).to(dtype)
    high = float(data["next", "reward"][0])
    reward = AffineReward(2, -1)(data)["next", "reward"]
    assert reward.dtype == torch.float32
    assert reward.flatten().tolist() == [2.0 * high - 1.0, -1.0]


@pytest.mark.parametrize("function", [episode_returns, locomotion_reward, lambda data: add_mc_return(data, gamma=0.9)])
def test_rows_without_their_episode(function: Callable[[TensorDict], object]) -> None:
    with pytest.raises(O2ODataError, match=r"have no 'episode', .*load_offline"):
        function(random_transitions(4, 3, 2))


@pytest.mark.parametrize(("scale", "shift"), [(0.3, 0.7), (10.0, -5.0), (0.7, -0.1), (1 / 3, 0.1)])
@pytest.mark.parametrize("recorded", [-1.0, 0.0])
def test_failures_are_recognized_after_rounding(scale: float, shift: float, recorded: float) -> None:
    """0.3 * -1 + 0.7 in float32 is not the nearest number to 0.4."""
    episodes = torch.tensor([0, 0, 1, 1])
    data = random_transitions(4, 1, 1).set("episode", episodes)
    for flag in ("terminated", "truncated", "done"):
        data["next", flag] = torch.tensor([[False], [True], [False], [True]])
    data["next", "reward"] = torch.tensor([[recorded], [recorded], [recorded], [recorded + 1.0]])
    fail = scale * recorded + shift
    value = add_mc_return(AffineReward(scale, shift)(data), gamma=0.5, failure_reward=fail)["mc_return"].squeeze(-1)
    expected = torch.tensor([2 * fail, 2 * fail, fail + 0.5 * (fail + scale), fail + scale])
    torch.testing.assert_close(value, expected)


def test_a_failure_reward_that_no_step_has_is_told() -> None:
    data = random_transitions(2, 1, 1).set("episode", torch.tensor([0, 1]))
    data["next", "reward"] = torch.tensor([[-5.0], [5.0]])
    with pytest.warns(UserWarning, match=r"no step has failure_reward=-1.0: rewards are -5 to 5"):
        add_mc_return(data, gamma=0.5, failure_reward=-1.0)
