# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What the tests need beside Python: torch.compile's CPU kernels are C++."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.kernels import without_kernels

COMPILERS = (os.environ.get("CXX", "g++"), "g++", "clang++")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    addresses = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if addresses:  # workers of pytest-xdist would each name it otherwise, and none would begin
        raise pytest.UsageError(f"{addresses[0]} has an address in its name; give the parameter an id")
    if any(shutil.which(name) for name in COMPILERS):
        return
    reason = f"no C++ compiler: looked for {', '.join(dict.fromkeys(COMPILERS))}"
    for item in items:
        if item.get_closest_marker("compiler") is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def float64() -> Iterator[None]:
    """Everything built inside the test is in double precision, as the golden vectors are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def captured() -> Iterator[list[Any]]:
    """The graphs that compiled updates consist of, which run without generated kernels."""
    with without_kernels() as graphs:
        yield graphs
