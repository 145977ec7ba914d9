# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Set training or evaluation mode temporarily."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["in_mode"]


@contextmanager
def in_mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a network into training or evaluation mode inside a ``with`` block; each part returns to its own mode.

    Args:
        network: the network, changed in place within the block.

    Keyword Args:
        training: the mode.

    Examples:
        >>> network = nn.Sequential(nn.Linear(2, 1), nn.Dropout().eval())
        >>> with in_mode(network, training=False):
        ...     network.training
        False
        >>> network.training, network[1].training
        (True, False)
    """
    before = {part: part.training for part in network.modules()}
    network.train(training)
    try:
        yield
    finally:
        for part, was in before.items():
            part.training = was
