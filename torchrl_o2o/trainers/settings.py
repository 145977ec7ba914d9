# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""From sections of a configuration to arguments: what constructors of learners and scripts share."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.updates import Update, choose_matmul_route, set_matmul_route

__all__ = ["choose_route", "compiled", "plain", "product_dtype"]


def plain(section: DictConfig) -> dict[str, Any]:
    """A section as keyword arguments.

    Examples:
        >>> plain(OmegaConf.create({"lr": 3e-4}))
        {'lr': 0.0003}
    """
    return OmegaConf.to_container(section, resolve=True)  # type: ignore[return-value]


def choose_route(name: str) -> None:
    """Pick the library that multiplies matrices on the CPU, see :mod:`torchrl_o2o.updates`.

    Args:
        name: ``"default"`` (torch's choice), ``"onednn"``, or ``"auto"``, which probes rate and error and says in the
            log what it took. A run that is to be resumed bit for bit names its route, since a probe may end otherwise
            the next time.

    Raises:
        O2OSpecError: if the name is unknown.

    Examples:
        >>> choose_route("default")
    """
    check_option("matmul_route", name, ("default", "onednn", "auto"))
    if name == "auto":
        choose_matmul_route()
    else:
        set_matmul_route("onednn" if name == "onednn" else "default")


def product_dtype(name: str, *, compiled: bool = True) -> torch.dtype | None:
    """What :func:`~torchrl_o2o.updates.compile_update` takes as ``matmul_dtype``.

    Args:
        name: ``"float32"`` or ``"bfloat16"``.
        compiled: whether the update is compiled at all. Defaults to ``True``.

    Returns:
        ``torch.bfloat16``, or ``None`` for float32.

    Raises:
        O2OSpecError: if the type is unknown, or bfloat16 is asked of an update that is not compiled.

    Examples:
        >>> product_dtype("bfloat16")
        torch.bfloat16
    """
    check_option("matmul_dtype", name, ("float32", "bfloat16"))
    if name == "float32":
        return None
    if not compiled:
        raise O2OSpecError("matmul_dtype=bfloat16 is for compiled updates; set compile=true or matmul_dtype=float32")
    return torch.bfloat16


def compiled(update: Update, cfg: DictConfig) -> Update:
    """Compile an update if the configuration says so.

    Args:
        update: not called yet.
        cfg: of which ``compile`` and ``matmul_dtype`` are read.

    Returns:
        The same update.
    """
    if not cfg.compile:
        return update
    return update.compile(matmul_dtype=product_dtype(cfg.matmul_dtype))
