# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from torchrl_o2o import functional as F
from torchrl_o2o.errors import O2OSpecError


def test_soft_minimum_by_hand() -> None:
    qvalue = tensor([[1.0, 4.0], [3.0, 0.0]])
    assert F.soft_minimum(qvalue, 0.75).tolist() == [1.5, 1.0]
    assert F.soft_minimum(qvalue, 1.0).tolist() == [1.0, 0.0]
    assert F.soft_minimum(qvalue, 0.0).tolist() == [3.0, 4.0]


def test_squared_mmd_by_hand() -> None:
    """x = {0, 2}, y = {1}: k = exp(-d / 2) with d = 2 within x and 1 across; squared 4 and 1."""
    first, second = tensor([[0.0], [2.0]]), tensor([[1.0]])
    for kernel, far, near in (("laplacian", 2.0, 1.0), ("gaussian", 4.0, 1.0)):
        expected = 0.5 + 0.5 * math.exp(-far / 2) + 1.0 - 2.0 * math.exp(-near / 2)
        assert F.squared_mmd(first, second, 2.0, kernel).item() == pytest.approx(expected, rel=1e-5)


def test_squared_mmd_of_a_sample_with_itself_is_zero() -> None:
    sample = torch.randn(6, 5, 3, dtype=torch.float64)
    assert F.squared_mmd(sample, sample, 20.0).abs().max() < 1e-12
    assert (F.squared_mmd(sample, sample + 1.0, 20.0) > 0).all()


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="kernel"):
        F.squared_mmd(torch.zeros(1, 1), torch.zeros(1, 1), 1.0, "linear")  # type: ignore[arg-type]
