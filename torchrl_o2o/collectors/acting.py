# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Acting while the learner trains: without dropout, and with batch normalization's running statistics.

The references act so: what is dropped, and the statistics of a batch, are means of training. Modules that explore by
their training mode, such as noisy layers, keep it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

__all__ = ["as_in_evaluation", "has_batch_norm", "regularizers"]

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_KINDS = (nn.modules.dropout._DropoutNd, _BATCH_NORM)


def regularizers(actor: nn.Module) -> list[nn.Module]:
    """The modules of an actor that compute something else in training.

    Args:
        actor: the actor.

    Examples:
        >>> regularizers(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)))
        [Dropout(p=0.1, inplace=False)]
    """
    return [module for module in actor.modules() if isinstance(module, _KINDS)]


def has_batch_norm(modules: Sequence[nn.Module]) -> bool:
    """Whether one of them takes rows of a batch only.

    Args:
        modules: of :func:`regularizers`.

    Examples:
        >>> has_batch_norm([nn.Dropout(0.1)])
        False
    """
    return any(isinstance(module, _BATCH_NORM) for module in modules)


@contextmanager
def as_in_evaluation(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let modules compute as in evaluation inside a ``with`` block.

    Args:
        modules: of :func:`regularizers`.

    Examples:
        >>> dropout = nn.Dropout(1.0)
        >>> with as_in_evaluation([dropout]):
        ...     dropout.training
        False
        >>> dropout.training
        True
    """
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
