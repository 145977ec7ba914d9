# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Layers that convert units: standardized observations before a policy, native actions after it.

Shapes: ``o`` observation entries, ``A`` action dimensions.
"""

from __future__ import annotations

from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Bounded

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules.boxes import box_edges, centered_box
from torchrl_o2o.modules.chunks import chunk_length

__all__ = ["Standardize", "ToBox", "declared_box", "refuse_standardized_again", "standardizes"]


class Standardize(nn.Module):
    """Standardize observations, :math:`(s-m)/c`.

    Args:
        mean: m, shape [o].
        scale: c, positive, shape [o].

    Examples:
        >>> import torch
        >>> Standardize(torch.tensor([1.0]), torch.tensor([2.0]))(torch.tensor([[5.0]]))
        tensor([[2.]])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, observation: Tensor) -> Tensor:
        """Map [*B, o] to [*B, o]."""
        return (observation - self.mean) / self.scale


class ToBox(nn.Module):
    r"""Stretch [-1, 1]^A to the box [lo, hi], :math:`\frac{hi+lo}2+\frac{hi-lo}2x`.

    Args:
        low: lower edge, shape [A].
        high: upper edge, shape [A].

    Examples:
        >>> import torch
        >>> to_box = ToBox(torch.tensor([0.0]), torch.tensor([4.0]))
        >>> to_box(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0., 2., 4.])
        >>> to_box((torch.tensor([0.5]), torch.tensor([0.1])))  # a Gaussian's mean and standard deviation
        (tensor([3.]), tensor([0.2000]))
    """

    middle: Tensor
    half_width: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        middle, half_width = centered_box(low, high)
        self.register_buffer("middle", middle)
        self.register_buffer("half_width", half_width)

    def forward(self, value: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        """Map actions [*B, A], or mean and standard deviation of a Gaussian over them; shapes are unchanged."""
        if isinstance(value, tuple):
            loc, scale = value
            return self.middle + self.half_width * loc, self.half_width * scale
        return self.middle + self.half_width * value


def standardizes(actor: nn.Module) -> bool:
    """Whether an actor standardizes its observations, as actors from :func:`~torchrl_o2o.deploy.load_policy` may.

    Args:
        actor: any actor.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> standardizes(make_actor(3, 1))
        False
    """
    return any(isinstance(module, Standardize) for module in actor.modules())


def refuse_standardized_again(actor: nn.Module, given: object, remedy: str) -> None:
    """Refuse statistics for an actor that standardizes what it observes: it would do so twice.

    Args:
        actor: any actor.
        given: the statistics, or ``None``.
        remedy: ends the message.

    Raises:
        O2OSpecError: if there are statistics and the actor standardizes.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> refuse_standardized_again(make_actor(3, 1), None, "leave them out")
    """
    if given is not None and standardizes(actor):
        raise O2OSpecError(
            f"got statistics of observations for a policy that standardizes them itself, as load_policy gives it; "
            f"{remedy}"
        )


def declared_box(actor: TensorDictModuleBase, key: NestedKey = "action") -> tuple[Tensor, Tensor] | None:
    """The box in an actor's action spec.

    Args:
        actor: any actor.
        key: entry of the action. Defaults to ``"action"``.

    Returns:
        Lower and upper edge, each [A], of a single action, also if the actor chooses several at once; ``None`` if the
        actor has no bounded spec for that entry.

    Examples:
        >>> from torchrl_o2o.modules import make_actor
        >>> declared_box(make_actor(3, 1))
        (tensor([-1.]), tensor([1.]))
        >>> declared_box(TensorDictModuleBase()) is None
        True
    """
    spec = getattr(actor, "spec", None)
    action = None if spec is None or key not in spec.keys(True) else spec[key]
    if not isinstance(action, Bounded):
        return None
    low, high = (edge.cpu() for edge in box_edges(action))
    horizon = chunk_length(actor)
    return (low, high) if horizon == 1 else (low[: len(low) // horizon], high[: len(high) // horizon])
