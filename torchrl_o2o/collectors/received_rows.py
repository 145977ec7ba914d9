# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""What transitions say about the process that made them, and whether they are whole."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

import torchrl_o2o

__all__ = ["PACKAGE_VERSION", "POLICY_VERSION", "not_finite", "package_stamp", "version_of"]

#: How many policies the learner had published before the one that acted, int64, shape [*B, 1].
POLICY_VERSION = "policy_version"
#: The version of this package where the transition was made, as text in uint8, shape [*B, 24].
PACKAGE_VERSION = "package_version"

_STAMP_BYTES = 24


def package_stamp() -> Tensor:
    """The version of this package as a row of uint8, shape [24].

    Examples:
        >>> bytes(package_stamp()).rstrip(b"\\0").decode() == torchrl_o2o.__version__
        True
    """
    return torch.frombuffer(
        bytearray(torchrl_o2o.__version__.encode()[:_STAMP_BYTES].ljust(_STAMP_BYTES, b"\0")), dtype=torch.uint8
    )


def version_of(data: TensorDictBase) -> str | None:
    """The version of this package in the process that made some transitions.

    Args:
        data: transitions [N].

    Returns:
        The version; ``None`` if they have no stamp.

    Examples:
        >>> from tensordict import TensorDict
        >>> version_of(TensorDict({PACKAGE_VERSION: package_stamp().unsqueeze(0)}, [1])) == torchrl_o2o.__version__
        True
    """
    stamp = data.get(PACKAGE_VERSION, None)
    if stamp is None or stamp.dtype != torch.uint8 or stamp.numel() == 0:
        return None
    return bytes(stamp.reshape(-1, stamp.shape[-1])[0].tolist()).rstrip(b"\0").decode(errors="replace")


def not_finite(rows: TensorDictBase, keys: Iterable[NestedKey]) -> NestedKey | None:
    """The first entry that holds a value that is not finite; ``None`` if all are.

    Args:
        rows: transitions.
        keys: entries to examine.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> rows = random_transitions(2, 3, 1)
        >>> rows["action"][1] = float("nan")
        >>> not_finite(rows, ["observation", "action"])
        'action'
    """
    return next((key for key in keys if (value := rows[key]).is_floating_point() and not value.isfinite().all()), None)
