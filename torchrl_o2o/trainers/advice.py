# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Advise which family of methods fits a data set and, if there is one, a pre-trained policy.

Source of the three regimes: Li et al. 2025, arXiv:2510.01460. The better one of policy and data set holds the knowledge
to keep online. The rest of the advice is this package's reading of the papers that it implements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from torchrl_o2o.envs.scores import Reference
from torchrl_o2o.errors import O2OSpecError

__all__ = ["PolicyComparison", "Regime", "advise", "compare"]

#: The policy is ``better`` than the data, ``worse``, about ``equal``, or the episodes are too few to decide.
Regime = Literal["better", "equal", "worse", "undecided"]

#: Differences below this share of the scale count as zero.
_MARGIN = 0.05
_RESAMPLES = 4000
_KEEP: dict[Regime, tuple[str, str]] = {
    "better": (
        "keep the policy: let it collect before the first update, and do not dilute its experience with the data.",
        "handover.data=none handover.warmup_steps=5000 (cql, samg), or Off2On, ACA, which preserve it in other ways.",
    ),
    "equal": (
        "keep both: continue from the policy, and draw half of each batch from the data.",
        "cql algorithm=cal_ql (half offline), awac, iql (one buffer that starts with the data).",
    ),
    "worse": (
        "keep the data: the policy is worse than they are. Start a new policy with half data in each batch.",
        "rlpd, a3rl; they need no pre-training.",
    ),
    "undecided": (
        "more episodes are needed to say which is better; until then keep both.",
        "cql algorithm=cal_ql, awac or iql; or repeat this with --episodes 50.",
    ),
}


@dataclass(frozen=True)
class PolicyComparison:
    """A comparison of a policy's returns with those of a data set.

    Args:
        regime: see :data:`Regime`.
        difference: difference of the means, policy minus data.
        low: lower end of its 95 % bootstrap interval.
        high: upper end.
        margin: differences below this count as zero.
    """

    regime: Regime
    difference: float
    low: float
    high: float
    margin: float


def compare(policy_returns: ArrayLike, data_returns: ArrayLike, *, scale: float, seed: int = 0) -> PolicyComparison:
    """Determine the regime of a policy and a data set.

    The policy is better if the whole interval of the difference of means lies above 0 and the difference is at least
    the margin; worse likewise; equal if the interval lies within the margin on both sides.

    Args:
        policy_returns: undiscounted returns of the policy's episodes, [n].
        data_returns: of the recorded episodes, [m].

    Keyword Args:
        scale: returns' scale, such as expert minus random; the margin is a twentieth of it.
        seed: of the bootstrap. Defaults to 0.

    Returns:
        The comparison.

    Raises:
        O2OSpecError: if there are fewer than two episodes of either, a return is not finite, or the scale is not
            positive.

    Examples:
        >>> compare([100.0, 110.0, 90.0], [20.0, 30.0, 25.0], scale=100.0).regime
        'better'
    """
    policy, data = (np.asarray(values, dtype=np.float64) for values in (policy_returns, data_returns))
    if min(policy.size, data.size) < 2 or not (np.isfinite(policy).all() and np.isfinite(data).all()):
        raise O2OSpecError(
            f"got {policy.size} episodes of the policy and {data.size} of the data, expected at least 2 finite returns "
            "of each"
        )
    if not scale > 0:
        raise O2OSpecError(f"got scale={scale}, expected a positive one")
    generator, margin = np.random.default_rng(seed), _MARGIN * scale
    draws = [each[generator.integers(each.size, size=(_RESAMPLES, each.size))].mean(1) for each in (policy, data)]
    low, high = np.percentile(draws[0] - draws[1], [2.5, 97.5])
    difference = float(policy.mean() - data.mean())
    regime: Regime = "undecided"
    if low > 0 and difference >= margin:
        regime = "better"
    elif high < 0 and difference <= -margin:
        regime = "worse"
    elif -margin < low and high < margin:
        regime = "equal"
    return PolicyComparison(regime, difference, float(low), float(high), margin)


def advise(
    data_returns: ArrayLike, *, policy_returns: ArrayLike | None = None, reference: Reference | None = None
) -> list[str]:
    """Recommend methods in a few lines, with reasons.

    Args:
        data_returns: undiscounted returns of the recorded episodes, [m].

    Keyword Args:
        policy_returns: of a pre-trained policy's episodes, [n]; ``None`` (default) if there is no policy.
        reference: random and expert return of the task, if known.

    Returns:
        Sentences.

    Raises:
        O2OSpecError: as :func:`compare`.

    Examples:
        >>> for line in advise([0.0, 0.0, 1.0, 0.0])[:2]:
        ...     print(line)
        Best recorded return 1, mean 0.25: some episodes are much better than the rest.
        No reference returns are known for this task, so "good" is relative to the data.
    """
    data = np.asarray(data_returns, dtype=np.float64)
    lines = [_quality(data, reference)]
    if reference is None:
        lines.append('No reference returns are known for this task, so "good" is relative to the data.')
    if policy_returns is None:
        return [*lines, *_without_policy(data, reference)]
    found = compare(policy_returns, data, scale=_scale(data, reference))
    interval = f"{found.difference:.4g} [{found.low:.4g}, {found.high:.4g}]: {found.regime}"
    lines.append(f"The policy's mean return minus the data's: {interval}. Less than {found.margin:.3g} counts as zero.")
    keep, use = _KEEP[found.regime]
    return [*lines, f"So {keep}", f"Use {use}"]


def _scale(data: np.ndarray, reference: Reference | None) -> float:
    if reference is not None:
        return abs(reference.expert - reference.random)
    spread = float(data.max() - data.min())
    return spread if spread > 0 else max(1.0, abs(float(data.mean())))


def _quality(data: np.ndarray, reference: Reference | None) -> str:
    """Mean and best return, and whether the best episodes are far above the rest."""
    mean, best = float(data.mean()), float(data.max())
    far = _is_mixed(data, reference)
    scores = "" if reference is None else f" (scores {_score(best, reference):z.0f} and {_score(mean, reference):z.0f})"
    text = "some episodes are much better than the rest" if far else "the episodes are about equally good"
    return f"Best recorded return {best:.4g}, mean {mean:.4g}{scores}: {text}."


def _is_mixed(data: np.ndarray, reference: Reference | None) -> bool:
    """Whether the best episode is far above the mean, relative to the task's scale or the gain over random."""
    above, scale = float(data.max() - data.mean()), _scale(data, reference)
    earned = np.inf if reference is None else max(float(data.mean()) - reference.random, _MARGIN * scale)
    return above > min(0.2 * scale, earned)


def _score(value: float, reference: Reference) -> float:
    return 100.0 * (value - reference.random) / (reference.expert - reference.random)


def _without_policy(data: np.ndarray, reference: Reference | None) -> list[str]:
    """Advice from the returns alone."""
    mixed = _is_mixed(data, reference)
    score = None if reference is None else _score(float(data.mean()), reference)
    if score is not None and score < 10.0 and not mixed:
        use = "rlpd or a3rl, online from the first step: such data are not enough to train a policy."
    elif mixed:
        use = "rlpd or a3rl without pre-training, or iql, awac, cql, which give good actions more weight."
    else:
        use = (
            "bc, td3_bc or rebrac first: cloning such data is a strong offline method; then repeat this with --policy "
            "RUN."
        )
    return [f"Use {use}", "With a pre-trained policy (--policy RUN), the advice is about what to keep online."]
