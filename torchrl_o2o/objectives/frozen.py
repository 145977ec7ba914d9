# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A frozen copy of a critic."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.objectives.common import LossModule

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_option
from torchrl_o2o.functional.behavior import soft_minimum
from torchrl_o2o.modules.input_checks import entries_of
from torchrl_o2o.objectives.networks import call_ensemble, call_network, flat_parameters

__all__ = ["FrozenCritic"]

CriticKind = Literal["qvalue", "value"]
CriticSource = Literal["online", "target"]


class FrozenCritic(nn.Module):
    r"""A frozen copy of :math:`\min_j Q_j(s,a)` or :math:`V(s)`, which is saved with the module it is part of.

    The mean or :math:`\lambda\min_jQ_j+(1-\lambda)\max_jQ_j` can replace the minimum, as in the loss's own target.

    It is evaluated without dropout, and by batch normalization's running statistics.

    Its parameters are buffers: no optimizer finds them, ``.to()`` moves them and strict loading restores them.

    Args:
        network: one critic, the template of all; it is copied.
        params: its parameters, stacked to [E, ...] for ``"qvalue"``; they are copied.

    Keyword Args:
        kind: ``"qvalue"`` (default) or ``"value"``.
        out_key: the entry that the network writes. Defaults to its last one.
        maximum: upper bound on Q, or ``None`` (default).
        aggregation: ``"min"`` (default) or ``"mean"`` of the critics.
        soft_min_weight: :math:`\lambda` of ``"min"``. Defaults to 1, the minimum.
        deactivate_vmap: whether one critic is evaluated after the other on every device. Defaults to ``False``.

    Raises:
        O2OSpecError: if an option is unknown or out of range.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> critics = make_qvalue_ensemble(5, 2, num_qvalue_nets=3, hidden_sizes=(16,))
        >>> loss = EnsembleSACLoss(make_actor(5, 2, hidden_sizes=(16,)), critics)
        >>> critic = FrozenCritic.from_loss(loss)
        >>> critic(random_transitions(8, 5, 2)).shape, list(critic.parameters())
        (torch.Size([8, 1]), [])
    """

    network: TensorDictModuleBase
    params: TensorDictParams

    @checked_arguments
    def __init__(
        self,
        network: TensorDictModuleBase,
        params: TensorDictBase,
        *,
        kind: CriticKind = "qvalue",
        out_key: NestedKey | None = None,
        maximum: float | None = None,
        aggregation: Literal["min", "mean"] = "min",
        soft_min_weight: float = 1.0,
        deactivate_vmap: bool = False,
    ) -> None:
        super().__init__()
        check_option("kind", kind, ("qvalue", "value"))
        check_option("aggregation", aggregation, ("min", "mean"))
        self.aggregation: Literal["min", "mean"] = aggregation
        if not 0.0 <= soft_min_weight <= 1.0:
            raise O2OSpecError(f"got soft_min_weight={soft_min_weight}, expected a share in [0, 1]")
        self.soft_min_weight, self.deactivate_vmap = soft_min_weight, deactivate_vmap
        # Not registered as a submodule, because only `params` are used, never the template's own parameters.
        self.__dict__["network"] = copy.deepcopy(network).requires_grad_(False).eval()
        frozen = params.data.clone()
        self.params = TensorDictParams(frozen, no_convert=True)
        self.kind: CriticKind = kind
        self.out_key: NestedKey = network.out_keys[-1] if out_key is None else out_key
        self.maximum = maximum

    @classmethod
    def from_loss(
        cls, loss: LossModule, *, source: CriticSource = "online", kind: CriticKind | None = None
    ) -> FrozenCritic:
        """Copy the critic of a trained loss module, this package's or torchrl's.

        The frozen critics are reduced as in the loss's target, by their minimum, mean or soft minimum. If a loss takes
        the minimum over a random subset of Z critics, the first Z are frozen.

        Args:
            loss: a loss with ``qvalue_network`` or ``value_network``.
            source: freeze the ``"online"`` networks (default) or their ``"target"`` copies.
            kind: ``"value"`` freezes V, ``"qvalue"`` the critics; ``None`` (default) is V if the loss has one (IQL).

        Returns:
            The frozen critic.

        Raises:
            O2OSpecError: if the loss has no such network.
        """
        check_option("source", source, ("online", "target"))
        if kind is None:
            kind = "value" if getattr(loss, "value_network", None) is not None else "qvalue"
        name = f"{kind}_network"
        network = getattr(loss, name, None)
        if network is None:
            raise O2OSpecError(
                f"got a {type(loss).__name__}, expected a loss with a {name}; pass such a loss, or another kind"
            )
        params = getattr(loss, f"{name}_params" if source == "online" else f"target_{name}_params")
        size = getattr(loss, "sub_sample_len", None) if kind == "qvalue" else None
        key = getattr(loss.tensor_keys, "value" if kind == "value" else "state_action_value")
        maximum = getattr(loss, "q_max", None) if kind == "qvalue" else None
        params = params.data[:size] if size else params
        settings = {**_reduction_of(loss), "deactivate_vmap": getattr(loss, "deactivate_vmap", False)}
        return cls(network, params, kind=kind, out_key=key, maximum=maximum, **settings)

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries that are read."""
        return list(self.network.in_keys)

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> Tensor:
        """Value of a state, or of a state and action.

        Args:
            tensordict: the entries of ``in_keys``, shape [*B]; not modified.

        Returns:
            Shape [*B, 1].

        Raises:
            O2OSpecError: if an entry is missing.
        """
        read = entries_of(tensordict, self.in_keys, type(self).__name__)
        inputs: Mapping[NestedKey, Tensor] = dict(zip(self.in_keys, read, strict=True))
        params = flat_parameters(self.params)
        if self.kind == "value":
            return call_network(self.network, params, inputs, self.out_key)
        values = call_ensemble(self.network, params, inputs, self.out_key, None, self.deactivate_vmap)
        if self.maximum is not None:
            values = values.clamp(max=self.maximum)
        value = values.mean(0) if self.aggregation == "mean" else soft_minimum(values, self.soft_min_weight)
        return value.unsqueeze(-1)


def _reduction_of(loss: LossModule) -> dict[str, Any]:
    """How a loss's target reduces its critics, by the attributes of flow losses, soft losses, BEAR and BRAC."""
    means = "mean" in (getattr(loss, "aggregation", None), getattr(loss, "target_q", None))
    return {"aggregation": "mean" if means else "min", "soft_min_weight": getattr(loss, "soft_min_weight", 1.0)}
