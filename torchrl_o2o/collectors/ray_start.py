# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Start Ray on this machine, or connect to a cluster that the user has started."""

from __future__ import annotations

import importlib.util
import os
import threading

from torchrl_o2o.errors import O2OSpecError

__all__ = ["check_ray", "start_ray"]

_LOCAL = "127.0.0.1"
_NO_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_STARTING = threading.Lock()


def start_ray(address: str | None, instead: str) -> None:
    """Start Ray or join a cluster, unless this process has already done so; Ray stays until the process ends.

    Without an address, Ray listens only on 127.0.0.1. By default it would listen on all addresses, even if 127.0.0.1 is
    given, because on Linux it looks for one that a cluster can reach. It does not do so on systems without clusters, so
    clusters are disabled while it starts.

    Args:
        address: of a cluster; ``None`` is this machine.
        instead: the alternative if Ray is not installed, for the message.

    Raises:
        O2OSpecError: if Ray is not installed, or would be reachable from elsewhere without an address.

    Examples:
        >>> start_ray(None, "ProcessActors for actors on this machine")  # doctest: +SKIP
    """
    check_ray(instead)
    import ray  # pyright: ignore[reportMissingImports]  # no extra installs it

    with _STARTING:
        if ray.is_initialized():
            return
        if address is not None:
            ray.init(address=address)
            return
        _start_here()
        if (found := ray.util.get_node_ip_address()) != _LOCAL:
            ray.shutdown()
            raise O2OSpecError(
                f"this Ray ({ray.__version__}) listens on {found}, which other machines can reach, expected 127.0.0.1; "
                f"set {_NO_CLUSTERS}=0 before Python starts, or start Ray yourself and pass its address"
            )


def check_ray(instead: str) -> None:
    """Raise if Ray is not installed.

    Args:
        instead: the alternative, for the message.

    Raises:
        O2OSpecError: if Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise O2OSpecError(f"this needs Ray, which is not installed; pip install ray, or use {instead}")


def _start_here() -> None:
    import ray  # pyright: ignore[reportMissingImports]
    from ray._private import ray_constants  # pyright: ignore[reportMissingImports]

    variable, constant = os.environ.get(_NO_CLUSTERS), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[_NO_CLUSTERS], ray_constants.ENABLE_RAY_CLUSTER = "0", False  # for Ray's processes, and for this one
    try:
        ray.init(address="local", include_dashboard=False)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = constant
        os.environ.pop(_NO_CLUSTERS)
        if variable is not None:
            os.environ[_NO_CLUSTERS] = variable
