# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import GymEnv, TransformedEnv

from tests.golden_vectors import GOLDEN, hp
from torchrl_o2o.data import load_offline
from torchrl_o2o.data.transforms import (
    AffineReward,
    ObservationStats,
    add_mc_return,
    episode_returns,
    locomotion_reward,
    mc_return,
)
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.testing import random_transitions

# The golden rows have no actions, and their observations do not continue.
pytestmark = pytest.mark.filterwarnings("ignore:the dictionary")


def load(case: str) -> dict[str, Tensor]:
    """The numbers of a golden file; these files also hold an environment's name."""
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].dtype.kind in "fi"}


def golden_data(case: str, lengths: list[int] | None = None) -> TensorDict:
    """The golden rows as transitions in float64, episodes by length or by terminal and time limit."""
    tree = load(case)
    size = len(tree["dataset/reward"])
    arrays = {
        "observations": tree["dataset/observation"].numpy(),
        "next_observations": tree["dataset/observation"].numpy(),
        "actions": torch.zeros(size, 1).numpy(),
        "rewards": tree["dataset/reward"].numpy(),
        "terminals": tree["dataset/terminated"].numpy(),
    }
    limit = int(tree["hp/max_episode_steps"])
    if lengths is not None:
        arrays["episode"] = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).numpy()
    data = load_offline(arrays, max_episode_steps=limit, min_episode_length=1)
    data["observation"] = tree["dataset/observation"]
    data["next", "reward"] = tree["dataset/reward"].unsqueeze(-1)
    return data


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


@pytest.mark.parametrize("case", ["reward_A", "reward_antmaze_A"])
def test_observation_statistics_are_corls(case: str) -> None:
    tree = load(f"misc/{case}")
    data = golden_data(f"misc/{case}")
    stats = ObservationStats.of(data)
    torch.testing.assert_close(stats.mean, tree["out/obs_mean"], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(stats.scale, tree["out/obs_std_plus_eps"], rtol=1e-12, atol=0)
    torch.testing.assert_close(stats(data)["observation"], tree["out/observation_normalised"], rtol=1e-12, atol=1e-12)


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


def test_statistics_survive_a_checkpoint() -> None:
    stats = ObservationStats(torch.randn(3), torch.rand(3))
    again = ObservationStats.from_state_dict(stats.state_dict())
    assert torch.equal(again.mean, stats.mean)
    assert torch.equal(again.scale, stats.scale)


def test_refusals() -> None:
    data = golden_data("misc/reward_A")
    data["next", "reward"][:] = 0.0
    with pytest.raises(O2ODataError, match="all 4 episodes return 0; expected a spread"):
        locomotion_reward(data)
    data["observation"] = torch.zeros(27, 4, 4, dtype=torch.uint8)
    with pytest.raises(O2OSpecError, match=r"observations are torch\.uint8"):
        ObservationStats.of(data)


@pytest.mark.parametrize("function", [episode_returns, locomotion_reward, lambda data: add_mc_return(data, gamma=0.9)])
def test_rows_without_their_episode(function: Callable[[TensorDict], object]) -> None:
    with pytest.raises(O2ODataError, match=r"have no 'episode', .*load_offline"):
        function(random_transitions(4, 3, 2))
