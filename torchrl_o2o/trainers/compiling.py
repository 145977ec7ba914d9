# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""How an update computes: compiled or not, in which precision, with which library for products of matrices."""

from __future__ import annotations

import warnings

import torch
from omegaconf import DictConfig

from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.updates import Update, choose_matmul_route, keep_freed_memory, set_matmul_route

__all__ = ["choose_route", "compiled", "product_dtype"]


def choose_route(name: str) -> None:
    """Choose the library that multiplies matrices on the CPU, see :mod:`torchrl_o2o.updates`.

    Args:
        name: ``"default"`` (torch's choice), ``"onednn"``, or ``"auto"``, which measures rate and error and logs its
            choice. For bit-for-bit resumption name a route, because a measurement may have another result the next
            time.

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
    """Convert the setting ``matmul_dtype`` to the argument of :meth:`~torchrl_o2o.updates.Update.compile`.

    Args:
        name: ``"float32"`` or ``"bfloat16"``.
        compiled: whether the update is compiled. Defaults to ``True``.

    Returns:
        ``torch.bfloat16``, or ``None`` for float32.

    Raises:
        O2OSpecError: if the type is unknown, or is bfloat16 for an update that is not compiled.

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


def compiled(update: Update, cfg: DictConfig, *, dropout: float | None = None) -> Update:
    """Compile an update if the configuration says so, and keep the memory that its calls free.

    See :func:`~torchrl_o2o.updates.keep_freed_memory`.

    Args:
        update: not called yet.
        cfg: its entries ``compile`` and ``matmul_dtype`` are read.

    Keyword Args:
        dropout: the dropout rate of the trained networks. A compiled update would draw other random numbers for
            dropout than an eager one, so with dropout the update is not compiled, with a warning. Defaults to ``None``:
            no dropout.

    Returns:
        The same update.

    Raises:
        O2OSpecError: if ``matmul_dtype=bfloat16`` is set for an update that is not compiled because of dropout.

    Examples:
        >>> from torchrl_o2o.scripts import script_config
        >>> from torchrl_o2o.modules import make_gaussian_actor
        >>> from torchrl_o2o.objectives import BCLoss
        >>> from torchrl_o2o.updates import Descend
        >>> loss = BCLoss(make_gaussian_actor(3, 2, hidden_sizes=(8,)))
        >>> update = Update(loss, Descend("actor", torch.optim.Adam(loss.parameters())))
        >>> compiled(update, script_config("bc", ["compile=false"])).compiled
        False
    """
    if not cfg.compile:
        return update
    if dropout:
        product_dtype(cfg.matmul_dtype, compiled=False)
        warnings.warn(
            f"got compile=true and dropout={dropout}: this update of {type(update.loss).__name__} is not compiled, "
            "because a compiled one draws other random numbers for dropout; set compile=false, or dropout=null for a "
            "compiled update",
            stacklevel=2,
        )
        return update
    keep_freed_memory()
    return update.compile(matmul_dtype=product_dtype(cfg.matmul_dtype))
