# Copyright (c) The torchrl_o2o contributors.
#
# This source code is licensed under the MIT license found in the
# LICENSE file in the root directory of this source tree.
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.objectives import SoftUpdate

from torchrl_o2o.data import BalancedSampler, OnlineWriter, PoolSampler
from torchrl_o2o.errors import O2OSpecError
from torchrl_o2o.modules import make_actor, make_qvalue_ensemble
from torchrl_o2o.objectives import EnsembleSACLoss
from torchrl_o2o.priorities import Advantage
from torchrl_o2o.testing import SamplerContract, counting_storage, random_transitions


def by_row(rows: TensorDictBase | dict[str, Tensor]) -> Tensor:
    return 0.05 * rows["index"].double()


class TestContractUniform(SamplerContract):
    """alpha = 0: the balanced sampler."""

    alpha = 0.0
    capacity = 512

    def make_sampler(self) -> PoolSampler:
        return PoolSampler(by_row, self.num_offline, pool_size=1024, alpha=self.alpha)

    def expected_frequencies(self) -> Tensor:
        sizes = (self.num_offline, self.num_online)
        balanced = torch.cat([torch.full((size,), 0.5 / size) for size in sizes])
        weighted = balanced.double() * (self.alpha * by_row({"index": torch.arange(len(balanced))})).exp()
        return weighted / weighted.sum()


class TestContractPrioritized(TestContractUniform):
    """Frequencies are the balanced ones times p^alpha, up to the pool's finite size."""

    alpha = 0.8


def buffer(
    sampler: Any, *, num_online: int = 24, capacity: int = 4096, batch_size: int = 64, seed: int = 0, **settings: Any
) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(
        storage=counting_storage(40, num_online, capacity),
        sampler=sampler,
        writer=OnlineWriter(40),
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(seed),
        **settings,
    )


def test_alpha_zero_draws_the_balanced_samplers_very_rows_with_weight_one() -> None:
    expected = buffer(BalancedSampler(40, 0.25), seed=5)
    got = buffer(PoolSampler(by_row, 40, alpha=0.0, offline_fraction=0.25), seed=5)
    for _ in range(3):
        batch = got.sample()
        assert torch.equal(batch["index"], expected.sample()["index"])
        assert torch.equal(batch["priority_weight"], torch.ones(64))


def test_alpha_zero_gives_rlpds_updates() -> None:
    """Equal draws, equal numbers after three updates: weights of 1 change nothing."""
    data, states = random_transitions(64, 5, 3), []
    for sampler in (BalancedSampler(40, 0.5), PoolSampler(by_row, 40, alpha=0.0)):
        torch.manual_seed(0)
        replay = buffer(sampler, batch_size=32)
        critics, weighted = make_qvalue_ensemble(5, 3, num_qvalue_nets=3), isinstance(sampler, PoolSampler)
        loss = EnsembleSACLoss(make_actor(5, 3), critics, weight_actor=weighted)
        updater = SoftUpdate(loss, tau=0.1)
        optim = torch.optim.Adam(loss.parameters(), lr=1e-3)
        for _ in range(3):
            drawn = replay.sample()
            batch = data[drawn["index"]]
            if weighted:
                batch["priority_weight"] = drawn["priority_weight"]
            out = loss(batch)
            optim.zero_grad()
            (out["loss_qvalue"] + out["loss_actor"] + out["loss_alpha"]).backward()
            optim.step()
            updater.step()
        states.append(loss.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_full_correction_is_unbiased(alpha: float) -> None:
    """At beta = 1, E_P[u f] over the draws is the plain mean of f over the pool, for every f."""
    sampler = PoolSampler(by_row, 40, pool_size=512, alpha=alpha, beta=1.0, normalize="none")
    batch = buffer(sampler, batch_size=200_000).sample()
    log_prob, pool, _, _ = sampler._last
    for function in (lambda x: x, torch.sin, torch.ones_like):
        expected = function(pool.double()).mean()
        weighted = batch["priority_weight"].double() * function(batch["index"].double())
        error = weighted.std() / math.sqrt(len(weighted))
        assert (weighted.mean() - expected).abs() < 5 * error + 1e-6
    assert log_prob.exp().sum().item() == pytest.approx(1.0)


def test_weights_belong_to_the_rows_they_stand_by() -> None:
    """u falls with the row's priority, so it is a decreasing function of the row number here."""
    batch = buffer(PoolSampler(by_row, 40, beta=1.0, normalize="none")).sample()
    order = batch["index"].argsort()
    weights = batch["priority_weight"][order]
    assert (weights.diff() <= 1e-6).all()
    ratio = weights[0] / weights[-1]
    rows = batch["index"][order]
    torch.testing.assert_close(ratio, (0.3 * 0.05 * (rows[-1] - rows[0])).exp(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("normalize", ["batch", "pool", "max", "none"])
def test_normalizations(normalize: Any) -> None:
    sampler = PoolSampler(by_row, 40, alpha=1.0, beta=0.5, normalize=normalize)
    weight = buffer(sampler).sample()["priority_weight"].double()
    log_prob, _, drawn, _ = sampler._last
    raw = (1.0 / (1024 * log_prob.exp())) ** 0.5
    scale = {"batch": raw[drawn].mean(), "pool": raw.mean(), "max": raw.max(), "none": torch.tensor(1.0)}[normalize]
    torch.testing.assert_close(weight, raw[drawn] / scale, rtol=1e-5, atol=0)


def test_normalized_by_minibatch() -> None:
    sampler = PoolSampler(by_row, 40, alpha=1.0, minibatch_size=16)
    weights = buffer(sampler).sample()["priority_weight"]
    torch.testing.assert_close(weights.reshape(4, 16).mean(1), torch.ones(4))


def test_the_batch_is_scored_with_the_networks_of_that_moment() -> None:
    factor = {"value": 0.0}

    def score(rows: TensorDictBase) -> Tensor:
        return factor["value"] * rows["x"].double()

    replay = buffer(PoolSampler(score, 40, alpha=1.0), batch_size=2000)
    before = replay.sample()["x"].double().mean()
    factor["value"] = 0.2
    assert replay.sample()["x"].double().mean() > before + 5


def test_scores_see_source_and_index() -> None:
    seen: dict[str, Tensor] = {}

    def score(rows: TensorDictBase) -> Tensor:
        seen.update(index=rows["index"], is_offline=rows["is_offline"], x=rows["x"])
        return torch.zeros(len(rows))

    replay = buffer(PoolSampler(score, 40, pool_size=100, offline_fraction=0.25))
    replay.sample()
    assert torch.equal(seen["index"], seen["x"])
    assert torch.equal(seen["is_offline"], seen["index"] < 40)
    assert int(seen["is_offline"].sum()) == 25
    assert list(replay.storage[:].keys()) == ["x"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_whatever_the_scores_the_batch_is_finite_and_the_clamped_are_counted(bad: float) -> None:
    def score(rows: TensorDictBase) -> Tensor:
        return torch.where(rows["index"] == 45, bad, by_row(rows))

    sampler = PoolSampler(score, 40, normalize="pool")
    batch = buffer(sampler).sample()
    assert batch["priority_weight"].isfinite().all()
    assert sampler.num_clamped > 0
    assert all(value.isfinite() for value in sampler.metrics().values())
    assert 0 < sampler.metrics()["pool_clamped"] <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_usable_score_at_all_falls_back_to_uniform(value: float) -> None:
    sampler = PoolSampler(lambda rows: torch.full((len(rows),), value), 40, pool_size=100)
    buffer(sampler).sample()
    torch.testing.assert_close(sampler.metrics()["np_max"], torch.tensor(1.0).double())
    assert sampler.metrics()["pool_clamped"] == 1


def test_metrics_by_hand() -> None:
    """Offline rows three times as likely as online ones: N p is 1.5 and 0.5."""
    sampler = PoolSampler(
        lambda rows: torch.where(rows["is_offline"], math.log(3.0), 0.0), 40, pool_size=2000, alpha=1.0
    )
    assert sampler.metrics() == {}
    buffer(sampler, batch_size=20_000).sample()
    metrics = sampler.metrics()
    assert metrics["offline_share"].item() == pytest.approx(0.75, abs=0.02)
    assert metrics["np_q05"].item() == pytest.approx(0.5)
    assert metrics["np_max"].item() == pytest.approx(1.5)
    assert metrics["effective_sample_size"].item() == pytest.approx(1 / (0.5 * (1.5**2 + 0.5**2)))
    assert metrics["kl_to_uniform"].item() == pytest.approx(-0.5 * (math.log(1.5) + math.log(0.5)))
    assert metrics["pool_clamped"] == 0
    assert metrics["beta"].item() == pytest.approx(0.4)


def test_metrics_include_the_prioritys() -> None:
    loss = EnsembleSACLoss(make_actor(5, 3), make_qvalue_ensemble(5, 3, num_qvalue_nets=2))
    data = random_transitions(64, 5, 3)
    advantage = Advantage(loss, num_samples=2)
    sampler = PoolSampler(lambda rows: advantage(data[rows["index"]]), 40)
    buffer(sampler).sample()
    assert "advantage_q50" not in sampler.metrics()
    sampler.log_priority = _Through(advantage, lambda rows: data[rows["index"]])
    buffer(sampler).sample()
    assert {"advantage_q05", "advantage_q50", "advantage_q95", "advantage_clamped"} <= set(sampler.metrics())


class _Through:
    def __init__(self, advantage: Advantage, rows: Callable[[TensorDictBase], TensorDictBase]) -> None:
        self.advantage, self.rows, self.metrics = advantage, rows, advantage.metrics

    def __call__(self, rows: TensorDictBase) -> Tensor:
        return self.advantage(self.rows(rows))


def test_exponents_may_be_annealed_and_are_saved() -> None:
    sampler = PoolSampler(by_row, 40)
    sampler.beta, sampler.alpha = 0.9, 0.2
    other = PoolSampler(by_row, 40)
    other.load_state_dict(sampler.state_dict())
    assert (other.beta, other.alpha) == (0.9, 0.2)


def test_emptying_forgets() -> None:
    sampler = PoolSampler(by_row, 40)
    replay = buffer(sampler)
    replay.sample()
    replay.empty()
    assert sampler.metrics() == {}
    assert sampler.num_pools == 0


def test_prefetch_is_refused() -> None:
    with pytest.raises(O2OSpecError, match="build the buffer without prefetch"):
        buffer(PoolSampler(by_row, 40), prefetch=2).sample()


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(O2OSpecError, match=r"returned shape \(1024, 1\) for 1024 rows"):
        buffer(PoolSampler(lambda rows: torch.zeros(len(rows), 1), 40)).sample()
    with pytest.raises(O2OSpecError, match=r"returned a ndarray for 1024 rows, expected a tensor of shape \(1024,\)"):
        buffer(PoolSampler(lambda rows: torch.zeros(len(rows)).numpy(), 40)).sample()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.int64])
def test_scores_of_another_dtype_are_refused(dtype: torch.dtype) -> None:
    told = f"got scores of type {str(dtype).removeprefix('torch.')}, expected floating point"
    with pytest.raises(O2OSpecError, match=told):
        buffer(PoolSampler(lambda rows: torch.zeros(len(rows), dtype=dtype), 40)).sample()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool_size": 0}, "got pool_size=0"),
        ({"alpha": -1.0}, "got alpha=-1.0"),
        ({"alpha": float("nan")}, "got alpha=nan"),
        ({"beta": 1.5}, "got beta=1.5"),
        ({"normalize": "sum"}, "got normalize='sum'"),
        ({"offline_fraction": 2.0}, "got offline_fraction=2.0"),
        ({"misaligned_weights": True}, "expected pool_size=None"),
    ],
)
def test_arguments_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(O2OSpecError, match=message):
        PoolSampler(by_row, 40, **settings)


def test_capacity_below_the_pool_is_refused() -> None:
    sampler = PoolSampler(by_row, 40, pool_size=100)
    sampler.check_capacity(counting_storage(40, 2, 50), 10)
    with pytest.raises(O2OSpecError, match=r"a batch of 100 .* needs 50 online rows, but the storage has 49"):
        sampler.check_capacity(counting_storage(40, 2, 49), 10)
    with pytest.raises(O2OSpecError, match="a batch of 120"):
        PoolSampler.as_published(by_row, 40).check_capacity(counting_storage(40, 2, 49), 120)
