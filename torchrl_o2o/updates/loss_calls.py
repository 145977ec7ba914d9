# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Call the methods of a loss by name, and collect their results."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives.common import LossModule

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.updates.steps import Primitive, moves_targets

__all__ = ["LossResults", "call_loss", "joined_rows", "summary"]

#: Prefix of entries that a loss computes from target networks; they are valid until the targets move.
_OF_TARGETS = "target_"


@dataclass
class LossResults:
    """The results of the losses on one minibatch. All are logged, and later losses get the valid ones by name.

    A loss gets the latest result of each name from other losses, but not its own, which is from before its own step.
    Entries whose names begin with ``target_`` come from target networks, and are dropped when these move.

    Args:
        entries: the losses and their metrics, detached.
        returned_by: metric that later losses may use -> name of the loss that returned it.

    Examples:
        >>> import torch
        >>> measured = LossResults()
        >>> measured.add("value", torch.zeros(()), {"target_qvalue": torch.ones(2), "advantage": torch.ones(2)})
        >>> sorted(measured.handed_to("actor")), measured.handed_to("value")
        (['advantage', 'target_qvalue'], {})
    """

    entries: dict[str, Tensor] = field(default_factory=dict)
    returned_by: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, info: Mapping[str, Tensor]) -> None:
        """Add the result of a loss.

        Args:
            name: name of the loss.
            value: the loss, detached.
            info: its metrics.
        """
        self.entries |= {**info, f"loss_{name}": value}
        self.returned_by |= dict.fromkeys(info, name)

    def handed_to(self, name: str) -> dict[str, Tensor]:
        """The results that the loss of that name may use."""
        return {entry: self.entries[entry] for entry, loss in self.returned_by.items() if loss != name}

    def outdate(self, step: Primitive) -> None:
        """Drop the metrics that an executed step has made stale."""
        if moves_targets(step):
            holds = self.returned_by.items()
            self.returned_by = {entry: loss for entry, loss in holds if not entry.startswith(_OF_TARGETS)}


def call_loss(
    loss: LossModule, name: str, minibatch: TensorDictBase, known: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Call one loss by name, with the metrics of earlier losses that it takes as arguments.

    Args:
        loss: a loss that has a method ``<name>_loss(tensordict, *, ...)`` or returns ``loss_<name>`` from its
            ``forward``.
        name: for example ``"qvalue"``.
        minibatch: transitions [B].
        known: metrics it may use, see :meth:`LossResults.handed_to`; for example ``log_prob`` for ``alpha_loss``.

    Returns:
        The loss, a scalar, and its metrics, detached.

    Raises:
        O2OSpecError: if there is no such loss, it needs an unknown metric, or it is not a scalar.
    """
    method = getattr(loss, f"{name}_loss", None)
    if method is None:
        value, info = _from_forward(loss, name, minibatch), {}
    else:
        wanted, needed = _extras(getattr(method, "__func__", method))
        missing = [extra for extra in needed if extra not in known]
        if missing:
            raise O2OSpecError(
                f"{name}_loss needs {missing[0]!r}, expected a preceding loss that returns it, without a move of the "
                "targets in between; put that loss directly before it"
            )
        result = method(minibatch, **{extra: known[extra] for extra in wanted if extra in known})
        value, info = result if isinstance(result, tuple) else (result, {})
    if value.ndim:
        raise O2OSpecError(
            f"{name}_loss has shape {list(value.shape)}, expected a scalar; build the loss with reduction='mean' or "
            "'sum'"
        )
    return value, {key: entry.detach() for key, entry in info.items()}


def _from_forward(loss: LossModule, name: str, minibatch: TensorDictBase) -> Tensor:
    out = loss(minibatch)
    value = out.get(f"loss_{name}", None)
    if value is None:
        raise O2OSpecError(
            f"got the loss {name!r}, but {type(loss).__name__} has neither {name}_loss() nor loss_{name}; name one of "
            "its losses"
        )
    return value


@functools.cache
def _extras(method: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of a method's keyword-only arguments: all of them, and those without a default."""
    parameters = inspect.signature(method).parameters.values()
    extras = [parameter for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    needed = [parameter.name for parameter in extras if parameter.default is inspect.Parameter.empty]
    return tuple(parameter.name for parameter in extras), tuple(needed)


def summary(measured: Mapping[str, Tensor], rows: Sequence[str]) -> dict[str, Tensor]:
    """Means of all metrics, the standard deviation between critics, and the requested rows unchanged.

    A loss that returns its own ``qvalue_std`` keeps it.

    Args:
        measured: the results of the losses on one minibatch.
        rows: entries to keep row by row, under ``rows:<name>``; missing ones are skipped.

    Returns:
        Scalars and rows.

    Examples:
        >>> import torch
        >>> summary({"qvalue": torch.tensor([[1.0, 1.0], [3.0, 3.0]])}, ())
        {'qvalue': tensor(2.), 'qvalue_std': tensor(1.4142)}
    """
    out = {key: value.mean() if value.is_floating_point() else value.double().mean() for key, value in measured.items()}
    if "qvalue" in measured and "qvalue_std" not in measured and len(measured["qvalue"]) > 1:
        out["qvalue_std"] = measured["qvalue"].std(0).mean()
    return out | {f"rows:{name}": measured[name] for name in rows if name in measured}


def joined_rows(
    minibatches: Sequence[Mapping[str, Tensor]], rows: Sequence[str], known: Iterable[str], *, prefix: str = ""
) -> dict[str, Tensor]:
    """The requested entries of all minibatches, row by row.

    Args:
        minibatches: what was measured on each, with an entry [..., B] for each requested name.
        rows: the requested names.
        known: names for the error.

    Keyword Args:
        prefix: what stands before the names in ``minibatches``. Defaults to nothing.

    Returns:
        Name -> rows, shape [..., number of minibatches * B].

    Raises:
        O2OSpecError: if the losses return no such entry.

    Examples:
        >>> import torch
        >>> joined_rows([{"td_error": torch.zeros(2)}, {"td_error": torch.ones(2)}], ["td_error"], ["td_error"])
        {'td_error': tensor([0., 0., 1., 1.])}
    """
    for name in rows:
        if any(prefix + name not in each for each in minibatches):
            raise O2OSpecError(f"got rows={name!r}, expected an entry that the losses return: {sorted(known)}")
    return {name: torch.cat([each[prefix + name] for each in minibatches], -1) for name in rows}
