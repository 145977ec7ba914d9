# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Old paths and names work for one release, and say where they are now."""

from __future__ import annotations

import importlib
import sys

import pytest

from torchrl_o2o._moved import MOVED
from torchrl_o2o.data import PoolSampler
from torchrl_o2o.modules import make_actor
from torchrl_o2o.record import iqm


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_module_is_the_new_one(old: str) -> None:
    name = f"torchrl_o2o.{old}"
    sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"{name} has moved to torchrl_o2o.{MOVED[old]}"):
        module = importlib.import_module(name)
    assert module is importlib.import_module(f"torchrl_o2o.{MOVED[old]}")


def test_an_old_name_and_an_old_argument_are_the_new_ones() -> None:
    offline = importlib.import_module("torchrl_o2o.functional.offline")
    with pytest.warns(DeprecationWarning, match="q_normalization"):
        assert offline.q_normalisation is offline.q_normalization
    for subpackage, new in (("updates", "RouteMeasurement"), ("trainers", "HasMetrics")):
        module = importlib.import_module(f"torchrl_o2o.{subpackage}")
        with pytest.warns(DeprecationWarning, match=new):
            assert module.Measured is getattr(module, new)
    for module in ("torchrl_o2o.trainers", "torchrl_o2o.trainers.evaluation"):
        with pytest.warns(DeprecationWarning, match=r"has moved to torchrl_o2o\.record\.curves"):
            assert importlib.import_module(module).iqm is iqm
    with pytest.warns(DeprecationWarning, match="normalize"):
        assert PoolSampler(lambda rows: rows["x"], 4, normalise="max").normalize == "max"  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="initialization"):
        make_actor(3, 2, hidden_sizes=(4,), initialisation="torch")  # type: ignore[call-arg]


def test_an_unknown_module_is_still_unknown() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"torchrl_o2o\.never"):
        importlib.import_module("torchrl_o2o.never")
