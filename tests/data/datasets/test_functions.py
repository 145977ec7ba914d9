# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from torchrl_o2o.data.datasets.functions import UNKNOWN, function_fingerprint

GAIN = np.ones(2)


def made_with(value: Any) -> Callable[[Any], Any]:
    return lambda observation: np.tanh(observation * value)


def with_default(value: Any) -> Callable[[Any], Any]:
    def act(observation: Any, gain: Any = value) -> Any:
        return observation * gain

    return act


def through_another(value: Any) -> Callable[[Any], Any]:
    inner = made_with(value)
    return lambda observation: [inner(each) for each in observation]


def of_module(value: Any) -> Callable[[Any], Any]:
    def act(observation: Any) -> Any:
        return [observation @ GAIN for _ in range(2)]

    code = act.__code__
    return types.FunctionType(code, {**globals(), "GAIN": value}, "act")


def of_partial(value: Any) -> Callable[[Any], Any]:
    return functools.partial(np.clip, a_max=value)


WAYS = [made_with, with_default, through_another, of_module, of_partial]
PAIRS = [(1, 2), (1, 1.0), ("a", "b"), (np.zeros(3), np.eye(3)[0]), (np.zeros(2), np.zeros(2, np.float32))]
PAIRS += [(torch.zeros(2), torch.ones(2)), ([1, 2], [2, 1]), ({"a": 1}, {"a": 2}), (frozenset("ab"), frozenset("ac"))]
PAIRS += [(np.tanh, np.sin), (lambda x: x + 1, lambda x: x + 2), (torch.ones(2, dtype=torch.bfloat16), torch.ones(2))]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pair", PAIRS, ids=range(len(PAIRS)))
def test_what_a_function_uses_tells_it_from_others(way: Callable[[Any], Any], pair: tuple[Any, Any]) -> None:
    one, again, other = (function_fingerprint(way(value)) for value in (pair[0], pair[0], pair[1]))
    assert one == again != other
    assert UNKNOWN not in one + other


def test_what_has_a_state_is_not_comparable() -> None:
    class Policy:
        def __call__(self, observation: Any) -> Any:
            return observation

        def act(self, observation: Any) -> Any:
            return observation

    rng = np.random.default_rng(0)
    for act in (Policy(), Policy().act, made_with(rng), lambda observation: Policy(), torch.nn.Linear(2, 2)):
        assert function_fingerprint(act).endswith(UNKNOWN)


def test_functions_that_call_themselves() -> None:
    def act(observation: int) -> int:
        return act(observation - 1) if observation else 0

    assert function_fingerprint(act) == function_fingerprint(act)
    assert UNKNOWN not in function_fingerprint(act)
