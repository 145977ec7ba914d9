# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""RLPD's learner from pixels: one encoder for all critics, another for their targets, a delayed copy for the actor."""

from __future__ import annotations

from typing import ClassVar, Literal

from tensordict import TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules.temperature import Temperature
from torchrl_o2o.objectives.base import Reduction
from torchrl_o2o.objectives.ensemble_sac import EnsembleSACLoss
from torchrl_o2o.objectives.networks import Inputs, Parameters, call_network, flat_parameters

__all__ = ["PixelSACLoss"]


class PixelSACLoss(EnsembleSACLoss):
    r""":class:`EnsembleSACLoss` on frames: the critics share an encoder e of convolutions and a bottleneck.

    .. math::
        y = r + \gamma(1-d)\left[\min_{i\in Z} Q'_i(e'(s'),a') - \alpha\log\pi(a'|s')\right],\qquad
        L_Q = \frac1B\sum_b\sum_i (Q_i(e(s),a)-y)^2

    The E members are heads on one latent vector. Their targets have their own encoder e', which is averaged like the
    heads. The actor has its own bottleneck after a copy of the critics' convolutions, which gets no gradient. The
    authors' update first copies the convolutions, and uses this copy for all of its minibatches and for acting
    afterwards::

        Update(
            loss,
            Copy(*PixelSACLoss.LATE_COPY),
            Repeat(utd_ratio, Descend("qvalue", critic_optim), MoveTargets(targets)),
            Descend("actor", actor_optim),
            Descend("alpha", alpha_optim),
        )

    Frames are shifted before the update, once per row: :class:`~torchrl_o2o.data.RandomShift`.

    Source: Ball et al. 2023 (RLPD), section 4 (pixels); order and wiring as in ``DrQLearner`` of the authors' code.

    Importance weights: see :class:`EnsembleSACLoss`.

    Args:
        actor_network: :func:`~torchrl_o2o.modules.make_pixel_actor`.
        encoder_network: :func:`~torchrl_o2o.modules.make_pixel_encoder`; trained with the critics, by one optimizer.
        qvalue_network: E critics that read what the encoder writes and the action:
            ``make_qvalue_ensemble(encoder_width(encoder), A, in_keys=("latent", "action"))``.

    Keyword Args:
        temperature: see :class:`EnsembleSACLoss`; RLPD from pixels starts at 0.1.
        sub_sample_len: see there; RLPD from pixels has 1.
        subset_per: see there.
        subset_replacement: see there.
        num_target_actions: see there.
        entropy_at: see there.
        entropy_backup: see there; RLPD from pixels has ``False``.
        target_q: see there.
        actor_q: see there.
        bc_alpha: see there.
        ensemble_reduction: see there; RLPD from pixels has ``"mean"``.
        weight_actor: see there.
        reduction: see there.

    Raises:
        O2OSpecError: as :class:`EnsembleSACLoss`, or if the critics do not read what the encoder writes.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_pixel_actor, make_pixel_encoder, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import PixelSACLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> encoder = make_pixel_encoder((9, 16, 16), features=(8, 8), strides=(2, 2), latent_dim=10)
        >>> heads = make_qvalue_ensemble(10, 2, num_qvalue_nets=3, hidden_sizes=(16,), in_keys=("latent", "action"))
        >>> loss = PixelSACLoss(make_pixel_actor(encoder, 2, hidden_sizes=(16,)), encoder, heads, sub_sample_len=1)
        >>> batch = random_transitions(4, 1, 2)
        >>> frames = torch.zeros(4, 9, 16, 16, dtype=torch.uint8)
        >>> batch["observation"], batch["next", "observation"] = frames, frames
        >>> loss.qvalue_loss(batch)[1]["qvalue"].shape
        torch.Size([3, 4])
    """

    #: Source and target of the delayed :class:`~torchrl_o2o.updates.Copy`: the critics' and the actor's convolutions.
    LATE_COPY: ClassVar[tuple[str, str]] = (
        "encoder_network_params.module.conv",
        "actor_network_params.module.0.module.encoder.conv",
    )
    _networks_read = (("actor_network", "encoder_network"), ("actor_network", "encoder_network"))

    encoder_network: TensorDictModule
    encoder_network_params: TensorDictParams
    target_encoder_network_params: TensorDictParams

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        encoder_network: TensorDictModule,
        qvalue_network: list[TensorDictModule],
        *,
        temperature: Temperature | None = None,
        sub_sample_len: int | None = None,
        subset_per: Literal["batch", "sample"] = "batch",
        subset_replacement: bool = False,
        num_target_actions: int = 1,
        entropy_at: Literal["state", "next_state"] = "state",
        entropy_backup: bool = True,
        target_q: Literal["mean", "min"] = "min",
        actor_q: Literal["mean", "min"] = "mean",
        bc_alpha: float = 0.0,
        ensemble_reduction: Literal["sum", "mean"] = "sum",
        weight_actor: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            actor_network,
            qvalue_network,
            temperature=temperature,
            sub_sample_len=sub_sample_len,
            subset_per=subset_per,
            subset_replacement=subset_replacement,
            num_target_actions=num_target_actions,
            entropy_at=entropy_at,
            entropy_backup=entropy_backup,
            target_q=target_q,
            actor_q=actor_q,
            bc_alpha=bc_alpha,
            ensemble_reduction=ensemble_reduction,
            weight_actor=weight_actor,
            reduction=reduction,
        )
        written = encoder_network.out_keys[0]
        if written not in self.qvalue_network.in_keys:
            raise O2OSpecError(
                f"got critics that read {self.qvalue_network.in_keys}, expected {written!r} among them, which the "
                f"encoder writes; build them with in_keys=({written!r}, 'action')"
            )
        self.convert_to_functional(encoder_network, "encoder_network", create_target_params=True)

    def _qvalues(self, state: Inputs, action: Tensor, params: Parameters | None = None) -> Tensor:
        """Q_i(e(s), a), shape [E, *B]; ``state`` may be encoded already. With other ``params``, e gets no gradient."""
        if self.encoder_network.out_keys[0] not in state:
            state = self._encoded(state, flat_parameters(self.encoder_network_params, detach=params is not None))
        return super()._qvalues(state, action, params)

    def _subset_minimum(self, state: Inputs, action: Tensor, params: Parameters | None = None) -> Tensor:
        if params is None:  # the targets, which have their own encoder
            state = self._encoded(state, flat_parameters(self.target_encoder_network_params))
        return super()._subset_minimum(state, action, params)

    def _encoded(self, state: Inputs, params: Parameters) -> Inputs:
        """e(s), shape [*B, L], under the key from which the critics read it."""
        key = self.encoder_network.out_keys[0]
        return {key: call_network(self.encoder_network, params, state, key)}
