# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Action boxes: read them from specs, and map into them by a scaled tanh."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torchrl.data import Bounded, TensorSpec
from torchrl.data.tensor_specs import ContinuousBox

from torchrl_o2o.errors import O2OSpecError, check_count

__all__ = [
    "BoxTanh",
    "action_box",
    "action_spec",
    "action_specs",
    "actor_box",
    "box_edges",
    "centered_box",
    "distribution_box",
    "finite_edges",
    "inner_edges",
    "is_unit_box",
    "make_squash",
]


class BoxTanh(nn.Module):
    r"""Map features to a box, :math:`\frac{hi+lo}2+\frac{hi-lo}2\tanh x`.

    Args:
        low: lower edge, shape [A].
        high: upper edge, shape [A].

    Examples:
        >>> import torch
        >>> BoxTanh(torch.tensor([0.0]), torch.tensor([4.0]))(torch.tensor([-100.0, 0.0, 100.0]))
        tensor([0., 2., 4.])
    """

    middle: Tensor
    half_width: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        middle, half_width = centered_box(low, high)
        self.register_buffer("middle", middle)
        self.register_buffer("half_width", half_width)

    def forward(self, features: Tensor) -> Tensor:
        """Map [*B, A] to [*B, A]."""
        return self.middle + self.half_width * features.tanh()


def action_box(action: TensorSpec | int) -> Bounded:
    """The bounded spec of an action, from a spec or a number of dimensions.

    Args:
        action: bounded spec of the action, shape [A], or A for the box [-1, 1]^A.

    Returns:
        The spec.

    Raises:
        O2OSpecError: if the action has no finite box, or a dimension of the box has no width.

    Examples:
        >>> action_box(2).shape
        torch.Size([2])
    """
    if isinstance(action, int):
        check_count("the number of action dimensions", action, least=1)
        return Bounded(-torch.ones(action), torch.ones(action), shape=torch.Size((action,)), dtype=torch.float32)
    low, high = finite_edges(action)
    if not (low < high).all():
        raise O2OSpecError(
            f"got an action box from {low.tolist()} to {high.tolist()}, expected low below high in each dimension; "
            "leave out dimensions with a single value, or wrap the environment with make_env"
        )
    return cast(Bounded, action)


def finite_edges(spec: TensorSpec) -> tuple[Tensor, Tensor]:
    """Lower and upper edges of an action that is acted in, of which an entry may have one value only.

    Args:
        spec: bounded spec of the action, shape [A].

    Returns:
        Two vectors of shape [A].

    Raises:
        O2OSpecError: if the action has no finite box.

    Examples:
        >>> finite_edges(Bounded(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), (2,)))
        (tensor([0., 1.]), tensor([1., 1.]))
    """
    if not isinstance(spec, Bounded) or not all(edge.isfinite().all() for edge in box_edges(spec)):
        raise O2OSpecError(
            f"got action spec {spec!r}, expected a bounded continuous box [A]; wrap the environment with "
            f"torchrl_o2o.envs.make_env or pass the number of action dimensions for [-1, 1]^A"
        )
    return box_edges(spec)


def box_edges(spec: Bounded) -> tuple[Tensor, Tensor]:
    """Lower and upper edges of a bounded spec.

    Args:
        spec: a bounded spec, shape [A].

    Returns:
        Two vectors of shape [A].

    Examples:
        >>> box_edges(action_box(2))
        (tensor([-1., -1.]), tensor([1., 1.]))
    """
    box = cast(ContinuousBox, spec.space)  # TorchRL's annotation covers all specs; a bounded one has edges
    return box.low, box.high


def inner_edges(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Copies of a box's edges in the default dtype, rounded towards its inside.

    A spec has the dtype of the environment's actions. A wider one would spread to everything that is computed of them.

    Args:
        low: lower edge, shape [A].
        high: upper edge, shape [A].

    Returns:
        Two vectors of shape [A].

    Examples:
        >>> low, high = inner_edges(*torch.tensor([[-0.7], [0.7]], dtype=torch.float64))
        >>> low.dtype, bool(high.double() <= 0.7)
        (torch.float32, True)
    """
    dtype, up = torch.get_default_dtype(), torch.tensor(torch.inf)
    bottom, top = low.to(dtype), high.to(dtype)
    return (
        torch.where(bottom < low, bottom.nextafter(up.to(bottom)), bottom),
        torch.where(top > high, top.nextafter(-up.to(top)), top),
    )


def centered_box(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and half width of a box in the default dtype, from whose sum and difference rounding never leaves the box.

    Args:
        low: lower edge, shape [A].
        high: upper edge, shape [A].

    Returns:
        Two vectors of shape [A].

    Examples:
        >>> middle, half_width = centered_box(torch.tensor([-0.3]), torch.tensor([0.4]))
        >>> middle + half_width
        tensor([0.4000])
        >>> bool(middle + half_width <= torch.tensor(0.4))  # 0.05 + 0.35 is more than 0.4 in float32
        True
    """
    bottom, top = inner_edges(low, high)
    middle = 0.5 * (top + bottom)
    half_width = torch.minimum(top - middle, middle - bottom)
    for _ in range(2):  # two roundings, that of the half width and that of the sum
        outside = (middle + half_width > top) | (middle - half_width < bottom)
        half_width = torch.where(outside, half_width.nextafter(torch.zeros_like(half_width)), half_width)
    return middle, half_width


def action_specs(actor: nn.Module | None) -> list[TensorSpec]:
    """The specs of an actor's outputs; an empty list if it has none.

    Args:
        actor: an actor, or ``None``.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> [spec.shape for spec in action_specs(make_actor(3, 2, hidden_sizes=(8,)))]
        [torch.Size([2])]
    """
    spec = getattr(actor, "spec", None)
    return [] if spec is None else [leaf for leaf in spec.values(True, True) if leaf is not None]


def action_spec(actor: nn.Module) -> TensorSpec:
    """The action spec that an actor was built with.

    Args:
        actor: an actor, stochastic or deterministic.

    Returns:
        The spec of its action.

    Raises:
        O2OSpecError: if the actor has no action spec, or several.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> action_spec(make_actor(3, 2, hidden_sizes=(8,))).shape
        torch.Size([2])
    """
    leaves = action_specs(actor)
    if len(leaves) != 1:
        raise O2OSpecError(
            f"the actor's spec is {getattr(actor, 'spec', None)!r}, expected one bounded action; build the actor with "
            "make_actor(...), make_deterministic_actor(...) or ProbabilisticActor(..., spec=...). If only the default "
            "target entropy needs it, pass temperature=Temperature(target_entropy=...) instead"
        )
    return leaves[0]


def actor_box(actor: nn.Module) -> tuple[Tensor, Tensor]:
    """Lower and upper edges of an actor's actions.

    Args:
        actor: an actor, stochastic or deterministic, with a bounded action spec.

    Returns:
        Two vectors of shape [A].

    Raises:
        O2OSpecError: if the actor has no bounded action spec.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> actor_box(make_actor(3, 2, hidden_sizes=(8,)))
        (tensor([-1., -1.]), tensor([1., 1.]))
    """
    return box_edges(action_box(action_spec(actor)))


def is_unit_box(action: Bounded) -> bool:
    """Whether a box is [-1, 1]^A, for which no rescaling is computed.

    Args:
        action: a bounded spec.

    Returns:
        ``True`` if it is.

    Examples:
        >>> is_unit_box(action_box(2))
        True
    """
    low, high = box_edges(action)
    return bool((low == -1).all() and (high == 1).all())


def distribution_box(action: Bounded) -> dict[str, Tensor | float]:
    """The arguments ``low`` and ``high`` of a distribution: numbers if the box is [-1, 1], else vectors [A].

    Args:
        action: bounded spec, shape [A].

    Examples:
        >>> distribution_box(action_box(2))
        {'low': -1.0, 'high': 1.0}
    """
    low, high = (-1.0, 1.0) if is_unit_box(action) else box_edges(action)
    return {"low": low, "high": high}


def make_squash(action: Bounded) -> nn.Module:
    """A module that maps real numbers [*B, A] into a box: tanh, scaled and shifted if the box is not [-1, 1].

    Args:
        action: bounded spec, shape [A].

    Examples:
        >>> make_squash(action_box(2))
        Tanh()
    """
    return nn.Tanh() if is_unit_box(action) else BoxTanh(*box_edges(action))
