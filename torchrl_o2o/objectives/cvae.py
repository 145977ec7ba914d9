# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Losses of SAMG's embeddings of state-action pairs: the conditional VAE, and the inverse-dynamics embedding."""

from __future__ import annotations

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey, unravel_key
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError, check_number
from torchrl_o2o.functional.offline import gaussian_kl
from torchrl_o2o.functional.samg import kl_weight
from torchrl_o2o.modules.cvae import ConditionalVAE, InverseDynamics
from torchrl_o2o.objectives.base import Reduction, TransitionLoss, dispatch
from torchrl_o2o.objectives.networks import call_module, flat_parameters, inner_module

__all__ = ["ConditionalVAELoss", "InverseDynamicsLoss"]


class ConditionalVAELoss(TransitionLoss):
    r"""Fit a conditional VAE to the transitions of the data set.

    .. math:: L = \frac1B\sum_b\frac1o\lVert\hat s'-s'\rVert^2
        + \frac{\beta}{Z}\sum_j\mathrm{KL}\big(N(\mu_j,\sigma_j)\,\Vert\,N(0,1)\big),
        \qquad z\sim N(\mu(s,a),\sigma(s,a)),\ \hat s'=f(z,s,a)

    Source: SAMG, Eq. 2, with the weighting of CPQ (Xu et al. 2022): both terms are means over dimensions. Adam 1e-3,
    batch 256, raw inputs; the paper reports the best confidences at a divergence of about 0.03.

    To anneal, call :meth:`set_progress` with the completed share of the training. :math:`\beta` then stays 0 at first
    and rises later (:func:`~torchrl_o2o.functional.kl_weight`). Without such calls it is constant. The given module is
    trained in place. Pass it to :class:`~torchrl_o2o.modules.OfflineConfidence` afterwards.

    Importance weights multiply the rows.

    Args:
        vae_network: of :func:`~torchrl_o2o.modules.make_conditional_vae`.

    Keyword Args:
        beta: final weight of the divergence. Defaults to 0.5.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the module is not such a VAE or ``beta`` is negative.

    Examples:
        >>> from torchrl_o2o.modules import make_conditional_vae
        >>> from torchrl_o2o.objectives import ConditionalVAELoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> loss = ConditionalVAELoss(make_conditional_vae(17, 6, hidden_sizes=(32, 32)))
        >>> loss_vae, info = loss.vae_loss(random_transitions(8, 17, 6))
        >>> sorted(info)
        ['kl', 'reconstruction_error']
        >>> loss.set_progress(0.45)
        >>> loss.kl_weight
        tensor(0.2500)
    """

    out_keys = ["loss_vae", "kl", "reconstruction_error"]

    vae_network: TensorDictModule
    vae_network_params: TensorDictParams
    target_vae_network_params: TensorDictParams
    kl_weight: Tensor

    _bootstraps = False

    def __init__(self, vae_network: TensorDictModule, *, beta: float = 0.5, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        _vae_of(vae_network)
        check_number("beta", beta, least=0)
        self.convert_to_functional(vae_network, "vae_network", create_target_params=False)
        self.beta = beta
        self.register_buffer("kl_weight", torch.tensor(beta, dtype=torch.get_default_dtype()))

    def _keys_read(self) -> list[NestedKey]:
        return [*self.vae_network.in_keys, unravel_key(("next", self.vae_network.in_keys[0]))]

    def set_progress(self, progress: float) -> None:
        """Set the weight of the divergence for the current point of the training.

        Args:
            progress: share of the training that is done, in [0, 1].
        """
        self.kl_weight.fill_(kl_weight(progress, self.beta))

    def vae_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one minibatch.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            The loss, and ``reconstruction_error`` and ``kl`` per row, shape [*B], detached.

        Raises:
            O2OSpecError: if the next observation does not have the observation's shape.
        """
        observation, action, following = (self._entry(tensordict, key) for key in self.in_keys)
        for key, value in zip(self.in_keys[::2], (observation, following), strict=True):
            self._check_rows(tensordict, key, value)
        vae = _vae_of(self.vae_network)
        noise = self.noise.normal("latent", action.new_empty((*action.shape[:-1], vae.latent_dim)))
        params = flat_parameters(self.vae_network_params)
        predicted, mean, std, _ = call_module(vae, params, observation, action, noise)
        if predicted.shape != following.shape:
            raise O2OSpecError(
                f"got {self.in_keys[2]!r} of shape {list(following.shape)}, expected the shape of {self.in_keys[0]!r}, "
                f"{list(observation.shape)}; sample whole transitions"
            )
        error, kl = (predicted - following).square().mean(-1), gaussian_kl(mean, std)  # |s^' - s'|^2 / o, KL
        info = {"reconstruction_error": error.detach(), "kl": kl.detach()}
        return self._reduce(error + self.kl_weight * kl, self._weights(tensordict)), info

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss and its two parts."""
        loss, info = self.vae_loss(tensordict)
        return self._collect(tensordict, {"loss_vae": loss}, info)


class InverseDynamicsLoss(TransitionLoss):
    r"""Fit an inverse-dynamics embedding: :math:`L=\frac1B\sum_b\frac1A\lVert h(\phi(s),\phi(s'))-a\rVert^2`.

    Source: Badia et al. 2020 (Never Give Up), section 2, for the embedding-network variant of SAMG's appendix.

    Importance weights multiply the rows.

    Args:
        inverse_network: of :func:`~torchrl_o2o.modules.make_inverse_dynamics`.

    Keyword Args:
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the module was not built by ``make_inverse_dynamics``.

    Examples:
        >>> from torchrl_o2o.modules import make_inverse_dynamics
        >>> from torchrl_o2o.objectives import InverseDynamicsLoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> loss = InverseDynamicsLoss(make_inverse_dynamics(17, 6, hidden_sizes=(32, 32)))
        >>> sorted(loss(random_transitions(8, 17, 6)).keys())
        ['explained_variance', 'loss_inverse']
    """

    out_keys = ["loss_inverse", "explained_variance"]

    inverse_network: TensorDictModule
    inverse_network_params: TensorDictParams
    target_inverse_network_params: TensorDictParams

    _bootstraps = False

    def __init__(self, inverse_network: TensorDictModule, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        if not isinstance(getattr(inverse_network, "module", None), InverseDynamics):
            raise O2OSpecError(f"got {inverse_network!r}, expected the network that make_inverse_dynamics(...) builds")
        self.convert_to_functional(inverse_network, "inverse_network", create_target_params=False)

    def _keys_read(self) -> list[NestedKey]:
        return [*self.inverse_network.in_keys, self.tensor_keys.action]

    def inverse_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one minibatch.

        Args:
            tensordict: transitions, shape [*B]; not modified.

        Returns:
            The loss, and ``explained_variance``, a scalar: 1 if the embedding predicts the actions exactly, 0 if it is
            no better than their mean.
        """
        observation, following, action = (self._entry(tensordict, key) for key in self.in_keys)
        for key, value in zip(self.in_keys[:2], (observation, following), strict=True):
            self._check_rows(tensordict, key, value)
        params = flat_parameters(self.inverse_network_params)
        predicted: Tensor = call_module(inner_module(self.inverse_network), params, observation, following)
        error = (predicted - action).square().mean(-1)
        variance = action.reshape(-1, action.shape[-1]).var(0, correction=0).mean()
        explained = 1.0 - error.detach().mean() / variance.clamp_min(torch.finfo(variance.dtype).tiny)
        return self._reduce(error, self._weights(tensordict)), {"explained_variance": explained}

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss and, unless ``reduction="none"``, the explained variance; see :meth:`inverse_loss`."""
        loss, info = self.inverse_loss(tensordict)
        return self._collect(tensordict, {"loss_inverse": loss}, info)


def _vae_of(network: TensorDictModule) -> ConditionalVAE:
    """The VAE inside a network, if there is one."""
    vae = getattr(network, "module", None)
    if not isinstance(vae, ConditionalVAE):
        raise O2OSpecError(f"got {network!r}, expected the VAE that make_conditional_vae(...) builds")
    return vae
