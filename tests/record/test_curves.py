# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.shared_data import shared_file
from torchrl_o2o.envs import Reference, normalized_score
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.record.curves import (
    common_scores,
    dip,
    gain,
    handover_score,
    iqm,
    regret,
    stratified_bootstrap_interval,
)

STEPS = [-100, -50, 0, 50, 100, 500, 1000]
SCORES = [0.0, 20.0, 60.0, 30.0, 45.0, 10.0, 90.0]


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 2.0, 9.0], 4.0),  # floor(3/4) = 0: the mean
        ([0.0, 1.0, 2.0, 100.0], 1.5),
        ([100.0, 0.0, 1.0, 2.0, 3.0], 2.0),  # cuts one from each end
        (list(range(8)), 3.5),
        ([-1000.0, *range(1, 11), 1000.0], 5.5),  # cuts three from each end
    ],
)
def test_iqm(scores, expected):
    assert iqm(scores) == pytest.approx(expected)


def test_iqm_along_an_axis_and_over_all():
    scores = np.array([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0], [100.0, 1000.0]])
    np.testing.assert_allclose(iqm(scores, axis=0), [1.5, 11.5])
    assert iqm(scores) == pytest.approx(np.mean([2.0, 10.0, 11.0, 12.0]))


def test_scores_that_are_masked_do_not_count():
    """What is stored under a mask is no score."""
    scores = np.ma.array([1.0, 2.0, 3.0, 100.0], mask=[False, False, False, True])
    with pytest.raises(O2OSpecError, match="got scores of which 1 are masked, expected numbers"):
        iqm(scores)
    with pytest.raises(O2OSpecError, match="got returns of which 1 are masked, expected numbers"):
        normalized_score(scores, Reference(random=0.0, expert=100.0, source="ours"))
    assert iqm(scores[:3]) == 2.0


def test_iqm_of_nothing():
    with pytest.raises(O2OSpecError, match="at least one"):
        iqm([])


def test_interval_of_two_seeds_is_known():
    # The mean of two draws from {0, 1} is 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4.
    wide = stratified_bootstrap_interval([0.0, 1.0], generator=rng())
    narrow = stratified_bootstrap_interval([0.0, 1.0], generator=rng(), level=0.4)
    assert wide == (0.0, 1.0)
    assert narrow == (0.5, 0.5)


def test_interval_covers_the_mean_as_often_as_it_says():
    draws = rng(1).normal(size=(200, 30))
    hits = 0
    for sample in draws:
        low, high = stratified_bootstrap_interval(sample, generator=rng(2), statistic=np.mean, num_resamples=400)
        hits += low <= 0.0 <= high
    assert 0.88 <= hits / 200 <= 0.99  # nominal 0.95


def test_interval_resamples_within_each_task():
    # Both tasks are constant, so a resample that keeps to the strata never changes anything.
    scores = np.array([[1.0, 5.0]] * 4)
    assert stratified_bootstrap_interval(scores, generator=rng(), statistic=np.mean) == (3.0, 3.0)


def test_interval_draws_tasks_independently():
    # If the seeds of the two tasks were drawn together, their sum would be constant.
    scores = np.array([[0.0, 1.0], [1.0, 0.0]])
    low, high = stratified_bootstrap_interval(scores, generator=rng(), statistic=np.mean)
    assert low < 0.5 < high


def test_interval_is_reproducible_and_leaves_the_global_state():
    state = np.random.get_state()[1].copy()
    scores = rng(3).normal(size=(5, 3))
    assert stratified_bootstrap_interval(scores, generator=rng(4)) == stratified_bootstrap_interval(
        scores, generator=rng(4)
    )
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("bad", [{"scores": []}, {"scores": np.zeros((2, 2, 2))}, {"scores": [1.0], "level": 95}])
def test_interval_refuses(bad):
    with pytest.raises(O2OSpecError, match="expected"):
        stratified_bootstrap_interval(**bad, generator=rng())


def test_curve_metrics_by_hand():
    assert handover_score(STEPS, SCORES) == 60.0
    assert dip(STEPS, SCORES) == 30.0  # steps 50 and 100 are the first tenth; the 10.0 at step 500 comes later
    assert dip(STEPS, SCORES, window=0.5) == 50.0
    assert gain(STEPS, SCORES) == 30.0
    area = 50 * (0.4 + 0.7) / 2 + 50 * (0.7 + 0.55) / 2 + 400 * (0.55 + 0.9) / 2 + 500 * (0.9 + 0.1) / 2
    assert regret(STEPS, SCORES) == pytest.approx(area / 1000)


def test_a_curve_that_only_rises_has_no_dip():
    assert dip([0, 10, 100], [50.0, 55.0, 70.0]) == 0.0


def test_the_dip_takes_the_first_online_evaluation_in_any_case():
    assert dip([0, 400, 1000], [50.0, 20.0, 70.0]) == 30.0


def test_the_handover_may_lie_before_step_zero():
    assert handover_score([-100, -10, 50], [1.0, 42.0, 3.0]) == 42.0
    assert regret([-10, 50, 100], [100.0, 100.0, 100.0]) == pytest.approx(0.0)


def test_regret_without_a_handover_starts_online():
    assert regret([100, 200], [0.0, 100.0]) == pytest.approx(0.5)
    with pytest.raises(O2OSpecError, match="at least two"):
        regret([100], [0.0])


def test_regret_of_success_rates_and_beyond_the_optimum():
    assert regret([0, 10], [0.25, 0.25], optimum=1.0) == pytest.approx(0.75)
    assert regret([0, 10], [120.0, 120.0]) == pytest.approx(-0.2)


def test_regret_weighs_uneven_evaluations_by_time():
    assert regret([0, 10, 1000], [100.0, 0.0, 0.0]) == pytest.approx((10 * 0.5 + 990) / 1000)


@pytest.mark.parametrize("metric", [handover_score, dip, gain])
def test_without_a_handover_there_is_no_such_metric(metric):
    with pytest.raises(O2OSpecError, match="hand-over"):
        metric([10, 20], [1.0, 2.0])


@pytest.mark.parametrize("metric", [dip, gain, regret])
def test_without_online_evaluations_there_is_no_such_metric(metric):
    with pytest.raises(O2OSpecError, match="online"):
        metric([-10, 0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("steps", "scores"), [([0, 1], [1.0]), ([], []), ([0, 0, 1], [1.0, 1.0, 1.0]), ([1, 0], [1.0, 1.0])]
)
def test_malformed_curves_are_refused(steps, scores):
    with pytest.raises(O2OSpecError, match=r"of equal length|do not increase"):
        gain(steps, scores)


def test_regret_agrees_with_published_curves():
    """CORL's figure is over training episodes, ours over evaluations: close on AntMaze, and the same ranking."""
    with np.load(shared_file("corl_finetune_scores.npz")) as peers:
        tasks = {key.rpartition("/")[0] for key in peers.files if "antmaze" in key}
        ours, theirs = [], []
        for task in sorted(tasks):
            curves, steps = peers[f"{task}/online"], np.arange(1, peers[f"{task}/online"].shape[1] + 1)
            ours.append(np.mean([regret(steps, curve) for curve in curves]))
            theirs.append(np.mean(peers[f"{task}/regret"]))
    assert len(ours) == 36
    assert np.corrcoef(ours, theirs)[0, 1] > 0.97
    assert np.abs(np.subtract(ours, theirs)).mean() < 0.06


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_of_runs_that_diverged_are_not_cut_off(bad: float) -> None:
    assert np.isnan(iqm([60.0, 70.0, 80.0, bad]))
    assert iqm([[1.0, 2.0], [3.0, bad]], axis=1).tolist()[0] == 1.5
    assert np.isnan(stratified_bootstrap_interval([1.0, 2.0, bad], generator=np.random.default_rng(0))).all()


NO_NUMBERS = [["a"], np.array([1.0 + 2.0j]), [1j], [[1.0], [1.0, 2.0]], torch.ones(2, requires_grad=True)]


@pytest.mark.parametrize(
    "call",
    [
        *(lambda bad=bad: iqm(bad) for bad in NO_NUMBERS),
        *(lambda bad=bad: gain(bad, [1.0]) for bad in NO_NUMBERS),
        *(lambda window=window: dip([0, 1], [1, 1], window=window) for window in (0, -1, 5, np.nan)),
        *(lambda optimum=optimum: regret([0, 1], [1, 1], optimum=optimum) for optimum in (0, np.nan, np.inf)),
        *(lambda n=n: stratified_bootstrap_interval([1], generator=np.random.default_rng(0), num_resamples=n)
          for n in (0, -1)),
        lambda: stratified_bootstrap_interval([1, 2], generator=0),  # type: ignore[arg-type]
        lambda: stratified_bootstrap_interval([1, 2], generator=np.random.default_rng(0), statistic=lambda x, axis: x),
        lambda: iqm([1.0], axis=2),
        lambda: common_scores([]),
    ],
)  # fmt: skip
def test_what_is_no_curve_gets_a_sentence(call: Callable[[], object]) -> None:
    with pytest.raises(O2OSpecError) as caught:
        call()
    assert len(str(caught.value)) > 20
