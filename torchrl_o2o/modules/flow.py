# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Flow policies: a velocity field that transports noise to actions, and a network that does so in one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict.nn import TensorDictModule
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Composite, TensorSpec
from torchrl.modules import Actor

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules.boxes import action_box, box_edges, inner_edges
from torchrl_o2o.modules.initialization import Initialization, initialize_
from torchrl_o2o.modules.trunk import FLAX_LAYER_NORM_EPS, LayerNorm, feature_dim, make_trunk

__all__ = [
    "FLOW_POINT",
    "FLOW_TIME",
    "AppendNoise",
    "ClipToBox",
    "FlowNetwork",
    "Joined",
    "euler_flow",
    "make_flow_network",
    "make_one_step_actor",
    "one_step_network",
]

#: The velocity field's inputs besides the observation: a point between noise and action, and its time.
FLOW_POINT, FLOW_TIME = "flow_point", "flow_time"


class Joined(nn.Sequential):
    """Layers in a row that take several inputs, concatenated along their last dimension.

    Examples:
        >>> Joined(nn.Linear(5, 1))(torch.zeros(4, 3), torch.zeros(4, 2)).shape
        torch.Size([4, 1])
    """

    def forward(self, input: Tensor, *others: Tensor) -> Tensor:
        """Map inputs [*B, n_i] to [*B, m]."""
        return super().forward(torch.cat((input, *others), -1))


class FlowNetwork(TensorDictModule):
    """A velocity field together with the box of its actions.

    Args:
        net: maps observation [*B, o], point [*B, A] and time [*B, 1] to a velocity [*B, A].
        action: spec of the actions.
        observation_key: entry read. Defaults to ``"observation"``.
        action_key: entry of the actions in the data. Defaults to ``"action"``.

    Examples:
        >>> FlowNetwork(Joined(nn.Linear(3 + 1 + 1, 1)), action_box(1)).in_keys
        ['observation', 'flow_point', 'flow_time']
    """

    def __init__(
        self,
        net: nn.Module,
        action: TensorSpec,
        observation_key: NestedKey = "observation",
        action_key: NestedKey = "action",
    ) -> None:
        super().__init__(net, in_keys=[observation_key, FLOW_POINT, FLOW_TIME], out_keys=["velocity"])
        self.spec = Composite({action_key: action})


class AppendNoise(nn.Module):
    """Append fresh standard-normal numbers to the features: the noise that a flow policy turns into an action.

    Args:
        size: number of numbers, A.

    Examples:
        >>> AppendNoise(2)(torch.zeros(4, 3)).shape
        torch.Size([4, 5])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, features: Tensor) -> Tensor:
        """Map [*B, n] to [*B, n + A]; the noise comes from torch's global generator."""
        noise = torch.randn(*features.shape[:-1], self.size, dtype=features.dtype, device=features.device)
        return torch.cat([features, noise], -1)

    def extra_repr(self) -> str:
        """Show the size in ``repr``."""
        return f"{self.size}"


class ClipToBox(nn.Module):
    """Clip actions to a box.

    Args:
        low: lower edge, shape [A].
        high: upper edge, shape [A].

    Examples:
        >>> ClipToBox(torch.tensor([-1.0]), torch.tensor([1.0]))(torch.tensor([-3.0, 0.5, 2.0]))
        tensor([-1.0000,  0.5000,  1.0000])
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        for name, edge in zip(("low", "high"), inner_edges(low, high), strict=True):
            self.register_buffer(name, edge)

    def forward(self, action: Tensor) -> Tensor:
        """Clip [*B, A]; the shape stays."""
        return torch.minimum(torch.maximum(action, self.low), self.high)


def euler_flow(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    r"""Follow a velocity field from noise to an action, :math:`x_{(i+1)/n}=x_{i/n}+\frac1n v(x_{i/n},\frac in)`.

    Source: Park, Li & Levine 2025 (FQL), arXiv:2502.02538, Algorithm 1; explicit Euler steps as in the authors' code.

    Args:
        velocity: v(x, t) of points [*B, A] and times [*B, 1].
        noise: x_0, shape [*B, A].
        steps: number of steps n.

    Returns:
        x_1, not clipped, shape [*B, A].

    Examples:
        >>> euler_flow(lambda x, t: t.expand_as(x), torch.zeros(1, 2), 2)  # the time is 0 and 1/2
        tensor([[0.2500, 0.2500]])
    """
    point = noise
    for step in range(steps):
        time = torch.full_like(noise[..., :1], step / steps)
        point = point + velocity(point, time) / steps
    return point


@checked_arguments
def make_flow_network(
    observation: TensorSpec | int,
    action: TensorSpec | int,
    *,
    hidden_sizes: Sequence[int] = (512, 512, 512, 512),
    layer_norm: LayerNorm = False,
    layer_norm_eps: float = FLAX_LAYER_NORM_EPS,
    initialization: Initialization = "xavier_uniform",
    observation_key: NestedKey = "observation",
    action_key: NestedKey = "action",
) -> FlowNetwork:
    """Velocity field v(s, x, t) of a flow from noise to the actions of the data.

    Source: Park, Li & Levine 2025 (FQL), arXiv:2502.02538; layers as in the authors' code: Linear, GELU (tanh
    approximation) and optionally LayerNorm after it; a linear output.

    Args:
        observation: spec of the observation, shape [o], or o.
        action: bounded spec of the action, shape [A], or A. A chunk of h actions has h A entries.
        hidden_sizes: widths of the hidden layers. Defaults to (512, 512, 512, 512).
        layer_norm: ``"after_activation"`` is FQL's ``actor_layer_norm``. Defaults to ``False``.
        layer_norm_eps: LayerNorm's epsilon. Defaults to 1e-6, flax's.
        initialization: a recipe of :func:`~torchrl_o2o.modules.initialization.initialize_`.
        observation_key: entry read. Defaults to ``"observation"``.
        action_key: entry of the actions in the data. Defaults to ``"action"``.

    Returns:
        A network that reads the observation, ``"flow_point"`` [*B, A] and ``"flow_time"`` [*B, 1], and writes
        ``"velocity"`` [*B, A].

    Raises:
        O2OSpecError: if a spec is not a flat vector or the action has no finite box.

    Examples:
        >>> flow = make_flow_network(17, 6, hidden_sizes=(32, 32))
        >>> flow(torch.zeros(4, 17), torch.zeros(4, 6), torch.zeros(4, 1)).shape
        torch.Size([4, 6])
    """
    spec = action_box(action)
    sizes = feature_dim(observation, "observation"), feature_dim(spec, "action")
    norm = {"layer_norm": layer_norm, "layer_norm_eps": layer_norm_eps}
    net = _gelu_net(sum(sizes) + 1, sizes[1], hidden_sizes, initialization, **norm)
    return FlowNetwork(net, spec, observation_key, action_key)


@checked_arguments
def make_one_step_actor(
    observation: TensorSpec | int,
    action: TensorSpec | int,
    *,
    hidden_sizes: Sequence[int] = (512, 512, 512, 512),
    layer_norm: LayerNorm = False,
    layer_norm_eps: float = FLAX_LAYER_NORM_EPS,
    initialization: Initialization = "xavier_uniform",
    observation_key: NestedKey = "observation",
    action_key: NestedKey = "action",
) -> Actor:
    r"""Policy :math:`\mathrm{clip}(\mu(s,z))` with fresh noise z, which computes the end of a flow in one step.

    It draws z under every exploration type, as the authors' evaluation does.

    Source: Park, Li & Levine 2025 (FQL), arXiv:2502.02538; layers as in :func:`make_flow_network`.

    Args:
        observation: spec of the observation, shape [o], or o.
        action: bounded spec of the action, shape [A], or A for the box [-1, 1]^A.
        hidden_sizes: widths of the hidden layers. Defaults to (512, 512, 512, 512).
        layer_norm: as in :func:`make_flow_network`. Defaults to ``False``.
        layer_norm_eps: LayerNorm's epsilon. Defaults to 1e-6, flax's.
        initialization: a recipe of :func:`~torchrl_o2o.modules.initialization.initialize_`.
        observation_key: entry read. Defaults to ``"observation"``.
        action_key: entry written. Defaults to ``"action"``.

    Returns:
        An actor that reads the observation and writes the action.

    Raises:
        O2OSpecError: if a spec is not a flat vector or the action has no finite box.

    Examples:
        >>> from tensordict import TensorDict
        >>> actor = make_one_step_actor(17, 6, hidden_sizes=(32, 32))
        >>> actor(TensorDict({"observation": torch.zeros(4, 17)}, [4]))["action"].shape
        torch.Size([4, 6])
    """
    spec = action_box(action)
    size = feature_dim(spec, "action")
    norm = {"layer_norm": layer_norm, "layer_norm_eps": layer_norm_eps}
    width = feature_dim(observation, "observation") + size
    net = _gelu_net(width, size, hidden_sizes, initialization, **norm)
    clip = ClipToBox(*box_edges(spec))
    return Actor(
        nn.Sequential(AppendNoise(size), net, clip),
        in_keys=[observation_key],
        out_keys=[action_key],
        spec=Composite({action_key: spec}),
    )


def one_step_network(actor: nn.Module) -> TensorDictModule:
    """The network mu(s, z) of an actor from :func:`make_one_step_actor`, with the same parameters.

    Args:
        actor: the actor.

    Returns:
        A network that reads the observation and ``"flow_point"``, the noise, and writes the action, not clipped.

    Raises:
        O2OSpecError: if it is another actor.

    Examples:
        >>> one_step_network(make_one_step_actor(3, 1, hidden_sizes=(8,))).in_keys
        ['observation', 'flow_point']
    """
    net = actor.module if type(actor) is Actor else None
    layers = list(net.children()) if isinstance(net, nn.Module) else []
    if not isinstance(actor, Actor) or [type(layer) for layer in layers] != [AppendNoise, Joined, ClipToBox]:
        raise O2OSpecError(f"got {type(actor).__name__}, expected an actor from make_one_step_actor(...); build it so")
    return TensorDictModule(layers[1], in_keys=[actor.in_keys[0], FLOW_POINT], out_keys=list(actor.out_keys))


def _gelu_net(
    in_features: int,
    out_features: int,
    hidden_sizes: Sequence[int],
    initialization: Initialization,
    *,
    layer_norm: LayerNorm,
    layer_norm_eps: float,
) -> Joined:
    norm = {"layer_norm": layer_norm, "layer_norm_eps": layer_norm_eps}
    trunk = make_trunk(in_features, hidden_sizes, activation="gelu", **norm)
    net = Joined(trunk, nn.Linear(hidden_sizes[-1], out_features))
    initialize_(net, initialization)
    return net
