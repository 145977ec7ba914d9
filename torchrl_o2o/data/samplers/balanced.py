# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Exact mixing of offline and online rows."""

from __future__ import annotations

import json
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchrl.data import Storage

from torchrl_o2o.data.samplers.drawing import DrawingSampler
from torchrl_o2o.data.storage import rows_of
from torchrl_o2o.data.writers import check_offline_rows
from torchrl_o2o.errors import O2OSpecError, check_count, check_state

__all__ = ["BalancedSampler"]


class BalancedSampler(DrawingSampler):
    r"""Uniform draws from both regions of one storage, mixed in an exact and evenly interleaved fraction.

    Row i of a batch is offline exactly if :math:`\lceil (i+1)f\rceil > \lceil if\rceil`, so any n consecutive rows hold
    :math:`nf` offline rows, rounded up or down. The number is exact if :math:`nf` is an integer and the first row is at
    a multiple of n, so each of the ``utd_ratio`` minibatches of a batch has the fraction. At f = 1/2, even rows are
    offline and odd rows online, as in RLPD's code. Draws are with replacement.

    A batch of B rows has :math:`\lceil Bf\rceil` offline rows. While there is no online transition, all rows are
    offline. A warning says so once, and ``num_offline_only_batches`` counts such batches.

    The draws are called ``"offline_rows"`` and ``"online_rows"``, see :class:`~torchrl_o2o.functional.noise.RowSource`;
    both are row numbers of the storage.

    Source: Ball et al. 2023 (RLPD), section 4.1, symmetric sampling, with f = 1/2.

    Args:
        num_offline: number of offline rows at the storage's start, see
            :func:`~torchrl_o2o.data.offline_online_storage`.
        offline_fraction: f in [0, 1]. Defaults to 0.5; 0 is SAC without data, and 1 is offline training. It may be
            changed at any time.

    Raises:
        O2OSpecError: if the fraction is outside [0, 1], or positive without offline rows, or the online region is
            smaller than the online rows of one batch.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        >>> storage = LazyTensorStorage(100)
        >>> storage.set(torch.arange(60), TensorDict({"x": torch.arange(60)}, [60]))  # 40 offline, 20 online
        >>> buffer = TensorDictReplayBuffer(storage=storage, sampler=BalancedSampler(40, 0.25), batch_size=32)
        >>> [int((part["index"] < 40).sum()) for part in buffer.sample().split(8)]
        [2, 2, 2, 2]
    """

    def __init__(self, num_offline: int, offline_fraction: float = 0.5) -> None:
        self.num_offline = check_count("num_offline", num_offline)
        self.offline_fraction = offline_fraction
        self.num_offline_only_batches = 0
        self._pattern: tuple[int, float, Tensor] | None = None

    @property
    def offline_fraction(self) -> float:
        """Share of offline rows in every batch."""
        return self._offline_fraction

    @offline_fraction.setter
    def offline_fraction(self, value: float) -> None:
        if value is None or isinstance(value, str) or not 0.0 <= value <= 1.0:
            raise O2OSpecError(f"got offline_fraction={value}, expected a number in [0, 1]")
        if value > 0.0 and self.num_offline == 0:
            raise O2OSpecError(
                f"got offline_fraction={value} with num_offline=0, expected offline rows; pass the data set's length, "
                "or fraction 0"
            )
        self._offline_fraction = float(value)

    def is_offline_row(self, batch_size: int) -> Tensor:
        """The mask of a batch's offline rows, bool, shape [batch_size]."""
        if self._pattern is None or self._pattern[:2] != (batch_size, self._offline_fraction):
            # Compute with the nearest simple fraction, so that 0.1 * 30 rows are 3 rows and not 4.
            ratio = Fraction(self._offline_fraction).limit_denominator(1_000_000)
            edges = -(-torch.arange(batch_size + 1) * ratio.numerator).div(ratio.denominator, rounding_mode="floor")
            self._pattern = (batch_size, self._offline_fraction, edges[1:] > edges[:-1])
        return self._pattern[2]

    def sample(self, storage: Storage, batch_size: int) -> tuple[Tensor, dict[str, Any]]:
        """Draw row indices, shape [batch_size].

        Args:
            storage: one storage with the offline rows first.
            batch_size: number of rows.

        Returns:
            The indices and an empty dictionary.

        Raises:
            O2OSpecError: if there is nothing to draw from, the online region cannot hold the online rows of a batch, or
                the buffer's writer overwrites offline rows.
        """
        check_offline_rows(storage, self.num_offline)
        size = len(rows_of(storage))
        if 0 < size < self.num_offline:
            raise O2OSpecError(
                f"got a storage of {size} rows, expected at least the sampler's num_offline={self.num_offline}; pass "
                "the length of the data set"
            )
        is_offline = self.is_offline_row(check_count("batch_size", batch_size))
        num_online = size - self.num_offline
        count = int(is_offline.sum())
        if count == batch_size or num_online <= 0:
            self._check_offline_only(num_online)
            return self._uniform("offline_rows", 0, self.num_offline, batch_size), {}
        self.check_capacity(storage, batch_size)
        index = torch.empty(batch_size, dtype=torch.long)
        index[is_offline] = self._uniform("offline_rows", 0, self.num_offline, count)
        index[~is_offline] = self._uniform("online_rows", self.num_offline, size, batch_size - count)
        return index, {}

    def check_capacity(self, storage: Storage, batch_size: int) -> None:
        """Raise if the online region can never hold the online rows of one batch.

        Sampling checks this, too. Call it when you build a buffer, to get the error before the first environment step.

        Args:
            storage: the storage to be sampled from.
            batch_size: rows of a whole batch, ``utd_ratio`` times the minibatch.

        Raises:
            O2OSpecError: if the online slots are fewer than the online rows of a batch.
        """
        needed = batch_size - int(self.is_offline_row(batch_size).sum())
        capacity = getattr(storage, "max_size", len(rows_of(storage))) - self.num_offline
        if capacity < needed:
            raise O2OSpecError(
                f"a batch of {batch_size} at offline_fraction={self._offline_fraction} needs {needed} online rows, but "
                f"the storage has {capacity} online slots; raise online_capacity (in a script online.total_frames) or "
                "lower the batch"
            )

    def _uniform(self, name: str, low: int, high: int, size: int) -> Tensor:
        return self._source().integers(name, low, high, size) if size else torch.empty(0, dtype=torch.long)

    def _check_offline_only(self, num_online: int) -> None:
        if self._offline_fraction == 1.0:
            return
        if self.num_offline == 0:
            raise O2OSpecError("got an empty storage, expected at least one row to sample; collect transitions first")
        if self.num_offline_only_batches == 0:
            reason = "there are no online transitions yet" if num_online <= 0 else "the fraction rounds to all rows"
            warnings.warn(
                f"a batch at offline_fraction={self._offline_fraction} is drawn only from the offline data: {reason}",
                stacklevel=4,
            )
        self.num_offline_only_batches += 1

    def state_dict(self) -> dict[str, Any]:
        """Fraction and counters; the random state belongs to the replay buffer's generator."""
        return {
            "num_offline": self.num_offline,
            "offline_fraction": self._offline_fraction,
            "num_offline_only_batches": self.num_offline_only_batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            O2OSpecError: if it belongs to another number of offline rows, or is not such a state.
        """
        words = "the saved sampler has {} offline rows, this one {}; load the data set with which the run was started"
        check_state(self, state_dict, BalancedSampler.state_dict(self), same={"num_offline": words})
        self.offline_fraction = state_dict["offline_fraction"]
        self.num_offline_only_batches = state_dict["num_offline_only_batches"]

    def _empty(self) -> None:
        self.num_offline_only_batches = 0

    def dumps(self, path: str | Path) -> None:
        """Write :meth:`state_dict` as JSON into a folder."""
        folder = Path(path)
        folder.mkdir(exist_ok=True)
        (folder / "balanced_sampler.json").write_text(json.dumps(self.state_dict()))

    def loads(self, path: str | Path) -> None:
        """Read what :meth:`dumps` wrote."""
        self.load_state_dict(json.loads((Path(path) / "balanced_sampler.json").read_text()))

    def __repr__(self) -> str:
        return f"BalancedSampler(num_offline={self.num_offline}, offline_fraction={self._offline_fraction})"
