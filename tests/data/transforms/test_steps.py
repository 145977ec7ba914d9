# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import functools

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.data.postprocs import MultiStep
from torchrl.envs import GymEnv, StepCounter, TransformedEnv

from tests.data.transforms.rows import steps_of_two_episodes
from torchrl_o2o.data.transforms import (
    AffineReward,
    add_mc_return,
    episode_returns,
    n_step,
)
from torchrl_o2o.errors import O2ODataError, O2OSpecError

# The golden rows have no actions, and their observations do not continue.
pytestmark = pytest.mark.filterwarnings("ignore:the dictionary")


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
