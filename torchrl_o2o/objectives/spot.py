# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Supported policy optimization (SPOT)."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from torch import Tensor

from torchrl_o2o.errors import check_count, check_number
from torchrl_o2o.functional.offline import elbo_penalty, iwae_penalty, q_normalization
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.networks import Inputs, call_module, flat_parameters
from torchrl_o2o.objectives.td3 import SmoothedTargetLoss
from torchrl_o2o.objectives.vae import action_vae, latent_dim

__all__ = ["SPOTLoss"]

_BOTH = ("actor_network", "qvalue_network")


class SPOTLoss(SmoothedTargetLoss):
    r"""TD3 with a penalty that keeps the actor within the data's support, estimated by a density model.

    Critics as in :class:`~torchrl_o2o.objectives.TD3BCLoss`; actor:

    .. math:: L_\pi = \frac1B\sum_b\Big[\lambda\,\ell(s,\pi(s)) - Q_1(s,\pi(s))\big/\overline{|Q_1|}\Big],\qquad
        \ell(s,a)\approx-\log\beta(a|s)

    with :math:`\ell` the evidence bound of a VAE (:func:`~torchrl_o2o.functional.elbo_penalty`), or with ``iwae=True``
    the tighter :func:`~torchrl_o2o.functional.iwae_penalty`. Train the VAE beforehand with
    :class:`~torchrl_o2o.objectives.VAELoss`; this loss does not change it. Loosen the constraint online with
    ``loss.density_weight.fill_(spot_cooling(weight, step, total_steps))``. The weight is a tensor, so that nothing is
    recompiled and checkpoints contain it.

    Source: Wu et al. 2022, arXiv:2202.06239, Eq. 10-13; averages over dimensions as in the authors' code.

    ===============================  ================  ==============  ===========
    domain                           density_weight    cooling floor   gamma online
    ===============================  ================  ==============  ===========
    AntMaze umaze                    0.25              0.2             0.995
    AntMaze medium-play              0.05              0.2             0.995
    AntMaze medium-diverse, large    0.025             0.2             0.995
    Adroit                           1                 0.5             0.99
    ===============================  ================  ==============  ===========

    Differences from the paper: none in the equations. CORL's importance-sampled estimate fails, because it calls a
    missing attribute; here it works.

    Importance weights multiply the rows of :math:`L_Q`, not those of :math:`L_\pi`.

    Args:
        actor_network: :func:`~torchrl_o2o.modules.make_deterministic_actor`.
        qvalue_network: two critics; the actor maximizes the first.
        vae_network: a trained VAE of :func:`~torchrl_o2o.modules.make_action_vae`; its parameters are shared and get no
            gradient here. Give them to no optimizer.

    Keyword Args:
        density_weight: :math:`\lambda` at the start. Defaults to 1.
        vae_beta: the VAE's weight of the divergence. Defaults to 0.5.
        num_samples: number S of latents per action. Defaults to 1.
        iwae: whether the importance-weighted bound is used. Defaults to ``False``.
        policy_noise: standard deviation of the target's smoothing noise, as a share of the action box's half-width.
            Defaults to 0.2.
        noise_clip: its bound, as a share of the half-width. Defaults to 0.5.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the actor is stochastic or has no bounded action spec, the VAE was not built by
            ``make_action_vae``, or a setting is out of range.

    Examples:
        >>> from torchrl_o2o.modules import make_action_vae, make_deterministic_actor, make_qvalue_ensemble
        >>> from torchrl_o2o.objectives import SPOTLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> actor = make_deterministic_actor(17, 6, hidden_sizes=(32, 32), initialization="uniform_small_last")
        >>> critics = make_qvalue_ensemble(17, 6, num_qvalue_nets=2, layer_norm=False, hidden_sizes=(32, 32))
        >>> loss = SPOTLoss(actor, critics, make_action_vae(17, 6, hidden_sizes=(32, 32)))
        >>> loss_actor, info = loss.actor_loss(random_transitions(8, 17, 6))
        >>> info["penalty"].shape
        torch.Size([8])
    """

    out_keys = ["loss_actor", "loss_qvalue", "penalty", "qvalue_policy", "density_weight", "qvalue", "target_value"]

    vae_network: TensorDictModule
    vae_network_params: TensorDictParams
    target_vae_network_params: TensorDictParams
    density_weight: Tensor

    _networks_read = ((*_BOTH, "vae_network"), _BOTH)

    def __init__(
        self,
        actor_network: TensorDictModule,
        qvalue_network: list[TensorDictModule],
        vae_network: TensorDictModule,
        *,
        density_weight: float = 1.0,
        vae_beta: float = 0.5,
        num_samples: int = 1,
        iwae: bool = False,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            actor_network, qvalue_network, policy_noise=policy_noise, noise_clip=noise_clip, reduction=reduction
        )
        check_number("density_weight", density_weight, least=0)
        check_number("vae_beta", vae_beta, above=0)
        num_samples = check_count("num_samples", num_samples, least=1)
        self.latent_dim = latent_dim(vae_network)
        self.convert_to_functional(vae_network, "vae_network", create_target_params=False)
        self.register_buffer("density_weight", torch.tensor(density_weight, dtype=torch.get_default_dtype()))
        self.vae_beta, self.num_samples, self.iwae = vae_beta, num_samples, iwae
        self.make_value_estimator()

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches the critics or the VAE.

        Args:
            tensordict: transitions, shape [*B]; not modified. Of the recorded action only the shape is used.

        Returns:
            The loss, and detached: ``penalty`` and ``qvalue_policy`` per row, shape [*B], and the scalar
            ``density_weight``.
        """
        state = self._state(tensordict)
        action = self._act(state, self.actor_network_params)  # pi(s)
        qvalue = self._first_qvalue(state, action)  # Q_1(s, pi(s))
        penalty = self._penalty(state, action)  # l(s, pi(s))
        objective = self.density_weight * penalty - q_normalization(qvalue) * qvalue
        info = {"penalty": penalty.detach(), "qvalue_policy": qvalue.detach()}
        return self._reduce(objective), {**info, "density_weight": self.density_weight.clone()}

    @torch.no_grad()
    def data_penalty(self, tensordict: TensorDictBase) -> Tensor:
        """The penalty of the *recorded* actions, to which the policy's can be compared.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            Penalty, shape [*B], without gradient.
        """
        return self._penalty(self._state(tensordict), self._action(tensordict))

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Both losses from one set of parameters, and their statistics; writes the priority to the batch."""
        loss_qvalue, info = self.qvalue_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict)
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue}
        return self._collect(tensordict, losses, {**actor_info, **info})

    def _penalty(self, state: Inputs, action: Tensor) -> Tensor:
        """An estimate of -log beta(a|s), shape [*B]: the distance of actions from the data's support."""
        like = action.new_empty((*action.shape[:-1], self.latent_dim))
        noise = self.noise.normal("density", like, (self.num_samples,))
        known, params = (
            {**state, self.tensor_keys.action: action},
            flat_parameters(self.vae_network_params, detach=True),
        )
        inputs = (known[key] for key in self.vae_network.in_keys)
        decoded, mean, std, latent = call_module(action_vae(self.vae_network), params, *inputs, noise)
        if self.iwae:
            return iwae_penalty(decoded, action, latent, mean, std, self.vae_beta)
        return elbo_penalty(decoded, action, mean, std, self.vae_beta)
