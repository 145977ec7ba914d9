# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Demonstration-augmented policy gradient (DAPG)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.episodes import dapg_weights
from torchrl_o2o.objectives.base import Reduction, TransitionLoss, dispatch
from torchrl_o2o.objectives.networks import flat_parameters, policy_distribution, stochastic

__all__ = ["DAPGLoss"]


class DAPGLoss(TransitionLoss):
    r"""Policy gradient on the policy's own rows, and on demonstrations with a weight that decays.

    .. math::
        L=-\frac1{N}\Big[\sum_{\text{policy}}w\log\pi(a|s)+\sum_{\text{demo}}w'\log\pi(a|s)\Big],\qquad
        w=0.01\,\frac{\hat A}{s_{\hat A}+10^{-8}},\quad w'=0.01\,\lambda_0\lambda_1^k

    N is the number of the policy's rows. Its negative gradient is g of the natural-gradient step, which
    :class:`~torchrl_o2o.updates.NaturalGradient` takes with :meth:`divergence`. The batch holds all rows that one
    iteration has collected and all demonstrations. Join them with :func:`~torchrl_o2o.objectives.join_sources`. Add 1
    to ``iteration``, which is k and is saved with the state, after each step.

    Source: Rajeswaran et al. 2018, arXiv:1709.10087, Eq. 4 to 6 and Algorithm 1, and the authors' code.

    Differences from the paper: like the code, it uses whitened advantages instead of the factor :math:`\max A`. The
    paper has :math:`\lambda_0=0.1`.

    Importance weights are not read.

    Args:
        actor_network: a stochastic actor whose distribution has ``loc`` and ``scale`` of one number per action
            dimension, for example :func:`~torchrl_o2o.modules.make_rescaled_actor`.

    Keyword Args:
        lam_0: :math:`\lambda_0`; 0 is the natural policy gradient without demonstrations. Defaults to 0.01.
        lam_1: :math:`\lambda_1`, in [0, 1]. Defaults to 0.95.
        reduction: ``"mean"`` (default) divides by N, ``"sum"`` does not, ``"none"`` keeps the rows.

    Raises:
        O2OSpecError: if the actor is deterministic or a weight is out of range; in a step, if the batch does not mark
            which rows are demonstrations, or all rows are.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from torchrl_o2o.modules import make_rescaled_actor
        >>> from torchrl_o2o.objectives import DAPGLoss, join_sources
        >>> def rows(number):
        ...     columns = {"observation": torch.randn(number, 17), "action": torch.randn(number, 6)}
        ...     return TensorDict({**columns, "advantage": torch.randn(number, 1)}, [number])
        >>> demos = rows(4)  # their advantage is not read
        >>> loss = DAPGLoss(make_rescaled_actor(demos["observation"], demos["action"]))
        >>> value, info = loss.actor_loss(join_sources(demos, rows(8)))
        >>> value.shape, info["weight"].shape, loss.divergence(rows(8)).item()
        (torch.Size([]), torch.Size([12]), 0.0)
    """

    @dataclass
    class _AcceptedKeys(TransitionLoss._AcceptedKeys):
        """Tensordict keys that can be renamed with ``set_keys``.

        Attributes:
            advantage: A before whitening, shape [*B] or [*B, 1]. Defaults to ``"advantage"``.
            is_offline: which rows are demonstrations, bool. Defaults to ``"is_offline"``.
        """

        advantage: NestedKey = "advantage"
        is_offline: NestedKey = "is_offline"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys  # pyright: ignore[reportIncompatibleVariableOverride]
    out_keys = ["loss_actor", "weight", "log_prob"]

    actor_network: ProbabilisticTensorDictSequential
    actor_network_params: TensorDictParams
    target_actor_network_params: TensorDictParams
    iteration: Tensor

    _networks_read = (("actor_network",), ())
    _bootstraps = False

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        *,
        lam_0: float = 0.01,
        lam_1: float = 0.95,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        if not 0.0 <= lam_0 < float("inf") or not 0.0 <= lam_1 <= 1.0:
            raise O2OSpecError(f"got lam_0={lam_0}, lam_1={lam_1}; expected a finite lam_0 >= 0 and lam_1 in [0, 1]")
        self.lam_0, self.lam_1 = lam_0, lam_1
        self.convert_to_functional(stochastic(actor_network), "actor_network", create_target_params=False)
        self.register_buffer("iteration", torch.zeros((), dtype=torch.long))

    def _keys_read(self) -> list[NestedKey]:
        keys = self.tensor_keys
        return [keys.action, keys.advantage, keys.is_offline, *self._inputs_of(("actor_network",))]

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted log-densities of all rows, divided by the number of the policy's.

        Args:
            tensordict: the policy's rows and the demonstrations, shape [*B]; not modified.

        Returns:
            The loss, and per row, shape [*B], detached: ``weight`` and ``log_prob``.
        """
        params, state = flat_parameters(self.actor_network_params), self._state(tensordict)
        action = self._action(tensordict)
        demo = self._demonstrations(tensordict)
        advantage = self._entry(tensordict, self.tensor_keys.advantage).reshape(demo.shape)
        settings = {"lam_0": self.lam_0, "lam_1": self.lam_1}
        weight, num_policy = torch.zeros_like(advantage), int((~demo).sum())
        weight[~demo], weight[demo] = dapg_weights(
            advantage[~demo], demo.numel() - num_policy, int(self.iteration), **settings
        )
        log_prob = policy_distribution(self.actor_network, params, state).log_prob(action)
        rows = -weight * log_prob
        loss = self._reduce(rows, reduction="sum") / (num_policy if self.reduction == "mean" else 1)
        return loss, {"weight": weight, "log_prob": log_prob.detach()}

    def divergence(self, tensordict: TensorDictBase) -> Tensor:
        r"""Mean Kullback-Leibler divergence of the policy from its current distribution.

        Its value and its gradient are 0. Its second derivative is the Fisher matrix F.

        .. math:: \frac1N\sum\sum_i\log\frac{\sigma_i}{\sigma'_i}+
            \frac{(\mu_i-\mu'_i)^2+\sigma'^2_i-\sigma_i^2}{2\sigma_i^2+10^{-8}}

        The primed values are the present ones, which have no gradient.

        Args:
            tensordict: the policy's rows; the actor's inputs are read.

        Returns:
            A scalar.
        """
        params, state = flat_parameters(self.actor_network_params), self._state(tensordict)
        policy = policy_distribution(self.actor_network, params, state)
        loc, scale = policy.loc, policy.scale  # pyright: ignore[reportAttributeAccessIssue]
        fixed_loc, fixed_scale = loc.detach(), scale.detach()
        distance = (loc - fixed_loc).square() + fixed_scale.square() - scale.square()
        return (distance / (2.0 * scale.square() + 1e-8) + (scale / fixed_scale).log()).sum(-1).mean()

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss and its statistics."""
        loss, info = self.actor_loss(tensordict)
        return self._collect(tensordict, {"loss_actor": loss}, info)

    def _demonstrations(self, tensordict: TensorDictBase) -> Tensor:
        """Which rows are demonstrations, shape [*B]."""
        remedy = (
            ", which marks the demonstrations; join them with the policy's rows by join_sources(demos, rows), or set "
            "it to False everywhere"
        )
        flag = self._one_each_required(tensordict, self.tensor_keys.is_offline, remedy)
        if flag.numel() and bool(flag.all()):
            raise O2OSpecError(
                f"got {flag.numel()} rows that are all demonstrations, expected rows of the policy as well; add them, "
                "or use BCLoss to clone only demonstrations"
            )
        return flag.bool()
