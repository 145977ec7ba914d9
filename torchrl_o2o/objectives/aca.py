# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Actor-critic alignment: online soft actor-critic whose critic starts as the offline policy's log-density.

Shapes: E critics, B any batch shape, A action dimensions.
"""

from __future__ import annotations

import copy
import math

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor
from torch.distributions import Distribution

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.alignment import aligned_value
from torchrl_o2o.functional.soft import sac_actor_objective
from torchrl_o2o.modules.aligned import check_alignable, clipped_log_density, own_distribution
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.networks import Inputs, Parameters, flat_parameters, policy_distribution
from torchrl_o2o.objectives.soft import SoftLoss

__all__ = ["ACALoss"]

_ALL = ("actor_network", "qvalue_network", "reference_network")


class ACALoss(SoftLoss):
    r"""Online phase of actor-critic alignment: soft actor-critic with the critic

    .. math:: Q_i(s,a) = k\,\mathrm{CLIP}_\beta(\log\pi_0(a|s)) + R_i(s,a),

    where :math:`\pi_0` is the frozen offline policy and only the residuals R are trained. At the start R depends on the
    state alone, so that the policy is already optimal for its critic and online training begins without a drop.

    .. math::
        \mathrm{CLIP}_\beta(x) = \mathrm{softplus}(x-C_\beta(s)) + C_\beta(s),\qquad
        C_\beta(s) = \min\{\log\pi_0(\mu_0-\beta\sigma_0), \log\pi_0(\mu_0+\beta\sigma_0)\}

    Critic, actor and temperature are SAC's on that Q, with the minimum of the members; the gradient flows through
    :math:`\log\pi_0(a)` into the action, never into :math:`\pi_0` or :math:`C_\beta`. k multiplies the clipped
    log-density everywhere. Lower it during training with :func:`~torchrl_o2o.functional.interpolation_weight` through
    :attr:`interpolation`. At k = 0 this is SAC with the critics R.

    The authors step in the order temperature (``alpha_loss(batch)``), critic, actor (gradient norm
    clipped at 0.25), targets, k. Build it with :func:`torchrl_o2o.trainers.align`.

    Source: Yu & Zhang 2023 (ACA, "Actor-Critic Alignment for Offline-to-Online Reinforcement Learning", ICML),
    following the authors' code. Difference: :math:`\log\pi_0` of a fresh action is computed at its own pre-tanh value
    and not through atanh of the clipped action.

    Importance weights multiply the rows of the critics' loss, not those of actor and temperature.

    Args:
        actor_network: the policy, starting as a copy of the offline one.
        qvalue_network: E residual critics R_i(s, a).
        reference_network: the offline policy; a frozen copy is kept. Both must share the action box.

    Keyword Args:
        temperature: the entropy temperature. Defaults to ``Temperature(-A, form="log_alpha")``, alpha starting at 1.
        beta: number of standard deviations within which log pi_0 is not clipped. The paper uses 7, 15 for expert data,
            and 3 on AntMaze. Defaults to 7.
        interpolation: initial k. Defaults to 1.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if a policy has no log-density, beta or k is out of range, or the action dimension is needed but
            unknown.

    Examples:
        >>> from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import ACALoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> offline = make_actor(5, 2, hidden_sizes=(16,))
        >>> residuals = make_qvalue_ensemble(5, 2, num_qvalue_nets=2, hidden_sizes=(16,), layer_norm=False)
        >>> loss = ACALoss(make_actor(5, 2, hidden_sizes=(16,)), residuals, offline)
        >>> loss.interpolation = 0.5
        >>> loss(random_transitions(8, 5, 2))["interpolation"]
        tensor(0.5000)
    """

    out_keys = ["loss_actor", "loss_qvalue", "loss_alpha"]
    out_keys += ["alpha", "entropy", "qvalue", "target_value", "reference_log_prob", "interpolation"]

    reference_network: ProbabilisticTensorDictSequential
    reference_network_params: TensorDictParams
    target_reference_network_params: TensorDictParams
    _interpolation: Tensor

    _networks_read = (_ALL, _ALL)

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: list[TensorDictModule],
        reference_network: ProbabilisticTensorDictSequential,
        *,
        temperature: Temperature | None = None,
        beta: float = 7.0,
        interpolation: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(actor_network, qvalue_network, temperature=temperature, reduction=reduction)
        for actor in (actor_network, reference_network):
            check_alignable(actor)
        if not 0.0 < beta < math.inf:
            raise O2OSpecError(f"got beta={beta}, expected a positive number of standard deviations, e.g. 7")
        frozen = copy.deepcopy(reference_network).requires_grad_(False).eval()
        self.convert_to_functional(frozen, "reference_network", create_target_params=False)
        self.beta = float(beta)
        self.register_buffer("_interpolation", torch.ones((), dtype=torch.get_default_dtype()))
        self.interpolation = interpolation
        self.make_value_estimator()

    @property
    def interpolation(self) -> Tensor:
        """The weight k of the offline policy's log-density, a scalar.

        Assign a number in [0, 1] to change it; another raises an O2OSpecError.
        """
        return self._interpolation

    @interpolation.setter
    def interpolation(self, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise O2OSpecError(f"got interpolation={value}, expected a weight in [0, 1]")
        self._interpolation.fill_(value)

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        r"""The target :math:`y=r+\gamma(1-d)[\min_i Q'_i(s',a')-\alpha\log\pi(a'|s')]` with the same k and clip.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            y, shape [*B], without gradient.
        """
        noise, following = self.noise.normal("next_action", self._action(tensordict)), self._next_state(tensordict)
        policy = own_distribution(self._policy(following))
        action, log_prob = policy.rsample_and_log_prob(noise=noise)  # a' ~ pi(.|s')
        qvalue = self._aligned(following, action, self._target_critics, policy)[0].amin(0)  # min_i Q'_i(s', a')
        return self._soft_target(tensordict, action, log_prob, qvalue)

    def qvalue_loss(
        self, tensordict: TensorDictBase, *, target_value: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic loss of one minibatch; only the residuals are trained.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Keyword Args:
            target_value: y, shape [*B], if it was computed before; ``None`` (default) calls :meth:`target_value`.

        Returns:
            The loss, and, detached, ``td_error`` and ``reference_log_prob`` (unclipped log pi_0 of the recorded
            actions, shape [*B]), ``qvalue`` (aligned, shape [E, *B]) and ``target_value`` (shape [*B]).
        """
        target = self.target_value(tensordict) if target_value is None else target_value  # y
        state, action, residuals = self._state(tensordict), self._action(tensordict), self._trained_critics()
        qvalue, density = self._aligned(state, action, residuals)  # Q_i(s, a)
        error, info = self._bellman_error(qvalue, target)
        return self._reduce(error, self._weights(tensordict)), {**info, "reference_log_prob": density.detach()}

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches critics, offline policy or temperature.

        Args:
            tensordict: transitions, shape [*B]; not modified. Of the recorded action only the shape is used.

        Returns:
            The loss, and ``log_prob`` of the sampled actions, shape [*B], detached.
        """
        noise, state = self.noise.normal("action", self._action(tensordict)), self._state(tensordict)
        policy = own_distribution(self._policy(state))
        action, log_prob = policy.rsample_and_log_prob(noise=noise)  # a ~ pi(.|s)
        qvalue = self._aligned(state, action, self._frozen_critics, policy)[0].amin(0)  # min_i Q_i(s, a)
        objective = sac_actor_objective(log_prob, qvalue, self.temperature.alpha)  # alpha log pi - min_i Q_i
        return self._reduce(objective), {"log_prob": log_prob.detach()}

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All losses from one set of parameters; writes the absolute TD error under ``tensor_keys.priority``.

        Args:
            tensordict: transitions, shape [*B].

        Returns:
            ``loss_qvalue``, ``loss_actor``, ``loss_alpha`` and, unless ``reduction="none"``, the scalars of
            :attr:`out_keys`.
        """
        losses, info = self._soft_losses(tensordict)
        return self._collect(tensordict, losses, {**info, "interpolation": self.interpolation.clone()})

    def _aligned(
        self, state: Inputs, action: Tensor, residuals: Parameters, policy: Distribution | None = None
    ) -> tuple[Tensor, Tensor]:
        """Q_i(s, a), shape [E, *B], and log pi_0(a|s) before clipping, shape [*B]; ``policy`` has drawn a."""
        reference = flat_parameters(self.reference_network_params, detach=True)
        offline = own_distribution(policy_distribution(self.reference_network, reference, state))  # pi_0(.|s)
        clipped, density = clipped_log_density(offline, action, self.beta, policy)  # CLIP_beta(log pi_0(a|s))
        return aligned_value(self._qvalues(state, action, residuals), clipped, self.interpolation), density
