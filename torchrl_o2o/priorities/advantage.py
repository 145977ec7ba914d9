# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The advantage of a recorded action over the policy's actions, according to a loss's critics.

Shapes: ``N`` rows, ``n`` rows of one chunk, ``M`` sampled actions, ``E`` ensemble members, ``Z`` members of a subset.
"""

from __future__ import annotations

from typing import Literal

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_o2o._moved import renamed_arguments
from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import check_option
from torchrl_o2o.functional.replay import centered_rank, finite_scores, standardized
from torchrl_o2o.objectives.networks import Inputs
from torchrl_o2o.priorities.critic import CriticScore, Networks, ScoredLoss, compiled

__all__ = ["Advantage"]


class Advantage(CriticScore):
    r"""The advantage of the recorded action over the policy's actions, according to the critics.

    .. math::
        A(s,a) = \min_{i\in Z} Q_i(s,a) - \frac1M\sum_{j\le M}\left[\min_{i\in Z} Q_i(s,\tilde a_j)
                 - \alpha\log\pi(\tilde a_j|s)\right], \qquad \tilde a_j\sim\pi(\cdot|s)

    with one subset Z for all rows; the entropy term is off by default, as in the authors' code. A constant added to all
    critics cancels.

    Difference from the authors' code: M = 10 instead of 100, in antithetic pairs, and the same noise for all rows.
    Noise that is shared by all rows cancels in the resampling probabilities; ``benchmarks/README.md`` has the rank
    correlations. ``num_samples=100, shared_noise=False, antithetic=False`` is the authors' setting.

    Source: A3RL section 4.2 and Eq. 5; ``SACLearnerPriority.get_advantage``.

    Args:
        loss: the loss whose actor, critics, subset size and temperature are used, but not its equations. Use any loss
            of this package, except ACA's, whose actor and critics read observations (not an encoder's output or a
            flow's noise); torchrl's ``SACLoss`` without a ``value_network``; or its ``REDQLoss``. A deterministic actor
            has only one action, so ``num_samples`` has no effect.

    Keyword Args:
        num_samples: M. Defaults to 10; the authors use 100.
        critics: the ``"target"`` (default, as in the authors' code) or the ``"online"`` networks.
        sub_sample_len: Z; ``None`` (default) takes the loss's.
        entropy: whether the entropy term is subtracted. Defaults to ``False``.
        normalize: over the rows scored together: ``"none"`` (default), ``"std"``
            (:func:`~torchrl_o2o.functional.standardized`) or ``"rank"``
            (:func:`~torchrl_o2o.functional.centered_rank`). Without normalization, the sharpness of the priorities
            depends on the scale of rewards.
        shared_noise: whether all rows share the M noise vectors. Defaults to ``True``.
        antithetic: whether noise comes in pairs of opposite sign. Defaults to ``True``.
        chunk_size: number of critic inputs evaluated at once. Defaults to 4096.

    Raises:
        O2OSpecError: if a number or an option is out of range, or the loss is not supported.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,))
        >>> advantage = Advantage(EnsembleSACLoss(make_actor(3, 2), critics), num_samples=4)
        >>> advantage(random_transitions(6, 3, 2)).shape
        torch.Size([6])
    """

    name = "advantage"

    @renamed_arguments(normalise="normalize")
    @checked_arguments
    def __init__(
        self,
        loss: ScoredLoss,
        *,
        num_samples: int = 10,
        critics: Literal["target", "online"] = "target",
        sub_sample_len: int | None = None,
        entropy: bool = False,
        normalize: Literal["none", "std", "rank"] = "none",
        shared_noise: bool = True,
        antithetic: bool = True,
        chunk_size: int = 4096,
    ) -> None:
        super().__init__(loss, num_samples, sub_sample_len, entropy, shared_noise, antithetic, chunk_size)
        check_option("critics", critics, ("target", "online"))
        check_option("normalize", normalize, ("none", "std", "rank"))
        self.critics: Literal["target", "online"] = critics
        self.normalize = normalize

    def compile(self) -> None:
        """Compile the equation; pools of one size compile once."""
        self._advantage = compiled(self._advantage)

    def score(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`LogPriority.score`."""
        advantage = self._watch(self.advantage(tensordict))
        if self.normalize == "none":
            return advantage
        finite, changed = finite_scores(advantage)
        shaped = standardized(finite) if self.normalize == "std" else centered_rank(finite)
        return torch.where(changed, advantage, shaped)

    @torch.no_grad()
    def advantage(self, tensordict: TensorDictBase) -> Tensor:
        """A(s, a), neither normalized nor made finite.

        Args:
            tensordict: transitions, shape [N]; not modified.

        Returns:
            Shape [N], on the loss's device.
        """
        action = self._entry(tensordict, self.loss.tensor_keys.action).to(self._device())
        inputs = self._inputs(tensordict, action)
        networks = self._networks(self.critics, self._members(action))
        return torch.cat([self._advantage(networks, *chunk) for chunk in self._chunks(inputs, action)])

    def _advantage(self, networks: Networks, inputs: Inputs, action: Tensor, noise: Tensor) -> Tensor:
        """A(s, a) of one chunk, shape [n]; the recorded action is evaluated together with the M sampled ones."""
        sampled, log_prob = networks.sample(inputs, noise)
        qvalue = networks.min_qvalue(inputs, torch.cat([action.unsqueeze(0), sampled]))
        return qvalue[0] - networks.mean_value(qvalue[1:], log_prob)
