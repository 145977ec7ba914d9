# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from torchrl_o2o.data import TRANSITION, audit, check_offline, describe_offline, load_offline, n_step
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.testing import random_transitions

Arrays = dict[str, np.ndarray]


def test_the_contract(flat: Arrays) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # sound data load without a word
        data = load_offline(flat)
    assert set(data.keys(include_nested=True, leaves_only=True)) == {*TRANSITION, "episode"}
    assert audit(data).findings == ()
    assert not data.is_locked


@pytest.mark.filterwarnings("ignore:the dictionary")
def test_not_finite(flat: Arrays) -> None:
    flat["rewards"][6] = np.nan
    flat["observations"][2] = np.inf
    message = (
        r"the dictionary: 1 transitions have a NaN or infinite observation, first at episode 0, step 2; .*"
        r"1 transitions have a NaN or infinite next\.reward, first at episode 1, step 2"
    )
    with pytest.raises(O2ODataError, match=message):
        load_offline(flat)
    del flat["next_observations"]
    with pytest.warns(
        UserWarning, match="NaN or infinite next.observation, first at episode 0, step 1; they are dropped"
    ):
        data = load_offline(flat, on_bad="drop")
    # 12 rows less two without successor (8, 11), rows 1 and 2 (the infinity seen twice) and row 6
    assert len(data) == 7
    assert data["episode"].tolist() == [0, 1, 2, 2, 3, 4, 4]
    assert torch.isfinite(data["next", "observation"]).all()


@pytest.mark.filterwarnings("ignore:.*are beyond 1e")
def test_values_beyond_float32_are_found(flat: Arrays) -> None:
    flat["rewards"] = flat["rewards"].astype(np.float64)
    flat["rewards"][4] = 1e300
    with pytest.raises(O2ODataError, match=r"infinite next\.reward, first at episode 1, step 0"):
        load_offline(flat)


@pytest.mark.parametrize(("policy", "expected"), [("clip", [1.0, -1.0, 0.5]), ("rescale", [1.0, -0.75, 0.25])])
def test_actions_outside_the_box(flat: Arrays, policy: Any, expected: list[float]) -> None:
    flat["actions"][:] = 0.1
    flat["actions"][:3, 0] = [2.0, -1.5, 0.5]
    flat["actions"][3:, 1] = np.linspace(-0.5, 0.5, 9)
    with pytest.raises(O2ODataError, match=r"2 actions are outside the box \[-1, 1\], first at episode 0, step 0"):
        load_offline(flat)
    with pytest.warns(UserWarning, match=rf"2 actions were outside \[-1, 1\] \(to 2\); policy: {policy}"):
        data = load_offline(flat, actions=policy)
    assert data["action"][:3, 0].tolist() == expected
    np.testing.assert_array_equal(data["action"][:, 1], flat["actions"][:, 1])  # a dimension inside is left alone


@pytest.mark.parametrize("policy", ["clip", "rescale"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:.*policy")
def test_repairing_actions_does_not_hide_what_is_not_finite(flat: Arrays, policy: Any, value: float) -> None:
    flat["actions"][5, 0] = value
    flat["actions"][6, 0] = 3.0
    with pytest.raises(O2ODataError, match="1 transitions have a NaN or infinite action, first at episode 1, step 1"):
        load_offline(flat, actions=policy)
    with pytest.warns(UserWarning, match="they are dropped"):
        data = load_offline(flat, actions=policy, on_bad="drop")
    assert data["action"][5:6].tolist() == [[1.0, pytest.approx(float(flat["actions"][6, 1]))]]


def test_single_numbers_are_vectors_of_one_entry(flat: Arrays) -> None:
    single = {key: values[:, 0] if values.ndim == 2 else values for key, values in flat.items()}
    data = load_offline(single)
    assert (data["observation"].shape, data["action"].shape) == ((12, 1), (12, 1))


def test_actions_in_other_units(flat: Arrays) -> None:
    expected = flat["actions"].copy()
    flat["actions"] = flat["actions"] * np.array([2.0, 0.5], np.float32) + np.array([0.0, 1.0], np.float32)
    data = load_offline(flat, action_bounds=([-2.0, 0.5], [2.0, 1.5]))
    np.testing.assert_allclose(data["action"], expected, atol=1e-6)
    assert "mapped_actions" in check_offline(flat, action_bounds=([-2.0, 0.5], [2.0, 1.5])).codes
    for bounds in (([-1.0] * 3, [1.0] * 3), (1.0, -1.0), (-np.inf, np.inf)):
        with pytest.raises(O2OSpecError, match=r"action_bounds of the shapes|the action box"):
            load_offline(flat, action_bounds=bounds)


def test_actions_at_the_faces_stay_there(flat: Arrays) -> None:
    flat["actions"][0] = [1.0, -1.0]
    flat["actions"][1] = np.float32(1.0) + np.float32(1.2e-7)  # rounding, not an error
    data = load_offline(flat)
    assert data["action"][:2].tolist() == [[1.0, -1.0], [1.0, 1.0]]


def test_against_an_environment(flat: Arrays) -> None:
    with pytest.raises(O2ODataError, match=r"action has the shape \[2\], Pendulum-v1's \[1\]"):
        load_offline(flat, env="Pendulum-v1")
    with pytest.raises(
        O2ODataError, match=r"Pendulum-v1's in \[-2, 2\]\. Build the environment with torchrl_o2o\.envs"
    ):
        load_offline({**flat, "actions": flat["actions"][:, :1]}, env=gymnasium.make("Pendulum-v1"))
    said: dict[str, Any] = {"env": "Pendulum-v1", "action_bounds": (-1, 1)}
    assert len(load_offline({**flat, "actions": flat["actions"][:, :1]}, **said)) == 12


def test_every_error_is_told_at_once(flat: Arrays) -> None:
    flat["rewards"][3] = np.nan
    flat["actions"][5] = 7.0
    report = check_offline(flat, env="Pendulum-v1")
    assert [finding.code for finding in report.errors] == ["non_finite", "action_out_of_bounds", "action_shape"]
    with pytest.raises(O2ODataError) as caught:
        load_offline(flat, env="Pendulum-v1")
    for finding in report.errors:
        assert finding.message in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*every reward is 0")
def test_looks_empty(flat: Arrays) -> None:
    flat["observations"][:, 1] = 0.0
    flat["next_observations"][:, 1] = 0.0
    flat["rewards"][:] = 0.0
    with pytest.warns(UserWarning, match=r"1 of 3 columns of observation never change \(all zero, looks empty\)"):
        load_offline(flat)
    assert "constant_reward" in check_offline(flat).codes


def test_description(flat: Arrays) -> None:
    info = describe_offline(flat)
    returns = np.array([flat["rewards"][a:b].sum(dtype=np.float64) for a, b in ((0, 4), (4, 9), (9, 12))])
    assert (info.transitions, info.episodes, info.terminated) == (12, 3, 1)
    assert (info.observation_shape, info.action_dim) == ((3,), 2)
    assert (info.returns.mean, info.returns.std) == pytest.approx((returns.mean(), returns.std()))
    assert (info.returns.min, info.returns.max) == pytest.approx((returns.min(), returns.max()))
    assert (info.lengths.mean, info.lengths.min, info.lengths.max) == (4, 3, 5)
    assert [note.code for note in info.notes] == ["unfinished"]


def test_unknown_choices(flat: Arrays) -> None:
    choice: Any = "squash"
    with pytest.raises(O2OSpecError, match="actions='squash', on_bad='error'; expected error, clip or rescale"):
        load_offline(flat, actions=choice)


def test_the_source_is_not_modified(flat: Arrays) -> None:
    before = {key: values.copy() for key, values in flat.items()}
    data = load_offline(flat)
    data["action"][:] = 9.0
    data["observation"][:] = 9.0
    for key, values in flat.items():
        np.testing.assert_array_equal(values, before[key])


@pytest.mark.parametrize("name", ["max_episode_steps", "min_episode_length"])
def test_lengths_below_one_are_refused(name: str) -> None:
    episode = {"observations": np.zeros((4, 2)), "actions": np.zeros((3, 1)), "rewards": np.zeros(3)}
    with pytest.raises(O2OSpecError, match=f"{name}=-1, expected at least 1"):
        load_offline([episode], **{name: -1})  # type: ignore[arg-type]


def test_rows_over_several_steps_are_refused_by_name() -> None:
    data = random_transitions(6, 3, 1).set("episode", torch.zeros(6, dtype=torch.long))
    with pytest.raises(O2ODataError, match=r"has 'steps_to_next_obs'.* load the one-step rows, then apply .*n_step"):
        load_offline(n_step(data, n=2, gamma=0.9))
