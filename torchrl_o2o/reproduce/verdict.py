# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Decide a claim from results: differences of interquartile means, their bootstrap intervals, and the verdict.

The interval follows Agarwal et al. (2021), section 4.1: seeds are drawn with replacement within each task,
independently in both groups, and the interquartile mean is taken over all tasks and seeds together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchrl_o2o.record.curves import dip, gain, handover_score, iqm, regret
from torchrl_o2o.reproduce.claims import Claim, Comparison
from torchrl_o2o.reproduce.results import Result

__all__ = ["ComparisonResult", "judge", "score_of", "verdict_of"]

_RESAMPLES = 2000
_BOOTSTRAP_SEED = 0  # the same results give the same verdict


@dataclass(frozen=True)
class ComparisonResult:
    """The result of one comparison.

    Args:
        comparison: the comparison.
        verdict: ``holds``, ``does not hold`` or ``undecided``.
        difference: difference of the interquartile means of both groups' scores so far; NaN without runs or if one
            diverged.
        low: lower end of its 95 % interval.
        high: upper end.
        finished: number of finished runs of both groups.
        wanted: number of runs that the claim declares for both groups.
        remarks: remarks for the reader on runs that failed or diverged.

    Examples:
        >>> part = Comparison("rlpd", None, "gain", "more", margin=5.0)
        >>> ComparisonResult(part, "holds", difference=12.0, low=8.0, high=15.0, finished=5, wanted=5).verdict
        'holds'
    """

    comparison: Comparison
    verdict: str
    difference: float
    low: float
    high: float
    finished: int
    wanted: int
    remarks: tuple[str, ...] = ()


def score_of(statistic: str, steps: np.ndarray, scores: np.ndarray, window: float = 0.1) -> float:
    """Score one run; see :class:`~torchrl_o2o.reproduce.claims.Comparison` for what the statistics mean.

    Args:
        statistic: ``final``, ``late``, ``gain``, ``kept`` or ``mean``.
        steps: ``[n]``.
        scores: ``[n]``.
        window: part of the online steps, for ``kept`` and ``late``. Defaults to 0.1.

    Returns:
        The score, in units of the metric.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.reproduce import score_of
        >>> steps, scores = np.array([0.0, 10.0, 100.0]), np.array([40.0, 30.0, 90.0])
        >>> [score_of(name, steps, scores) for name in ("final", "gain", "kept", "mean")]
        [90.0, 50.0, -10.0, 57.5]
        >>> score_of("late", steps, scores, window=0.95)  # of the evaluations at 10 and 100
        60.0
    """
    if statistic == "final":
        return float(scores[-1])
    if statistic == "late":
        at_end = (steps > (1.0 - window) * steps[-1]) | (steps == steps[-1])
        return float(scores[at_end].mean())
    if statistic == "gain":
        return gain(steps, scores)
    if statistic == "kept":
        return 0.0 - dip(steps, scores, window=window)
    return 1.0 - regret(steps, scores, optimum=1.0)


def judge(claim: Claim, results: Sequence[Result]) -> list[ComparisonResult]:
    """Decide every comparison of a claim.

    A comparison is undecided until all its declared runs are finished, so that the verdict does not depend on when it
    is computed. It is also undecided if a run failed or has a NaN score. Otherwise ``more`` holds if the interval lies
    above 0 and the difference is at least the margin; it does not hold if the whole interval lies below the margin.
    ``no_less`` holds if the interval lies above minus the margin, and does not hold if it lies below.

    Args:
        claim: the claim.
        results: of its runs.

    Returns:
        One result per comparison, in the same order.

    Examples:
        >>> from torchrl_o2o.reproduce import load_claim
        >>> claim = load_claim("rlpd-layer-norm")
        >>> [(finding.verdict, finding.finished) for finding in judge(claim, [])]  # before a run is finished
        [('undecided', 0)]
    """
    return [_judge(claim, part, results) for part in claim.comparisons]


def verdict_of(findings: Sequence[ComparisonResult]) -> str:
    """Verdict on a claim: it holds if all its comparisons hold, and does not hold if one of them does not.

    Args:
        findings: from :func:`judge`.

    Returns:
        ``holds``, ``does not hold`` or ``undecided``.

    Examples:
        >>> from torchrl_o2o.reproduce import verdict_of
        >>> verdict_of([])
        'undecided'
    """
    verdicts = {finding.verdict for finding in findings}
    if "does not hold" in verdicts:
        return "does not hold"
    return "holds" if verdicts == {"holds"} else "undecided"


def _judge(claim: Claim, part: Comparison, results: Sequence[Result]) -> ComparisonResult:
    names = [part.group] if part.than is None else [part.group, part.than]
    needed = {*names, part.start} - {None}
    own = [result for result in results if result.group in needed]
    finished = [result for result in own if result.status == "finished"]
    wanted = len(needed) * len(claim.tasks) * len(claim.seeds)
    scored = [
        (run, score) for run in finished if run.group in names and (score := _score(part, run, finished)) is not None
    ]
    scores = {name: _by_task(claim, name, scored) for name in names}
    remarks = tuple(f"{_name(result)} failed" for result in own if result.status == "failed")
    remarks += tuple(f"{_name(result)} diverged (a score is NaN)" for result, score in scored if np.isnan(score))
    difference, low, high = _difference([scores[name] for name in names])
    verdict = "undecided" if len(finished) < wanted else _decide(part, difference, low, high)
    return ComparisonResult(part, verdict, difference, low, high, len(finished), wanted, remarks)


def _name(result: Result) -> str:
    return f"{result.group} on {result.task}, seed {result.seed},"


def _score(part: Comparison, run: Result, finished: Sequence[Result]) -> float | None:
    """A run's score; ``None`` if its reference run is missing."""
    steps, scores = run.steps, run.scores
    if part.start is not None:
        same = (
            other for other in finished if (other.group, other.task, other.seed) == (part.start, run.task, run.seed)
        )
        if (start := next(same, None)) is None:
            return None
        online = steps >= 0  # the group's own evaluation at the hand-over counts as the first online one
        steps = np.concatenate([[0.0], steps[online] + 1])
        scores = np.concatenate([[handover_score(start.steps, start.scores)], scores[online]])
    return score_of(part.statistic, steps, scores, part.window)


def _by_task(claim: Claim, group: str, scored: Sequence[tuple[Result, float]]) -> list[np.ndarray]:
    """One array of seeds for each task that has any."""
    by_task = ([score for run, score in scored if (run.group, run.task) == (group, task)] for task in claim.tasks)
    return [np.array(scores) for scores in by_task if scores]


def _difference(groups: Sequence[list[np.ndarray]]) -> tuple[float, float, float]:
    if not all(groups) or any(np.isnan(task).any() for tasks in groups for task in tasks):
        return float("nan"), float("nan"), float("nan")
    generator = np.random.default_rng(_BOOTSTRAP_SEED)
    values = [float(iqm(np.concatenate(tasks))) for tasks in groups]
    draws = [iqm(_resampled(tasks, generator), axis=1) for tasks in groups]
    sign = [1.0, -1.0]
    difference = sum(s * value for s, value in zip(sign, values))
    low, high = np.percentile(sum(s * draw for s, draw in zip(sign, draws)), [2.5, 97.5])
    return difference, float(low), float(high)


def _resampled(tasks: Sequence[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    rows = [task[generator.integers(len(task), size=(_RESAMPLES, len(task)))] for task in tasks]
    return np.concatenate(rows, axis=1)


def _decide(part: Comparison, difference: float, low: float, high: float) -> str:
    if part.rule == "more":
        holds, fails = low > 0 and difference >= part.margin, high < part.margin
    else:
        holds, fails = low > -part.margin, high < -part.margin
    return "holds" if holds else "does not hold" if fails else "undecided"  # NaN decides nothing
