# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""ReturnConditionedRollouts: what the policy is shown, what is delivered, and continuing."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torchrl.data import Bounded, Composite
from torchrl.modules import SafeModule

from torchrl_o2o.collectors import ReturnConditionedRollouts
from torchrl_o2o.envs import EnvFaultError, GuardedEnv
from torchrl_o2o.errors import O2OSpecError


class Counting(gymnasium.Env):
    """Its state and reward are the number of the step; the episode ends after four."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, broken_at: int | None = None) -> None:
        self.broken_at = broken_at

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count += 1
        state = np.full(1, np.nan if self.count == self.broken_at else self.count, np.float32)
        return state, float(self.count), self.count == 4, False, {}


class Witness(TensorDictModuleBase):
    """Acts by the number of steps that it sees, and keeps what it was shown."""

    in_keys, out_keys = ["observation", "action", "return_to_go"], ["action"]

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[TensorDictBase] = []

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        assert not self.training, "it acts without dropout"
        self.shown.append(tensordict.clone())
        return tensordict.set("action", torch.full_like(tensordict["action"], tensordict.shape[1] / 10))


def test_the_policy_sees_the_last_steps_and_what_is_left_of_the_return() -> None:
    witness = Witness()
    rollouts = ReturnConditionedRollouts(Counting(), witness, 20.0, context=3, return_scale=0.5)
    episode = rollouts.roll_out(20.0, seed=0)
    assert [each.shape for each in witness.shown] == [(1, 1), (1, 2), (1, 3), (1, 3)]
    last = witness.shown[-1][0]
    assert last["observation"].flatten().tolist() == [1.0, 2.0, 3.0]
    assert last["return_to_go"].flatten().tolist() == [9.5, 8.5, 7.0], "20, less 1, 2, 3, by one half"
    torch.testing.assert_close(last["action"][:, 0], torch.tensor([0.2, 0.3, 0.0]))  # the last one is not known yet
    assert episode["next", "reward"].flatten().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert episode["next", "episode_reward"].flatten().tolist() == [1.0, 3.0, 6.0, 10.0]
    assert episode["next", "terminated"].flatten().tolist() == [False, False, False, True]
    assert not episode["next", "truncated"].any()
    assert witness.training, "it learns on as before"


class OneArray(Counting):
    """Gives its own array, writes into it and into the action, and ends with both flags."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.own, _ = super().reset(seed=seed, options=options)
        return self.own, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        state, reward, terminated, *_ = super().step(action)
        self.own[:], action[:] = state, 1.0
        return self.own, reward, terminated, terminated, {}


def test_an_environments_own_arrays_and_flags_are_kept_as_they_were() -> None:
    episode = ReturnConditionedRollouts(OneArray(), Witness(), 1.0).roll_out(1.0, seed=0)
    assert episode["observation"].flatten().tolist() == [0.0, 1.0, 2.0, 3.0]
    torch.testing.assert_close(episode["action"][:, 0], torch.tensor([0.1, 0.2, 0.3, 0.4]))
    assert all(bool(episode["next", name][-1]) for name in ("terminated", "truncated"))


def test_it_counts_and_goes_on() -> None:
    make = lambda: ReturnConditionedRollouts(Counting(), Witness(), 1.0, total_frames=10)  # noqa: E731
    whole = make()
    assert [len(episode) for episode in whole] == [4, 4, 4]
    part = make()
    next(iter(part))
    other = make()
    other.load_state_dict(part.state_dict())
    assert [len(episode) for episode in other] == [4, 4]
    assert other.state_dict() == whole.state_dict() == {"frames": 12, "episodes": 3}


@pytest.mark.parametrize(("broken_at", "length"), [(3, 2), (1, 0)])
def test_a_rejected_step_ends_the_episode_and_is_left_out(broken_at: int, length: int) -> None:
    rollouts = ReturnConditionedRollouts(GuardedEnv(lambda: Counting(broken_at)), Witness(), 1.0)
    with pytest.warns(UserWarning, match="is rejected"):
        episode = rollouts.roll_out(1.0, seed=0)
    assert len(episode) == length
    assert episode["next", "truncated"].sum() == episode["next", "done"].sum() == min(length, 1)


@pytest.mark.parametrize("bad", [{"context": 0}, {"return_scale": 0.0}, {"total_frames": -1}, {"seed": "a"}])
def test_numbers_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(O2OSpecError, match=next(iter(bad))):
        ReturnConditionedRollouts(Counting(), Witness(), 1.0, **bad)


def test_rewards_may_be_arrays_and_infos_have_words_of_their_own() -> None:
    class Shaped(Counting):
        def step(self, action: np.ndarray) -> Any:
            state, reward, terminated, truncated, _ = super().step(action)
            return state, np.array([reward]), np.array(terminated), truncated, {"rejected": True}

    episode = ReturnConditionedRollouts(Shaped(), Witness(), 1.0).roll_out(1.0, seed=0)
    assert episode["next", "reward"].squeeze(-1).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert episode["next", "terminated"].squeeze(-1).tolist() == [False, False, False, True]


def test_without_a_guard_a_fault_is_an_error_and_the_policy_trains_on() -> None:
    witness = Witness()
    with pytest.raises(EnvFaultError, match="step returned an observation that is not finite"):
        ReturnConditionedRollouts(Counting(broken_at=2), witness, 1.0).roll_out(1.0, seed=0)
    assert witness.training


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_actor_of_another_type_reads_its_own_and_delivers_float32(dtype: torch.dtype) -> None:
    policy = TensorDictModule(torch.nn.Linear(1, 2), in_keys=["return_to_go"], out_keys=["action"])
    episodes = [
        ReturnConditionedRollouts(Counting(), policy.to(kind), 1.0).roll_out(1.0, seed=0)
        for kind in (torch.float32, dtype)
    ]
    assert episodes[1]["action"].dtype == torch.float32
    torch.testing.assert_close(*(each["action"] for each in episodes), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("action", "message"), [([0.1, float("nan")], "expected finite numbers"), ([0.1], r"action of shape \[1\]")]
)
def test_an_action_that_the_environment_cannot_take_does_not_reach_it(action: list[float], message: str) -> None:
    policy = TensorDictModule(lambda asked: torch.tensor([[action]]), in_keys=["return_to_go"], out_keys=["action"])
    env = Counting()
    with pytest.raises(O2OSpecError, match=message):
        ReturnConditionedRollouts(env, policy, 1.0).roll_out(1.0, seed=0)
    assert env.count == 0


def test_a_policy_of_another_box_is_refused_and_running_statistics_are_told() -> None:
    spec = Composite(action=Bounded(-2.0, 2.0, (2,)))
    policy = SafeModule(torch.nn.Linear(1, 2), in_keys=["return_to_go"], out_keys=["action"], spec=spec)
    with pytest.raises(O2OSpecError, match=r"the policy acts in \[-2.0, -2.0\]..\[2.0, 2.0\], the environment takes"):
        ReturnConditionedRollouts(Counting(), policy, 1.0)
    with pytest.warns(UserWarning, match="normalizes by running statistics"):
        ReturnConditionedRollouts(gymnasium.wrappers.NormalizeReward(Counting()), Witness(), 1.0)
