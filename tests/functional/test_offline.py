# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
"""Equations of the offline learners against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from torchrl_o2o import functional_offline as F
from torchrl_o2o.errors import O2OSpecError

ADVANTAGE = tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)


def test_normal_log_prob_by_hand() -> None:
    # N(1; 0, 2): -1/8 - log 2 - 0.918939; N(-1; -1, 1): -0.918939
    got = F.normal_log_prob(tensor([1.0, -1.0]), tensor([0.0, -1.0]), tensor([2.0, 1.0]))
    assert got.item() == pytest.approx(-0.125 - math.log(2.0) - 2 * 0.9189385332, rel=1e-6)


def test_clip_score_bounds_from_above_only() -> None:
    assert F.clip_score(ADVANTAGE, 0.5).tolist() == [-1.0, 0.0, 0.5, 0.5]
    assert F.clip_score(ADVANTAGE, None) is ADVANTAGE


def test_advantage_weight() -> None:
    got = F.advantage_weight(ADVANTAGE, 3.0, 100.0)
    assert got.tolist() == pytest.approx([math.exp(-3.0), 1.0, math.exp(3.0), 100.0])
    assert F.advantage_weight(ADVANTAGE, 3.0, None)[-1].item() == pytest.approx(math.exp(6.0))


def test_awac_exponential_weights() -> None:
    assert F.awac_weight(ADVANTAGE, 0.5, weight_clip=20.0).tolist() == pytest.approx(
        [math.exp(-2.0), 1.0, math.exp(2.0), 20.0]
    )
    assert F.awac_weight(ADVANTAGE, 0.5, "exp", weight_clip=20.0)[-1].item() == pytest.approx(math.exp(4.0))


def test_awac_softmax_weights_average_to_one() -> None:
    got = F.awac_weight(tensor([0.0, math.log(3.0)]), 1.0, "softmax")  # softmax 1/4, 3/4, times two
    assert got.tolist() == pytest.approx([0.5, 1.5])
    assert F.awac_weight(torch.randn(3, 5), 0.3, "softmax").mean().item() == pytest.approx(1.0)


def test_awac_softmax_does_not_overflow() -> None:
    assert F.awac_weight(tensor([1e4, 0.0]), 0.1, "softmax").tolist() == [2.0, 0.0]


def test_awac_whitened_weights_ignore_shift_and_scale() -> None:
    got = F.awac_weight(tensor([-1.0, 1.0], dtype=torch.float64), 2.0, "whiten")  # std (n-1) is sqrt(2)
    assert got.tolist() == pytest.approx([math.exp(-1 / math.sqrt(8)), math.exp(1 / math.sqrt(8))], rel=1e-4)
    torch.testing.assert_close(
        F.awac_weight(7.0 * ADVANTAGE + 3.0, 2.0, "whiten"),
        F.awac_weight(ADVANTAGE, 2.0, "whiten"),
        rtol=1e-4,
        atol=0.0,
    )


def test_awac_sign_weights() -> None:
    assert F.awac_weight(ADVANTAGE, 1.0, "sign").tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["exp_clip", "exp", "softmax", "whiten"])
def test_awac_weights_are_one_at_an_infinite_temperature(kind: F.AdvantageWeight) -> None:
    torch.testing.assert_close(F.awac_weight(ADVANTAGE, math.inf, kind), torch.ones_like(ADVANTAGE))


def test_expectile_objective_by_hand() -> None:
    assert F.expectile_objective(tensor([-2.0, 0.0, 3.0]), 0.9).tolist() == pytest.approx([0.4, 0.0, 8.1])


@pytest.mark.parametrize(("expectile", "value"), [(0.5, 2.5), (0.9, 7.5)])
def test_expectile_minimizer(expectile: float, value: float) -> None:
    # Of {0, 0, 0, 10}: 3 (1 - t) v = t (10 - v), so v = 10 t / (3 - 2 t), the mean at t = 0.5.
    sample = tensor([0.0, 0.0, 0.0, 10.0], dtype=torch.float64)
    grid = torch.linspace(0.0, 10.0, 10_001, dtype=torch.float64)
    objective = F.expectile_objective(sample.unsqueeze(-1) - grid, expectile).mean(0)
    assert grid[objective.argmin()].item() == pytest.approx(value, abs=1e-3)


def test_smoothed_action_clips_noise_then_action() -> None:
    low, high = tensor([-2.0]), tensor([2.0])
    action, noise = tensor([[0.0], [0.0], [1.9], [-1.9]]), tensor([[0.5], [9.0], [9.0], [-9.0]])
    got = F.smoothed_action(action, noise, 0.2, 0.5, low, high)  # half-width 2: noise 0.2, then clipped at 1
    assert got.squeeze(-1).tolist() == pytest.approx([0.2, 1.0, 2.0, -2.0])


def test_q_normalization_is_detached_and_invariant_to_scale() -> None:
    qvalue = tensor([-1.0, 2.0, 3.0], requires_grad=True)
    weight = F.q_normalization(qvalue, 2.5)
    assert weight.item() == pytest.approx(1.25)
    assert not weight.requires_grad
    torch.testing.assert_close(F.q_normalization(10 * qvalue) * 10 * qvalue, F.q_normalization(qvalue) * qvalue)


def test_q_normalization_of_critics_that_are_zero_everywhere() -> None:
    """The actor's objective lambda Q was NaN; critics with a last layer of zeros begin so."""
    qvalue = torch.zeros(3, requires_grad=True)
    (F.q_normalization(qvalue, 2.5) * qvalue).mean().backward()
    assert (F.q_normalization(qvalue, 2.5) * qvalue).tolist() == [0.0, 0.0, 0.0]
    assert qvalue.grad is not None
    assert qvalue.grad.isfinite().all()


def test_gaussian_kl_by_hand() -> None:
    # Dimension 0: 0.5 (mu^2 + s^2 - 1 - log s^2) = 0.5 (1 + 4 - 1 - 2 log 2); dimension 1: 0. Their mean.
    got = F.gaussian_kl(tensor([1.0, 0.0]), tensor([2.0, 1.0]))
    assert got.item() == pytest.approx(0.25 * (4.0 - 2.0 * math.log(2.0)))


def test_elbo_penalty_by_hand() -> None:
    reconstruction = tensor([[[1.0, 0.0]], [[0.0, 3.0]]])  # two samples of one row
    got = F.elbo_penalty(reconstruction, tensor([[0.0, 0.0]]), tensor([[2.0]]), tensor([[1.0]]), 0.5)
    # squared errors 1, 0, 0, 9: mean 2.5; KL = 0.5 * 4 = 2
    assert got.tolist() == [3.5]


def test_iwae_penalty_of_one_sample_by_hand() -> None:
    # Decoder std sqrt(1/4) = 0.5: log N(1; 0, 0.5) = -2 + log 2 - c; prior log N(1; 0, 1) = -0.5 - c; encoder
    # log N(1; 1, 2) = -log 2 - c.
    constant = 0.9189385332046727
    got = F.iwae_penalty(tensor([[[0.0]]]), tensor([[1.0]]), tensor([[[1.0]]]), tensor([[1.0]]), tensor([[2.0]]), 1.0)
    assert got.item() == pytest.approx(-(-2.0 + math.log(2.0) - constant - 0.5 + math.log(2.0)), rel=1e-6)


def test_iwae_penalty_tightens_with_samples() -> None:
    """Jensen: the bound on average falls with the number of samples, and equals it for equal terms."""
    generator = torch.Generator().manual_seed(0)
    mean, std, action = torch.zeros(4000, 2), torch.full((4000, 2), 0.5), torch.zeros(4000, 3)

    def bound(samples: int) -> float:
        latent = mean + std * torch.randn(samples, 4000, 2, generator=generator)
        reconstruction = latent.mean(-1, keepdim=True).expand(-1, -1, 3)
        return F.iwae_penalty(reconstruction, action, latent, mean, std, 0.5).mean().item()

    assert bound(16) < bound(4) < bound(1)
    same = tensor([[[0.3]]]).expand(5, 1, 1)
    arguments = (tensor([[1.0]]), tensor([[0.1]]), tensor([[2.0]]))
    one = F.iwae_penalty(same[:1], arguments[0], same[:1], *arguments[1:], 1.0)
    torch.testing.assert_close(F.iwae_penalty(same, arguments[0], same, *arguments[1:], 1.0), one)


def test_spot_cooling_stops_at_its_floor() -> None:
    assert F.spot_cooling(0.3, 300, 1000, 0.2) == pytest.approx(0.21)
    assert F.spot_cooling(0.3, 900, 1000, 0.5) == pytest.approx(0.15)
    assert F.spot_cooling(0.3, -500, 1000) == 0.3, "an offline phase counts its steps up to 0"
    with pytest.raises(O2OSpecError, match="got total_steps=0, expected at least 1 step"):
        F.spot_cooling(0.3, 1, 0)


def test_one_row_is_whitened_to_one_and_an_unknown_form_is_refused() -> None:
    assert F.awac_weight(tensor([3.0]), 1.0, "whiten").tolist() == [1.0]
    with pytest.raises(O2OSpecError, match="got kind='sofmax'"):
        F.awac_weight(tensor([3.0]), 1.0, "sofmax")  # type: ignore[arg-type]
