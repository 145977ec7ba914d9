# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The TD error of a transition, according to a loss's critics.

Shapes: ``N`` rows, ``n`` rows of one chunk, ``M`` sampled actions, ``E`` ensemble members, ``Z`` members of a subset.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import check_number, check_option
from torchrl_o2o.functional.soft import td_target
from torchrl_o2o.objectives.networks import Inputs
from torchrl_o2o.priorities.critic import CriticScore, Networks, ScoredLoss, compiled

__all__ = ["TDError"]


class TDError(CriticScore):
    r"""The TD error of a transition, computed when a pool is drawn, for prioritized replay.

    .. math::
        \delta = r + \gamma(1-d)\frac1M\sum_{j\le M}\left[\min_{i\in Z}Q'_i(s',\tilde a'_j)
                 - \alpha\log\pi(\tilde a'_j|s')\right] - \frac1E\sum_i Q_i(s,a)

    ``"absolute"``: :math:`\log p=\log(|\delta|+\epsilon)`, so that :math:`P\propto(|\delta|+\epsilon)^\alpha` as in
    prioritized experience replay. ``"signed"``: :math:`\log p=\delta`, which A3RL's authors use instead of the
    advantage. It is exponential, and large only for rows that were *better* than expected.

    Source: Schaul et al. 2016 (PER) section 3.3; A3RL's code ``SACLearnerPriority.get_td``, with M = 100.

    Args:
        loss: as in :class:`Advantage`; its discount and keys are used, too. Rows with ``"steps_to_next_obs"`` (n-step
            returns) are discounted by :math:`\gamma^n`.

    Keyword Args:
        form: ``"absolute"`` (default) or ``"signed"``.
        num_samples: M. Defaults to 10.
        sub_sample_len: Z; ``None`` (default) takes the loss's.
        entropy: whether the entropy term is subtracted. Defaults to ``False``, as the authors' code.
        eps: epsilon of ``"absolute"``, in units of return. Defaults to 1e-6.
        shared_noise: the same M noise vectors for all rows. Defaults to ``True``.
        antithetic: noise in pairs of opposite sign. Defaults to ``True``.
        chunk_size: critic inputs evaluated at once. Defaults to 4096.

    Raises:
        O2OSpecError: if a number or an option is out of range, or the loss is not supported.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import EnsembleSACLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> critics = make_qvalue_ensemble(3, 2, num_qvalue_nets=2, hidden_sizes=(8,))
        >>> error = TDError(EnsembleSACLoss(make_actor(3, 2), critics), num_samples=1)
        >>> error(random_transitions(6, 3, 2)).shape
        torch.Size([6])
    """

    name = "td_error"
    _draw = "td"

    @checked_arguments
    def __init__(
        self,
        loss: ScoredLoss,
        *,
        form: Literal["absolute", "signed"] = "absolute",
        num_samples: int = 10,
        sub_sample_len: int | None = None,
        entropy: bool = False,
        eps: float = 1e-6,
        shared_noise: bool = True,
        antithetic: bool = True,
        chunk_size: int = 4096,
    ) -> None:
        super().__init__(loss, num_samples, sub_sample_len, entropy, shared_noise, antithetic, chunk_size)
        check_option("form", form, ("absolute", "signed"))
        self.form = form
        check_number("eps", eps, least=0)
        self.eps = eps

    def compile(self) -> None:
        """Compile the next states' value; pools of one size compile once."""
        self._value = compiled(self._value)

    def score(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`LogPriority.score`."""
        error = self._watch(self.td_error(tensordict))
        return error if self.form == "signed" else (error.abs() + self.eps).log()

    @torch.no_grad()
    def td_error(self, tensordict: TensorDictBase) -> Tensor:
        """The signed TD error, not made finite.

        Args:
            tensordict: transitions, shape [N]; not modified.

        Returns:
            Shape [N], on the loss's device.
        """
        keys, device = self.loss.tensor_keys, self._device()
        following = cast(TensorDictBase, self._entry(tensordict, "next"))
        action = self._entry(tensordict, keys.action).to(device)
        inputs = self._inputs(following, action)
        target = self._networks("target", self._members(action))
        value = torch.cat([self._value(target, *chunk) for chunk in self._chunks(inputs, action)])
        reward, terminated = (self._column(following, key).to(device) for key in (keys.reward, keys.terminated))
        expected = td_target(reward, terminated, value, self._discount(tensordict))
        qvalue = self._networks("online", None).qvalues(self._inputs(tensordict, action), action)
        return expected - qvalue.mean(0)

    def _value(self, networks: Networks, inputs: Inputs, action: Tensor, noise: Tensor) -> Tensor:
        """V(s') of one chunk, shape [n]; the recorded action is not used."""
        sampled, log_prob = networks.sample(inputs, noise)
        return networks.mean_value(networks.min_qvalue(inputs, sampled), log_prob)

    def _discount(self, tensordict: TensorDictBase) -> Tensor:
        """gamma, a scalar, or for n-step rows gamma^n, shape [N]."""
        estimator = self.loss.value_estimator
        gamma = cast(Tensor, estimator.gamma).to(self._device())  # a buffer, without an annotation
        steps = tensordict.get(estimator.tensor_keys.steps_to_next_obs, None)
        return gamma if steps is None else gamma ** steps.reshape(tensordict.batch_size).to(gamma.device)
