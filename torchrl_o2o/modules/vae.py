# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Conditional variational auto-encoder of the behavior policy's actions, as in SPOT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import TensorSpec

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import check_count, check_order
from torchrl_o2o.modules.boxes import action_box, make_squash
from torchrl_o2o.modules.trunk import feature_dim, make_trunk

__all__ = ["ActionVAE", "GaussianEncoder", "make_action_vae"]


class GaussianEncoder(nn.Module):
    r"""Abstract base of the VAEs: :math:`q(z|s,a)=N(\mu,\sigma)`, and a latent drawn from it.

    Args:
        observation_dim: width o of the observation.
        action_dim: width A of the action.
        latent_dim: width Z of the latent.
        hidden_sizes: widths of the hidden layers.
        log_std_bounds: clip of the log standard deviation.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        latent_dim: int,
        hidden_sizes: Sequence[int],
        log_std_bounds: tuple[float, float],
    ) -> None:
        super().__init__()
        check_order("log_std_bounds", log_std_bounds)
        self.encoder = make_trunk(observation_dim + action_dim, hidden_sizes)
        check_count("latent_dim", latent_dim, least=1)
        self.mean = nn.Linear(hidden_sizes[-1], latent_dim)
        self.log_std = nn.Linear(hidden_sizes[-1], latent_dim)
        self.latent_dim, self.log_std_bounds = latent_dim, log_std_bounds

    def encode(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Map observation [*B, o] and action [*B, A] to the latent's mean and standard deviation, each [*B, Z]."""
        features = self.encoder(torch.cat([observation, action], -1))
        return self.mean(features), self.log_std(features).clamp(*self.log_std_bounds).exp()

    def draw(self, observation: Tensor, action: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and standard deviation, each [*B, Z], and z from the given noise [*S, *B, Z] or from fresh numbers."""
        mean, std = self.encode(observation, action)
        return mean, std, mean + std * (torch.randn_like(std) if noise is None else noise)


class ActionVAE(GaussianEncoder):
    r"""Encoder :math:`q(z|s,a)=N(\mu,\sigma)` and decoder :math:`\hat a=\tanh f(s,z)` of actions given observations.

    Args:
        observation_dim: width o of the observation.
        action_dim: width A of the action.
        latent_dim: width Z of the latent.
        hidden_sizes: widths of the hidden layers of encoder and decoder.
        squash: module applied to the decoder's output. Defaults to ``nn.Tanh()``.
        log_std_bounds: clip of the encoder's log standard deviation. Defaults to (-4, 15).

    Examples:
        >>> import torch
        >>> vae = ActionVAE(3, 2, 4, (8,))
        >>> [tuple(out.shape) for out in vae(torch.zeros(5, 3), torch.zeros(5, 2), torch.zeros(7, 5, 4))]
        [(7, 5, 2), (5, 4), (5, 4), (7, 5, 4)]
    """

    @checked_arguments
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        latent_dim: int,
        hidden_sizes: Sequence[int],
        squash: nn.Module | None = None,
        log_std_bounds: tuple[float, float] = (-4.0, 15.0),
    ) -> None:
        super().__init__(observation_dim, action_dim, latent_dim, hidden_sizes, log_std_bounds)
        decoder = make_trunk(observation_dim + latent_dim, hidden_sizes)
        output = nn.Linear(hidden_sizes[-1], action_dim)
        self.decoder = nn.Sequential(decoder, output, nn.Tanh() if squash is None else squash)

    def decode(self, observation: Tensor, latent: Tensor) -> Tensor:
        """Map observation [*B, o] and latent [*S, *B, Z] to actions [*S, *B, A]."""
        observation = observation.expand(*latent.shape[:-1], observation.shape[-1])
        return self.decoder(torch.cat([observation, latent], -1))

    def forward(
        self, observation: Tensor, action: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode, draw a latent, decode.

        Args:
            observation: shape [*B, o].
            action: shape [*B, A].
            noise: standard-normal numbers, shape [*S, *B, Z]; ``None`` (default) draws one set.

        Returns:
            Decoded action [*S, *B, A], mean and standard deviation [*B, Z], and the latent [*S, *B, Z].
        """
        mean, std, latent = self.draw(observation, action, noise)
        return self.decode(observation, latent), mean, std, latent


@checked_arguments
def make_action_vae(
    observation: TensorSpec | int,
    action: TensorSpec | int,
    *,
    hidden_sizes: Sequence[int] = (750, 750),
    latent_dim: int | None = None,
    log_std_bounds: tuple[float, float] = (-4.0, 15.0),
    observation_key: NestedKey = "observation",
    action_key: NestedKey = "action",
) -> TensorDictModule:
    """Density model of a data set's actions, for :class:`~torchrl_o2o.objectives.VAELoss` and ``SPOTLoss``.

    Source: Wu et al. 2022 (SPOT), after BCQ's; CORL's code.

    Args:
        observation: spec of the observation, shape [o], or o.
        action: bounded spec of the action, shape [A], or A for the box [-1, 1]^A.
        hidden_sizes: widths of the hidden layers. Defaults to (750, 750).
        latent_dim: width Z of the latent; ``None`` (default) is 2 A.
        log_std_bounds: clip of the encoder's log standard deviation. Defaults to (-4, 15).
        observation_key: entry of the observation. Defaults to ``"observation"``.
        action_key: entry of the action. Defaults to ``"action"``.

    Returns:
        A module that reads observation and action and writes ``reconstruction``, ``latent_mean``, ``latent_std`` and
        ``latent``.

    Raises:
        O2OSpecError: if a spec is not a flat vector or the action has no finite box.

    Examples:
        >>> vae = make_action_vae(17, 6, hidden_sizes=(32, 32))
        >>> vae.module.latent_dim
        12
    """
    spec = action_box(action)
    action_dim = feature_dim(spec, "action")
    squash = make_squash(spec)
    latent = 2 * action_dim if latent_dim is None else latent_dim
    vae = ActionVAE(feature_dim(observation, "observation"), action_dim, latent, hidden_sizes, squash, log_std_bounds)
    out_keys: list[NestedKey] = ["reconstruction", "latent_mean", "latent_std", "latent"]
    return TensorDictModule(vae, in_keys=[observation_key, action_key], out_keys=out_keys)
