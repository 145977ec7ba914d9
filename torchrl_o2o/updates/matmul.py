# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Choose the library for float32 matrix products on this CPU by its measured rate and error, and log the choice."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchrl_o2o._moved import old_names
from torchrl_o2o.errors import O2OSpecError, check_option

__all__ = [
    "MatmulReport",
    "RouteMeasurement",
    "choose_matmul_route",
    "matmul_route",
    "probe_matmul_routes",
    "set_matmul_route",
]

Route = Literal["default", "onednn"]
_LOG = logging.getLogger(__name__)
# torch has no switch for oneDNN itself. Allowing bf16 sends products there, and oneDNN computes in bf16 only if the CPU
# has fast instructions for it. The probe's error shows whether it did.
_SETTINGS: dict[str, str] = {"default": "none", "onednn": "bf16"}


@dataclass(frozen=True)
class RouteMeasurement:
    """One route's rate, in GFLOP/s, and relative error against float64.

    Args:
        rate: GFLOP/s.
        error: norm of the difference by the norm of the product, without unit.

    Examples:
        >>> RouteMeasurement(rate=97.0, error=2.9e-7).rate
        97.0
    """

    rate: float
    error: float


@dataclass(frozen=True)
class MatmulReport:
    """The measurements and the choice.

    Args:
        chosen: the active route.
        routes: rate and error of each route.
        shape: shape of the products, [E, M, K] times [E, K, N].
        threads: number of torch's threads while measuring.

    Examples:
        >>> routes = {"default": RouteMeasurement(97.0, 2.9e-7), "onednn": RouteMeasurement(201.0, 2.9e-7)}
        >>> print(MatmulReport("onednn", routes, shape=(10, 256, 256, 256), threads=1))
        float32 products 10 x [256, 256] @ [256, 256], 1 thread(s): default 97 GFLOP/s, error 2.9e-07;
        onednn 201 GFLOP/s, error 2.9e-07; taken: onednn
    """

    chosen: Route
    routes: dict[Route, RouteMeasurement]
    shape: tuple[int, int, int, int]
    threads: int

    def __str__(self) -> str:
        """One line for a log."""
        parts = [f"{name} {one.rate:.0f} GFLOP/s, error {one.error:.1e}" for name, one in self.routes.items()]
        members, rows, inner, columns = self.shape
        size = f"{members} x [{rows}, {inner}] @ [{inner}, {columns}]"
        return f"float32 products {size}, {self.threads} thread(s): {'; '.join(parts)}; taken: {self.chosen}"


def choose_matmul_route(
    *,
    shape: tuple[int, int, int, int] = (10, 256, 256, 256),
    margin: float = 1.05,
    allow_bf16: bool = False,
    rounds: int = 7,
) -> MatmulReport:
    """Measure both routes, activate the better one for this process, and log it.

    oneDNN is chosen if it is faster by the margin and equally exact. On CPUs where it multiplies in bf16, its error is
    ten thousand times larger, and it is not chosen unless ``allow_bf16``. The measurement takes about 0.1 s on an idle
    core. Call it once, after setting the number of threads. :func:`set_matmul_route` restores the previous route.

    Args:
        shape: (E, M, K, N) of the measured products [E, M, K] times [E, K, N]. Defaults to ten critics of width 256 on
            256 rows.
        margin: factor by which oneDNN must be faster. Defaults to 1.05.
        allow_bf16: whether products in bf16, with a relative error of about 2e-3, are accepted. Defaults to ``False``.
        rounds: how often the routes take turns. Defaults to 7.

    Returns:
        The measurements and the choice.

    Raises:
        O2OSpecError: if the margin or a size is not positive.

    Examples:
        >>> with matmul_route("default"):  # puts back whatever is chosen inside
        ...     report = choose_matmul_route(shape=(2, 16, 16, 16), rounds=2)
        >>> sorted(report.routes)
        ['default', 'onednn']
    """
    if not margin > 0.0 or min(shape) < 1 or rounds < 1:
        raise O2OSpecError(f"got {margin=}, {shape=}, {rounds=}; expected positive numbers, for example margin=1.05")
    routes = probe_matmul_routes(shape=shape, rounds=rounds)
    default, onednn = routes["default"], routes["onednn"]
    faster = onednn.rate > margin * default.rate
    exact = onednn.error <= 2.0 * default.error
    chosen: Route = "onednn" if faster and (exact or allow_bf16) else "default"
    set_matmul_route(chosen)
    report = MatmulReport(chosen, routes, shape, torch.get_num_threads())
    _LOG.info("%s", report)
    return report


def probe_matmul_routes(
    *, shape: tuple[int, int, int, int] = (10, 256, 256, 256), rounds: int = 7
) -> dict[Route, RouteMeasurement]:
    """Measure both routes in turns without changing the active one.

    Args:
        shape: see :func:`choose_matmul_route`.
        rounds: number of turns of each route; the fastest counts, because other load only slows rounds down. Defaults
            to 7.

    Returns:
        Rate and error by route.

    Examples:
        >>> routes = probe_matmul_routes(shape=(2, 16, 16, 16), rounds=2)
        >>> sorted(routes), routes["default"].error < 1e-5
        (['default', 'onednn'], True)
    """
    members, rows, inner, columns = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(members, rows, inner, generator=generator)
    right = torch.randn(members, columns, inner, generator=generator).mT  # the memory layout of a layer's weight
    seconds: dict[Route, list[float]] = {"default": [], "onednn": []}
    errors: dict[Route, float] = {}
    exact = left.double() @ right.double()
    for _ in range(rounds):
        for route in seconds:
            with matmul_route(route):
                errors[route] = _relative(left @ right, exact)
                began = time.perf_counter()
                torch.bmm(left, right)
                torch.bmm(left, right)
                seconds[route].append((time.perf_counter() - began) / 2)
    work = 2e-9 * members * rows * inner * columns
    return {route: RouteMeasurement(work / min(times), errors[route]) for route, times in seconds.items()}


def _relative(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm())


def set_matmul_route(route: Route) -> None:
    """Compute float32 products of this process by a route.

    Args:
        route: ``"default"`` (torch's own choice, MKL on x86) or ``"onednn"``, which computes in bf16 on CPUs with AMX;
            :func:`probe_matmul_routes` shows the error.

    Raises:
        O2OSpecError: if the route is unknown.

    Examples:
        >>> with matmul_route("default"):  # puts back what was in force
        ...     set_matmul_route("onednn")
        >>> set_matmul_route("mkl")
        Traceback (most recent call last):
        torchrl_o2o.errors.O2OSpecError: ...
    """
    check_option("route", route, tuple(_SETTINGS))
    torch.backends.mkldnn.matmul.fp32_precision = _SETTINGS[route]  # type: ignore[attr-defined]


@contextmanager
def matmul_route(route: Route) -> Iterator[None]:
    """Compute float32 products by a route inside a ``with`` block, and restore the previous one.

    Args:
        route: see :func:`set_matmul_route`.

    Raises:
        O2OSpecError: if the route is unknown.

    Examples:
        >>> import torch
        >>> with matmul_route("onednn"):
        ...     product = torch.ones(2, 3) @ torch.ones(3, 2)
        >>> product[0, 0].item()
        3.0
    """
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    set_matmul_route(route)
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before  # type: ignore[attr-defined]


__getattr__ = old_names(__name__, {"Measured": RouteMeasurement})
