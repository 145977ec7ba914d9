# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A density ratio between a data set and perturbed copies of its rows."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.samg import perturbed_pairs
from torchrl_o2o.objectives.base import Reduction
from torchrl_o2o.objectives.density_ratio import DensityRatioLoss

__all__ = ["PerturbationRatioLoss"]


class PerturbationRatioLoss(DensityRatioLoss):
    r"""Fits :math:`w=d_\mathrm{ref}/d_\mathrm{off}`, where the reference is a perturbed copy of the data set.

    Use it for :class:`~torchrl_o2o.modules.DensityRatioConfidence` while there are no rows of another policy. A row of
    the reference is, at random,

    - a state of the data with a uniform action (a share ``uniform_share``), because a critic errs most for actions that
      are not in its data; or
    - a pair of the data with Gaussian noise of :math:`\eta` standard deviations in each dimension. :math:`\log\eta` is
      uniform between the logarithms of the two ``noise_sizes``, so rows are near the data and far from it.

    So w is small where the data are dense. If p = 1 / (1 + w) is above 1/2, a row is more likely from the data than
    from the reference. :func:`~torchrl_o2o.functional.perturbed_pairs` makes both kinds from the batch itself, with the
    batch's standard deviations.

    Source: the loss is :class:`DensityRatioLoss`'s; the reference distribution is this package's own.

    Importance weights are not read.

    Args:
        density_ratio_network: writes log w, for example :class:`~torchrl_o2o.modules.DensityRatio`; it must read the
            action (``tensor_keys.action``) and observations.

    Keyword Args:
        uniform_share: probability of a uniform action in [-1, 1] instead of noise.
            :func:`~torchrl_o2o.data.load_offline` and :func:`~torchrl_o2o.envs.make_env` rescale actions to this box.
            Defaults to 0.5.
        noise_sizes: least and largest size of the noise, in standard deviations. Defaults to (0.1, 1.0).
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the share is not in [0, 1] or the sizes are not positive and in increasing order.

    Examples:
        >>> from torchrl_o2o.modules import DensityRatio
        >>> from torchrl_o2o.objectives import PerturbationRatioLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> loss = PerturbationRatioLoss(DensityRatio(17, 6, hidden_sizes=(32, 32)))
        >>> sorted(loss(random_transitions(8, 17, 6)).keys())
        ['log_ratio_offline', 'log_ratio_online', 'loss_density_ratio']
    """

    def __init__(
        self,
        density_ratio_network: TensorDictModule,
        *,
        uniform_share: float = 0.5,
        noise_sizes: tuple[float, float] = (0.1, 1.0),
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(density_ratio_network, reduction=reduction)
        smallest, largest = noise_sizes
        if not 0.0 <= uniform_share <= 1.0 or not 0.0 < smallest <= largest:
            raise O2OSpecError(
                f"got uniform_share={uniform_share}, noise_sizes={(smallest, largest)}, expected a share in [0, 1] and "
                "two positive numbers in increasing order, e.g. 0.5 and (0.1, 1.0)"
            )
        self.uniform_share, self.noise_sizes = uniform_share, (smallest, largest)

    def _keys_read(self) -> list[NestedKey]:
        return list(self.density_ratio_network.in_keys)

    def reference(self, tensordict: TensorDictBase) -> TensorDictBase:
        """A row of the reference for each row of the data.

        Args:
            tensordict: rows with the network's ``in_keys``, shape [*B]; not modified.

        Returns:
            Those entries, of the same shapes.

        Raises:
            O2OSpecError: if the network does not read the action and an observation.
        """
        keys, action_key = self.density_ratio_network.in_keys, self.tensor_keys.action
        observed = [key for key in keys if key != action_key]
        if len(observed) != len(keys) - 1 or not observed:
            raise O2OSpecError(
                f"got a network that reads {keys}, expected the action {action_key!r} and observations; name the "
                "action with loss.set_keys(action=...)"
            )
        action, observations = self._entry(tensordict, action_key), [self._entry(tensordict, key) for key in observed]
        for key, value in zip(observed, observations, strict=True):
            self._check_rows(tensordict, key, value)
        observation = torch.cat(observations, -1)
        normal, uniform, one = self.noise.normal, self.noise.uniform, action[..., :1]
        least, largest = map(math.log, self.noise_sizes)
        middle, half = (least + largest) / 2.0, (largest - least) / 2.0
        state, moved = perturbed_pairs(
            observation,
            action,
            noise=normal("perturbation", torch.cat([observation, action], -1)),
            size=(middle + half * uniform("size", one)).exp(),
            other_action=uniform("other_action", action),
            swap=uniform("swap", one) < 2.0 * self.uniform_share - 1.0,
        )
        states = state.split([value.shape[-1] for value in observations], -1)
        return TensorDict({action_key: moved, **dict(zip(observed, states, strict=True))}, tensordict.batch_size)

    def density_ratio_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch of the data against its perturbed rows.

        Args:
            tensordict: rows with the network's ``in_keys``, shape [B]; not modified.

        Returns:
            The loss, and the means ``log_ratio_offline`` (of the data) and ``log_ratio_online`` (of the reference).
        """
        return self._two_sources(tensordict, self.reference(tensordict))
