# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Evaluation mode for dropout and batch normalization while an actor collects and the learner trains.

The reference implementations collect this way, because dropout and batch statistics are only for training. Modules that
explore through their training mode, such as noisy layers, keep it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

__all__ = ["has_batch_norm", "in_eval_mode", "regularizers"]

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_KINDS = (nn.modules.dropout._DropoutNd, _BATCH_NORM)


def regularizers(actor: nn.Module) -> list[nn.Module]:
    """The modules of an actor that behave differently in training.

    Args:
        actor: the actor.

    Examples:
        >>> regularizers(nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)))
        [Dropout(p=0.1, inplace=False)]
    """
    return [module for module in actor.modules() if isinstance(module, _KINDS)]


def has_batch_norm(modules: Sequence[nn.Module]) -> bool:
    """Whether one of the modules is a batch normalization layer, which needs a batch dimension.

    Args:
        modules: of :func:`regularizers`.

    Examples:
        >>> has_batch_norm([nn.Dropout(0.1)])
        False
    """
    return any(isinstance(module, _BATCH_NORM) for module in modules)


@contextmanager
def in_eval_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put modules into evaluation mode inside a ``with`` block.

    Args:
        modules: of :func:`regularizers`.

    Examples:
        >>> dropout = nn.Dropout(1.0)
        >>> with in_eval_mode([dropout]):
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
