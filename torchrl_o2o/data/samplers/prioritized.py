# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Prioritized experience replay with TorchRL's interface, without its C++ extension."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torchrl.data import PrioritizedSampler

from torchrl_o2o._moved import renamed_arguments
from torchrl_o2o.data.samplers.stored import StoredPrioritySampler
from torchrl_o2o.data.samplers.sum_tree import last_of_each
from torchrl_o2o.errors import O2OSpecError, check_option, check_state

__all__ = ["PrioritizedReplaySampler"]

_Normalization = Literal["max", "mean", "none"]


# Registered as a virtual subclass, this passes TorchRL's isinstance checks without inheriting code that needs the C++
# tree. TensorDictReplayBuffer.update_tensordict_priority silently does nothing for other samplers.
@PrioritizedSampler.register
class PrioritizedReplaySampler(StoredPrioritySampler):
    r"""Prioritized experience replay: stratified draws in proportion to TD errors, with importance weights.

    .. math::
        P_i = \frac{(p_i+\epsilon)^\alpha}{\sum_j (p_j+\epsilon)^\alpha},\qquad
        u_i = (N P_i)^{-\beta}\ \text{under "priority_weight"}

    Rows that were never scored, including offline ones, and rows that a writer overwrites get the largest p so far
    (initially 1), so they are drawn soon. Over the storage of :func:`~torchrl_o2o.data.offline_online_storage` the
    share of offline rows results from the priorities. Use :class:`~torchrl_o2o.data.BalancedSampler` or
    :class:`~torchrl_o2o.data.BalancedReplaySampler` to control it.

    It replaces :class:`torchrl.data.PrioritizedSampler`, which needs a C++ extension built for the installed version of
    torch. All three ways to set priorities work: ``buffer.update_tensordict_priority(batch)``, which reads the buffer's
    ``priority_key`` (``"td_error"``, as written by the losses); ``buffer.update_priority(index, p)``; and the priority
    key in rows that are written. Differences: draws are stratified as in the paper; weights are divided by the batch's
    largest instead of the storage's; sums are in float64 and do not drift.

    This package's losses do *not* renormalize weights, so ``normalization`` affects the step size.

    Source: Schaul et al. 2016 (PER), Eq. 1, section 3.4, and Appendix B.2.1 (stratification).

    Args:
        max_capacity: number of slots of the storage.
        alpha: exponent of the priorities; 0 draws uniformly. It may be changed at any time, at the cost of one pass.
        beta: exponent of the importance weights; 1 is a complete correction. It may be changed at any time.
        eps: added to each priority; it may be changed like ``alpha``. Defaults to 1e-8.
        dtype: type of priorities and sums. Defaults to ``torch.float64``.
        reduction: how ``TensorDictReplayBuffer`` reduces priorities with extra dimensions. Defaults to ``"max"``.
        normalization: weights are divided by the batch's ``"max"`` (default, as in the paper: weights are at most 1) or
            its ``"mean"`` (the mean step size is kept), or not divided, ``"none"`` (their expectation is 1 at beta 1).

    Raises:
        O2OSpecError: if an argument is out of range.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> sampler = PrioritizedReplaySampler(10, alpha=1.0, beta=1.0)
        >>> buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(10), sampler=sampler, batch_size=4)
        >>> _ = buffer.extend(TensorDict({"x": torch.arange(2)}, [2]))
        >>> batch = buffer.sample().set("td_error", torch.zeros(4, 1))
        >>> buffer.update_tensordict_priority(batch)  # both rows were drawn, so both are at eps now
        >>> buffer.update_priority(torch.tensor([0, 1]), torch.tensor([1.0, 3.0]))
        >>> batch = buffer.sample()
        >>> batch["x"].sort().values
        tensor([0, 1, 1, 1])
        >>> batch["priority_weight"].sort().values
        tensor([0.3333, 0.3333, 0.3333, 1.0000])
    """

    @renamed_arguments(normalisation="normalization")
    def __init__(
        self,
        max_capacity: int,
        alpha: float,
        beta: float,
        eps: float = 1e-8,
        dtype: torch.dtype = torch.float64,
        reduction: Literal["max", "min", "median", "mean"] = "max",
        *,
        normalization: _Normalization = "max",
    ) -> None:
        super().__init__(max_capacity, dtype=dtype)
        check_option("reduction", reduction, ("max", "min", "median", "mean"))
        check_option("normalization", normalization, ("max", "mean", "none"))
        self._priority = torch.zeros(self.capacity, dtype=dtype)
        self._alpha, self._eps = _not_negative("alpha", alpha), _not_negative("eps", eps)
        self.beta = beta
        self.reduction = reduction
        self.normalization: _Normalization = normalization
        self.max_priority = 1.0

    @property
    def alpha(self) -> float:
        """The exponent of the priorities; 0 is uniform."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._revalue(_not_negative("alpha", value), self._eps)

    @property
    def eps(self) -> float:
        """What is added to each priority."""
        return self._eps

    @eps.setter
    def eps(self, value: float) -> None:
        self._revalue(self._alpha, _not_negative("eps", value))

    def _revalue(self, alpha: float, eps: float) -> None:
        """Compute the values of all rows with another exponent or another constant; nothing changes if it raises."""
        before = self._alpha, self._eps
        self._alpha, self._eps = alpha, eps
        try:
            self._tree.fill(0, self._num_known, self._values_of(self._priority[: self._num_known]))
        except O2OSpecError:
            self._alpha, self._eps = before
            raise

    @property
    def beta(self) -> float:
        """The exponent of the importance weights; 1 corrects for the priorities completely."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        self._beta = _not_negative("beta", value)

    @property
    def default_priority(self) -> float:
        """Priority of rows that were never scored: the largest so far, before ``eps`` and ``alpha``."""
        return self.max_priority

    def _values_of(self, priority: Tensor) -> Tensor:
        value = (priority + self._eps) ** self._alpha
        if value.isinf().any():
            raise O2OSpecError(
                f"got a priority of {float(priority.max()):g}, expected a finite {value.dtype} after raising it to "
                f"alpha={self._alpha}; clamp priorities, or lower alpha"
            )
        return value

    def _initialize(self, start: int, stop: int) -> None:
        self._priority[start:stop] = self.max_priority
        self._tree.fill(start, stop, self._values_of(self._priority[start : start + 1]))  # they all have this value

    def _store(self, index: Tensor, priority: Tensor) -> None:
        self._tree.check(index, priority)  # before the power, which may be NaN or infinite for finite priorities
        index, priority = last_of_each(index, priority)
        self._tree.update(index, self._values_of(priority))
        self._priority[index] = priority
        self.max_priority = max(self.max_priority, float(priority.max()))

    def _describe(self, index: Tensor) -> dict[str, Any]:
        # Rows that cannot be drawn (priority and eps are 0) still count in N, as in the paper.
        tree = self._tree
        weight = (self._num_known * (tree[index] * tree.unit) / tree.scaled_total) ** -self._beta
        if self.normalization == "max":
            weight = weight / weight.max()
        elif self.normalization == "mean":
            weight = weight / weight.mean()
        return {"priority_weight": weight.to(torch.get_default_dtype())}

    def _empty(self) -> None:
        super()._empty()
        self._priority.zero_()
        self.max_priority = 1.0

    def state_dict(self) -> dict[str, Any]:
        """Priorities, sums, exponents and counters; the random state belongs to the replay buffer's generator."""
        own = {"priority": self._priority.clone(), "max_priority": self.max_priority}
        return {**super().state_dict(), **own, "alpha": self._alpha, "beta": self._beta, "eps": self._eps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            O2OSpecError: if the state has another capacity.
        """
        check_state(self, state_dict, {**PrioritizedReplaySampler.state_dict(self), "tree": None})
        super().load_state_dict(state_dict)
        self._priority.copy_(state_dict["priority"])
        self.max_priority = state_dict["max_priority"]
        self._alpha, self._beta = state_dict["alpha"], state_dict["beta"]
        self._eps = state_dict["eps"]

    def __repr__(self) -> str:
        return f"PrioritizedReplaySampler(capacity={self.capacity}, alpha={self._alpha}, beta={self._beta})"


def _not_negative(name: str, value: float) -> float:
    if value is None or isinstance(value, str) or not 0.0 <= value < math.inf:
        raise O2OSpecError(f"got {name}={value}, expected 0 or more")
    return float(value)
