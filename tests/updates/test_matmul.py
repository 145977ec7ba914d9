# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import logging

import pytest
import torch

from torchrl_o2o import matmul
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.updates.matmul import (
    RouteMeasurement,
    choose_matmul_route,
    matmul_route,
    probe_matmul_routes,
    set_matmul_route,
)


def setting() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture(autouse=True)
def restored() -> object:
    with matmul_route("default"):
        yield


def pretend(monkeypatch: pytest.MonkeyPatch, default: RouteMeasurement, onednn: RouteMeasurement) -> None:
    monkeypatch.setattr(matmul, "probe_matmul_routes", lambda **_: {"default": default, "onednn": onednn})


def test_the_probe_measures_rate_and_error_and_leaves_the_route() -> None:
    set_matmul_route("onednn")
    routes = probe_matmul_routes(shape=(2, 32, 48, 16), rounds=2)
    assert setting() == "bf16"
    assert all(one.rate > 0.0 for one in routes.values())
    assert 0.0 < routes["default"].error < 1e-6


@pytest.mark.parametrize(
    ("onednn", "allow_bf16", "chosen"),
    [
        (RouteMeasurement(200.0, 2.9e-7), False, "onednn"),  # twice as fast and as exact
        (RouteMeasurement(100.0, 2e-7), False, "default"),  # no faster
        (RouteMeasurement(104.0, 2e-7), False, "default"),  # within the margin
        (RouteMeasurement(400.0, 2e-3), False, "default"),  # fast because it is bf16
        (RouteMeasurement(400.0, 2e-3), True, "onednn"),  # asked for
    ],
)
def test_choice(monkeypatch: pytest.MonkeyPatch, onednn: RouteMeasurement, allow_bf16: bool, chosen: str) -> None:
    pretend(monkeypatch, RouteMeasurement(100.0, 2.1e-7), onednn)
    report = choose_matmul_route(allow_bf16=allow_bf16)
    assert report.chosen == chosen
    assert setting() == {"default": "none", "onednn": "bf16"}[chosen]


def test_the_choice_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pretend(monkeypatch, RouteMeasurement(97.0, 2.1e-7), RouteMeasurement(201.0, 2.9e-7))
    with caplog.at_level(logging.INFO, "torchrl_o2o"):
        choose_matmul_route()
    (message,) = [record.message for record in caplog.records]
    assert "default 97 GFLOP/s, error 2.1e-07" in message
    assert "onednn 201 GFLOP/s, error 2.9e-07" in message
    assert message.endswith("taken: onednn")


def test_a_route_ends_with_its_block_even_after_an_error() -> None:
    def failing() -> None:
        with matmul_route("onednn"):
            assert setting() == "bf16"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert setting() == "none"


def test_refusals() -> None:
    with pytest.raises(O2OSpecError, match="route"):
        set_matmul_route("mkl")  # type: ignore[arg-type]
    with pytest.raises(O2OSpecError, match="margin"):
        choose_matmul_route(margin=0.0)
    with pytest.raises(O2OSpecError, match="positive"):
        choose_matmul_route(shape=(0, 1, 1, 1))
