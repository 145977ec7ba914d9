# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Hash every row of a buffer, so that a save finds the rows that changed since the last one.

Rows are written once, and later checkpoints reuse the files of earlier rows. The hashes show whether these files still
match the buffer: a buffer that was emptied and refilled, or written to without its writer, has other rows at the same
indices.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_o2o.checkpoint.manifest import running_digest

__all__ = ["fingerprint", "row_hashes"]

_BYTES_AT_ONCE, _ROWS_AT_ONCE = 2**22, 2**18
_SEED = 20_051


def row_hashes(rows: TensorDictBase) -> Tensor:
    """Reduce each row to one number, a sum of its bits with odd weights modulo 2^64.

    Changing a single word always changes the number. Other changes go unnoticed with a probability of about 2^-64.

    Args:
        rows: rows [N].

    Returns:
        Shape [N], int64, on the CPU.

    Examples:
        >>> from tensordict import TensorDict
        >>> rows = TensorDict({"x": torch.tensor([1.0, 2.0, 1.0]), "done": torch.zeros(3, 1, dtype=torch.bool)}, [3])
        >>> marks = row_hashes(rows)
        >>> (marks[0] == marks[1]).item(), (marks[0] == marks[2]).item()
        (False, True)
    """
    generator = torch.Generator().manual_seed(_SEED)
    marks = torch.zeros(len(rows), dtype=torch.int64)
    for _, leaf in sorted(rows.items(include_nested=True, leaves_only=True), key=lambda item: str(item[0])):
        marks += _leaf_hashes(leaf, generator)
    return marks


def fingerprint(rows: TensorDictBase) -> str:
    """Fingerprint of rows: equal for equal rows in the same order, different for others.

    Args:
        rows: rows [N].

    Returns:
        32 hexadecimal digits.

    Examples:
        >>> from tensordict import TensorDict
        >>> rows = TensorDict({"x": torch.tensor([1.0, 2.0])}, [2])
        >>> fingerprint(rows) == fingerprint(rows.clone()), fingerprint(rows) == fingerprint(rows[:1])
        (True, False)
    """
    marks = running_digest()
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        marks.update(row_hashes(rows[start : start + _ROWS_AT_ONCE]).numpy().tobytes())
    return marks.hexdigest()[:32]


def _leaf_hashes(leaf: Tensor, generator: torch.Generator) -> Tensor:
    if leaf.numel() == 0:
        return torch.zeros(len(leaf), dtype=torch.int64)
    flat = leaf.reshape(len(leaf), -1)
    width = flat.shape[1] * flat.element_size()
    words = flat.contiguous().view(torch.uint8).view(_word(width))
    weights = torch.randint(-(2**62), 2**62, (words.shape[1],), generator=generator).mul_(2).add_(1)
    rows = max(1, _BYTES_AT_ONCE // width)
    return torch.cat([part.cpu().long().mv(weights) for part in words.split(rows)])


def _word(width: int) -> torch.dtype:
    """The widest integer type whose size divides a row's."""
    return torch.int64 if width % 8 == 0 else torch.int32 if width % 4 == 0 else torch.uint8
