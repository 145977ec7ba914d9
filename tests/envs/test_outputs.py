# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What an environment returns is copied, of the stated form and finite before anything keeps it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from torchrl_o2o.envs.guard import GuardedEnv
from torchrl_o2o.envs.outputs import CheckedEnv, EnvFaultError, MalformedReturn, find_fault, read_reset, read_step

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)
SEEN = np.zeros(2, np.float32)


class Returns(gymnasium.Env):
    """Returns what it is told to."""

    observation_space, action_space = BOX, spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, step: Any = (SEEN, 0.0, False, False, {}), reset: Any = (SEEN, {})) -> None:
        self.results = step, reset

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        return self.results[1]

    def step(self, action: Any) -> Any:
        return self.results[0]


@pytest.mark.parametrize(
    ("reward", "expected"),
    [(1, 1.0), (np.float32(0.5), 0.5), (np.array([2.0]), 2.0), (np.array([[3]]), 3.0), (True, 1.0)],
)
def test_a_reward_of_one_entry_is_a_number(reward: Any, expected: float) -> None:
    got = read_step((SEEN, reward, np.False_, np.array([True]), {}), BOX)[1:4]
    assert got == (expected, False, True)
    assert [type(value) for value in got] == [float, bool, bool]


MALFORMED = {
    "an observation of shape \\(1,\\)": (np.zeros(1, np.float32), 0.0, False, False, {}),
    "an observation of shape \\(2, 2\\)": (np.zeros((2, 2), np.float32), 0.0, False, False, {}),
    "an observation of shape \\(\\)": (None, 0.0, False, False, {}),
    "an observation of type <U1": (["a", "b"], 0.0, False, False, {}),
    "the reward is array": (SEEN, np.zeros(2), False, False, {}),
    "got numbers of which 1 are masked": (np.ma.array(SEEN, mask=[True, False]), 0.0, False, False, {}),
    "the reward is not an array .got numbers of which 1 are masked": (SEEN, np.ma.masked, False, False, {}),
    "the reward is None": (SEEN, None, False, False, {}),
    "terminated is nan": (SEEN, 0.0, float("nan"), False, {}),
    "truncated is 0.3": (SEEN, 0.0, False, 0.3, {}),
    "the info is None": (SEEN, 0.0, False, False, None),
    "step returned 4 values": (SEEN, 0.0, False, {}),
    "step returned a NoneType": None,
}


@pytest.mark.parametrize("said", MALFORMED)
def test_what_is_malformed_is_named(said: str) -> None:
    with pytest.raises(MalformedReturn, match=said):
        read_step(MALFORMED[said], BOX)
    with pytest.raises(EnvFaultError, match=said):
        CheckedEnv(Returns(MALFORMED[said])).step(SEEN[:1])
    guarded = GuardedEnv(lambda: Returns(MALFORMED[said]), max_rebuilds=0)
    with pytest.raises(EnvFaultError, match=f"{said}.*after 0 rebuilds"):
        guarded.step(SEEN[:1])


def test_a_reset_has_a_form_too() -> None:
    for result in (SEEN, (SEEN[:1], {}), (SEEN, [])):
        with pytest.raises(MalformedReturn):
            read_reset(result, BOX)
        with pytest.raises(EnvFaultError):
            CheckedEnv(Returns(reset=result)).reset()


def test_real_numbers_are_not_cut_to_whole_ones() -> None:
    pixels = spaces.Box(0, 255, (2,), np.uint8)
    with pytest.raises(MalformedReturn, match="type float64 came back, expected uint8"):
        read_reset((np.array([0.2, 0.7]), {}), pixels)
    assert read_reset((np.array([3, 4], np.uint8), {}), pixels)[0].dtype == np.uint8


@pytest.mark.parametrize(("value", "kind"), [(300, np.uint8), (-1, np.uint16), (2**40, np.int32)])
def test_a_whole_number_becomes_no_other_one(value: int, kind: type[np.generic]) -> None:
    """2**40 arrived as 0 in int32."""
    box = spaces.Box(0, 9, (2,), kind)
    with pytest.raises(MalformedReturn, match=f"with the value {value} came back, expected {np.dtype(kind)}"):
        read_reset((np.array([3, value]), {}), box)
    assert read_reset((np.array([3, 4]), {}), box)[0].tolist() == [3, 4]


@pytest.mark.parametrize("kind", [">f4", ">f8", ">u2", np.longdouble])
def test_observations_have_a_type_that_torch_has(kind: str) -> None:
    seen = read_reset((np.array([1, 2], kind), {}), spaces.Box(0, 9, (2,), kind))[0]
    assert torch.from_numpy(seen).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("kind", [np.float64, np.int64, np.uint8])
def test_a_space_without_a_type_leaves_it_open(kind: type[np.generic]) -> None:
    seen = read_reset((np.array([1, 2], kind), {}), spaces.Space((2,), None))[0]
    assert seen.dtype == kind
    assert seen.tolist() == [1, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39, -1e39])
def test_finite_means_finite_in_float32(value: float) -> None:
    assert "the reward" in str(find_fault(SEEN, value))
    assert "observation" in str(find_fault(np.array([0.0, value])))
    with pytest.raises(EnvFaultError, match="step returned the reward"):
        CheckedEnv(Returns((SEEN, value, False, False, {}))).step(SEEN[:1])
    seen = read_step(([0.0, value], 0.0, False, False, {}), BOX)[0]
    assert find_fault(seen) is not None


def test_the_largest_float32_and_whole_numbers_are_finite() -> None:
    largest = float(np.finfo(np.float32).max)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_fault(np.array([largest, -largest]), largest) is None
        assert find_fault(np.array([[largest, -largest]], np.float32)) is None
        assert find_fault(np.zeros((0,), np.float32)) is None
    assert find_fault(np.array([255], np.uint8), -largest) is None


@pytest.mark.parametrize("wrap", [CheckedEnv, lambda env: GuardedEnv(lambda: env)])
def test_nothing_of_an_environment_is_passed_on_uncopied(wrap: Callable[[gymnasium.Env], gymnasium.Env]) -> None:
    own, note = np.zeros(2, np.float32), np.zeros(3)
    env = wrap(Returns((own, 0.0, False, False, {"note": note}), (own, {"note": note})))
    seen = [env.reset(), env.step(SEEN[:1])[::4]]
    own += 1.0
    note += 1.0
    for observation, info in seen:
        assert observation.tolist() == [0.0, 0.0]
        assert info["note"].tolist() == [0.0, 0.0, 0.0]
