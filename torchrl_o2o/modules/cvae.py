# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SAMG's embeddings of state-action pairs: a conditional VAE of the next state, or inverse dynamics.

Both have ``encode(observation, action) -> (mean, std)``, which :class:`~torchrl_o2o.modules.OfflineConfidence` needs.
Shapes: o observation, A action, Z latent dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import TensorSpec

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import check_count, check_option
from torchrl_o2o.modules.trunk import feature_dim, make_trunk
from torchrl_o2o.modules.vae import GaussianEncoder

__all__ = ["ConditionalVAE", "InverseDynamics", "make_conditional_vae", "make_inverse_dynamics"]

Decoder = Literal["full", "latent"]


class ConditionalVAE(GaussianEncoder):
    r"""Encoder :math:`q(z|s,a)=N(\mu,\sigma)` and decoder :math:`\hat s'=f(z,s,a)` or :math:`f(z)`.

    Args:
        observation_dim: o.
        action_dim: A.
        latent_dim: Z.
        hidden_sizes: widths of the hidden layers of encoder and decoder.
        decoder: ``"full"`` reads (z, s, a), ``"latent"`` z alone. Defaults to ``"full"``.
        log_std_bounds: clip of the encoder's log standard deviation. Defaults to (-4, 15).

    Examples:
        >>> import torch
        >>> vae = ConditionalVAE(3, 2, 4, (8,))
        >>> [tuple(out.shape) for out in vae(torch.zeros(5, 3), torch.zeros(5, 2), torch.zeros(5, 4))]
        [(5, 3), (5, 4), (5, 4), (5, 4)]
    """

    @checked_arguments
    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        latent_dim: int,
        hidden_sizes: Sequence[int],
        decoder: Decoder = "full",
        log_std_bounds: tuple[float, float] = (-4.0, 15.0),
    ) -> None:
        super().__init__(observation_dim, action_dim, latent_dim, hidden_sizes, log_std_bounds)
        check_option("decoder", decoder, ("full", "latent"))
        width = latent_dim + (observation_dim + action_dim if decoder == "full" else 0)
        self.decoder = nn.Sequential(make_trunk(width, hidden_sizes), nn.Linear(hidden_sizes[-1], observation_dim))
        self.decoder_reads: Decoder = decoder

    def forward(
        self, observation: Tensor, action: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode, draw a latent, decode.

        Args:
            observation: shape [*B, o].
            action: shape [*B, A].
            noise: standard-normal numbers, shape [*B, Z]; ``None`` (default) draws them.

        Returns:
            Predicted next observation [*B, o], mean, standard deviation and latent, each [*B, Z].
        """
        mean, std, latent = self.draw(observation, action, noise)
        read = (latent, observation, action) if self.decoder_reads == "full" else (latent,)
        return self.decoder(torch.cat(read, -1)), mean, std, latent


class InverseDynamics(nn.Module):
    r"""Embedding :math:`\phi(s)` trained to predict the action from :math:`\phi(s),\phi(s')`, as in Never Give Up.

    The embedding drops the parts of the state that the agent does not influence, because they do not help to predict
    the action. ``encode`` returns :math:`(\phi(s), a)`, because a confidence must depend on the action, too.

    Args:
        observation_dim: o.
        action_dim: A.
        embedding_dim: width of the embedding; the latent has Z = embedding_dim + A dimensions.
        hidden_sizes: widths of the hidden layers.

    Examples:
        >>> import torch
        >>> network = InverseDynamics(3, 2, 4, (8,))
        >>> network(torch.zeros(5, 3), torch.zeros(5, 3)).shape
        torch.Size([5, 2])
        >>> network.encode(torch.zeros(5, 3), torch.zeros(5, 2))[0].shape
        torch.Size([5, 6])
    """

    @checked_arguments
    def __init__(self, observation_dim: int, action_dim: int, embedding_dim: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        embedding = make_trunk(observation_dim, hidden_sizes)
        check_count("embedding_dim", embedding_dim, least=1)
        self.embedding = nn.Sequential(embedding, nn.Linear(hidden_sizes[-1], embedding_dim))
        head = make_trunk(2 * embedding_dim, hidden_sizes)
        self.head = nn.Sequential(head, nn.Linear(hidden_sizes[-1], action_dim))
        self.latent_dim = embedding_dim + action_dim

    def encode(self, observation: Tensor, action: Tensor) -> tuple[Tensor, None]:
        """Map observation [*B, o] and action [*B, A] to [*B, Z]; the embedding has no standard deviation."""
        return torch.cat([self.embedding(observation), action], -1), None

    def forward(self, observation: Tensor, next_observation: Tensor) -> Tensor:
        """Map two successive observations [*B, o] to the action between them, [*B, A]."""
        return self.head(torch.cat([self.embedding(observation), self.embedding(next_observation)], -1))


@checked_arguments
def make_conditional_vae(
    observation: TensorSpec | int,
    action: TensorSpec | int,
    *,
    hidden_sizes: Sequence[int] = (256, 256),
    latent_dim: int | None = None,
    decoder: Decoder = "full",
    log_std_bounds: tuple[float, float] = (-4.0, 15.0),
    observation_key: NestedKey = "observation",
    action_key: NestedKey = "action",
) -> TensorDictModule:
    """Conditional VAE of the next state, on raw observations and actions (SAMG advises against normalizing them).

    Source: SAMG, Eq. 2; structure as CPQ's (Xu et al. 2022). On hopper and walker2d the paper uses a "simplified
    decoder", which we interpret as ``decoder="latent"``. The latent then must encode the pair, so it cannot collapse.

    Args:
        observation: spec of the observation, shape [o], or o.
        action: spec of the action, shape [A], or A.
        hidden_sizes: widths of the hidden layers. Defaults to (256, 256).
        latent_dim: Z; ``None`` (default) is 2 A.
        decoder: ``"full"`` (default) reads (z, s, a), ``"latent"`` z alone.
        log_std_bounds: clip of the encoder's log standard deviation. Defaults to (-4, 15).
        observation_key: entry of the observation. Defaults to ``"observation"``.
        action_key: entry of the action. Defaults to ``"action"``.

    Returns:
        A module that reads observation and action and writes ``reconstruction`` (of the next observation),
        ``latent_mean``, ``latent_std`` and ``latent``.

    Raises:
        O2OSpecError: if a spec is not a flat vector or the decoder is unknown.

    Examples:
        >>> make_conditional_vae(17, 6, hidden_sizes=(32, 32)).module.latent_dim
        12
    """
    action_dim = feature_dim(action, "action")
    latent = 2 * action_dim if latent_dim is None else latent_dim
    width = feature_dim(observation, "observation")
    vae = ConditionalVAE(width, action_dim, latent, hidden_sizes, decoder, log_std_bounds)
    out_keys: list[NestedKey] = ["reconstruction", "latent_mean", "latent_std", "latent"]
    return TensorDictModule(vae, in_keys=[observation_key, action_key], out_keys=out_keys)


@checked_arguments
def make_inverse_dynamics(
    observation: TensorSpec | int,
    action: TensorSpec | int,
    *,
    hidden_sizes: Sequence[int] = (256, 256),
    embedding_dim: int = 16,
    observation_key: NestedKey = "observation",
) -> TensorDictModule:
    """Embedding network for the confidence, instead of the VAE.

    Source: SAMG's appendix names the variant; the network follows Badia et al. 2020 (Never Give Up), section 2, with a
    regression on continuous actions.

    Args:
        observation: spec of the observation, shape [o], or o.
        action: spec of the action, shape [A], or A.
        hidden_sizes: widths of the hidden layers. Defaults to (256, 256).
        embedding_dim: width of the embedding. Defaults to 16.
        observation_key: entry of the observation. Defaults to ``"observation"``.

    Returns:
        A module that reads the observation and the next one and writes ``predicted_action``.

    Raises:
        O2OSpecError: if a spec is not a flat vector.

    Examples:
        >>> make_inverse_dynamics(17, 6, hidden_sizes=(32, 32)).module.latent_dim
        22
    """
    width, action_dim = feature_dim(observation, "observation"), feature_dim(action, "action")
    network = InverseDynamics(width, action_dim, embedding_dim, hidden_sizes)
    next_key = ("next", observation_key) if isinstance(observation_key, str) else ("next", *observation_key)
    return TensorDictModule(network, in_keys=[observation_key, next_key], out_keys=["predicted_action"])
