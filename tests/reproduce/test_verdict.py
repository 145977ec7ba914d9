# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import numpy as np
import pytest

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.record import iqm
from torchrl_o2o.reproduce import Claim, Comparison, Result, judge, score_of, verdict_of


def claim(rule: str = "more", margin: float = 5.0, than: str | None = "b", statistic: str = "final") -> Claim:
    part = Comparison("a", than, statistic, rule, margin)
    texts = ("name", "paper", "where", "statement", "metric", tuple(range(5)), "settings", "rlpd")
    return Claim(*texts, (), {"t": (), "u": ()}, {"a": (), "b": ("x=1",)}, (part,))


def results(group: str, scores: np.ndarray, status: str = "finished") -> list[Result]:
    """Scores are [tasks, seeds]."""
    return [
        Result(group, task, seed, "", status, 1.0, "", "", "", np.array([0.0, 10.0]), np.array([50.0, score]))
        for task, row in zip("tu", scores)
        for seed, score in enumerate(row)
    ]


SPREAD = np.array([[-2.0, -1.0, 0.0, 1.0, 2.0], [-2.0, -1.0, 0.0, 1.0, 2.0]])


@pytest.mark.parametrize(
    ("rule", "ahead", "verdict"),
    [
        ("more", 20.0, "holds"),
        ("more", 0.0, "does not hold"),
        ("more", -20.0, "does not hold"),
        ("more", 5.0, "holds"),
        ("more", 4.5, "undecided"),
        ("no_less", 0.0, "holds"),
        ("no_less", -20.0, "does not hold"),
        ("no_less", -5.0, "undecided"),
    ],
)
def test_the_rules(rule: str, ahead: float, verdict: str) -> None:
    runs = [*results("a", 50 + ahead + SPREAD), *results("b", 50 + SPREAD)]
    (finding,) = judge(claim(rule), runs)
    assert finding.verdict == verdict
    assert verdict_of([finding]) == verdict
    assert finding.difference == pytest.approx(ahead)
    assert finding.low < ahead < finding.high


@pytest.mark.parametrize(("window", "expected"), [(0.1, 8.0), (0.11, 6.0), (0.01, 10.0), (1.0, 5.5)])
def test_late_is_the_mean_of_the_evaluations_at_the_end(window: float, expected: float) -> None:
    steps, scores = np.array([-10.0, 0.0, 10.0, 90.0, 95.0, 100.0]), np.array([7.0, 9.0, 4.0, 2.0, 6.0, 10.0])
    assert score_of("late", steps, scores, window) == pytest.approx(expected)


def test_the_difference_is_that_of_interquartile_means_over_tasks_and_seeds() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 2, 5))
    (finding,) = judge(claim(), [*results("a", a), *results("b", b)])
    assert finding.difference == pytest.approx(float(iqm(a)) - float(iqm(b)))


def test_tasks_are_strata() -> None:
    """Between tasks there may be any distance: without spread over seeds there is no interval."""
    levels = np.array([[0.0] * 5, [90.0] * 5])
    (finding,) = judge(claim(), [*results("a", levels + 7), *results("b", levels)])
    assert (finding.low, finding.high) == (pytest.approx(7.0), pytest.approx(7.0))


def test_nothing_is_decided_before_all_runs_are_finished() -> None:
    runs = [*results("a", 90 + SPREAD), *results("b", SPREAD)]
    (finding,) = judge(claim(), runs[:-1])
    assert (finding.verdict, finding.finished, finding.wanted) == ("undecided", 19, 20)
    assert finding.low > 5


def test_failed_runs_are_named_and_leave_it_open() -> None:
    runs = [*results("a", 90 + SPREAD), *results("b", SPREAD[:1]), *results("b", SPREAD, "failed")[5:]]
    (finding,) = judge(claim(), runs)
    assert finding.verdict == "undecided"
    assert finding.remarks[0] == "b on u, seed 0, failed"
    assert len(finding.remarks) == 5


def test_a_nan_is_never_dropped() -> None:
    scores = 90 + SPREAD.copy()
    scores[1, 2] = np.nan
    (finding,) = judge(claim(), [*results("a", scores), *results("b", SPREAD)])
    assert finding.verdict == "undecided"
    assert np.isnan(finding.difference)
    assert np.isnan(finding.low)
    assert finding.remarks == ("a on u, seed 2, diverged (a score is NaN)",)


@pytest.mark.parametrize(("score", "verdict"), [(70.0, "holds"), (40.0, "does not hold")])
def test_a_gain_is_compared_with_zero(score: float, verdict: str) -> None:
    (finding,) = judge(claim(than=None, statistic="gain"), results("a", score + SPREAD))
    assert (finding.verdict, finding.wanted) == (verdict, 10)
    assert finding.difference == pytest.approx(score - 50)


def test_the_same_results_give_the_same_interval() -> None:
    runs = [*results("a", 90 + SPREAD), *results("b", SPREAD)]
    assert judge(claim(), runs) == judge(claim(), runs)


def curves(group: str, *scores: float) -> list[Result]:
    """Five equal runs, evaluated at steps 0, 10, 20, ..."""
    steps = 10.0 * np.arange(len(scores))
    return [Result(group, "t", n, "", "finished", 1.0, "", "", "", steps, np.array(scores)) for n in range(5)]


def judged(part: Comparison, runs: list[Result]) -> float:
    texts = ("name", "paper", "where", "statement", "metric", tuple(range(5)), "settings", "rlpd")
    groups: dict[str, tuple[str, ...]] = {"a": (), "b": ("x=1",)}
    (finding,) = judge(Claim(*texts, (), {"t": ()}, groups, (part,)), runs)
    return finding.difference


@pytest.mark.parametrize(("window", "kept"), [(0.1, 0.0), (0.5, -30.0), (1.0, -35.0)])
def test_a_fall_after_the_window_does_not_count(window: float, kept: float) -> None:
    runs = curves("a", 40.0, 40.0, 10.0, 50.0, 5.0)
    assert judged(Comparison("a", None, "kept", "no_less", 3.0, window=window), runs) == kept


def test_a_method_that_acts_otherwise_from_step_0_on_is_measured_from_another_groups_start() -> None:
    """Group a falls at the hand-over itself, from the 40 of the policy that b continues with to 3."""
    runs = [*curves("a", 3.0, 5.0, 60.0), *curves("b", 40.0, 41.0, 42.0)]
    parts = {name: Comparison("a", None, name, "no_less", 3.0, start="b") for name in ("kept", "gain")}
    assert {name: judged(part, runs) for name, part in parts.items()} == {"kept": -37.0, "gain": 20.0}
    assert judged(Comparison("a", None, "kept", "no_less", 3.0), runs) == 0.0
    assert np.isnan(judged(parts["kept"], runs[:5])), "without b's runs there is no start"
    with pytest.raises(O2OSpecError, match="expected gain or kept"):
        Comparison("a", "b", "final", "more", 3.0, start="b")
    with pytest.raises(O2OSpecError, match="expected a part of the online steps"):
        Comparison("a", "b", "kept", "more", 3.0, window=0.0)
