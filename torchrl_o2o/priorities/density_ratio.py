# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A3RL's first term, the density ratio of offline rows."""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_o2o._moved import renamed_arguments
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.replay import advantage_aligned_log_priority, mean_one_log_ratio
from torchrl_o2o.modules.input_checks import check_rows
from torchrl_o2o.objectives.feed_forward import event_dims
from torchrl_o2o.priorities.base import LogPriority

__all__ = ["DensityRatioScore"]


class DensityRatioScore(LogPriority):
    r"""The log density ratio of offline rows, :math:`1_\mathrm{off}\log\hat w`, and 0 for online rows.

    Source: A3RL Eq. 5, first term.

    Args:
        density_ratio: writes log w, see :class:`~torchrl_o2o.modules.DensityRatio`.

    Keyword Args:
        temperature: T in :math:`w^{1/T}`. Defaults to 1; Off2On and A3RL's newer code use 5.
        normalize: whether :math:`w^{1/T}` is scaled to mean 1 over the offline rows that are scored together. Defaults
            to ``True``; A3RL's older code does not. ``"sum"`` scales to *sum* 1, as in A3RL's newer code. If half of a
            pool of 5120 rows is offline, the offline share of the draws then falls from 50 % to about 9 % for any w.
        is_offline_key: bool entry, shape [N], that a sampler adds. Defaults to ``"is_offline"``.

    Raises:
        O2OSpecError: if the temperature is not positive.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.modules import DensityRatio
        >>> score = DensityRatioScore(DensityRatio(3, 2, hidden_sizes=(8,)))
        >>> offline = torch.tensor([True, False])
        >>> data = {"observation": torch.ones(2, 3), "action": torch.ones(2, 2), "is_offline": offline}
        >>> score(TensorDict(data, [2])).abs()  # one offline row alone has the mean ratio
        tensor([0., 0.])
    """

    name = "log_density_ratio"

    @renamed_arguments(normalise="normalize")
    @checked_arguments
    def __init__(
        self,
        density_ratio: TensorDictModuleBase,
        *,
        temperature: float = 1.0,
        normalize: bool | Literal["sum"] = True,
        is_offline_key: NestedKey = "is_offline",
    ) -> None:
        if not temperature > 0.0:
            raise O2OSpecError(f"got temperature={temperature}, expected a positive number, 1 or the references' 5")
        self.density_ratio = density_ratio
        self.temperature = temperature
        self.normalize = normalize
        self.is_offline_key = is_offline_key

    def score(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`LogPriority.score`."""
        observation, action = self.density_ratio.in_keys
        inputs = self._entry(tensordict, observation), self._entry(tensordict, action)
        if event_dims(self.density_ratio) == (1,):
            check_rows(observation, inputs[0], action, inputs[1])
        rows = tensordict.select(*self.density_ratio.in_keys).to(next(self.density_ratio.parameters()).device)
        log_ratio = self.density_ratio(rows).get(self.density_ratio.out_keys[0]).squeeze(-1)
        offline = self._is_offline(tensordict).to(log_ratio.device)
        self._watch(log_ratio.masked_fill(~offline, torch.nan))  # quantiles ignore NaN
        if self.normalize:  # values that are not finite must not affect the mean
            usable = offline & log_ratio.isfinite()
            log_ratio = mean_one_log_ratio(log_ratio, usable, self.temperature)
            if self.normalize == "sum":
                log_ratio = log_ratio - usable.sum().clamp_min(1).to(log_ratio.dtype).log()
        else:
            log_ratio = log_ratio / self.temperature
        return advantage_aligned_log_priority(log_ratio, torch.zeros_like(log_ratio), offline)

    def _is_offline(self, tensordict: TensorDictBase) -> Tensor:
        flag = tensordict.get(self.is_offline_key, None)
        if flag is None:
            raise O2OSpecError(
                f"got rows without {self.is_offline_key!r}, expected this entry, which marks offline rows; PoolSampler "
                "adds it, and elsewhere set it to index < num_offline"
            )
        if flag.dtype != torch.bool:
            raise O2OSpecError(
                f"got {self.is_offline_key!r} as {str(flag.dtype).removeprefix('torch.')}, expected bool; convert it "
                "with flag.bool()"
            )
        return flag.reshape(tensordict.batch_size)
