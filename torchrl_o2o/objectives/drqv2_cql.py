# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""DrQ-v2+CQL, V-D4RL's conservative agent from pixels."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor

from torchrl_o2o.functional.conservative import conservative_gap, scaled_logsumexp
from torchrl_o2o.functional.offline import normal_log_prob
from torchrl_o2o.modules.conservative import ConservativePenalty
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.drqv2 import DrQV2Loss
from torchrl_o2o.objectives.networks import flat_parameters

__all__ = ["DrQV2CQLLoss"]


class DrQV2CQLLoss(DrQV2Loss):
    r"""DrQ-v2 with CQL's penalty on the values of actions that are not in the data, V-D4RL's CQL agent.

    .. math::
        L_Q = \frac1B\sum_b\sum_j(Q_j(f(s),a)-y)^2 + w\Big(T\log\sum_m e^{Q_j(f_m,a_m)/T} - Q_j(f(s),a)\Big)

    The sum is over n uniform actions and n of the policy at s, n of the policy at s', and the recorded action. The
    actions at s' are evaluated at s', unlike in :class:`CQLLoss`. No gradient goes through f(s') or through any action.
    With ``importance_sampling`` each proposal's log-density is subtracted, and the recorded action is left out. The
    actor is :class:`DrQV2Loss`'s. With ``ConservativePenalty(target_gap=tau)`` ``loss_alpha_prime`` trains the
    multiplier::

        Update(
            loss,
            Joint(Descend("qvalue", critic_optim), Descend("alpha_prime", multiplier_optim)),
            Descend("actor", actor_optim),
            MoveTargets(targets),
        )

    Source: Lu et al. 2023 (V-D4RL), arXiv:2206.04779, section 4.1, and ``drqbc/cql.py`` of the code; Kumar et al. 2020
    (CQL), Eq. 4.

    Differences from the code: the code subtracts the multiplier's threshold after the weight, so its threshold is w
    times ``target_gap``.

    Importance weights multiply the rows of :math:`L_Q`, including the penalty, not those of :math:`L_\pi`.

    Args:
        encoder_network: see :class:`DrQV2Loss`.
        actor_network: see there.
        latent_network: see there.
        qvalue_network: see there.

    Keyword Args:
        penalty: weight, proposals and Lagrange multiplier. Defaults to ``ConservativePenalty(10.0,
            importance_sampling=False)``, the authors' command.
        std: see :class:`DrQV2Loss`.
        noise_clip: see there.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: as :class:`DrQV2Loss`.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import (
        ...     encoder_width, make_bottleneck, make_latent_actor, make_pixel_encoder, make_qvalue_ensemble
        ... )
        >>> from torchrl_o2o.testing import random_transitions
        >>> encoder = make_pixel_encoder(
        ...     (9, 16, 16), features=(8, 8), strides=(2, 1), latent_dim=None, out_key="features"
        ... )
        >>> width = encoder_width(encoder)
        >>> critics = make_qvalue_ensemble(
        ...     10, 2, num_qvalue_nets=2, hidden_sizes=(16,), layer_norm=False, in_keys=("latent", "action")
        ... )
        >>> actor = make_latent_actor(width, 2, latent_dim=10, hidden_sizes=(16,))
        >>> loss = DrQV2CQLLoss(encoder, actor, make_bottleneck(width, 10), critics)
        >>> batch, frames = random_transitions(4, 1, 2), torch.zeros(4, 9, 16, 16, dtype=torch.uint8)
        >>> batch["observation"], batch["next", "observation"] = frames, frames
        >>> loss.qvalue_loss(batch)[1]["gap"].shape
        torch.Size([2, 4])
    """

    out_keys = ["loss_actor", "loss_qvalue", "loss_alpha_prime", *DrQV2Loss.out_keys[2:], "gap", "alpha_prime"]

    def __init__(
        self,
        encoder_network: TensorDictModule,
        actor_network: TensorDictModule,
        latent_network: TensorDictModule,
        qvalue_network: list[TensorDictModule],
        *,
        penalty: ConservativePenalty | None = None,
        std: float = 1.0,
        noise_clip: float = 0.3,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            encoder_network,
            actor_network,
            latent_network,
            qvalue_network,
            std=std,
            noise_clip=noise_clip,
            reduction=reduction,
        )
        self.penalty = penalty or ConservativePenalty(10.0, importance_sampling=False)

    def qvalue_loss(
        self, tensordict: TensorDictBase, *, target_value: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Bellman error plus conservative penalty; its gradient goes into encoder, bottleneck and heads.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Keyword Args:
            target_value: see :meth:`DrQV2Loss.qvalue_loss`.

        Returns:
            The loss, and detached: what :meth:`DrQV2Loss.qvalue_loss` returns, ``gap``, shape [2, *B], and the scalar
            ``alpha_prime``.
        """
        features = self._features(self._state(tensordict))  # f(s)
        with torch.no_grad():
            following = self._features(self._next_state(tensordict))  # f(s')
            target = self._target(tensordict, following) if target_value is None else target_value  # y
            proposals, log_density = self._proposals(tensordict, features, following)  # a_m, log mu_m(a_m)
        latent, heads = flat_parameters(self.latent_network_params), self._trained_critics()
        here, there, n = self._narrow(features, latent), self._narrow(following, latent), self.penalty.num_actions
        places = [here.expand(2 * n, *here.shape), there.expand(n, *there.shape), here.unsqueeze(0)]
        actions = torch.cat([proposals, self._action(tensordict).unsqueeze(0)])
        values = self._judge(torch.cat(places), actions, heads)  # Q_j(f_m, a_m), and last Q_j(f(s), a)
        qvalue = values[:, -1]
        error, info = self._bellman_error(qvalue, target, self.ensemble_reduction)
        candidates = values[:, :-1] - log_density if self.penalty.importance_sampling else values
        soft_maximum = scaled_logsumexp(candidates.transpose(0, 1), self.penalty.softmax_temperature)
        gap = conservative_gap(soft_maximum, qvalue, self.penalty.gap_bounds)
        info |= {"encoding": features.detach(), "gap": gap.detach(), "alpha_prime": self.penalty.multiplier}
        return self._reduce(error + self.penalty.apply_to(gap), self._weights(tensordict)), info

    def alpha_prime_loss(
        self, tensordict: TensorDictBase, *, gap: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the Lagrange multiplier; zero if none is trained.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Keyword Args:
            gap: what :meth:`qvalue_loss` returned, shape [2, *B]; ``None`` (default) calls it.

        Returns:
            The loss, and an empty dictionary.
        """
        gap = self.qvalue_loss(tensordict)[1]["gap"] if gap is None else gap
        return self._reduce(self.penalty.objective(gap)), {}

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All losses from one set of parameters, and their statistics; writes the priority to the batch."""
        loss_qvalue, info = self.qvalue_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict, encoding=info.pop("encoding"))
        loss_prime, _ = self.alpha_prime_loss(tensordict, gap=info["gap"])
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue, "loss_alpha_prime": loss_prime}
        return self._collect(tensordict, losses, {**actor_info, **info})

    def _proposals(self, tensordict: TensorDictBase, features: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """a_m and log mu_m(a_m), [3n, *B, A] and [3n, *B]: uniform ones, the policy's at s, then at s'."""
        like, count = self._action(tensordict), (self.penalty.num_actions,)
        half_width = 0.5 * (self.action_high - self.action_low).to(like.dtype)
        center = self.action_low.to(like.dtype) + half_width
        uniform = center + half_width * self.noise.uniform("uniform_action", like, count)
        actions, densities = [uniform], [-(2.0 * half_width).log().sum().expand(uniform.shape[:-1])]
        for name, place in (("penalty_action", features), ("penalty_next_action", following)):
            action, mean = self._act(place, self.noise.normal(name, like, count))
            actions.append(action)
            densities.append(normal_log_prob(action, mean, self.std * half_width))
        return torch.cat(actions), torch.cat(densities)
