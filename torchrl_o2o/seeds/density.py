# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The density ratios of N agents, fitted at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch.func import vmap

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.replay import js_conjugate, js_derivative
from torchrl_o2o.objectives.density_ratio import DensityRatioLoss
from torchrl_o2o.objectives.networks import Inputs, Parameters, call_network, flat_parameters
from torchrl_o2o.seeds.stacking import stack_leaves

__all__ = ["StackedDensityRatio"]


def _log_ratio(network: TensorDictModuleBase, params: Parameters, inputs: Inputs) -> Tensor:
    one = partial(call_network, network, out_key=network.out_keys[0])
    return vmap(one, randomness="different")(params, inputs).squeeze(-1)


class StackedDensityRatio:
    """``density_ratio_loss`` of N agents at once, each agent's as its own loss computes it.

    As :class:`~torchrl_o2o.seeds.StackedSAC`: the agents' networks become slices of the leaves.

    Args:
        losses: one per agent, with equal settings and a reduction over the batch.

    Raises:
        O2OSpecError: if that is not so.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import DensityRatio
        >>> from torchrl_o2o.testing import random_transitions
        >>> stack = StackedDensityRatio([DensityRatioLoss(DensityRatio(3, 2, hidden_sizes=(8,))) for _ in range(4)])
        >>> offline, online = (torch.stack([random_transitions(16, 3, 2) for _ in range(4)]) for _ in range(2))
        >>> stack.density_ratio_loss(offline, online)[0].shape
        torch.Size([4])
    """

    def __init__(self, losses: Sequence[DensityRatioLoss]) -> None:
        #: The agents' own losses.
        self.losses = list(losses)
        settings = {(loss.eps, loss.reduction) for loss in losses}
        if len(settings) != 1 or losses[0].reduction == "none":
            raise O2OSpecError(f"got (eps, reduction) {sorted(settings)}, expected one pair, and 'mean' or 'sum'")
        self.params = stack_leaves([flat_parameters(loss.density_ratio_network_params) for loss in losses])
        self._log_ratio = _log_ratio

    @property
    def leaves(self) -> list[Tensor]:
        """All trained leaves, for :class:`~torchrl_o2o.seeds.StackedOptimizer`."""
        return list(self.params.values())

    def compile(self, *, mode: str | None = None) -> None:
        """Compile the pure core.

        Args:
            mode: ``torch.compile``'s mode. Defaults to its own default.
        """
        self._log_ratio = torch.compile(_log_ratio, mode=mode, dynamic=False, fullgraph=True)

    def density_ratio_loss(self, offline: TensorDictBase, online: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of one offline and one online batch per agent.

        Args:
            offline: offline rows, shape [N, B]; not modified.
            online: online rows, shape [N, C].

        Returns:
            The losses, shape [N], and the means ``log_ratio_offline`` and ``log_ratio_online``, shape [N], detached.
        """
        first = self.losses[0]
        from_offline, from_online = self.log_ratio(offline), self.log_ratio(online)
        parts = js_conjugate(from_offline, first.eps), -js_derivative(from_online, first.eps)
        reduced = [part.mean(1) if first.reduction == "mean" else part.sum(1) for part in parts]
        info = {"log_ratio_offline": from_offline, "log_ratio_online": from_online}
        return reduced[0] + reduced[1], {name: value.detach().mean(1) for name, value in info.items()}

    def log_ratio(self, batches: TensorDictBase) -> Tensor:
        """log w(s, a) with gradient, shape [N, B].

        Args:
            batches: rows with the network's ``in_keys``, shape [N, B]; not modified.
        """
        network = self.losses[0].density_ratio_network
        return self._log_ratio(network, self.params, {key: batches.get(key) for key in network.in_keys})
