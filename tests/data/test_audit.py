# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import importlib
import time
from typing import Literal

import gymnasium
import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import GymWrapper

from torchrl_o2o.data import TRANSITION, audit
from torchrl_o2o.data.audit import drop_non_finite
from torchrl_o2o.errors import O2ODataError


def make(size: int = 20, episode_length: int = 5) -> TensorDict:
    """Sound transitions: episodes of `episode_length`, each ending truncated, consecutive observations."""
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(size, 3, generator=generator)
    following = observation.roll(-1, 0)
    last = (torch.arange(size) % episode_length == episode_length - 1).unsqueeze(-1)
    following = torch.where(last, following + 1, following)
    return TensorDict(
        {
            "observation": observation,
            "action": torch.rand(size, 1, generator=generator) * 2 - 1,
            "next": {
                "observation": following,
                "reward": torch.randn(size, 1, generator=generator),
                "terminated": torch.zeros(size, 1, dtype=torch.bool),
                "truncated": last,
                "done": last.clone(),
            },
            "episode": torch.arange(size) // episode_length,
        },
        [size],
    )


def test_sound_data_have_no_findings() -> None:
    report = audit(make(), name="toy")
    assert report.ok
    assert report.findings == ()
    assert str(report) == "toy: 20 transitions in 4 episodes; 0 errors, 0 warnings"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["observation", "action", ("next", "observation"), ("next", "reward")])
def test_non_finite_values_are_placed(key: str | tuple[str, str], value: float) -> None:
    data = make()
    data[key][7, 0] = value
    data[key][13, 0] = value
    (finding,) = audit(data, on_bad="report").errors[:1]
    assert (finding.code, finding.count, finding.episode, finding.step) == ("non_finite", 2, 1, 2)
    name = key if isinstance(key, str) else ".".join(key)
    message = rf"toy: 2 transitions have a NaN or infinite {name}, first at episode 1, step 2; pass on_bad='drop'"
    with pytest.raises(O2ODataError, match=message):
        audit(data, name="toy")


def test_drop_reports_and_cuts_the_episode() -> None:
    data = make()
    data["next", "reward"][7] = float("nan")
    data["observation"][4] = float("inf")  # the last row of episode 0
    report = audit(data, on_bad="drop")
    assert [(f.severity, f.count) for f in report.findings if f.code == "non_finite"] == [("warning", 1)] * 2
    kept = drop_non_finite(data)
    assert kept["episode"].tolist() == [0] * 4 + [1] * 2 + [2] * 2 + [3] * 5 + [4] * 5
    assert kept["next", "truncated"].squeeze(-1).nonzero().squeeze(-1).tolist() == [3, 5, 7, 12, 17]
    torch.testing.assert_close(kept["next", "done"], kept["next", "truncated"])
    assert len(data) == 20
    assert audit(kept).ok


def test_dropping_everything_is_an_error() -> None:
    data = make()
    data["action"][:] = float("nan")
    with pytest.raises(O2ODataError, match="no finite transition is left"):
        audit(data, on_bad="drop")
    with pytest.raises(O2ODataError, match="got no finite transition"):
        drop_non_finite(data)


@pytest.mark.parametrize("on_bad", ["report", "drop"])
def test_looking_in_parts_finds_the_same(monkeypatch: pytest.MonkeyPatch, on_bad: Literal["report", "drop"]) -> None:
    data = make(200, 7)
    data["next", "reward"][[7, 30, 31]] = float("nan")
    data["next", "reward"][50] = 1e7
    data["next", "observation"][20:40] = data["observation"][20:40]
    ends = data["next", "done"].squeeze(-1).nonzero().squeeze(-1)[:-1]
    data["next", "observation"][ends] = data["observation"][ends + 1]
    if on_bad == "report":
        data["action"][11] = 1.37
    whole = audit(data, on_bad=on_bad, max_episode_steps=5 if on_bad == "report" else None)
    monkeypatch.setattr(importlib.import_module("torchrl_o2o.data.audit"), "_AT_ONCE", 7)
    parts = audit(data, on_bad=on_bad, max_episode_steps=5 if on_bad == "report" else None)
    assert parts == whole
    assert len({"non_finite", "large_reward", "misaligned"} - {*whole.codes}) == 0


def test_actions_outside_the_box() -> None:
    data = make()
    data["action"][11] = 1.37
    with pytest.raises(
        O2ODataError, match=r"1 actions are outside the box \[-1, 1\], first at episode 2, step 1; they"
    ):
        audit(data)
    assert audit(data, action_low=-2.0, action_high=2.0).ok
    data["action"][11] = 1.0 + 1e-7
    assert audit(data).ok


def test_bounds_per_dimension() -> None:
    data = make()
    data["action"] = torch.tensor([[0.5, 5.0]]).repeat(20, 1) * torch.rand(20, 1)
    assert audit(data, action_low=[0.0, 0.0], action_high=[1.0, 5.0]).ok
    assert audit(data, action_low=[0.0, 0.0], action_high=[1.0, 1.0], on_bad="report").codes == (
        "action_out_of_bounds",
    )


@pytest.mark.parametrize("key", TRANSITION)
def test_missing_keys_are_named(key: str | tuple[str, str]) -> None:
    name = key if isinstance(key, str) else ".".join(key)
    with pytest.raises(O2ODataError, match=f"lack .*{name}"):
        audit(make().exclude(key))


def test_empty_and_misshapen_data() -> None:
    with pytest.raises(O2ODataError, match="there are no transitions"):
        audit(make()[:0])
    data = make()
    data["next", "reward"] = data["next", "reward"].squeeze(-1)
    with pytest.raises(O2ODataError, match=r"next\.reward has the shape \(20,\); expected \[N, 1\]"):
        audit(data)
    assert audit(data, on_bad="report").codes == ("layout",)
    data = make()
    data["next", "observation"] = torch.zeros(20, 4)
    with pytest.raises(O2ODataError, match=r"observation and next\.observation differ"):
        audit(data)


def test_constant_columns_look_empty() -> None:
    data = make()
    data["observation"][:, 1] = 0.0
    data["next", "observation"][:, 1] = 0.0
    (finding,) = audit(data).warnings
    assert finding.message == "1 of 3 columns of observation never change (all zero, looks empty): [1]."
    data["action"][:] = 0.25
    assert "1 of 1 columns of action never change (looks empty): [0]." in [f.message for f in audit(data).warnings]


def test_all_zeros_as_an_upstream_loader_returned_them() -> None:
    data = make()
    for key in ("observation", "action", ("next", "observation"), ("next", "reward")):
        data[key] = torch.zeros_like(data[key])
    assert set(audit(data).codes) == {"constant_columns", "constant_reward"}


def test_images_are_judged_as_a_whole() -> None:
    data = make()
    images = torch.randint(0, 255, (20, 4, 4, 3), dtype=torch.uint8)
    images[:, 0] = 0
    data["observation"] = images
    data["next", "observation"] = torch.where(data["next", "done"].view(-1, 1, 1, 1), images, images.roll(-1, 0))
    assert audit(data).findings == ()


def test_rewards() -> None:
    data = make()
    data["next", "reward"][6] = -2e6
    (finding,) = audit(data).warnings
    assert finding.message == "1 rewards are beyond 1e+06 in size, first at episode 1, step 1; scale them down."
    data["next", "reward"][:] = -1.0
    (finding,) = audit(data).warnings
    assert (finding.code, "every reward is -1" in finding.message) == ("constant_reward", True)


def test_flags() -> None:
    data = make()
    data["next", "terminated"][9] = True
    (finding,) = audit(data).warnings
    assert (finding.code, finding.episode, finding.step) == ("both_flags", 1, 4)
    data = make()
    data["next", "done"][2] = True
    with pytest.raises(
        O2ODataError, match=r"1 transitions have next\.done != terminated \| truncated, first at episode 0"
    ):
        audit(data)
    data["next", "terminated"][2] = True
    assert audit(data).codes == ("goes_on",)
    data = make()
    data["next", "truncated"][19] = data["next", "done"][19] = False
    assert audit(data).codes == ("unfinished",)


def test_shifted_rows_are_noticed() -> None:
    data = make()
    data["observation"] = data["observation"].roll(1, 0)
    (finding,) = audit(data).warnings
    assert (finding.code, finding.count, finding.episode, finding.step) == ("misaligned", 16, 0, 0)


def test_against_environments() -> None:
    data = make()
    assert audit(data, env="Pendulum-v1").ok
    raw = gymnasium.make("Pendulum-v1")
    with pytest.raises(O2ODataError, match=r"actions are in \[-1, 1\], Pendulum-v1's in \[-2, 2\]. Build the env"):
        audit(data, env=raw)
    assert audit(data, env=raw, action_low=-2.0, action_high=2.0).ok
    with pytest.raises(O2ODataError, match=r"actions are in \[-1, 1\], Pendulum-v1's in \[-2, 2\]"):
        audit(data, env=GymWrapper(raw))
    data["observation"] = data["next", "observation"] = torch.randn(20, 4)
    data["action"] = torch.rand(20, 2)
    report = audit(data, env="Pendulum-v1", on_bad="report")
    assert [finding.code for finding in report.errors] == ["observation_shape", "action_shape"]
    assert "the shape [4], Pendulum-v1's [3]" in report.errors[0].message


def test_does_not_modify_and_is_quick() -> None:
    data = make(1_000_000, 1000)
    before = data.clone()
    start = time.perf_counter()
    report = audit(data)
    assert time.perf_counter() - start < 5
    assert report.episodes == 1000
    assert (data == before).all()
