# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""DrQ-v2+BC and behavior cloning from pixels, V-D4RL's baselines."""

from __future__ import annotations

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor

from torchrl_o2o.errors import check_number
from torchrl_o2o.functional.offline import q_normalization
from torchrl_o2o.objectives.base import Reduction
from torchrl_o2o.objectives.drqv2 import DrQV2Loss

__all__ = ["DrQV2BCLoss"]


class DrQV2BCLoss(DrQV2Loss):
    r"""DrQ-v2 with a behavior-cloning term, V-D4RL's baseline, and behavior cloning from pixels.

    .. math::
        L_\pi = -\lambda\frac1B\sum_b\min_j Q_j(f(s),a_\pi) + \frac1{BA}\sum_b\lVert a_\pi-a\rVert^2,\qquad
        \lambda = w\Big/\frac1B\sum_b|\min_j Q_j(f(s),a_\pi)|

    :math:`a_\pi` is the noisy, clipped action, and the minimum is over both critics; TD3+BC takes the mean action and
    the first critic. lambda has no gradient. Critics and encoder learn as in :class:`DrQV2Loss`.

    V-D4RL's cloning agent is :meth:`clone_loss` alone, whose gradient goes into actor *and* encoder::

        Update(loss, Descend("clone", Adam([*loss.actor_network_params.parameters(),
                                            *loss.encoder_network_params.parameters()])))

    Source: Lu et al. 2023 (V-D4RL), arXiv:2206.04779, section 4.1, and ``drqbc`` of the code.

    Importance weights multiply the rows of :math:`L_Q` and of :meth:`clone_loss`, not those of :math:`L_\pi`.

    Args:
        encoder_network: see :class:`DrQV2Loss`.
        actor_network: see there.
        latent_network: see there.
        qvalue_network: see there.

    Keyword Args:
        bc_weight: w. Defaults to 2.5.
        use_bc: whether the actor's loss has the distance to the recorded action; lambda applies either way. Defaults to
            ``True``.
        std: see :class:`DrQV2Loss`.
        noise_clip: see there.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: as :class:`DrQV2Loss`, or if ``bc_weight`` is negative.

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
        >>> loss = DrQV2BCLoss(encoder, actor, make_bottleneck(width, 10), critics)
        >>> batch, frames = random_transitions(4, 1, 2), torch.zeros(4, 9, 16, 16, dtype=torch.uint8)
        >>> batch["observation"], batch["next", "observation"] = frames, frames
        >>> sorted(loss.actor_loss(batch)[1])
        ['bc_error', 'log_prob', 'q_weight', 'qvalue_policy']
    """

    out_keys = [*DrQV2Loss.out_keys[:2], "bc_error", "q_weight", *DrQV2Loss.out_keys[2:]]

    def __init__(
        self,
        encoder_network: TensorDictModule,
        actor_network: TensorDictModule,
        latent_network: TensorDictModule,
        qvalue_network: list[TensorDictModule],
        *,
        bc_weight: float = 2.5,
        use_bc: bool = True,
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
        check_number("bc_weight", bc_weight, least=0)
        self.bc_weight, self.use_bc = bc_weight, use_bc

    def actor_loss(
        self, tensordict: TensorDictBase, *, encoding: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches critics or encoder.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Keyword Args:
            encoding: see :meth:`DrQV2Loss.actor_loss`.

        Returns:
            The loss, and detached: ``bc_error``, ``qvalue_policy`` and ``log_prob`` per row, shape [*B], and the scalar
            ``q_weight`` (lambda).
        """
        action, qvalue, info = self._improve(tensordict, encoding)
        distance = (action - self._action(tensordict)).square().mean(-1)  # |a_pi - a|^2 / A
        weight = q_normalization(qvalue, self.bc_weight)  # lambda
        objective = -weight * qvalue + (distance if self.use_bc else 0.0)
        return self._reduce(objective), info | {"bc_error": distance.detach(), "q_weight": weight}

    def clone_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Behavior cloning: only the distance, with gradient for actor and encoder.

        Args:
            tensordict: observations and actions, shape [*B]; not modified.

        Returns:
            The loss, and ``bc_error`` per row, shape [*B], detached.
        """
        features = self._features(self._state(tensordict))
        action, _ = self._act(features, self.noise.normal("action", self._action(tensordict)))
        distance = (action - self._action(tensordict)).square().mean(-1)
        return self._reduce(distance, self._weights(tensordict)), {"bc_error": distance.detach()}
