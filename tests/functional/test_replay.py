# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""A3RL's equations on numbers worked out by hand, and the references' own."""

from __future__ import annotations

import math

import pytest
import torch

from tests import golden_vectors as golden
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.replay import (
    advantage_aligned_log_priority,
    annealed_alpha,
    annealed_beta,
    centered_rank,
    finite_scores,
    importance_log_weight,
    js_conjugate,
    js_derivative,
    kl_to_uniform,
    mean_one_log_ratio,
    resampling_log_prob,
    standardized,
)


def test_js_terms_by_hand() -> None:
    log_ratio = torch.tensor([3.0], dtype=torch.float64).log()  # w = 3: f'(w) = log(6/4), f*(f'(w)) = log(4/2)
    torch.testing.assert_close(js_derivative(log_ratio), torch.tensor([math.log(1.5)], dtype=torch.float64))
    torch.testing.assert_close(js_conjugate(log_ratio), torch.tensor([math.log(2.0)], dtype=torch.float64))


def test_js_terms_are_the_references() -> None:
    """misc/js_A, with w = 0 among its ratios, where only the references' epsilon is finite."""
    tree = golden.load("misc/js_A")
    log_ratio = (tree["w"] + 1e-10).log()
    golden.assert_close(js_derivative(log_ratio, 1e-10), tree["out/f_prime_eps"], "f'")
    golden.assert_close(js_conjugate(log_ratio, 1e-10), tree["out/f_star_of_f_prime_eps"], "f* of f'")
    positive = tree["w"] > 0.01
    exact = tree["w"][positive].log()
    golden.assert_close(js_derivative(exact), tree["out/f_prime_eps"][positive], "f' without epsilon", 1e-6)
    golden.assert_close(js_conjugate(exact), tree["out/f_star_of_f_prime_eps"][positive], "f* without epsilon", 1e-6)


def test_fenchel_equality_with_the_golden_f() -> None:
    r"""f*(f'(w)) = w f'(w) - f(w)."""
    tree = golden.load("misc/js_A")
    w, positive = tree["w"], tree["w"] > 0
    log_ratio = w[positive].log()
    expected = w[positive] * js_derivative(log_ratio) - tree["out/f"][positive]
    torch.testing.assert_close(js_conjugate(log_ratio), expected, rtol=1e-8, atol=1e-8)


def test_js_minimizer_is_the_ratio_and_the_minimum_minus_two_js() -> None:
    tree = golden.load("misc/js_A")
    online, offline = tree["toy/p_online"], tree["toy/p_offline"]
    log_ratio = torch.zeros_like(online, requires_grad=True)
    optim = torch.optim.LBFGS([log_ratio], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optim.zero_grad()
        loss = (offline * js_conjugate(log_ratio)).sum() - (online * js_derivative(log_ratio)).sum()
        loss.backward()
        return loss

    minimum = optim.step(closure)
    torch.testing.assert_close(log_ratio.detach().exp(), tree["out/toy_optimal_weight"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(closure().detach(), tree["out/toy_minus_2js"], rtol=1e-8, atol=1e-8)
    assert minimum is not None


@pytest.mark.parametrize("extreme", [-1e4, 1e4])
def test_js_terms_do_not_overflow(extreme: float) -> None:
    log_ratio = torch.tensor([extreme], requires_grad=True)
    total = js_conjugate(log_ratio) - js_derivative(log_ratio)
    total.sum().backward()
    assert total.isfinite().all()
    assert log_ratio.grad.isfinite().all()


def test_log_priority_by_hand() -> None:
    log_ratio, advantage = torch.tensor([0.5, -0.5, 9.0]), torch.tensor([1.0, 2.0, -1.0])
    offline = torch.tensor([True, True, False])
    got = advantage_aligned_log_priority(log_ratio, advantage, offline, adv_temp=2.0)
    assert got.tolist() == [2.5, 3.5, -2.0]  # the online row's ratio counts as 1


def test_ratios_have_mean_one_over_offline_rows() -> None:
    log_ratio = torch.tensor([[0.0, 2.0, 50.0], [1.0, -3.0, -9.0]])
    offline = torch.tensor([[True, True, False], [True, False, True]])
    weights = mean_one_log_ratio(log_ratio, offline, temperature=5.0).exp()
    torch.testing.assert_close((weights * offline).sum(-1) / 2, torch.ones(2))
    torch.testing.assert_close(weights[0, 1] / weights[0, 0], torch.tensor(2.0 / 5.0).exp())


def test_ratios_without_offline_rows_are_left() -> None:
    log_ratio = torch.tensor([0.3, -1.0])
    assert torch.equal(mean_one_log_ratio(log_ratio, torch.zeros(2, dtype=torch.bool)), log_ratio)


def test_resampling_probabilities() -> None:
    log_priority = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    prob = resampling_log_prob(log_priority, 0.5).exp()
    powers = log_priority.exp() ** 0.5
    torch.testing.assert_close(prob, powers / powers.sum())
    torch.testing.assert_close(prob.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(resampling_log_prob(log_priority + 100.0, 0.5), prob.log())
    torch.testing.assert_close(resampling_log_prob(log_priority, 0.0).exp(), torch.full_like(prob, 1 / 3))
    assert resampling_log_prob(torch.tensor([0.0, 1e5]), 1.0).isfinite().all()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_importance_weights(beta: float) -> None:
    prob = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    weights = importance_log_weight(prob.log(), beta).exp()
    torch.testing.assert_close(weights, (1.0 / (3.0 * prob)) ** beta)


def test_full_correction_gives_the_uniform_mean() -> None:
    """E_P[u f] = mean of f at beta = 1, and not before."""
    torch.manual_seed(0)
    values, log_prob = torch.randn(50, dtype=torch.float64), resampling_log_prob(torch.randn(50).double() * 3, 0.8)
    full, half = importance_log_weight(log_prob, 1.0).exp(), importance_log_weight(log_prob, 0.5).exp()
    torch.testing.assert_close((log_prob.exp() * full * values).sum(), values.mean())
    assert ((log_prob.exp() * half * values).sum() - values.mean()).abs() > 1e-3


def test_beta_rises_to_one() -> None:
    assert annealed_beta(0.4, 0.0) == 0.4
    assert annealed_beta(0.4, 1.0) == 1.0
    assert annealed_beta(0.4, 2.0) == 1.0


def test_alpha_is_on_a_line() -> None:
    assert [annealed_alpha(0.3, 0.1, progress) for progress in (-1.0, 0.0)] == [0.3, 0.3]
    assert annealed_alpha(0.3, 0.1, 0.25) == pytest.approx(0.25)
    assert [annealed_alpha(0.3, 0.1, progress) for progress in (1.0, 2.0)] == pytest.approx([0.1, 0.1])


def test_kl_to_uniform_by_hand() -> None:
    log_prob = torch.tensor([0.25, 0.75]).log()
    torch.testing.assert_close(kl_to_uniform(log_prob), torch.tensor(0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0)))


def test_standardized_scores() -> None:
    torch.manual_seed(0)
    score = torch.randn(1000) * 7 + 1e3
    got = standardized(score)
    torch.testing.assert_close(got.mean(), torch.tensor(0.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(got.std(correction=0), torch.tensor(1.0), atol=1e-3, rtol=0)
    assert (standardized(torch.full((5,), 1e6)).abs() < 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_any_floating_type_become_finite(dtype: torch.dtype) -> None:
    score, changed = finite_scores(torch.tensor([1.0, math.nan, 3.0, math.inf, -math.inf], dtype=dtype))
    assert torch.equal(score, torch.tensor([1.0, 1.0, 3.0, 3.0, 1.0], dtype=dtype))
    assert changed.tolist() == [False, True, False, True, True]
    with pytest.raises(O2OSpecError, match="got scores of type complex128, expected floating point"):
        finite_scores(torch.zeros(3, dtype=torch.complex128))


def test_centered_ranks() -> None:
    assert torch.equal(centered_rank(torch.full((4,), 3.0)), torch.zeros(4))
    tied = centered_rank(torch.tensor([1.0, 1.0, 5.0]))
    torch.testing.assert_close(tied, torch.tensor([-0.8660, -0.8660, 1.7321]), atol=1e-4, rtol=0)
    torch.manual_seed(0)
    score = torch.randn(101)
    assert torch.equal(centered_rank(score), centered_rank(score.exp()))
    assert centered_rank(torch.tensor([2.0])).tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_standardized_scores_of_any_size(dtype: torch.dtype) -> None:
    """The same whatever their unit, up to the largest number there is."""
    score, largest = torch.tensor([1.0, -1.0, 0.5, 0.5], dtype=dtype), torch.finfo(dtype).max
    expected = standardized(score)
    assert expected.isfinite().all()
    for unit in (1e10, 1e18, largest):
        torch.testing.assert_close(standardized(score * unit), expected, rtol=1e-5, atol=1e-6)
