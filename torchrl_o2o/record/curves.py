# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Statistics of scores over seeds, and measures of the switch in offline-to-online learning curves. Numpy only.

A score that is not finite (from a run that diverged) makes the result NaN; it is not trimmed as an outlier.

A learning curve is a pair of vectors: ``steps``, increasing, negative offline, 0 at the hand-over and positive online,
and ``scores``, one evaluation each. Its *hand-over score* is the last evaluation at a step <= 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from torchrl_o2o.arguments import checked_arguments
from torchrl_o2o.errors import O2OSpecError, check_unmasked

__all__ = ["common_scores", "dip", "gain", "handover_score", "iqm", "regret", "stratified_bootstrap_interval"]


def common_scores(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Cut learning curves to the steps that all of them have.

    Args:
        curves: steps and scores of each seed; at least one.

    Returns:
        The common steps ``[n]``, rising, and the scores there ``[seeds, n]``.

    Raises:
        O2OSpecError: if there are no curves.

    Examples:
        >>> common_scores([(np.array([0, 5, 9]), np.array([1.0, 2.0, 3.0])), (np.array([0, 9]), np.array([4.0, 5.0]))])
        (array([0, 9]), array([[1., 3.],
               [4., 5.]]))
    """
    if not len(curves):
        raise O2OSpecError("got no curves, expected at least one")
    common = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in curves)))
    return np.array(common), np.stack([scores[np.isin(steps, common)] for steps, scores in curves])


def iqm(scores: ArrayLike, axis: int | None = None) -> np.ndarray:
    """Interquartile mean: the mean without the lowest and the highest quarter of the values.

    ``floor(n / 4)`` values are cut from each end, as in Agarwal et al. (2021), so that none of up to three values is
    cut.

    Args:
        scores: any shape, at least one value.
        axis: the axis to reduce; ``None`` reduces all values.

    Returns:
        The means; NaN where one of the scores is not finite.

    Raises:
        O2OSpecError: if there are no scores, they are not an array of numbers, or the axis does not exist.

    Examples:
        >>> from torchrl_o2o.record import iqm
        >>> float(iqm([0.0, 1.0, 2.0, 100.0]))
        1.5
        >>> float(iqm([60.0, 70.0, 80.0, float("nan")]))
        nan
    """
    array = _numbers("scores", scores)
    if axis is not None and not isinstance(axis, int | np.integer):
        raise O2OSpecError(f"got axis={axis!r}, expected one axis, or None for all; reshape the scores first")
    if axis is not None and not -array.ndim <= axis < array.ndim:
        raise O2OSpecError(f"got axis={axis} for scores of shape {array.shape}, expected one of their axes")
    array = array.ravel() if axis is None else np.moveaxis(array, axis, -1)
    if array.size == 0:
        raise O2OSpecError("got no scores, expected at least one")
    # When sorted, values that are not finite would be trimmed.
    array = np.where(np.isfinite(array).all(axis=-1, keepdims=True), array, np.nan)
    cut = array.shape[-1] // 4
    return np.sort(array, axis=-1)[..., cut : array.shape[-1] - cut].mean(axis=-1)


@checked_arguments
def stratified_bootstrap_interval(
    scores: ArrayLike,
    *,
    generator: np.random.Generator,
    statistic: Callable[..., np.ndarray] = iqm,
    level: float = 0.95,
    num_resamples: int = 2000,
) -> tuple[float, float]:
    """Percentile interval of a statistic under the stratified bootstrap (Agarwal et al., 2021, section 4.1).

    Each resample draws the seeds with replacement, separately for each task and as many as there are. The statistic is
    then computed over all tasks together. With one seed the interval is a point.

    Args:
        scores: ``[seeds]`` for one task or ``[seeds, tasks]``.
        generator: source of the resamples; the global state is not changed.
        statistic: called with an array ``[resamples, seeds * tasks]`` and ``axis=1``; returns one number per resample.
        level: coverage, in (0, 1).
        num_resamples: number of resamples.

    Returns:
        The lower and the upper end; NaN if one of the scores is not finite.

    Raises:
        O2OSpecError: if the scores are empty or not one- or two-dimensional, the level is outside (0, 1), the number of
            resamples is below 1, ``generator`` is not numpy's, or ``statistic`` does not give one number per resample.

    Examples:
        >>> import numpy as np
        >>> from torchrl_o2o.record import stratified_bootstrap_interval
        >>> low, high = stratified_bootstrap_interval([1.0, 2.0, 3.0, 4.0], generator=np.random.default_rng(0))
        >>> 1.0 <= low < 2.5 < high <= 4.0
        True
    """
    array = _numbers("scores", scores)
    if array.ndim not in (1, 2) or array.size == 0:
        raise O2OSpecError(f"got scores of shape {array.shape}, expected [seeds] or [seeds, tasks], not empty")
    if not 0.0 < level < 1.0:
        raise O2OSpecError(f"got level={level}, expected a coverage in (0, 1), such as 0.95")
    if num_resamples < 1 or not isinstance(generator, np.random.Generator):
        raise O2OSpecError(
            f"got num_resamples={num_resamples}, generator={generator!r}, expected at least 1 and "
            "numpy.random.default_rng(seed)"
        )
    if not np.isfinite(array).all():
        return float("nan"), float("nan")
    array = array.reshape(len(array), -1)
    rows = generator.integers(len(array), size=(num_resamples, *array.shape))
    resamples = np.take_along_axis(array[None], rows, axis=1).reshape(num_resamples, -1)
    tail = 50.0 * (1.0 - level)
    values = _numbers("values of the statistic", statistic(resamples, axis=1))
    if values.shape != (num_resamples,):
        raise O2OSpecError(
            f"got {list(values.shape)} values of the statistic for resamples of shape {list(resamples.shape)}, "
            f"expected [{num_resamples}]; reduce the axis that it is called with, as numpy.median does"
        )
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)


def handover_score(steps: ArrayLike, scores: ArrayLike) -> float:
    """Score of the policy that goes online: the last evaluation at a step <= 0.

    Args:
        steps: ``[n]``, rising, in environment steps; offline training at negative steps.
        scores: ``[n]``, the evaluations.

    Returns:
        The score.

    Raises:
        O2OSpecError: if ``steps`` and ``scores`` do not match, or there is no evaluation at or before step 0.

    Examples:
        >>> from torchrl_o2o.record import handover_score
        >>> handover_score([-100, 0, 100], [5.0, 40.0, 60.0])
        40.0
    """
    step, score = _curve(steps, scores)
    if step[0] > 0:
        raise O2OSpecError(
            f"got the first evaluation at step {step[0]:g}, expected one at the hand-over, at a step <= 0"
        )
    return float(score[step <= 0][-1])


@checked_arguments
def dip(steps: ArrayLike, scores: ArrayLike, *, window: float = 0.1) -> float:
    """Fall of the score after the switch: the hand-over score minus the lowest score early in the online phase.

    Early evaluations are those within the first ``window`` of the online steps, and always the first online one.

    Args:
        steps: ``[n]`` as in :func:`handover_score`.
        scores: ``[n]``.
        window: part of the online steps, in (0, 1].

    Returns:
        The fall in units of the score; 0 if the score never falls below the hand-over score, NaN if one of these is
        NaN.

    Raises:
        O2OSpecError: as :func:`handover_score`, or if there is no online evaluation or ``window`` is outside (0, 1].

    Examples:
        >>> from torchrl_o2o.record import dip
        >>> dip([0, 50, 100, 1000], [40.0, 25.0, 30.0, 10.0])
        15.0
    """
    if not 0.0 < window <= 1.0:
        raise O2OSpecError(f"got window={window}, expected a part of the online steps, in (0, 1]")
    before = handover_score(steps, scores)
    step, score = _online(steps, scores)
    early = step <= max(window * step[-1], step[0])
    return float(np.maximum(0.0, before - score[early].min()))  # unlike max(), this is NaN if any value is NaN


def gain(steps: ArrayLike, scores: ArrayLike) -> float:
    """Gain of online training: the last score minus the hand-over score.

    Args:
        steps: ``[n]`` as in :func:`handover_score`.
        scores: ``[n]``.

    Returns:
        The difference, in the scores' units.

    Raises:
        O2OSpecError: as :func:`handover_score`, or if there is no online evaluation.

    Examples:
        >>> from torchrl_o2o.record import gain
        >>> gain([-100, 0, 100, 200], [5.0, 40.0, 60.0, 90.0])
        50.0
    """
    return float(_online(steps, scores)[1][-1]) - handover_score(steps, scores)


def regret(steps: ArrayLike, scores: ArrayLike, *, optimum: float = 100.0) -> float:
    """Mean normalized regret while online: the time average of ``1 - score / optimum``.

    The average is computed with the trapezoidal rule, so that unevenly spaced evaluations count by their distance. It
    runs from the hand-over, or from the first online evaluation if there is none, to the end. The regret is 0 for a
    perfect agent and 1 for a score of 0; scores above the optimum count as negative. CORL (Tarasov et al., 2023)
    averages one minus the success of the *training* episodes, so its numbers differ somewhat.

    Args:
        steps: ``[n]`` as in :func:`handover_score`.
        scores: ``[n]``.
        optimum: the score without regret: 100 for normalized scores, 1 for success rates.

    Returns:
        The regret, dimensionless.

    Raises:
        O2OSpecError: if ``steps`` and ``scores`` do not match, there are fewer than two evaluations from the hand-over
            on, or the optimum is 0 or not finite.

    Examples:
        >>> from torchrl_o2o.record import regret
        >>> regret([-100, 0, 100, 300], [0.0, 50.0, 100.0, 100.0])  # (0.25 * 100 + 0 * 200) / 300
        0.0833...
    """
    if not np.isfinite(optimum) or optimum == 0:
        raise O2OSpecError(f"got optimum={optimum}, expected the score of a perfect agent, such as 100")
    step, score = _online(steps, scores)
    if np.min(steps) <= 0:
        step = np.concatenate([[0.0], step])
        score = np.concatenate([[handover_score(steps, scores)], score])
    if len(step) < 2:
        raise O2OSpecError("got one online evaluation and none at the hand-over, expected at least two")
    loss = 1.0 - score / optimum
    return float(np.sum((loss[1:] + loss[:-1]) / 2 * np.diff(step)) / (step[-1] - step[0]))


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    check_unmasked(name, values)
    try:
        if np.iscomplexobj(np.asarray(values)):
            raise TypeError("they are complex")
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:  # text, lists of uneven length, tensors with gradients
        raise O2OSpecError(f"got {name} that are not an array of numbers ({error}); pass an array or a list") from error


def _online(steps: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    step, score = _curve(steps, scores)
    if step[-1] <= 0:
        raise O2OSpecError(f"got the last evaluation at step {step[-1]:g}, expected at least one online, at a step > 0")
    return step[step > 0], score[step > 0]


def _curve(steps: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    step, score = _numbers("steps", steps), _numbers("scores", scores)
    if step.ndim != 1 or step.shape != score.shape or step.size == 0:
        raise O2OSpecError(
            f"got steps of shape {step.shape} and scores of shape {score.shape}, expected two vectors of equal length"
        )
    if not np.isfinite(step).all():
        raise O2OSpecError(
            f"got the step {step[~np.isfinite(step)][0]}, expected finite steps; drop the evaluations without one"
        )
    if np.any(np.diff(step) <= 0):
        raise O2OSpecError("got steps that do not increase; sort the evaluations and keep one per step")
    return step, score
