# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Policy distributions on a box that take noise as an argument and compute exact densities of their own samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributions as D
from torch.distributions import constraints

from torchrl_o2o.functional.soft import inverse_tanh, tanh_normal_log_prob
from torchrl_o2o.modules.input_checks import check_noise

__all__ = ["BoxDistribution", "TanhNormal"]


class BoxDistribution(D.Distribution):
    """A diagonal Gaussian whose samples are put onto a box: what :class:`TanhNormal` and
    :class:`~torchrl_o2o.modules.BoxNormal` share.

    Noise can be passed as an argument, so that runs can be replayed and updates compiled.

    Args:
        loc: the Gaussian's mean, shape [*B, A].
        scale: its standard deviation, positive, shape [*B, A].
        low: lower edge of the box, scalar or [A].
        high: upper edge of the box, scalar or [A].
    """

    # torch's base class declares properties, which torch's own distributions also override by class attributes.
    arg_constraints = {  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
        "loc": constraints.real_vector,
        "scale": constraints.positive,
    }
    support = constraints.real_vector  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    has_rsample = True
    num_params = 2
    #: Tells losses that ``rsample_and_log_prob(sample_shape, noise=...)`` exists.
    takes_noise = True

    def __init__(self, loc: Tensor, scale: Tensor, low: float | Tensor, high: float | Tensor) -> None:
        if not loc.is_floating_point():  # in its type the box's edges would lose their digits
            loc = loc.to(scale.dtype if scale.is_floating_point() else torch.get_default_dtype())
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.low = torch.as_tensor(low, dtype=loc.dtype, device=loc.device)
        self.high = torch.as_tensor(high, dtype=loc.dtype, device=loc.device)
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=False)

    def _place(self, value: Tensor) -> Tensor:
        """Map a value of the Gaussian into the box."""
        raise NotImplementedError

    def _score_drawn(self, action: Tensor, value: Tensor) -> Tensor:
        """Log-density of a drawn action, from the action and its Gaussian value."""
        raise NotImplementedError

    def _draw(self, sample_shape: torch.Size, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Actions, and their Gaussian values."""
        shape = self._extended_shape(sample_shape)
        if noise is None:
            noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        else:
            check_noise(noise.shape, shape)
        value = self.loc + self.scale * noise
        return self._place(value), value

    def rsample(
        self, sample_shape: torch.Size | list[int] | tuple[int, ...] = (), *, noise: Tensor | None = None
    ) -> Tensor:
        """Draw actions with pathwise gradients.

        Args:
            sample_shape: leading sample dimensions. Defaults to none.
            noise: standard-normal numbers to use instead of fresh ones, shape [*sample_shape, *B, A].

        Returns:
            Actions, shape [*sample_shape, *B, A].

        Raises:
            O2OSpecError: if the noise has another shape.
        """
        return self._draw(torch.Size(sample_shape), noise)[0]

    def rsample_and_log_prob(
        self, sample_shape: torch.Size | list[int] | tuple[int, ...] = (), *, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw actions with pathwise gradients, and compute their log-densities.

        Args:
            sample_shape: leading sample dimensions. Defaults to none.
            noise: standard-normal numbers to use instead of fresh ones, shape [*sample_shape, *B, A].

        Returns:
            Actions, shape [*sample_shape, *B, A], and log-densities, shape [*sample_shape, *B].

        Raises:
            O2OSpecError: if the noise has another shape.
        """
        action, value = self._draw(torch.Size(sample_shape), noise)
        return action, self._score_drawn(action, value)

    @property
    def mode(self) -> Tensor:
        """The Gaussian's mean on the box, what evaluation acts by, shape [*B, A]. Of a squashed density it is not the
        mode."""
        return self._place(self.loc)

    @property
    def median(self) -> Tensor:
        """Same as :attr:`mode`: what puts onto the box keeps the order, so each entry's median is the mean's place."""
        return self.mode

    @property
    def deterministic_sample(self) -> Tensor:
        """Same as :attr:`mode`; the name TorchRL's exploration types look for."""
        return self.mode


class TanhNormal(BoxDistribution):
    r"""Tanh-squashed diagonal Gaussian on a box, exact for saturated samples.

    :math:`a = m + h\tanh(u)`, :math:`u\sim N(\mu,\sigma)`, with the box's midpoint m and half-width h.

    torchrl's own :class:`torchrl.modules.TanhNormal` clamps saturated actions away from the edge and draws its noise
    itself. This one returns :math:`\tanh u` unchanged, computes the density of a fresh sample from the cached
    :math:`u`, takes noise as an argument (so that runs can be replayed and updates compiled) and never waits for a GPU.

    Source: Haarnoja et al. 2018 (SAC), appendix C.

    Args:
        loc: mean before tanh, shape [*B, A].
        scale: standard deviation before tanh, positive, shape [*B, A].
        low: lower edge of the box, scalar or [A]. Defaults to -1.
        high: upper edge of the box, scalar or [A]. Defaults to 1.
        margin: distance from the edge, as a share of the half-width, at which stored actions are clipped before atanh.
            Defaults to 1e-6.
        edge: see :func:`~torchrl_o2o.functional.tanh_normal_log_prob`. Defaults to ``None``: exact.

    Examples:
        >>> import torch
        >>> dist = TanhNormal(torch.full((2,), 20.0), torch.ones(2))
        >>> action, log_prob = dist.rsample_and_log_prob(noise=torch.zeros(2))
        >>> action  # saturated in float32, yet its log-density is exact
        tensor([1., 1.])
        >>> round(log_prob.item(), 3)
        75.39
        >>> torch.equal(dist.log_prob(action), log_prob)
        True
    """

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        *,
        low: float | Tensor = -1.0,
        high: float | Tensor = 1.0,
        margin: float = 1e-6,
        edge: float | None = None,
    ) -> None:
        self._unit_box = isinstance(low, float) and isinstance(high, float) and low == -1.0 and high == 1.0
        self.margin, self.edge = margin, edge
        self._sample: tuple[Tensor, Tensor] | None = None
        self._drawn: int | None = None
        super().__init__(loc, scale, low, high)

    def _place(self, value: Tensor) -> Tensor:
        action = value.tanh()
        if self._unit_box:
            return action
        # The sum may exceed the box by a rounding, for example from -0.3 to 0.4.
        return torch.minimum(self.low + 0.5 * (self.high - self.low) * (action + 1.0), self.high)

    def _score(self, pre_tanh: Tensor) -> Tensor:
        log_prob = tanh_normal_log_prob(pre_tanh, self.loc, self.scale, self.edge)
        if self._unit_box:
            return log_prob
        half_width = 0.5 * (self.high - self.low)
        return log_prob - half_width.log().expand(self.event_shape).sum(-1)

    def log_prob_at(self, pre_tanh: Tensor) -> Tensor:
        """Log-density of actions given before squashing, exact where tanh saturates.

        Args:
            pre_tanh: u, shape [..., *B, A].

        Returns:
            Log-densities of the squashed actions, shape [..., *B].
        """
        return self._score(pre_tanh)

    @property
    def pre_tanh(self) -> Tensor | None:
        """The last sample of this object before squashing, with its gradient; ``None`` before the first."""
        return None if self._sample is None else self._sample[1]

    def _draw(self, sample_shape: torch.Size, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        self._sample = super()._draw(sample_shape, noise)
        self._drawn = _version(self._sample[0])
        return self._sample

    def _score_drawn(self, action: Tensor, value: Tensor) -> Tensor:
        return self._score(value)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of actions; exact for the last sample of this object, from a clipped atanh for all others.

        Args:
            value: actions inside the box, shape [..., *B, A].

        Returns:
            Log-densities, shape [..., *B].
        """
        if self._sample is not None and value is self._sample[0] and self._is_as_drawn(value):
            return self._score(self._sample[1])
        if not self._unit_box:
            value = 2.0 * (value - self.low) / (self.high - self.low) - 1.0
        return self._score(inverse_tanh(value, self.margin))

    def _is_as_drawn(self, sample: Tensor) -> bool:
        """Whether the last sample was not changed in place since it was drawn."""
        if not torch.compiler.is_compiling() and sample.is_inference():  # torch counts no changes
            assert self._sample is not None
            return torch.equal(sample, self._place(self._sample[1]))
        return _version(sample) == self._drawn

    def entropy(self) -> Tensor:
        """There is no closed form.

        Raises:
            NotImplementedError: always; the message names the alternative.
        """
        raise NotImplementedError(
            "the entropy of a squashed Gaussian has no closed form; average -log_prob over samples instead, as the "
            "losses do for the metric 'entropy'"
        )

    def expand(self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: None = None) -> TanhNormal:
        """Broadcast to a larger batch shape.

        Args:
            batch_shape: the new batch shape.

        Returns:
            A new distribution over the same box.
        """
        shape = torch.Size(batch_shape) + self.event_shape
        low, high = (-1.0, 1.0) if self._unit_box else (self.low, self.high)
        settings = {"low": low, "high": high, "margin": self.margin, "edge": self.edge}
        return TanhNormal(self.loc.expand(shape), self.scale.expand(shape), **settings)


def _version(sample: Tensor) -> int | None:
    """How often a tensor was changed in place; ``None`` where torch does not count it."""
    return None if torch.compiler.is_compiling() or sample.is_inference() else sample._version
