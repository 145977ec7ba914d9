# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""SAMG's confidences p(s, a): how much the offline critic is trusted at a state-action pair.

Shapes: B any batch shape, o observation, A action, Z latent dimensions.
"""

from __future__ import annotations

import copy
import math
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol, Self, TypeGuard, cast

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.functional.offline import gaussian_kl
from torchrl_o2o.functional.samg import Aggregator, latent_confidence
from torchrl_o2o.modules.input_checks import entries_of

__all__ = [
    "Confidence",
    "ConfidenceReport",
    "ConstantConfidence",
    "DensityRatioConfidence",
    "OfflineConfidence",
    "RandomConfidence",
]

_KEYS: tuple[NestedKey, NestedKey] = ("observation", "action")
_SMALL = 1e-6  # a latent dimension that varies less than this on the data counts as typical


class _Encodes(Protocol):
    """The interface of the networks that a confidence uses."""

    latent_dim: int

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """See :meth:`torch.nn.Module.requires_grad_`."""
        ...

    def encode(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor | None]:
        """The latent's mean, and its standard deviation if it has one, each [*B, Z]."""
        ...


class Confidence(TensorDictModuleBase):
    r"""Abstract base: reads (s, a) and writes :math:`p=\hat p\,1[\hat p\ge p_m]`, without gradient.

    Call it once per transition, when the transition is stored: ``buffer.extend(confidence(data.select(*TRANSITION)))``.
    Subclasses implement :meth:`probability`.

    Source: SAMG, Eq. 3.

    Keyword Args:
        threshold: p_m; lower confidences become 0. Defaults to 0.
        in_keys: entries of observation and action. Defaults to ``("observation", "action")``.
        out_key: entry written, shape [*B, 1]. ``("next", "p_off")`` is for torchrl's own losses, some of which pass
            only ``"next"`` on to their estimator. Defaults to ``"p_off"``.

    Raises:
        O2OSpecError: if the threshold is outside [0, 1].

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> class Central(Confidence):  # sure in the middle of the action box
        ...     def probability(self, observation, action):
        ...         return 1.0 - action.abs().amax(-1)
        >>> rows = random_transitions(2, 3, 1).set("action", torch.tensor([[0.0], [-0.9]]))
        >>> Central(threshold=0.5)(rows)["p_off"].squeeze(-1)
        tensor([1., 0.])
    """

    @checked_arguments
    def __init__(
        self,
        *,
        threshold: float = 0.0,
        in_keys: tuple[NestedKey, NestedKey] = _KEYS,
        out_key: NestedKey = "p_off",
    ) -> None:
        super().__init__()
        if not 0.0 <= threshold <= 1.0:
            raise O2OSpecError(
                f"got threshold={threshold}, expected a probability in [0, 1]; the paper mostly uses 0.5"
            )
        self.threshold = threshold
        # tensordict's setters accept nested keys, which their annotations omit.
        self.in_keys = cast("list[str | tuple[str]]", list(in_keys))
        self.out_keys = cast("list[str | tuple[str]]", [out_key])

    @abstractmethod
    def probability(self, observation: Tensor, action: Tensor) -> Tensor:
        """The confidence before the threshold.

        Args:
            observation: shape [*B, o].
            action: shape [*B, A].

        Returns:
            Shape [*B].
        """

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write p, shape [*B, 1], into the tensordict and return it."""
        raw = self.probability(*self._read(tensordict))
        return tensordict.set(self.out_keys[0], torch.where(raw >= self.threshold, raw, 0.0).unsqueeze(-1))

    def _read(self, tensordict: TensorDictBase) -> list[Tensor]:
        """Observation and action; raises if one is missing."""
        return entries_of(tensordict, self.in_keys, f"{type(self).__name__}")

    @torch.no_grad()
    def check(self, data: TensorDictBase, *, batch_size: int = 65_536) -> ConfidenceReport:
        """Statistics of p on data, without fitting anything.

        Args:
            data: offline transitions [N] with the entries of ``in_keys``.
            batch_size: rows at a time. Defaults to 65536.

        Returns:
            A report whose ``kl`` and ``spread`` are nan.

        Warns:
            UserWarning: if nothing passes the threshold.
        """
        self._read(data)
        parts = data.select(*self.in_keys).split(batch_size)
        raw = torch.cat([self.probability(*self._read(part)) for part in parts])
        report = ConfidenceReport(math.nan, math.nan, float(raw.mean()), self._passing(raw))
        _warn_if_nothing_passes(report, self.threshold)
        return report

    def _passing(self, raw: Tensor) -> float:
        return float((raw >= self.threshold).to(raw.dtype).mean())


class ConstantConfidence(Confidence):
    """The same p everywhere: 0.5 is the paper's ablation SAMG-even, 0 the base algorithm, 1 the frozen critic alone.

    Args:
        value: p.

    Keyword Args:
        in_keys: entries of observation and action. Defaults to ``("observation", "action")``.
        out_key: entry written, shape [*B, 1]. Defaults to ``"p_off"``.

    Raises:
        O2OSpecError: if the value is outside [0, 1].

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> ConstantConfidence(0.5)(random_transitions(4, 3, 2))["p_off"].mean()
        tensor(0.5000)
    """

    @checked_arguments
    def __init__(
        self, value: float, *, in_keys: tuple[NestedKey, NestedKey] = _KEYS, out_key: NestedKey = "p_off"
    ) -> None:
        super().__init__(in_keys=in_keys, out_key=out_key)
        if not 0.0 <= value <= 1.0:
            raise O2OSpecError(f"got value={value}, expected a probability in [0, 1]")
        self.value = value

    def probability(self, observation: Tensor, action: Tensor) -> Tensor:
        """See :meth:`Confidence.probability`."""
        return observation.new_full(observation.shape[:-1], self.value)


class RandomConfidence(Confidence):
    """Uniform p, drawn at every call: the paper's ablation.

    Keyword Args:
        threshold: p_m. Defaults to 0.
        generator: source of the numbers, on the data's device; ``None`` (default) is torch's global one.
        in_keys: entries of observation and action. Defaults to ``("observation", "action")``.
        out_key: entry written, shape [*B, 1]. Defaults to ``"p_off"``.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> RandomConfidence()(random_transitions(4, 3, 2))["p_off"].shape
        torch.Size([4, 1])
    """

    @checked_arguments
    def __init__(
        self,
        *,
        threshold: float = 0.0,
        generator: torch.Generator | None = None,
        in_keys: tuple[NestedKey, NestedKey] = _KEYS,
        out_key: NestedKey = "p_off",
    ) -> None:
        super().__init__(threshold=threshold, in_keys=in_keys, out_key=out_key)
        self.generator = generator

    def probability(self, observation: Tensor, action: Tensor) -> Tensor:
        """See :meth:`Confidence.probability`."""
        shape, like = observation.shape[:-1], {"dtype": observation.dtype, "device": observation.device}
        return torch.rand(shape, generator=self.generator, **like)


class DensityRatioConfidence(Confidence):
    r"""The probability :math:`p=1/(1+w)` that a pair is from the data set, with :math:`w=d_\pi/d_\mathrm{off}`.

    It is not in the paper; it uses the density ratio of A3RL and Off2On as SAMG's confidence. SAMG goes online without
    the data set, so train the ratio offline with :class:`~torchrl_o2o.objectives.PerturbationRatioLoss`, which replaces
    :math:`d_\pi` by perturbed rows of the data set. If there are rows of the policy, train it with
    :class:`~torchrl_o2o.objectives.DensityRatioLoss`. Further training does not change p that are already stored.

    Args:
        density_ratio: writes log w, for example :class:`~torchrl_o2o.modules.DensityRatio`; its current parameters are
            used at each call.

    Keyword Args:
        threshold: p_m. Defaults to 0.5, above which a pair is more likely from the data set than from the policy.
        out_key: entry written, shape [*B, 1]. Defaults to ``"p_off"``.

    Examples:
        >>> from torchrl_o2o.modules import DensityRatio
        >>> from torchrl_o2o.testing import random_transitions
        >>> ratio = DensityRatio(3, 2, hidden_sizes=(8,), output_bias=-2.0)
        >>> bool((DensityRatioConfidence(ratio, threshold=0.0)(random_transitions(4, 3, 2))["p_off"] > 0).all())
        True
    """

    @checked_arguments
    def __init__(
        self, density_ratio: TensorDictModule, *, threshold: float = 0.5, out_key: NestedKey = "p_off"
    ) -> None:
        observation_key, action_key = density_ratio.in_keys
        super().__init__(threshold=threshold, in_keys=(observation_key, action_key), out_key=out_key)
        self.density_ratio = density_ratio

    def probability(self, observation: Tensor, action: Tensor) -> Tensor:
        """See :meth:`Confidence.probability`."""
        return torch.sigmoid(-self.density_ratio(observation, action).squeeze(-1))


@dataclass(frozen=True)
class ConfidenceReport:
    """Statistics of a fitted confidence on data.

    Args:
        kl: divergence of the encoder from N(0, 1), mean over rows and dimensions; nan for an embedding without one.
        spread: standard deviation of the latent means over the rows, mean over dimensions.
        mean: mean of p before the threshold.
        passing: share of rows at or above the threshold.

    Examples:
        >>> from torchrl_o2o.testing import random_transitions
        >>> report = ConstantConfidence(0.5).check(random_transitions(8, 3, 2))
        >>> report.mean, report.passing
        (0.5, 1.0)
    """

    kl: float
    spread: float
    mean: float
    passing: float


class OfflineConfidence(Confidence):
    r"""SAMG's confidence: how typical the latent mean of (s, a) is for the data set.

    Over the data set one Normal is fitted to each latent dimension's mean :math:`\mu_j(s,a)`; then

    .. math:: z_j = \frac{\mu_j(s,a)-\bar\mu_j}{\bar\sigma_j},\qquad
        \hat p(s,a) = \frac1Z\sum_j 2\big(1-\Phi(|z_j|)\big),\qquad p = \hat p\,1[\hat p\ge p_m]

    or another aggregate of :func:`~torchrl_o2o.functional.latent_confidence`.

    Source: SAMG, Eq. 3 and its text: only the encoder's mean is used, with the distribution function of the fitted
    Normal. The paper does not say that the tail is two-sided and the dimensions are averaged; this is our
    reconstruction.

    :meth:`fit` warns if the confidence is useless: if the latent has collapsed, no row passes the threshold, or every
    row passes it.

    Args:
        encoder: from :func:`~torchrl_o2o.modules.make_conditional_vae` or
            :func:`~torchrl_o2o.modules.make_inverse_dynamics`, or any module with ``encode(observation, action) ->
            (mean, std or None)``; a frozen copy is kept.

    Keyword Args:
        aggregator: ``"mean"`` (default), ``"min"``, ``"geometric"`` or ``"chi_square"``.
        threshold: p_m. Defaults to 0.5, which the paper mostly uses (its ablation has 0, 0.3, 0.5 and 0.75).
        whiten: whether to fit one Normal with full covariance instead, and take z along its principal axes. It is not
            in the paper. It also detects unusual combinations of usual latents, such as another action in a known
            state. Defaults to ``False``.
        in_keys: entries of observation and action. Defaults to ``("observation", "action")``.
        out_key: entry written, shape [*B, 1]. Defaults to ``"p_off"``.

    Raises:
        O2OSpecError: if the encoder has no ``encode`` or the threshold is out of range.

    Examples:
        >>> import torch
        >>> from torchrl_o2o.modules import make_conditional_vae
        >>> from torchrl_o2o.testing import random_transitions
        >>> _ = torch.manual_seed(0)
        >>> data = random_transitions(64, 3, 2)
        >>> confidence = OfflineConfidence(make_conditional_vae(3, 2, hidden_sizes=(8,)), threshold=0.3)
        >>> report = confidence.fit(data)
        >>> 0.0 < report.passing <= 1.0
        True
        >>> confidence(data)["p_off"].shape
        torch.Size([64, 1])
    """

    latent_mean: Tensor
    latent_scale: Tensor
    fitted: Tensor

    @checked_arguments
    def __init__(
        self,
        encoder: nn.Module,
        *,
        aggregator: Aggregator = "mean",
        threshold: float = 0.5,
        whiten: bool = False,
        in_keys: tuple[NestedKey, NestedKey] = _KEYS,
        out_key: NestedKey = "p_off",
    ) -> None:
        super().__init__(threshold=threshold, in_keys=in_keys, out_key=out_key)
        network = encoder.module if isinstance(encoder, TensorDictModule) else encoder
        if not _is_encoder(network):
            raise O2OSpecError(
                f"got {type(network).__name__}, expected an encoder with encode(observation, action) and latent_dim; "
                "build it with make_conditional_vae(...) or make_inverse_dynamics(...)"
            )
        latent_confidence(torch.zeros(1, 1), aggregator)  # raises here, not at first use, if the aggregator is unknown
        self.encoder = copy.deepcopy(network).requires_grad_(False)
        self.aggregator: Aggregator = aggregator
        self.whiten = whiten
        width = int(network.latent_dim)
        self.register_buffer("latent_mean", torch.zeros(width, dtype=torch.get_default_dtype()))
        self.register_buffer("latent_scale", torch.eye(width, dtype=torch.get_default_dtype()))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def probability(self, observation: Tensor, action: Tensor) -> Tensor:
        """See :meth:`Confidence.probability`."""
        if not self.fitted:
            raise O2OSpecError(
                "got a confidence that is not fitted, expected one that has seen data; call "
                "confidence.fit(offline_data) first"
            )
        mean, _ = self.encoder.encode(observation, action)
        return latent_confidence(self._standardized(mean), self.aggregator)

    def _standardized(self, mean: Tensor) -> Tensor:
        """z of the fitted Normals, shape [*B, Z]."""
        return (mean - self.latent_mean) @ self.latent_scale

    @torch.no_grad()
    def fit(self, data: TensorDictBase, *, batch_size: int = 65_536) -> ConfidenceReport:
        """Fit one Normal to each latent dimension's means over a data set, and check the result.

        Args:
            data: offline transitions [N] with the entries of ``in_keys``, N >= 2.
            batch_size: rows encoded at a time. Defaults to 65536.

        Returns:
            Statistics of p on the data set itself.

        Raises:
            O2ODataError: if there are fewer than two rows or a latent is not finite.

        Warns:
            UserWarning: if the latent has collapsed, or nothing or everything passes the threshold.
        """
        if len(data) < 2:
            raise O2ODataError(
                f"got {len(data)} rows to fit the confidence to, expected at least 2; pass the offline data set"
            )
        means, kl = self._encode(data, batch_size)
        if not means.isfinite().all():
            raise O2ODataError(
                "got latent means that are not all finite, expected finite ones; retrain the encoder with a smaller "
                "learning rate"
            )
        std = means.std(0)
        self.latent_mean.copy_(means.mean(0))
        self.latent_scale.copy_(_whitening(means) if self.whiten else std.clamp_min(_SMALL).reciprocal().diag())
        self.fitted.fill_(True)
        raw = latent_confidence(self._standardized(means), self.aggregator)
        report = ConfidenceReport(kl, float(std.mean()), float(raw.mean()), self._passing(raw))
        self._warn(report)
        return report

    def _encode(self, data: TensorDictBase, batch_size: int) -> tuple[Tensor, float]:
        """Latent means [N, Z] and the mean divergence."""
        means, divergences = [], []
        for rows in data.select(*self.in_keys).split(batch_size):
            mean, std = self.encoder.encode(*(rows.get(key) for key in self.in_keys))
            means.append(mean)
            if std is not None:
                divergences.append(gaussian_kl(mean, std))
        return torch.cat(means), float(torch.cat(divergences).mean()) if divergences else math.nan

    def _warn(self, report: ConfidenceReport) -> None:
        if report.kl < 1e-3 or report.spread < 1e-2:
            warnings.warn(
                f"the latent has collapsed (divergence {report.kl:.2g}, spread of the means {report.spread:.2g}; "
                f"expected at least 1e-3 and 1e-2), so p hardly depends on the action. Anneal the divergence's weight "
                f"(ConditionalVAELoss.set_progress), lower it (beta), or use make_conditional_vae(decoder='latent')",
                stacklevel=3,
            )
        _warn_if_nothing_passes(report, self.threshold)
        if report.passing > 0.99 and self.threshold > 0.0:
            warnings.warn(
                f"{_reach(report, self.threshold)}, so it rejects no row; raise it, or set it to 0 if you want no "
                "threshold",
                stacklevel=3,
            )


def _is_encoder(network: object) -> TypeGuard[_Encodes]:
    found = callable(getattr(network, "encode", None)) and hasattr(network, "latent_dim")
    return found and isinstance(network, nn.Module)


def _warn_if_nothing_passes(report: ConfidenceReport, threshold: float) -> None:
    if report.passing < 0.01:
        warnings.warn(
            f"only {_reach(report, threshold)}, so this is nearly the base algorithm; lower the threshold, or use "
            f"another aggregator or confidence",
            stacklevel=4,
        )


def _reach(report: ConfidenceReport, threshold: float) -> str:
    share = f"{report.passing:.1%} of the data set's own rows reach the threshold {threshold:g}"
    return f"{share} (mean of p: {report.mean:.2f})"


def _whitening(means: Tensor) -> Tensor:
    """Matrix [Z, Z] that turns the latents of the data into uncorrelated ones of variance 1."""
    variance, axes = torch.linalg.eigh(means.double().T.cov())
    return (axes / variance.clamp_min(_SMALL**2).sqrt()).to(means.dtype)
