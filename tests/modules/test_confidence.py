# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_o2o.data import TRANSITION
from torchrl_o2o.errors import O2ODataError, O2OSpecError
from torchrl_o2o.modules import (
    Confidence,
    ConstantConfidence,
    DensityRatio,
    DensityRatioConfidence,
    OfflineConfidence,
    RandomConfidence,
    make_conditional_vae,
    make_inverse_dynamics,
)
from torchrl_o2o.testing import random_transitions


class Linear(nn.Module):
    """An encoder with known latent means: scale * (s, a), whose divergence is that of the given width."""

    def __init__(self, scale: float = 1.0, std: float = 0.5) -> None:
        super().__init__()
        self.latent_dim = 5
        self.scale = nn.Parameter(torch.tensor(scale))
        self.std = std

    def encode(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.scale * torch.cat([observation, action], -1)
        return mean, torch.full_like(mean, self.std)


def pairs(number: int, shift: float = 0.0, seed: int = 0) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(number, 5, generator=generator) + shift
    return TensorDict({"observation": values[:, :3], "action": values[:, 3:]}, [number])


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("quiet")
def test_fit_and_probability_by_hand() -> None:
    data = pairs(4000)
    confidence = OfflineConfidence(Linear(3.0), threshold=0.5)
    report = confidence.fit(data, batch_size=999)
    mean = 3.0 * torch.cat([data["observation"], data["action"]], -1)
    torch.testing.assert_close(confidence.latent_mean, mean.mean(0))
    torch.testing.assert_close(confidence.latent_scale, (1 / mean.std(0)).diag())
    z = ((mean - mean.mean(0)) / mean.std(0)).abs()
    expected = (2 * (1 - torch.distributions.Normal(0.0, 1.0).cdf(z))).mean(-1)
    torch.testing.assert_close(
        confidence.probability(data["observation"], data["action"]), expected, rtol=1e-4, atol=1e-5
    )
    p = confidence(data)["p_off"]
    torch.testing.assert_close(p, torch.where(expected >= 0.5, expected, 0.0).unsqueeze(-1), rtol=1e-4, atol=1e-5)
    assert report.passing == pytest.approx(float((p > 0).float().mean()))
    assert report.mean == pytest.approx(0.5, abs=0.02)  # tails of the fitted Normal are uniform
    assert report.spread == pytest.approx(3.0, rel=0.05)


def test_whitening_sees_unusual_combinations() -> None:
    """The action repeats the state; apart, either is usual, and only the fitted covariance tells what goes together."""
    data = pairs(4000)
    data["action"] = data["observation"][:, :2] + 0.05 * data["action"]
    crossed = data.copy().set("action", data["action"].flip(0))
    share = {}
    for whiten in (False, True):
        confidence = OfflineConfidence(Linear(), whiten=whiten, aggregator="chi_square", threshold=0.0)
        confidence.fit(data)
        share[whiten] = float(confidence(crossed.clone())["p_off"].mean() / confidence(data.clone())["p_off"].mean())
    assert share[False] > 0.6
    assert share[True] < 0.05
    z = confidence._standardized(confidence._encode(data, 4000)[0])
    torch.testing.assert_close(z.T.cov(), torch.eye(5), rtol=1e-3, atol=1e-3)


def test_far_pairs_get_less() -> None:
    confidence = OfflineConfidence(Linear(), threshold=0.0)
    confidence.fit(pairs(1000))
    p = [float(confidence(pairs(1000, shift, seed=1))["p_off"].mean()) for shift in (0.0, 1.0, 3.0, 30.0)]
    assert p[0] > p[1] > p[2] > p[3]
    assert p[3] < 1e-6


@pytest.mark.parametrize(
    ("encoder", "threshold", "message"),
    [
        (Linear(1e-3), 0.5, "the latent has collapsed .*Anneal the divergence's weight"),
        (Linear(1.0), 0.99, "only 0.0% of the data set's own rows reach the threshold 0.99 .*lower the threshold"),
        (Linear(1.0), 0.01, "% of the data set's own rows reach the threshold 0.01 .*rejects no row; raise it"),
    ],
)
def test_health_checks(encoder: nn.Module, threshold: float, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        OfflineConfidence(encoder, threshold=threshold).fit(pairs(1000))


def test_vanishing_divergence_is_a_collapse() -> None:
    class Prior(Linear):
        def encode(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
            mean = 0.02 * torch.cat([observation, action], -1)
            return mean, torch.ones_like(mean)

    with pytest.warns(UserWarning, match=r"collapsed \(divergence 0.0002"):
        OfflineConfidence(Prior()).fit(pairs(1000))


@pytest.mark.usefixtures("quiet")
def test_no_threshold_is_no_fault() -> None:
    assert OfflineConfidence(Linear(), threshold=0.0).fit(pairs(1000)).passing == 1.0


def test_encoder_is_frozen_and_part_of_the_state() -> None:
    encoder = Linear()
    confidence = OfflineConfidence(encoder)
    confidence.fit(pairs(100))
    before = confidence(pairs(10, seed=2))["p_off"].clone()
    with torch.no_grad():
        encoder.scale.mul_(100.0)
    assert torch.equal(confidence(pairs(10, seed=2))["p_off"], before)
    assert not any(value.requires_grad for value in confidence.parameters())
    other = OfflineConfidence(Linear(7.0))
    other.load_state_dict(confidence.state_dict())
    assert torch.equal(other(pairs(10, seed=2))["p_off"], before)


@pytest.mark.parametrize("aggregator", ["mean", "min", "geometric", "chi_square"])
def test_vae_and_embedding_serve_as_encoders(aggregator: str) -> None:
    data = random_transitions(256, 3, 2, generator=torch.Generator().manual_seed(0))
    for encoder in (make_conditional_vae(3, 2, hidden_sizes=(8,)), make_inverse_dynamics(3, 2, hidden_sizes=(8,))):
        confidence = OfflineConfidence(encoder, aggregator=aggregator, threshold=0.0)  # type: ignore[arg-type]
        report = confidence.fit(data)
        p = confidence(data.clone())["p_off"]
        assert p.shape == (256, 1)
        assert ((p >= 0) & (p <= 1)).all()
        assert (report.kl != report.kl) == (encoder.out_keys == ["predicted_action"])  # an embedding has no divergence


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(O2OSpecError, match=r"expected an encoder with encode\(observation, action\)"):
        OfflineConfidence(nn.Linear(3, 2))
    without = Linear()
    del without.latent_dim
    with pytest.raises(O2OSpecError, match=r"got Linear, .* and latent_dim"):
        OfflineConfidence(without)
    with pytest.raises(O2OSpecError, match=r"got threshold=1\.5"):
        OfflineConfidence(Linear(), threshold=1.5)
    with pytest.raises(O2OSpecError, match="got aggregator='max'"):
        OfflineConfidence(Linear(), aggregator="max")  # type: ignore[arg-type]
    with pytest.raises(O2OSpecError, match=r"call confidence\.fit"):
        OfflineConfidence(Linear())(pairs(4))
    with pytest.raises(O2ODataError, match="got 1 rows"):
        OfflineConfidence(Linear()).fit(pairs(1))
    with pytest.raises(O2ODataError, match="not all finite"):
        OfflineConfidence(Linear(float("inf"))).fit(pairs(10))
    with pytest.raises(O2OSpecError, match="got value=2"):
        ConstantConfidence(2.0)


def test_constant_and_random() -> None:
    assert torch.equal(ConstantConfidence(0.25)(pairs(6))["p_off"], torch.full((6, 1), 0.25))
    first, second = (
        RandomConfidence(generator=torch.Generator().manual_seed(3), threshold=0.4)(pairs(5000))["p_off"] for _ in "ab"
    )
    assert torch.equal(first, second)
    assert float((first == 0).float().mean()) == pytest.approx(0.4, abs=0.03)
    assert float(first[first > 0].min()) >= 0.4


def test_density_ratio() -> None:
    ratio = DensityRatio(3, 2, hidden_sizes=(8,), in_keys=(("agent", "state"), ("agent", "action")))
    data = pairs(50).rename_key_("observation", ("agent", "state")).rename_key_("action", ("agent", "action"))
    confidence = DensityRatioConfidence(ratio, threshold=0.0)
    expected = 1 / (1 + ratio(data.clone())["log_density_ratio"].exp())
    torch.testing.assert_close(confidence(data)["p_off"], expected)
    assert not data["p_off"].requires_grad


def test_check_reports_without_fitting() -> None:
    ratio = DensityRatio(3, 2, hidden_sizes=(8,))
    data = pairs(300)
    report = DensityRatioConfidence(ratio, threshold=0.5).check(data, batch_size=77)
    raw = 1 / (1 + ratio(data.clone())["log_density_ratio"].detach().exp())
    assert report.mean == pytest.approx(float(raw.mean()), rel=1e-5)
    assert report.passing == pytest.approx(float((raw >= 0.5).float().mean()))
    assert report.kl != report.kl
    with pytest.warns(UserWarning, match=r"only 0.0% of the data set's own rows reach the threshold 0.5 "):
        DensityRatioConfidence(DensityRatio(3, 2, hidden_sizes=(8,), output_bias=50.0)).check(data)


@pytest.mark.usefixtures("quiet")
def test_a_density_ratio_may_pass_all_of_its_data() -> None:
    ratio = DensityRatio(3, 2, hidden_sizes=(8,), output_bias=-50.0)
    assert DensityRatioConfidence(ratio).check(pairs(300)).passing == 1.0


CONFIDENCES = [
    ConstantConfidence(0.5, out_key=("next", "p_off")),
    RandomConfidence(out_key=("next", "p_off")),
    DensityRatioConfidence(DensityRatio(3, 2, hidden_sizes=(8,)), out_key=("next", "p_off")),
    OfflineConfidence(Linear(), out_key=("next", "p_off")),
]


@pytest.mark.parametrize("confidence", CONFIDENCES, ids=lambda value: type(value).__name__)
def test_one_interface(confidence: Confidence) -> None:
    """All write one probability per transition, at insertion, and nothing else."""
    confidence = copy.deepcopy(confidence)
    if isinstance(confidence, OfflineConfidence):
        confidence.fit(pairs(100))
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(20), batch_size=8)
    for step in range(3):
        data = random_transitions(1, 3, 2, generator=torch.Generator().manual_seed(step))
        buffer.extend(confidence(data.select(*TRANSITION)))
    rows = buffer.storage[:]
    assert rows["next", "p_off"].shape == (3, 1)
    assert set(rows.keys(True, True)) == {*TRANSITION, ("next", "p_off"), "index"}
    assert buffer.sample()["next", "p_off"].shape == (8, 1)


def test_an_entry_that_is_missing_is_named() -> None:
    """A constant was written without its action, and others failed in torch."""
    rows, confidence = random_transitions(4, 3, 2).exclude("action"), ConstantConfidence(0.5)
    for call in (confidence, confidence.check):
        with pytest.raises(O2OSpecError, match="expected 'action', which ConstantConfidence reads"):
            call(rows)
