# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The density ratio's loss: Jensen-Shannon, which is logistic regression of online against offline rows."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_o2o.functional.replay import js_conjugate, js_derivative
from torchrl_o2o.objectives.base import Reduction, TransitionLoss
from torchrl_o2o.objectives.networks import Inputs, Parameters, call_ensemble, flat_parameters

__all__ = ["DensityRatioLoss"]


def _log_ratio(network: TensorDictModuleBase, params: Parameters, inputs: Inputs) -> Tensor:
    """log w(s, a), shape [*B]; an ensemble of one."""
    stacked = {name: value.unsqueeze(0) for name, value in params.items()}
    return call_ensemble(network, stacked, inputs, network.out_keys[0]).squeeze(0)


class DensityRatioLoss(TransitionLoss):
    r"""Fits :math:`w=d_\mathrm{on}/d_\mathrm{off}` to rows of both sources (A3RL section 4.1, Off2On section 4.2).

    .. math::
        L = E_\mathrm{off}[f^*(f'(w))] - E_\mathrm{on}[f'(w)]
          = E_\mathrm{off}\,\mathrm{softplus}(\ell) + E_\mathrm{on}\,\mathrm{softplus}(-\ell) - 2\log 2,
        \qquad \ell=\log w(s,a)

    with f of the Jensen-Shannon divergence; see :func:`~torchrl_o2o.functional.js_conjugate`. It is 0 for w = 1
    and :math:`-2` JS at its minimum, so at least :math:`-2\log 2`: where it gets near that, the sources are told apart
    without error and the ratio says little more than which source a row is from.

    There are two ways in. :meth:`density_ratio_loss` takes an offline and an online batch, of any two sizes.
    :meth:`forward` takes one batch with a bool entry ``is_offline`` of shape [*B], as
    :class:`~torchrl_o2o.data.BalancedSampler` mixes it (``batch["index"] < num_offline``); its rows are weighted so
    that their mean is L, whatever the share of either source. A source without rows contributes nothing.

    Differences from the references: log w instead of w behind a ReLU, and no epsilon inside the logarithms. To repeat
    them exactly, use ``DensityRatio(..., parametrization="relu")`` and ``eps=1e-10``.

    Args:
        density_ratio_network: writes log w, for example :class:`~torchrl_o2o.modules.DensityRatio`.

    Keyword Args:
        eps: constant inside the logarithms, see :func:`~torchrl_o2o.functional.js_derivative`. Defaults to 0.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.modules import DensityRatio
        >>> loss = DensityRatioLoss(DensityRatio(17, 6, hidden_sizes=(32, 32)))
        >>> def rows():
        ...     return TensorDict({"observation": torch.randn(8, 17), "action": torch.rand(8, 6)}, [8])
        >>> value, info = loss.density_ratio_loss(rows(), rows())
        >>> value.shape, sorted(info)
        (torch.Size([]), ['log_ratio_offline', 'log_ratio_online'])
    """

    @dataclass
    class _AcceptedKeys(TransitionLoss._AcceptedKeys):
        """Tensordict keys that can be renamed with ``set_keys``.

        Attributes:
            is_offline: which rows are offline, bool. Defaults to ``"is_offline"``.
        """

        is_offline: NestedKey = "is_offline"

    tensor_keys: _AcceptedKeys  # pyright: ignore[reportIncompatibleVariableOverride]
    default_keys = _AcceptedKeys
    out_keys = ["loss_density_ratio", "log_ratio_offline", "log_ratio_online"]

    density_ratio_network: TensorDictModule
    density_ratio_network_params: TensorDictParams
    target_density_ratio_network_params: TensorDictParams

    _cores = ("_log_ratio",)
    _log_ratio = staticmethod(_log_ratio)

    def __init__(
        self, density_ratio_network: TensorDictModule, *, eps: float = 0.0, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(reduction)
        self.convert_to_functional(density_ratio_network, "density_ratio_network", create_target_params=False)
        self.eps = eps

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that ``forward`` reads, in the order of its positional arguments."""
        return [*self.density_ratio_network.in_keys, self.tensor_keys.is_offline]

    @in_keys.setter
    def in_keys(self, values: list[NestedKey]) -> None:
        self._in_keys = values

    def density_ratio_loss(self, offline: TensorDictBase, online: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one offline and one online batch; both are reduced by themselves, so their sizes are free.

        Args:
            offline: offline rows with the network's ``in_keys``, shape [B]; not modified.
            online: online rows, shape [C] (the same shape if ``reduction="none"``).

        Returns:
            The loss, and the means ``log_ratio_offline`` and ``log_ratio_online`` of log w, detached.
        """
        log_ratio_offline, log_ratio_online = self.log_ratio(offline), self.log_ratio(online)
        loss = self._reduce(js_conjugate(log_ratio_offline, self.eps)) - self._reduce(
            js_derivative(log_ratio_online, self.eps)
        )
        info = {"log_ratio_offline": log_ratio_offline, "log_ratio_online": log_ratio_online}
        return loss, {name: value.detach().mean() for name, value in info.items()}

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Loss of one batch that holds both sources.

        Args:
            tensordict: rows with the network's ``in_keys`` and ``is_offline``, shape [*B]; not modified.

        Returns:
            ``loss_density_ratio`` and, unless ``reduction="none"``, the means ``log_ratio_offline`` and
            ``log_ratio_online`` of log w.
        """
        log_ratio = self.log_ratio(tensordict)
        offline = tensordict.get(self.tensor_keys.is_offline).reshape(log_ratio.shape).to(log_ratio.dtype)
        online = 1.0 - offline
        share_offline, share_online = offline / offline.mean().clamp_min(1e-12), online / online.mean().clamp_min(1e-12)
        rows = share_offline * js_conjugate(log_ratio, self.eps) - share_online * js_derivative(log_ratio, self.eps)
        losses = {"loss_density_ratio": self._reduce(rows)}
        if self.reduction == "none":
            return TensorDict(losses, tensordict.batch_size)
        log_ratio = log_ratio.detach()
        means = {
            "log_ratio_offline": (share_offline * log_ratio).mean(),
            "log_ratio_online": (share_online * log_ratio).mean(),
        }
        return TensorDict({**losses, **means}, [])

    def log_ratio(self, tensordict: TensorDictBase) -> Tensor:
        """log w(s, a) with gradient.

        Args:
            tensordict: rows with the network's ``in_keys``, shape [*B]; not modified.

        Returns:
            Shape [*B].
        """
        network = self.density_ratio_network
        inputs = {key: tensordict.get(key) for key in network.in_keys}
        return self._log_ratio(network, flat_parameters(self.density_ratio_network_params), inputs)
