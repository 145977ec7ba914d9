# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The density ratio's Jensen-Shannon loss, which is logistic regression of online against offline rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError, check_number
from torchrl_o2o.functional.replay import js_conjugate, js_derivative
from torchrl_o2o.modules.density_ratio import DensityRatioNet
from torchrl_o2o.objectives.base import Reduction, TransitionLoss, dispatch
from torchrl_o2o.objectives.feed_forward import event_dims
from torchrl_o2o.objectives.networks import call_network, flat_parameters, single_output

__all__ = ["DensityRatioLoss", "join_sources"]


class DensityRatioLoss(TransitionLoss):
    r"""Fits :math:`w=d_\mathrm{on}/d_\mathrm{off}` to rows of both sources (A3RL section 4.1, Off2On section 4.2).

    .. math::
        L = E_\mathrm{off}[f^*(f'(w))] - E_\mathrm{on}[f'(w)]
          = E_\mathrm{off}\,\mathrm{softplus}(\ell) + E_\mathrm{on}\,\mathrm{softplus}(-\ell) - 2\log 2,
        \qquad \ell=\log w(s,a)

    with f of the Jensen-Shannon divergence; see :func:`~torchrl_o2o.functional.js_conjugate`. It is 0 for w = 1 and
    :math:`-2` JS, that is, at least :math:`-2\log 2`, at its minimum. Near :math:`-2\log 2` the network separates the
    sources without error, and the ratio says little more than which source a row is from.

    A batch holds rows of both sources; its bool entry ``is_offline`` of shape [*B] marks the offline ones. For batches
    of a :class:`~torchrl_o2o.data.BalancedSampler` it is ``batch["index"] < num_offline``. :func:`join_sources` joins
    two batches into one. The rows are weighted so that their mean is L, whatever the share of either source. A source
    without rows contributes nothing.

    Differences from the references: the network gives log w instead of w after a ReLU, and the logarithms have no
    epsilon. To reproduce the references exactly, use ``DensityRatio(..., parametrization="relu")`` and ``eps=1e-10``.

    Importance weights are not read: the ratio is that of the rows as they were drawn.

    Args:
        density_ratio_network: writes log w, for example :class:`~torchrl_o2o.modules.DensityRatio`.

    Keyword Args:
        eps: constant inside the logarithms, see :func:`~torchrl_o2o.functional.js_derivative`. Defaults to 0. A network
            other than :class:`~torchrl_o2o.modules.DensityRatio` then writes log(w + eps).
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.modules import DensityRatio
        >>> from torchrl_o2o.objectives import join_sources
        >>> loss = DensityRatioLoss(DensityRatio(17, 6, hidden_sizes=(32, 32)))
        >>> def rows():
        ...     return TensorDict({"observation": torch.randn(8, 17), "action": torch.rand(8, 6)}, [8])
        >>> value, info = loss.density_ratio_loss(join_sources(rows(), rows()))
        >>> value.shape, sorted(info)
        (torch.Size([]), ['log_ratio_offline', 'log_ratio_online'])
    """

    @dataclass
    class _AcceptedKeys(TransitionLoss._AcceptedKeys):
        """Tensordict keys that can be renamed with ``set_keys``.

        Attributes:
            is_offline: which rows are offline, bool. Defaults to ``"is_offline"``.
            offline: the rows of the data set, in a batch that holds the two sources separately. Defaults to
                ``"offline"``.
            online: the others. Defaults to ``"online"``.
        """

        is_offline: NestedKey = "is_offline"
        offline: NestedKey = "offline"
        online: NestedKey = "online"

    tensor_keys: _AcceptedKeys  # pyright: ignore[reportIncompatibleVariableOverride]
    default_keys = _AcceptedKeys
    out_keys = ["loss_density_ratio", "log_ratio_offline", "log_ratio_online"]

    density_ratio_network: TensorDictModule
    density_ratio_network_params: TensorDictParams
    target_density_ratio_network_params: TensorDictParams

    def __init__(
        self, density_ratio_network: TensorDictModule, *, eps: float = 0.0, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(reduction)
        self.convert_to_functional(density_ratio_network, "density_ratio_network", create_target_params=False)
        check_number("eps", eps, least=0)
        self.eps = eps
        net = getattr(density_ratio_network, "module", None)
        #: The constant in :meth:`log_ratio`, which is log(w + network_eps).
        self.network_eps = net.offset if isinstance(net, DensityRatioNet) else eps

    def _keys_read(self) -> list[NestedKey]:
        return [*self.density_ratio_network.in_keys, self.tensor_keys.is_offline]

    def density_ratio_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch with rows of both sources.

        Args:
            tensordict: rows with the network's ``in_keys`` and ``is_offline``, shape [*B]; or the same number of rows
                of each source under ``"offline"`` and ``"online"``, both of shape [*B]. It is not modified.

        Returns:
            The loss, and the means ``log_ratio_offline`` and ``log_ratio_online`` of log w, detached.

        Raises:
            O2OSpecError: if the batch does not mark which rows are offline.
        """
        keys = self.tensor_keys
        sources = [tensordict.get(key, None) for key in (keys.offline, keys.online)]
        if None not in sources:
            return self._two_sources(*sources)
        log_ratio = self.log_ratio(tensordict)
        inside = self._at_eps(log_ratio)
        offline = self._entry(tensordict, keys.is_offline).reshape(log_ratio.shape).to(log_ratio.dtype)
        online = 1.0 - offline
        of_offline, of_online = offline / offline.mean().clamp_min(1e-12), online / online.mean().clamp_min(1e-12)
        rows = of_offline * js_conjugate(inside, self.eps) - of_online * js_derivative(inside, self.eps)
        log_ratio = log_ratio.detach()
        means = {"offline": (of_offline * log_ratio).mean(), "online": (of_online * log_ratio).mean()}
        return self._reduce(rows), {f"log_ratio_{source}": mean for source, mean in means.items()}

    def _two_sources(self, offline: TensorDictBase, online: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        of_offline, of_online = self.log_ratio(offline), self.log_ratio(online)
        conjugate = js_conjugate(self._at_eps(of_offline), self.eps)
        derivative = js_derivative(self._at_eps(of_online), self.eps)
        loss = self._reduce(conjugate) - self._reduce(derivative)
        info = {"log_ratio_offline": of_offline, "log_ratio_online": of_online}
        return loss, {name: value.detach().mean() for name, value in info.items()}

    def _at_eps(self, log_ratio: Tensor) -> Tensor:
        """log(w + eps) with the eps of this loss, which the network may lack, or add another one."""
        if not self.eps or self.eps == self.network_eps:
            return log_ratio
        return (torch.relu(log_ratio.exp() - self.network_eps) + self.eps).log()

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss of one batch; see :meth:`density_ratio_loss`.

        Args:
            tensordict: as there.

        Returns:
            ``loss_density_ratio`` and, unless ``reduction="none"``, the means of log w.
        """
        loss, info = self.density_ratio_loss(tensordict)
        return self._collect(tensordict, {"loss_density_ratio": loss}, info)

    def log_ratio(self, tensordict: TensorDictBase) -> Tensor:
        """log w(s, a) with gradient.

        Args:
            tensordict: rows with the network's ``in_keys``, shape [*B]; not modified.

        Returns:
            Shape [*B].
        """
        network, params = self.density_ratio_network, flat_parameters(self.density_ratio_network_params)
        inputs, dims = {key: self._entry(tensordict, key) for key in network.in_keys}, event_dims(network)
        for key in network.in_keys if dims else ():
            self._check_rows(tensordict, key, inputs[key], dims)
        key = network.out_keys[0]
        return single_output(call_network(network, params, inputs, key), key)


def join_sources(
    offline: TensorDictBase, online: TensorDictBase, *, is_offline: NestedKey = "is_offline"
) -> TensorDictBase:
    """Join offline and online rows into one batch, whose entry ``is_offline`` marks the offline ones.

    Args:
        offline: offline rows, shape [B].
        online: online rows with the same entries, shape [C].

    Keyword Args:
        is_offline: name of that entry, the same as in the loss's ``tensor_keys``. Defaults to ``"is_offline"``.

    Returns:
        A copy of the rows, shape [B + C], offline ones first.

    Raises:
        O2OSpecError: if the entries of one differ from the other's in name, shape or type.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> rows = TensorDict({"action": torch.zeros(2, 1)}, [2])
        >>> join_sources(rows, rows[:1])["is_offline"]
        tensor([ True,  True, False])
    """
    kinds = [_kinds(offline), _kinds(online)]
    if different := sorted({str(key) for key, _ in kinds[0].items() ^ kinds[1].items()}):
        raise O2OSpecError(
            f"got offline and online rows that differ in {', '.join(different)} (only in one, or of another shape "
            f"or type), expected the same entries; take the same of both, such as rows.select('observation', 'action')"
        )
    # It returns its argument, which the annotation omits.
    joined = cast(TensorDictBase, torch.cat([offline, online]))
    return joined.set(is_offline, torch.arange(len(joined), device=joined.device) < len(offline))


def _kinds(rows: TensorDictBase) -> dict[NestedKey, tuple[torch.Size, torch.dtype]]:
    """Shape and type of a row's entries."""
    return {key: (value.shape[1:], value.dtype) for key, value in rows.items(True, True)}
