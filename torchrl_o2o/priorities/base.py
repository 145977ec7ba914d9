# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The base of priorities: callables from transitions to log-priorities, for samplers.

All have one signature, ``priority(tensordict) -> Tensor``, from transitions of shape [N] to log-priorities of shape
[N], which are finite for all inputs. In the log domain they can be added: ``density + 0.5 * advantage``. They refer to
a loss or a network, and use its parameters at the time of the call.

Shapes: ``N`` rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError, check_number
from torchrl_o2o.functional.replay import finite_scores
from torchrl_o2o.modules.input_checks import entries_of

__all__ = ["LogPriority", "Sum"]

_QUANTILES = (0.05, 0.5, 0.95)


class LogPriority(ABC):
    """Abstract base of log-priorities: the call for samplers, sums and multiples, and metrics.

    A subclass implements :meth:`score`, which may return any value; :meth:`__call__` makes it finite with
    :func:`~torchrl_o2o.functional.finite_scores` and counts the changed values in :attr:`num_clamped`.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> class Reward(LogPriority):
        ...     name = "reward"
        ...
        ...     def score(self, tensordict):
        ...         return tensordict["next", "reward"].squeeze(-1)
        >>> data = TensorDict({"next": {"reward": torch.tensor([[1.0], [torch.nan]])}}, [2])
        >>> priority = 2.0 * Reward()
        >>> priority(data)
        tensor([2., 2.])
        >>> priority.metrics()["reward_clamped"], priority.metrics()["log_priority_q50"]
        (tensor(0.5000), tensor(2.))
    """

    #: Prefix of the metrics.
    name: str = "priority"

    _observed: Tensor | None = None
    _changed: Tensor | None = None
    _num_clamped: Tensor | int = 0

    @abstractmethod
    def score(self, tensordict: TensorDictBase) -> Tensor:
        """Log-priority per row, possibly not finite.

        Args:
            tensordict: transitions, shape [N], on any device; not modified.

        Returns:
            Shape [N].
        """

    @torch.no_grad()
    def __call__(self, tensordict: TensorDictBase) -> Tensor:
        """Finite log-priority per row, without gradient, shape [*B] for transitions [*B].

        Raises:
            O2OSpecError: if there is no row, or :meth:`score` does not return one value of floating point per row.
        """
        if not tensordict.batch_size.numel():
            raise O2OSpecError(f"got no rows for {type(self).__name__} to score, expected at least one")
        self._observed = None
        rows = tensordict.reshape(-1) if tensordict.ndim > 1 else tensordict
        found = self.score(rows)
        if found.shape != rows.batch_size:
            raise O2OSpecError(
                f"{type(self).__name__} gave scores of shape {list(found.shape)} for rows "
                f"{list(rows.batch_size)}, expected one score per row; squeeze(-1) columns [N, 1] such as rewards"
            )
        score, changed = finite_scores(found)
        self._observed = score if self._observed is None else self._observed
        self._changed = changed
        self._num_clamped = self._num_clamped + changed.sum()
        return score.reshape(tensordict.batch_size)

    def _entry(self, rows: TensorDictBase, key: NestedKey) -> Tensor:
        """An entry that :meth:`score` reads; raises if the rows lack it."""
        return entries_of(rows, [key], type(self).__name__)[0]

    def _column(self, rows: TensorDictBase, key: NestedKey) -> Tensor:
        """An entry with one number per row, as [N]."""
        value = self._entry(rows, key)
        if value.numel() != rows.numel():
            raise O2OSpecError(
                f"got {key!r} of shape {list(value.shape)} for {rows.numel()} rows, expected one number per row, "
                "[N, 1]; reduce it to one column"
            )
        return value.reshape(-1)

    def __add__(self, other: LogPriority) -> Sum:
        """The sum of two log-priorities, that is the product of the priorities."""
        return Sum(self, other)

    def __rmul__(self, factor: float) -> Sum:
        """A multiple of the log-priority, that is a power of the priority."""
        return Sum(self, factors=(factor,))

    @property
    def num_clamped(self) -> int:
        """Number of rows so far whose score was not finite."""
        return int(self._num_clamped)

    def metrics(self) -> dict[str, Tensor]:
        """Quantiles of the last call's scores and the fraction of its rows that were not finite; empty before it."""
        if self._changed is None or self._observed is None:
            return {}
        levels = torch.tensor(_QUANTILES, dtype=torch.float32, device=self._observed.device)
        values = self._observed.float().nanquantile(levels)
        quantiles = {
            f"{self.name}_q{level * 100:02.0f}": value for level, value in zip(_QUANTILES, values, strict=True)
        }
        return {f"{self.name}_clamped": self._changed.float().mean(), **quantiles}

    def _watch(self, values: Tensor) -> Tensor:
        """Store values for :meth:`metrics`."""
        self._observed = values
        return values


class Sum(LogPriority):
    r"""Weighted sum of log-priorities, :math:`\sum_k c_k\log p_k`, the result of ``+`` and ``*``.

    Args:
        terms: the log-priorities.

    Keyword Args:
        factors: :math:`c_k`, one per term. Defaults to 1 each.

    Raises:
        O2OSpecError: if there is no term or the numbers differ.

    Examples:
        >>> from torchrl_o2o.modules import DensityRatio
        >>> from torchrl_o2o.priorities import DensityRatioScore
        >>> term = DensityRatioScore(DensityRatio(3, 2, hidden_sizes=(8,)))
        >>> (0.5 * term + term).factors
        (1.0, 1.0)
    """

    name = "log_priority"

    def __init__(self, *terms: LogPriority, factors: tuple[float, ...] | None = None) -> None:
        self.terms = terms
        self.factors = (1.0,) * len(terms) if factors is None else tuple(factors)
        if not terms or len(self.factors) != len(terms):
            raise O2OSpecError(
                f"got {len(terms)} terms and {len(self.factors)} factors, expected one factor per term, and at least "
                "one term"
            )
        for index, factor in enumerate(self.factors):
            check_number(f"factors[{index}]", factor)

    def score(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`LogPriority.score`."""
        scores = [factor * term(tensordict) for factor, term in zip(self.factors, self.terms, strict=True)]
        return torch.stack(scores).sum(0)

    def metrics(self) -> dict[str, Tensor]:
        """The metrics of all terms and of the sum."""
        merged: dict[str, Tensor] = {}
        for term in self.terms:
            merged |= term.metrics()
        return merged | super().metrics()
