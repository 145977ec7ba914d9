# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import numpy as np
import pytest
import torch

from torchrl_o2o.data import load_offline
from torchrl_o2o.data.datasets.casting import cast_episode, cast_flags, check_size, joined
from torchrl_o2o.errors import O2ODataError


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_flags_of_any_number(dtype: type) -> None:
    assert cast_flags(np.array([[0], [1]], dtype), "x").tolist() == [False, True]


@pytest.mark.parametrize(("value", "said"), [(np.nan, "nan"), (0.3, "0.3"), (-1.0, "-1.0")])
def test_flags_that_are_none(value: float, said: str) -> None:
    with pytest.raises(O2ODataError, match=rf"x holds {said} in row 2; expected 0 or 1"):
        cast_flags([0.0, 1.0, value, value], "x")


def test_bools_of_damaged_bytes_are_bools() -> None:
    assert cast_flags(np.array([0, 1, 7], np.uint8).view(bool), "x").tolist() == [False, True, True]


def test_episode_numbers_and_names() -> None:
    assert cast_episode([[1], [2]], "x").tolist() == [1, 2]
    assert cast_episode(["a", "b"], "x").tolist() == ["a", "b"]
    with pytest.raises(O2ODataError, match="x holds inf in row 1"):
        cast_episode([0.0, np.inf], "x")


def test_sizes() -> None:
    check_size(1 << 20, 1 << 10, "x")
    check_size(2 << 30, 1 << 30, "x")
    with pytest.raises(O2ODataError, match="x is damaged: it declares 2000000 bytes in 1000"):
        check_size(2_000_000, 1_000, "x")
    with pytest.raises(O2ODataError, match="numbers do not compress so well"):
        check_size(2 << 30, 4 << 20, "x")


def test_observations_are_joined_in_the_stated_order() -> None:
    node = {"b": np.ones((2, 1)), "a": {"y": np.full(2, 3.0), "x": np.full((2, 1), 2.0)}}
    assert joined(node, ("b", "a"), "toy").tolist() == [[1, 2, 3]] * 2
    assert joined(node, None, "toy", usual=("c", "b")).tolist() == [[1]] * 2
    with pytest.raises(O2ODataError, match=r"only vectors with one row per step can be joined"):
        joined({"a": np.zeros((2, 1)), "b": np.zeros((3, 1))}, ("a", "b"), "toy")


def test_tensors_that_numpy_does_not_take(flat: dict[str, np.ndarray]) -> None:
    """With gradients, in bfloat16: read as they are from a dictionary, and from TED."""
    wide = {name: torch.as_tensor(values) for name, values in flat.items()}
    tensors = {name: value.bfloat16() if value.is_floating_point() else value for name, value in wide.items()}
    tensors["rewards"] = wide["rewards"].clone().requires_grad_()
    data = load_offline(tensors)
    assert torch.equal(data["observation"], wide["observations"].bfloat16().float())
    assert torch.equal(data["next", "reward"], wide["rewards"].unsqueeze(-1))
    half = data.apply(lambda value: value.bfloat16() if value.is_floating_point() else value)
    assert torch.equal(load_offline(half)["observation"], data["observation"])
