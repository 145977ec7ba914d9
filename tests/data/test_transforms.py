# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.data.postprocs import MultiStep
from torchrl.envs import GymEnv, StepCounter, TransformedEnv

from tests.golden_vectors import GOLDEN, hp
from torchrl_o2o.data import load_offline
from torchrl_o2o.data.transforms import (
    AffineReward,
    ObservationStats,
    add_mc_return,
    add_next_action,
    end_at_success,
    episode_returns,
    locomotion_reward,
    mc_return,
    n_step,
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


def test_statistics_of_nothing_and_of_nan_are_refused() -> None:
    data = random_transitions(3, 3, 1)
    with pytest.raises(O2ODataError, match="got 0 transitions"):
        ObservationStats.of(data[:0])
    data["observation"][1] = float("nan")
    with pytest.raises(O2ODataError, match="got 3 transitions, 1 of them"):
        ObservationStats.of(data)


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


@pytest.mark.parametrize("eps", [0.0, 1e-50])
def test_what_never_changes_is_not_divided_by_zero(eps: float) -> None:
    data = random_transitions(4, 3, 1)
    data["observation"][:, 1] = 7.0
    with pytest.raises(O2ODataError, match=rf"entry 1 of the observations never changes, and eps={eps} is 0 in"):
        ObservationStats.of(data, eps=eps)
    assert ObservationStats.of(data, eps=1e-3).scale[1] == torch.tensor(1e-3)


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


def test_statistics_of_another_type_leave_the_observations_their_own() -> None:
    """An environment's are float32, whatever the statistics are."""
    data = random_transitions(4, 3, 2)
    stats = ObservationStats.of(data)
    wide = ObservationStats(stats.mean.double(), stats.scale.double())
    torch.testing.assert_close(wide(data)["observation"], stats(data)["observation"])
    assert wide(data)["next", "observation"].dtype == torch.float32


def test_statistics_survive_a_checkpoint() -> None:
    stats = ObservationStats(torch.randn(3), torch.rand(3))
    again = ObservationStats.from_state_dict(stats.state_dict())
    assert torch.equal(again.mean, stats.mean)
    assert torch.equal(again.scale, stats.scale)


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


@pytest.mark.parametrize("function", [episode_returns, locomotion_reward, lambda data: add_mc_return(data, gamma=0.9)])
def test_rows_without_their_episode(function: Callable[[TensorDict], object]) -> None:
    with pytest.raises(O2ODataError, match=r"have no 'episode', .*load_offline"):
        function(random_transitions(4, 3, 2))


def steps_of_two_episodes() -> TensorDict:
    """Rewards 1, 2, 4, 8 up to a time limit, then 1, 1 up to a terminal; states are numbered."""
    flag = torch.zeros(6, 1, dtype=torch.bool)
    terminated, truncated = flag.clone(), flag.clone()
    terminated[5], truncated[3] = True, True
    return TensorDict(
        {
            "observation": torch.arange(6.0).unsqueeze(-1),
            "action": torch.zeros(6, 1),
            "episode": torch.tensor([0, 0, 0, 0, 1, 1]),
            "next": {
                "observation": torch.arange(6.0).unsqueeze(-1) + 100.0,
                "reward": torch.tensor([1.0, 2.0, 4.0, 8.0, 1.0, 1.0]).unsqueeze(-1),
                "terminated": terminated,
                "truncated": truncated,
                "done": terminated | truncated,
            },
        },
        [6],
    )


class TestNStep:
    def test_by_hand(self) -> None:
        data = steps_of_two_episodes()
        before = data.clone()
        rows = n_step(data, n=3, gamma=0.5)
        assert rows["next", "reward"].squeeze(-1).tolist() == [3.0, 6.0, 8.0, 8.0, 1.5, 1.0]
        assert rows["steps_to_next_obs"].tolist() == [3, 3, 2, 1, 2, 1]
        assert rows["next", "observation"].squeeze(-1).tolist() == [102.0, 103.0, 103.0, 103.0, 105.0, 105.0]
        assert rows["next", "terminated"].squeeze(-1).tolist() == [False, False, False, False, True, True]
        assert rows["next", "truncated"].squeeze(-1).tolist() == [False, True, True, True, False, False]
        assert rows["next", "done"].squeeze(-1).tolist() == [False, True, True, True, True, True]
        assert torch.equal(rows["observation"], data["observation"])
        assert (data == before).all()
        assert set(data.keys(True, True)) == set(before.keys(True, True))

    def test_one_step_changes_nothing(self) -> None:
        data = steps_of_two_episodes()
        rows = n_step(data, n=1, gamma=0.5)
        assert rows["steps_to_next_obs"].tolist() == [1] * 6
        assert (rows.exclude("steps_to_next_obs") == data).all()

    def test_episodes_that_are_cut_without_a_flag_do_not_run_together(self) -> None:
        data = steps_of_two_episodes()
        data["next", "truncated"][3] = data["next", "done"][3] = False
        assert n_step(data, n=3, gamma=0.5)["steps_to_next_obs"].tolist() == [3, 3, 2, 1, 2, 1]

    def test_torchrls_multistep_but_for_its_flags(self) -> None:
        """The same sums, steps and observations; only there rows before the terminal are not terminal."""
        data = steps_of_two_episodes()
        rows, theirs = n_step(data, n=3, gamma=0.5), MultiStep(gamma=0.5, n_steps=3)(data.unsqueeze(0))[0]
        for key in ("steps_to_next_obs", ("next", "reward"), ("next", "observation")):
            assert torch.equal(rows[key], theirs[key]), key
        assert theirs["next", "terminated"].squeeze(-1).tolist() == [False] * 5 + [True]

    def test_batches_of_a_collector(self) -> None:
        env = GymEnv("Pendulum-v1", device="cpu")
        env = TransformedEnv(env, StepCounter(max_steps=5))
        postproc = functools.partial(n_step, n=3, gamma=0.5)
        data = next(iter(Collector(env, None, frames_per_batch=12, total_frames=12, postproc=postproc)))
        assert data["steps_to_next_obs"].tolist() == [3, 3, 3, 2, 1] * 2 + [2, 1]
        assert data["next", "step_count"].squeeze(-1).tolist() == [3, 4, 5, 5, 5] * 2 + [2, 2]

    def test_sums_come_last(self) -> None:
        rows = n_step(steps_of_two_episodes(), n=2, gamma=0.5)
        assert torch.equal(AffineReward(scale=2.0)(rows)["next", "reward"], 2.0 * rows["next", "reward"])
        for call in (
            AffineReward(shift=-1.0),
            episode_returns,
            functools.partial(add_mc_return, gamma=0.9),
            functools.partial(n_step, n=2, gamma=0.5),
        ):
            with pytest.raises(O2ODataError, match=r"sums over n steps, from which .* apply n_step last"):
                call(rows)

    def test_what_does_not_fit(self) -> None:
        data = steps_of_two_episodes()
        with pytest.raises(O2OSpecError, match="got n=0"):
            n_step(data, n=0, gamma=0.9)
        with pytest.raises(O2OSpecError, match=r"gamma=1\.1"):
            n_step(data, n=2, gamma=1.1)
        with pytest.raises(O2ODataError, match=r"batch shape \[2, 3\], expected \[N\]"):
            n_step(data.reshape(2, 3), n=2, gamma=0.9)
        with pytest.raises(O2ODataError, match="have no 'episode'"):
            n_step(data.exclude("episode"), n=2, gamma=0.9)


def test_rewards_that_are_not_finite_and_observations_by_name_are_refused() -> None:
    data = random_transitions(4, 3, 2).set("episode", torch.tensor([0, 0, 1, 1]))
    data["next", "reward"][3] = torch.nan
    with pytest.raises(O2ODataError, match=r"episode \d+ returns nan; expected finite rewards"):
        locomotion_reward(data)
    parts = TensorDict({"observation": {"image": torch.zeros(4, 2), "state": torch.zeros(4, 2)}}, [4])
    with pytest.raises(O2OSpecError, match=r"several entries, \['image', 'state'\]"):
        ObservationStats.of(parts)


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
