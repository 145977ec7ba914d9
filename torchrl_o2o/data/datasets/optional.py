# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Import optional libraries when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torchrl_o2o.errors import O2OSpecError

__all__ = ["require"]


def require(module: str, extra: str) -> Any:
    """Import a library of one of the package's extras.

    Args:
        module: its import name.
        extra: the extra that installs it.

    Raises:
        O2OSpecError: if it is not installed.

    Examples:
        >>> from torchrl_o2o.data.datasets.optional import require
        >>> require("math", "minari").pi > 3
        True
        >>> require("no_such_library", "minari")
        Traceback (most recent call last):
        ...
        torchrl_o2o.errors.O2OSpecError: no_such_library is not installed; pip install torchrl_o2o[minari].
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise O2OSpecError(f"{module} is not installed; pip install torchrl_o2o[{extra}].") from error
