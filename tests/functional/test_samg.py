# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import math

import pytest
import torch

from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.functional.samg import guidance_factor, kl_weight, latent_confidence, samg_value, two_sided_tail


def test_mix_is_exact_at_both_ends() -> None:
    value, offline = torch.randn(1000) * 100, torch.randn(1000) * 1e-3
    assert torch.equal(samg_value(value, offline, torch.zeros(1000)), value)
    assert torch.equal(samg_value(value, offline, torch.ones(1000)), offline)
    p = torch.rand(1000)
    torch.testing.assert_close(samg_value(value, offline, p), (1 - p) * value + p * offline)


def test_tail_of_the_standard_normal() -> None:
    z = torch.tensor([0.0, 1.0, -1.0, 1.959964, 3.0, -40.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 0.3173105079, 0.3173105079, 0.05, 0.0026997961, 0.0], dtype=torch.float64)
    torch.testing.assert_close(two_sided_tail(z), expected, rtol=1e-6, atol=1e-12)


def test_tail_is_uniform_on_its_own_normal() -> None:
    tails = two_sided_tail(torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    deciles = torch.quantile(tails[:100_000], torch.linspace(0.1, 0.9, 9))
    torch.testing.assert_close(deciles, torch.linspace(0.1, 0.9, 9), rtol=0.0, atol=0.01)


@pytest.mark.parametrize(
    ("aggregator", "expected"),
    [
        ("mean", (0.3173105 + 0.0455003) / 2),
        ("min", 0.0455003),
        ("geometric", math.sqrt(0.3173105 * 0.0455003)),
        ("chi_square", math.exp(-5 / 2)),  # two degrees of freedom: exp(-x / 2)
    ],
)
def test_aggregators_by_hand(aggregator: str, expected: float) -> None:
    latent = torch.tensor([[1.0, -2.0]])
    torch.testing.assert_close(latent_confidence(latent, aggregator), torch.tensor([expected]))  # type: ignore[arg-type]


@pytest.mark.parametrize("aggregator", ["mean", "min", "geometric", "chi_square"])
def test_aggregators_are_probabilities_that_fall_with_distance(aggregator: str) -> None:
    direction = torch.randn(12)
    p = latent_confidence(torch.linspace(0, 60, 200).unsqueeze(-1) * direction, aggregator)  # type: ignore[arg-type]
    assert p.isfinite().all()
    assert p[0] == pytest.approx(1.0)
    assert (p.diff() <= 1e-6).all()
    assert p[-1] < 0.2


def test_unknown_words_are_refused() -> None:
    with pytest.raises(O2OSpecError, match="got aggregator='median'"):
        latent_confidence(torch.zeros(1, 1), "median")  # type: ignore[arg-type]
    with pytest.raises(O2OSpecError, match="got guidance='cosine'"):
        guidance_factor(0, "cosine")  # type: ignore[arg-type]


@pytest.mark.parametrize("cutoff", [None, 0])
def test_a_fading_needs_its_end(cutoff: int | None) -> None:
    with pytest.raises(O2OSpecError, match=f"got cutoff={cutoff} for 'linear' guidance"):
        guidance_factor(0, "linear", cutoff)
    assert guidance_factor(10**9) == 1.0


def test_kl_weight_rises_once_and_stays() -> None:
    weights = [kl_weight(step / 100, 2.0) for step in range(101)]
    assert weights[:21] == [0.0] * 21
    assert weights == sorted(weights)
    assert weights[70:] == pytest.approx([2.0] * 31)
    assert [kl_weight(x, 2.0, hold=0.5, ramp=0.0) for x in (0.4, 0.5)] == [0.0, 2.0]


def test_the_guidance_is_at_most_whole_before_the_first_online_step() -> None:
    assert [guidance_factor(step, "linear", 10) for step in (-5, 0, 5)] == [1.0, 1.0, 0.5]
