# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""The loss of the behavior policy's density model, a conditional VAE (SPOT's first phase)."""

from __future__ import annotations

from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from torch import Tensor

from torchrl_o2o.errors import O2OSpecError, check_number
from torchrl_o2o.functional.offline import gaussian_kl
from torchrl_o2o.modules.vae import ActionVAE
from torchrl_o2o.objectives.base import Reduction, TransitionLoss, dispatch
from torchrl_o2o.objectives.networks import Parameters, call_module, flat_parameters

__all__ = ["VAELoss", "action_vae", "latent_dim", "vae_terms"]


def action_vae(network: TensorDictModule) -> ActionVAE:
    """The VAE inside a network.

    Args:
        network: a network from :func:`~torchrl_o2o.modules.make_action_vae`.

    Returns:
        The module itself.

    Raises:
        O2OSpecError: if the module is no such VAE.

    Examples:
        >>> from torchrl_o2o.modules import make_action_vae
        >>> action_vae(make_action_vae(3, 2, hidden_sizes=(8,))).latent_dim
        4
    """
    vae = getattr(network, "module", None)
    if not isinstance(vae, ActionVAE):
        raise O2OSpecError(f"got {type(network).__name__}, expected the VAE that make_action_vae(...) builds")
    return vae


def latent_dim(network: TensorDictModule) -> int:
    """Number of dimensions of a VAE's latent.

    Args:
        network: of :func:`~torchrl_o2o.modules.make_action_vae`.

    Returns:
        Z.

    Raises:
        O2OSpecError: if the module is no such VAE.

    Examples:
        >>> from torchrl_o2o.modules import make_action_vae
        >>> latent_dim(make_action_vae(3, 2, hidden_sizes=(8,)))
        4
    """
    return action_vae(network).latent_dim


def vae_terms(
    loss: TransitionLoss, network: TensorDictModule, params: Parameters, tensordict: TensorDictBase
) -> tuple[Tensor, Tensor]:
    """The two terms of a VAE's loss for recorded actions: reconstruction error and divergence.

    Args:
        loss: the loss whose keys and noise are used; the name of the draw is ``"latent"``.
        network: of :func:`~torchrl_o2o.modules.make_action_vae`.
        params: its parameters with dotted names.
        tensordict: observations and actions, shape [*B]; not modified.

    Returns:
        Squared error and divergence per row, averaged over dimensions, shape [*B].

    Examples:
        >>> from torchrl_o2o.modules import make_action_vae
        >>> from torchrl_o2o.objectives.networks import flat_parameters
        >>> from torchrl_o2o.testing import random_transitions
        >>> loss = VAELoss(make_action_vae(17, 6, hidden_sizes=(32, 32)))
        >>> params = flat_parameters(loss.vae_network_params)
        >>> error, kl = vae_terms(loss, loss.vae_network, params, random_transitions(8, 17, 6))
        >>> error.shape, kl.shape
        (torch.Size([8]), torch.Size([8]))
    """
    action = loss._action(tensordict)
    noise = loss.noise.normal("latent", action.new_empty((*action.shape[:-1], latent_dim(network))))
    inputs = [loss._entry(tensordict, key) for key in network.in_keys]
    for key, value in zip(network.in_keys, inputs, strict=True):
        loss._check_rows(tensordict, key, value)
    reconstruction, mean, std, _ = call_module(action_vae(network), params, *inputs, noise)
    return (reconstruction - action).square().mean(-1), gaussian_kl(mean, std)


class VAELoss(TransitionLoss):
    r"""Fit a conditional VAE to recorded actions.

    .. math:: L = \frac1B\sum_b \frac1A\lVert\hat a-a\rVert^2 + \beta\,\mathrm{KL},\qquad \hat a\sim p(\cdot|s,z),
        \ z\sim q(\cdot|s,a)

    Source: Wu et al. 2022 (SPOT), Eq. 8, with the code's averages over action and latent dimensions. The given module
    is trained in place. Pass it to :class:`~torchrl_o2o.objectives.SPOTLoss` afterwards.

    Importance weights multiply the rows.

    Args:
        vae_network: of :func:`~torchrl_o2o.modules.make_action_vae`.

    Keyword Args:
        beta: weight of the divergence. Defaults to 0.5.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"`` over the batch.

    Raises:
        O2OSpecError: if the module is not such a VAE or ``beta`` is negative.

    Examples:
        >>> from torchrl_o2o.modules import make_action_vae
        >>> from torchrl_o2o.objectives import VAELoss
        >>> from torchrl_o2o.testing import random_transitions
        >>> loss = VAELoss(make_action_vae(17, 6, hidden_sizes=(32, 32)))
        >>> loss_vae, info = loss.vae_loss(random_transitions(8, 17, 6))
        >>> sorted(info)
        ['kl', 'reconstruction_error']
    """

    out_keys = ["loss_vae", "kl", "reconstruction_error"]

    vae_network: TensorDictModule
    vae_network_params: TensorDictParams
    target_vae_network_params: TensorDictParams

    _networks_read = (("vae_network",), ())
    _bootstraps = False

    def __init__(self, vae_network: TensorDictModule, *, beta: float = 0.5, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        self.latent_dim = latent_dim(vae_network)
        check_number("beta", beta, least=0)
        self.convert_to_functional(vae_network, "vae_network", create_target_params=False)
        self.beta = beta

    def vae_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one minibatch.

        Args:
            tensordict: observations and actions, shape [*B]; not modified.

        Returns:
            The loss, and ``reconstruction_error`` and ``kl`` per row, shape [*B], detached.
        """
        params = flat_parameters(self.vae_network_params)
        error, kl = vae_terms(self, self.vae_network, params, tensordict)  # |a^ - a|^2 / A, KL
        info = {"kl": kl.detach(), "reconstruction_error": error.detach()}
        return self._reduce(error + self.beta * kl, self._weights(tensordict)), info

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss and its two parts."""
        loss, info = self.vae_loss(tensordict)
        return self._collect(tensordict, {"loss_vae": loss}, info)
