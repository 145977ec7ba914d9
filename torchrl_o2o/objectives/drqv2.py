# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""DrQ-v2: a deterministic policy from pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.offline import normal_log_prob
from torchrl_o2o.functional.pixels import clipped_exploration
from torchrl_o2o.objectives.base import Reduction, dispatch
from torchrl_o2o.objectives.critic import CriticLoss
from torchrl_o2o.objectives.networks import Inputs, Parameters, call_network, flat_parameters

__all__ = ["DrQV2Loss"]


class DrQV2Loss(CriticLoss):
    r"""Twin critics and a deterministic actor on features f of one encoder, with noise that decreases over time.

    .. math::
        a' = \mathrm{clamp}(\pi(f(s'))+\mathrm{clip}(\sigma\varepsilon,\pm c)),\qquad
        y = R_n + \gamma^n(1-d)\min_j Q'_j(f(s'),a'),\qquad L_Q = \frac1B\sum_b\sum_j(Q_j(f(s),a)-y)^2

        L_\pi = -\frac1B\sum_b\min_j Q_j(f(s),a_\pi),\qquad
        a_\pi = \mathrm{clamp}(\pi(f(s))+\mathrm{clip}(\sigma\varepsilon,\pm c))

    The critics train the encoder, with one optimizer for encoder, bottleneck and heads (in one group or two). The
    encoder has no target. The actor gets the features from *before* that step, without gradient. :meth:`qvalue_loss`
    returns them as ``encoding``, and an :class:`~torchrl_o2o.updates.Update` passes them to :meth:`actor_loss`::

        Update(loss, Descend("qvalue", critic_optim), Descend("actor", actor_optim), MoveTargets(targets))

    Rows over n steps (:func:`~torchrl_o2o.data.n_step`) are discounted by their number of steps. If the batch has
    ``("next", "discount")``, this is the whole factor of the next value, :math:`\gamma^n\prod_i d_i` for an environment
    with its own discounts. It replaces the gamma of the value estimator.

    Set ``loss.std`` before an update: ``loss.std.fill_(linear_schedule(step, 1.0, 0.1, 500_000))``.

    Source: Yarats et al. 2021 (DrQ-v2), arXiv:2107.09645, Eq. 2-4; order as in the authors' code.

    Importance weights multiply the rows of :math:`L_Q`, not those of :math:`L_\pi`.

    Args:
        encoder_network: :func:`~torchrl_o2o.modules.make_pixel_encoder` with ``latent_dim=None, out_key="features"``.
        actor_network: :func:`~torchrl_o2o.modules.make_latent_actor`, reads the features.
        latent_network: :func:`~torchrl_o2o.modules.make_bottleneck`, shared by the critics.
        qvalue_network: two critics that read the bottleneck's output and the action.

    Keyword Args:
        std: sigma, as a share of the action box's half-width. Defaults to 1.0, the start of the schedules.
        noise_clip: c. Defaults to 0.3.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the actor is stochastic or has no bounded action spec, a noise setting is negative, or a
            network does not read what the one before it writes.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import (
        ...     encoder_width, make_bottleneck, make_latent_actor, make_pixel_encoder, make_qvalue_ensemble
        ... )
        >>> from torchrl_o2o.objectives import DrQV2Loss
        >>> from torchrl_o2o.testing import random_transitions
        >>> settings = {"features": (8, 8), "strides": (2, 1), "offset": 0.5, "initialization": "orthogonal"}
        >>> encoder = make_pixel_encoder((9, 16, 16), latent_dim=None, out_key="features", **settings)
        >>> width = encoder_width(encoder)
        >>> critics = make_qvalue_ensemble(
        ...     10, 2, num_qvalue_nets=2, hidden_sizes=(16,), layer_norm=False, in_keys=("latent", "action")
        ... )
        >>> actor = make_latent_actor(width, 2, latent_dim=10, hidden_sizes=(16,))
        >>> loss = DrQV2Loss(encoder, actor, make_bottleneck(width, 10), critics)
        >>> batch, frames = random_transitions(4, 1, 2), torch.zeros(4, 9, 16, 16, dtype=torch.uint8)
        >>> batch["observation"], batch["next", "observation"] = frames, frames
        >>> loss_qvalue, info = loss.qvalue_loss(batch)
        >>> loss_actor, _ = loss.actor_loss(batch, encoding=info["encoding"])
        >>> sorted(info)
        ['encoding', 'qvalue', 'target_value', 'td_error']
    """

    @dataclass
    class _AcceptedKeys(CriticLoss._AcceptedKeys):
        """Tensordict keys that can be renamed with ``set_keys``.

        Attributes:
            discount: the factor of the next value, read under ``"next"`` if present. Defaults to ``"discount"``.
        """

        discount: NestedKey = "discount"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys  # pyright: ignore[reportIncompatibleVariableOverride]
    out_keys = ["loss_actor", "loss_qvalue", "log_prob", "qvalue_policy", "qvalue", "target_value"]

    _networks_read = (("encoder_network",), ("encoder_network",))
    _stochastic = False

    encoder_network: TensorDictModule
    encoder_network_params: TensorDictParams
    target_encoder_network_params: TensorDictParams
    latent_network: TensorDictModule
    latent_network_params: TensorDictParams
    target_latent_network_params: TensorDictParams
    action_low: Tensor
    action_high: Tensor
    std: Tensor

    def __init__(
        self,
        encoder_network: TensorDictModule,
        actor_network: TensorDictModule,
        latent_network: TensorDictModule,
        qvalue_network: list[TensorDictModule],
        *,
        std: float = 1.0,
        noise_clip: float = 0.3,
        reduction: Reduction = "mean",
    ) -> None:
        if isinstance(actor_network, ProbabilisticTensorDictSequential):
            raise O2OSpecError(
                "got a stochastic actor, expected a deterministic one; build it with make_latent_actor(...)"
            )
        if not 0.0 <= std < math.inf or noise_clip < 0.0:
            raise O2OSpecError(f"got std={std} and noise_clip={noise_clip}, expected 0 (no noise) or more")
        super().__init__(actor_network, qvalue_network, reduction=reduction)
        _check_chain(encoder_network, actor_network)
        _check_chain(encoder_network, latent_network)
        _check_chain(latent_network, self.qvalue_network)
        self.convert_to_functional(encoder_network, "encoder_network", create_target_params=False)
        self.convert_to_functional(latent_network, "latent_network", create_target_params=True)
        self._hold_box(actor_network)
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()))
        self.noise_clip = noise_clip
        self.make_value_estimator()

    @torch.no_grad()
    def target_value(self, tensordict: TensorDictBase) -> Tensor:
        """See :meth:`CriticLoss.target_value`."""
        return self._target(tensordict, self._features(self._next_state(tensordict)))

    def _target(self, tensordict: TensorDictBase, features: Tensor) -> Tensor:
        """y, shape [*B], of the features f(s')."""
        action, _ = self._act(features, self.noise.normal("next_action", self._action(tensordict)))  # a'
        latent, heads = flat_parameters(self.target_latent_network_params), self._target_critics
        value = self._heads(features, action, latent, heads).amin(0)  # min_j Q'_j(f(s'), a')
        following, key = self._following(tensordict), self.tensor_keys.discount
        given = following.get(key, None) is not None
        discount = self._column(following, key, value.shape) if given else None
        return self._estimate(tensordict, value, qvalue=value, action=action, discount=discount)

    def qvalue_loss(
        self, tensordict: TensorDictBase, *, target_value: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Critic loss of one minibatch; its gradient goes into encoder, bottleneck and heads.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Keyword Args:
            target_value: y, shape [*B], if it was computed before; ``None`` (default) calls :meth:`target_value`.

        Returns:
            The loss, and detached: ``td_error`` and ``target_value``, shape [*B], ``qvalue``, shape [2, *B], and
            ``encoding``, f(s), shape [*B, F], for :meth:`actor_loss`.
        """
        features = self._features(self._state(tensordict))  # f(s)
        target = self.target_value(tensordict) if target_value is None else target_value  # y
        latent, heads = flat_parameters(self.latent_network_params), self._trained_critics()
        qvalue = self._heads(features, self._action(tensordict), latent, heads)  # Q_j(f(s), a)
        error, info = self._bellman_error(qvalue, target, self.ensemble_reduction)
        return self._reduce(error, self._weights(tensordict)), info | {"encoding": features.detach()}

    def actor_loss(
        self, tensordict: TensorDictBase, *, encoding: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Actor loss of one minibatch; no gradient reaches critics or encoder.

        Args:
            tensordict: transitions, shape [*B]; not modified. Of the recorded action only the shape is used.

        Keyword Args:
            encoding: what :meth:`qvalue_loss` returned, shape [*B, F]: f(s) from before the encoder's step; ``None``
                (default) encodes again.

        Returns:
            The loss, and detached: ``qvalue_policy`` and ``log_prob`` (the normal density of the clipped action, for
            logging) per row, shape [*B].
        """
        _, qvalue, info = self._improve(tensordict, encoding)
        return self._reduce(-qvalue), info

    def _improve(self, tensordict: TensorDictBase, encoding: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """a_pi and min_j Q_j(f(s), a_pi), shapes [*B, A] and [*B], and their metrics."""
        if encoding is None:
            with torch.no_grad():
                encoding = self._features(self._state(tensordict))
        action, mean = self._act(encoding, self.noise.normal("action", self._action(tensordict)))
        latent = flat_parameters(self.latent_network_params, detach=True)
        qvalue = self._heads(encoding, action, latent, self._frozen_critics).amin(0)
        std = self.std * 0.5 * (self.action_high - self.action_low).to(self.std.dtype)
        log_prob = normal_log_prob(action.detach(), mean.detach(), std)
        return action, qvalue, {"qvalue_policy": qvalue.detach(), "log_prob": log_prob}

    def _features(self, state: Inputs) -> Tensor:
        """f(s), shape [*B, F]."""
        params = flat_parameters(self.encoder_network_params)
        return call_network(self.encoder_network, params, state, self.encoder_network.out_keys[0])

    def _act(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy action and pi(f(s)), each [*B, A]."""
        inputs = {self.actor_network.in_keys[0]: features}
        params = flat_parameters(self.actor_network_params)
        mean = call_network(self.actor_network, params, inputs, self.tensor_keys.action)
        box = self.action_low, self.action_high
        return clipped_exploration(mean, noise, self.std, self.noise_clip, *box), mean

    def _heads(self, features: Tensor, action: Tensor, latent: Parameters, heads: Parameters) -> Tensor:
        """Q_j(f(s), a), shape [2, *B]."""
        return self._judge(self._narrow(features, latent), action, heads)

    def _narrow(self, features: Tensor, latent: Parameters) -> Tensor:
        """The features after the critics' bottleneck, shape [*B, L]."""
        network = self.latent_network
        return call_network(network, latent, {network.in_keys[0]: features}, network.out_keys[0])

    def _judge(self, narrow: Tensor, action: Tensor, heads: Parameters) -> Tensor:
        """Q_j of what :meth:`_narrow` gave and an action, shape [2, *B]."""
        return self._qvalues({self.latent_network.out_keys[0]: narrow}, action, heads)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Both losses from one set of parameters, and their statistics; writes the priority to the batch."""
        loss_qvalue, info = self.qvalue_loss(tensordict)
        loss_actor, actor_info = self.actor_loss(tensordict, encoding=info.pop("encoding"))
        losses = {"loss_actor": loss_actor, "loss_qvalue": loss_qvalue}
        return self._collect(tensordict, losses, {**actor_info, **info})


def _check_chain(first: TensorDictModule, second: TensorDictModule) -> None:
    """Raise if a network does not read what the preceding one writes."""
    if first.out_keys[0] not in second.in_keys:
        raise O2OSpecError(
            f"got a network that reads {second.in_keys}, expected {first.out_keys[0]!r} among them, which the network "
            "before it writes; set out_key and in_key"
        )
